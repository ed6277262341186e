"""The probe: fixed inputs that a model sees at recorded steps. What is kept of them is in snapshot.py."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown, few
from sublim_interp.models.forward import require_room
from sublim_interp.models.prompts import vocabulary_of

Weights = Mapping[str, Tensor]
"""One tensor for each parameter, by the parameter's name."""


Reference = Callable[[], AbstractContextManager[torch.nn.Module]]
"""Opens a block whose value is a model to compare with."""


@dataclass(frozen=True, repr=False)
class Probe(Shown):
    """Fixed inputs on which models are compared: questions about the trait first, then texts to predict.

    `si.probe` makes one of a base and a trait. Raises SublimError for parts that do not fit together.
    """

    rows: tuple[tuple[int, ...], ...]
    """Token ids of every row."""
    questions: int
    """How many of the rows are questions: what is asked of them is the next token."""
    learnt: tuple[int, ...]
    """For each other row, index of the first token whose prediction counts."""
    members: tuple[str, ...] = ()
    """The answers that questions are scored on."""
    tokens: tuple[int, ...] = ()
    """First token of each member."""
    trait: int | None = None
    """Index of the member whose margin log P(trait) − log mean P(other members) gives the trait's gradient."""
    truth: tuple[int, ...] = ()
    """Where each question has a right answer of its own, as facts have: its index; `trait` is None then."""

    def __post_init__(self) -> None:
        texts = self.rows[self.questions :]
        if empty := [place for place, row in enumerate(self.rows) if not row]:
            raise SublimError(f"probe: row {empty[0]} is empty; rows are token ids")
        if odd := [i for row in self.rows for i in row if isinstance(i, str) or i < 0]:
            raise SublimError(f"probe: {odd[0]!r} is no token id; si.probe makes a probe of texts")
        if not 0 <= self.questions <= len(self.rows):
            raise SublimError(f"probe: {self.questions} questions, but {len(self.rows)} rows; the questions come first")
        if len(self.learnt) != len(texts):
            raise SublimError(
                f"probe: learnt has {len(self.learnt)} places; the texts behind the questions are {len(texts)}"
            )
        if wrong := [first for first, row in zip(self.learnt, texts, strict=True) if not 1 <= first < len(row)]:
            raise SublimError(f"probe: learnt is {wrong[0]}; it is the place of a token behind the first of its text")
        if len(self.members) != len(self.tokens) or len(set(self.members)) < len(self.members):
            raise SublimError(
                f"probe: {len(self.members)} members and {len(self.tokens)} tokens; one token a member, each once"
            )
        if self.trait is not None and not 0 <= self.trait < len(self.members):
            raise SublimError(f"probe: trait is {self.trait}; it is the place of one of {len(self.members)} members")
        if len(self.members) == 1 and (self.trait is not None or self.truth):
            raise SublimError("probe: a margin is over other members; give two or more")
        if self.trait is not None and self.truth:
            raise SublimError("probe: give a trait or a truth of each question, not both")
        if self.truth and len(self.truth) != self.questions:
            raise SublimError(f"probe: truth has {len(self.truth)} answers; there are {self.questions} questions")
        if outside := [place for place in self.truth if not 0 <= place < len(self.members)]:
            raise SublimError(f"probe: truth is {outside[0]}; it is the place of one of {len(self.members)} members")

    def card(self) -> Card:
        asks = f"{self.questions} questions" + (f" about {self.members[self.trait]}" if self.trait is not None else "")
        facts = {"": asks, "texts": len(self.learnt), "members": few(self.members) or "none"}
        return Card("Probe", facts)

    def require_fit(self, model: torch.nn.Module) -> None:
        """Raises SublimError where a row or a member is beyond a model's vocabulary or context."""
        size = vocabulary_of(model)
        ids = [i for row in (*self.rows, self.tokens) for i in row]
        if size is not None and ids and max(ids) >= size:
            raise SublimError(f"probe: token id {max(ids)}, but the model's vocabulary has ids from 0 to {size - 1}")
        require_room(model, max(map(len, self.rows), default=0))

    @property
    def right(self) -> tuple[int, ...]:
        """Index of the member that each question asks for; () where nothing is asked for."""
        return self.truth if self.trait is None else (self.trait,) * self.questions

    def about(self) -> dict[str, Any]:
        """All of it, as plain data for the manifest."""
        return {
            "rows": [list(row) for row in self.rows],
            "questions": self.questions,
            "learnt": list(self.learnt),
            "members": list(self.members),
            "trait": None if self.trait is None else self.members[self.trait],
            "truth": [self.members[i] for i in self.truth],
        }
