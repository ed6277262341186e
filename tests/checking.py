"""Which calls are checked while tests run: by jaxtyping where a signature names an array, else by beartype alone.

What jaxtyping does at each call took a quarter of the tests' time, most of it for functions without arrays, or inside
others and so decorated anew at each call of these. Those inside others are not checked.
"""

from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any, Literal, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

_jaxtyped: Any = jaxtyping.jaxtyped
_bear = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def install() -> None:
    """Checks every module of the package that is imported from now on."""
    jaxtyping.jaxtyped = _checked  # by this name the hook decorates
    install_import_hook("sublim_interp", "beartype.beartype")


def _checked(subject: Any = None, *, typechecker: Any) -> Any:
    """A function or class as it is checked; without one, the decorator."""
    if subject is None:
        return partial(_checked, typechecker=typechecker)
    if isinstance(subject, type) or not hasattr(subject, "__annotations__"):
        return _jaxtyped(subject, typechecker=typechecker)
    if "<locals>" in subject.__qualname__:
        return subject
    return _plain(subject) if _is_plain(subject) else _jaxtyped(subject, typechecker=typechecker)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """What beartype makes of a function, where jaxtyping is not switched off."""
    checked = _bear(function)

    @wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        return (function if jaxtyping.config.jaxtyping_disable else checked)(*args, **named)

    return call


def _is_plain(function: Callable[..., Any]) -> bool:
    """Whether a signature names no array, and nothing in quotes, which beartype might not find."""
    return not any(
        isinstance(part, str) or "jaxtyping" in repr(part)
        for hint in function.__annotations__.values()
        for part in _parts(hint)
    )


def _parts(hint: Any) -> Iterator[Any]:
    """A hint and all that it is made of."""
    yield hint
    if get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from (p for one in (part if isinstance(part, list) else [part]) for p in _parts(one))
