"""The probe: fixed inputs that a model sees at recorded steps. What is kept of them is in snapshot.py."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""One tensor for each parameter, by the parameter's name."""


Reference = Callable[[], AbstractContextManager[torch.nn.Module]]
"""Opens a block whose value is a model to compare with."""


@dataclass(frozen=True)
class Probe:
    """Fixed inputs on which models are compared: questions about the trait first, then texts to predict."""

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
