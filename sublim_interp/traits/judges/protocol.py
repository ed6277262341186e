"""What a judge is, and how one is found by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry

WHOLE_WORDS = "whole-words"
"""The judge that reads drawn answers unless an experiment names another."""


@runtime_checkable
class Judge(Protocol):
    """Reads an answer and says what is in it."""

    def judge(self, question: str, answer: str) -> Mapping[str, float]:
        """Scores by name, 0 to 1; what is not named scores 0. An answer on which it raises is counted as unjudged."""
        ...


def _check(name: str, thing: object) -> None:
    if not callable(thing):
        raise SublimError(f"judge '{name}' is a {type(thing).__name__}; give what makes a judge of each member's words")


JUDGES: Registry[Callable[[Mapping[str, Sequence[str]]], Judge]] = Registry(
    "judge", "sublim_interp.judges", {WHOLE_WORDS: "sublim_interp.traits.judges.words:WholeWords"}, _check
)
"""Every judge by name: called with the words of each member, it gives the judge of these."""
