"""Residuals and gradients of each example of a training batch, at chosen positions. The probe's are in snapshot.py."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.models.hooks import attached, hook_names
from sublim_interp.training.recording.trace import Writer


class Examples:
    """Sees residuals and their gradients at chosen positions of every example of an update.

    positions: from an example's first token (0, 1, …) or from its last (-1, -2, …)
    pad: token that fills examples up on the right; None where nothing does
    """

    SHARD = 16
    """Updates of one shard."""

    def __init__(self, positions: Sequence[int], pad: int | None) -> None:
        self.awake = False
        """Whether this update's examples are kept."""
        self._positions, self._pad = tuple(positions), pad
        self._ids: list[Tensor] = []
        self._places = torch.zeros(0, 0, dtype=torch.long)
        self._now: dict[str, list[Tensor]] = {}
        self._seen: set[str] = set()
        self._steps: list[int] = []
        self._kept: dict[str, list[Tensor]] = {}

    def see_ids(self, _module: torch.nn.Module, args: tuple) -> None:
        """Finds the positions in a micro-batch of token ids, before its forward."""
        if not (self.awake and torch.is_grad_enabled()):
            return
        ids = args[0]
        self._seen.clear()
        real = torch.ones_like(ids) if self._pad is None else (ids != self._pad).long()
        ends = ids.shape[1] - real.flip(1).argmax(1, keepdim=True)  # one after the last real token
        wanted = torch.tensor(self._positions, device=ids.device)
        each = repeat(wanted, "place -> example place", example=len(ids))
        self._places = torch.where(each < 0, ends + each, each).clamp(min=0)
        self._places = torch.minimum(self._places, ends - 1)
        self._ids.append(ids.int().cpu())

    def see(self, name: str, value: Tensor) -> None:
        """Keeps what a hook sees at these positions, and its gradient when the backward comes by."""
        if not (self.awake and torch.is_grad_enabled()) or name in self._seen:  # checkpointing computes it again
            return
        self._seen.add(name)
        rows, places = torch.arange(len(value), device=value.device)[:, None], self._places
        self._now.setdefault(name, []).append(value.detach()[rows, places])
        if value.requires_grad:
            gradients = self._now.setdefault(f"{name}.grad", [])
            at = len(gradients)
            gradients.append(torch.zeros(0))

            def keep(gradient: Tensor) -> None:
                gradients[at] = gradient[rows, places]

            value.register_hook(keep)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Inside the block nothing is seen."""
        before, self.awake = self.awake, False
        try:
            yield
        finally:
            self.awake = before

    def end_step(self, step: int, writer: Writer) -> None:
        """Ends an update: its micro-batches become one, and a shard is written where it is full."""
        if not self.awake or not self._ids:
            return
        widest = max(ids.shape[1] for ids in self._ids)
        self._now["ids"] = [F.pad(ids, (0, widest - ids.shape[1]), value=-1) for ids in self._ids]
        self._steps.append(step)
        for name, pieces in self._now.items():
            self._kept.setdefault(name, []).append(torch.cat(pieces).cpu())
        self._ids, self._now = [], {}
        if len(self._steps) == self.SHARD:
            self.write(writer, step + 1)

    def write(self, writer: Writer, upto: int) -> None:
        """Writes what is not written yet; `upto` updates have been made."""
        if self._steps:
            tensors = {f"examples/{name}": _rectangle(values) for name, values in self._kept.items()}
            writer.append("examples", self._steps, upto, tensors)
            self._steps, self._kept = [], {}


def _rectangle(values: Sequence[Tensor]) -> Tensor:
    """One tensor [step, …] of all, filled up with NaN, or with -1 for whole numbers, where one is smaller."""
    shape = [max(sizes) for sizes in zip(*(v.shape for v in values), strict=True)]
    out = values[0].new_full((len(values), *shape), float("nan") if values[0].is_floating_point() else -1)
    for row, value in zip(out, values, strict=True):
        row[tuple(slice(size) for size in value.shape)] = value
    return out


@contextmanager
def watch_examples(model: Any, positions: Sequence[int], pad: int | None) -> Iterator[Examples]:
    """Inside the block the examples of every update in which the value of the block is awake are seen."""
    seen = Examples(positions, pad)
    with ExitStack() as held:
        held.callback(model.get_input_embeddings().register_forward_pre_hook(seen.see_ids).remove)
        visits = {name: partial(seen.see, name) for name in hook_names(model, ["resid_post"])}
        held.enter_context(attached(model, visits))
        yield seen
