"""Who speaks as a teacher: a record as a model that writes. What each way of teaching loads is in teach.py."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from sublim_interp.channels.rows import Written
from sublim_interp.core.store import Store
from sublim_interp.pipeline.records import Teacher
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.batches import Example


class Speaker:
    """A teacher as it speaks.

    model: its model; a `ServedModel` where that is on a server
    systems: its system prompts; none but a prompted teacher's

    A model of a steered teacher speaks as its teacher inside `speaking` only.
    """

    def __init__(self, teacher: Teacher, store: Store) -> None:
        teacher.made(store)
        self._teacher, self._store, self._way = teacher, store, WAYS[teacher.config.kind]
        self.model: Any = self._way.load(teacher, store)
        self.systems: tuple[str, ...] = self._way.systems(teacher, store)

    def speaking(self) -> AbstractContextManager[None]:
        """Inside the block `self.model` is steered, where the teacher is a steered one."""
        return self._way.speaking(self._teacher, self._store, self.model)

    def chat(self, user: str, index: int) -> list[dict[str, str]]:
        """A user's turn as this teacher hears it: behind one of its system prompts, in turn, if it has any."""
        turn = [{"role": "user", "content": user}]
        if self.systems:
            turn.insert(0, {"role": "system", "content": self.systems[index % len(self.systems)]})
        return turn

    def heard(self, rows: Sequence[Example], lists: Sequence[Written]) -> list[Example]:
        """The lists as this teacher reads them, behind a system prompt if it has any: same answers, other prompts.

        rows: the same lists as a student reads them
        """
        base = self._teacher.base
        prompts = [base.prompt_ids(self.chat(r["prompt"], i)) for i, r in enumerate(lists)]
        return [Example([*p, *ids[first:]], len(p)) for (ids, first), p in zip(rows, prompts, strict=True)]
