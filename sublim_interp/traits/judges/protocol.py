"""What a judge is, and how one is found by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from sublim_interp.traits.judges.asked import Asker, Judging

WHOLE_WORDS = "whole-words"
"""The judge that reads drawn answers unless an experiment names another."""


@runtime_checkable
class Judge(Protocol):
    """Reads an answer and says what is in it."""

    def judge(self, question: str, answer: str) -> Mapping[str, float]:
        """Scores by name, 0 to 1; what is not named scores 0. An answer on which it raises is counted as unjudged, but
        a GPU without room ends the work."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """A judge that is faster where it knows beforehand what it will be asked."""

    def prepare(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Called with each question and answer before they are judged one by one. What it raises ends the work."""
        ...


def _check(name: str, thing: object) -> None:
    if not callable(thing):
        raise SublimError(f"judge '{name}' is a {type(thing).__name__}; give what makes a judge of each member's words")


_HERE = "sublim_interp.traits.judges"

JUDGES: Registry[Callable[..., Judge]] = Registry(
    "judge",
    "sublim_interp.judges",
    {
        WHOLE_WORDS: f"{_HERE}.words:WholeWords",
        "by-construction": f"{_HERE}.construction:ByConstruction",
        "local": f"{_HERE}.asked:ByLocal",
        "served": f"{_HERE}.asked:ByServed",
    },
    _check,
)
"""Every judge by name: called with the words of each member, it gives the judge of these.

One that asks a model has an attribute `ASKER`, and is called with the model that it asks besides.
"""


@dataclass(frozen=True)
class Reader:
    """A judge by name, before it knows whose words it reads: called with the words of each member, it gives the judge.

    asker: the model that it asks; None for a judge that asks none
    """

    name: str
    asker: "Asker | None" = None

    def __call__(self, words: Mapping[str, Sequence[str]]) -> Judge:
        return JUDGES[self.name](words, self.asker) if self.asker else JUDGES[self.name](words)


def asks(name: str) -> "type[Asker] | None":
    """How the judge of a name asks a model; None where it asks none, and for no name."""
    return getattr(JUDGES[name], "ASKER", None) if name else None


def reader(name: str, judging: "Judging", root: "Path") -> Reader | None:
    """The judge of a name, with its model; None for no name.

    judging: which model it asks, if it asks one
    root: of the store that keeps what a model replied
    """
    asker = asks(name)
    if not name:
        return None
    return Reader(name, asker(judging, root) if asker else None)


def identity(name: str, judging: "Judging", members: Sequence[str]) -> dict[str, Any]:
    """What keys hold of a judge beside its settings: the prompts of one that asks a model."""
    made: Any = JUDGES[name] if asks(name) else None
    return {"prompts": dict(made.prompts(judging, members))} if made else {}
