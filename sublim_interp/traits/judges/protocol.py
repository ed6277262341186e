"""What a judge is, and how one is found by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from sublim_interp.core.registry import Registry


@runtime_checkable
class Judge(Protocol):
    """Reads an answer and says what is in it."""

    def judge(self, question: str, answer: str) -> Mapping[str, float]:
        """Scores by name, 0 to 1; what is not named scores 0."""
        ...


JUDGES: Registry[Callable[[Mapping[str, Sequence[str]]], Judge]] = Registry(
    "judge", "sublim_interp.judges", {"whole-words": "sublim_interp.traits.judges.words:WholeWords"}
)
"""Every judge by name: called with the words of each member, it gives the judge of these."""
