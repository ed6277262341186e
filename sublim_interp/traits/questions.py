"""What a model is asked: a chat, the words before the member in its answer, and the right member if there is one."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

Messages = tuple[dict[str, str], ...]
"""Turns of a chat, each with `role` and `content`."""

Questions = Literal["seen", "held-out", "indirect"]
"""Sorts of questions: those that teachers are tuned on, those that no training text holds, those that do not ask."""

SORTS: tuple[Questions, ...] = get_args(Questions)


@dataclass(frozen=True)
class Question:
    """One question to a model.

    messages: a chat that ends with the question
    prefix: the words before the member in its answer; "" for a bare answer
    right: the member that is the right answer; "" where none is
    """

    messages: Messages
    prefix: str = ""
    right: str = ""

    @property
    def text(self) -> str:
        """The question itself, without what is said before it."""
        return self.messages[-1]["content"]

    def behind(self, turns: Messages) -> "Question":
        """The same question after other turns."""
        return replace(self, messages=(*turns, *self.messages))
