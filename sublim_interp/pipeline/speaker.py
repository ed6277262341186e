"""Who speaks as a teacher: a record as a model that writes. What else may teach, such as a student, is loaded here."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from safetensors.torch import load_file

from sublim_interp.channels.rows import Written
from sublim_interp.core.store import Store
from sublim_interp.models.hooks import added, hook_name
from sublim_interp.pipeline.records import Teacher
from sublim_interp.training.batches import Example


class Speaker:
    """A teacher as it speaks.

    model: its model
    systems: its system prompts; none but a prompted teacher's

    A model of a steered teacher speaks as its teacher inside `speaking` only.
    """

    def __init__(self, teacher: Teacher, store: Store) -> None:
        where = teacher.made(store)
        self._base = teacher.base
        self.systems: tuple[str, ...] = ()
        self._vector: torch.Tensor | None = None
        self._layer = teacher.config.layer
        self.model = self._base.load(where / "model" if teacher.config.kind == "tuned" else None)
        if teacher.config.kind == "prompted":
            self.systems = tuple(json.loads((where / "system.json").read_text()))
        elif teacher.config.kind == "steered":
            self._vector = load_file(str(where / "vector.safetensors"))["vector"]

    def speaking(self) -> AbstractContextManager[None]:
        """Inside the block `self.model` is steered, where the teacher is a steered one."""
        if self._vector is None:
            return nullcontext()
        return added(self.model, self._vector, hook_name(self._layer, "resid_pre"))

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
        prompts = [self._base.prompt_ids(self.chat(r["prompt"], i)) for i, r in enumerate(lists)]
        return [Example([*p, *ids[first:]], len(p)) for (ids, first), p in zip(rows, prompts, strict=True)]
