"""Which calls are checked while tests run: beartype for every function but those defined anew at each call."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """What beartype makes of a function; one inside another stays: compiling its checks took a sixth of all time."""
    return function if "<locals>" in function.__qualname__ else beartype(function)
