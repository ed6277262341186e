"""What is measured of weights at every update: loss, norms, projections on directions in weight space, moments."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.training.optimizers import all_moments
from sublim_interp.training.recording.settings import Recording
from sublim_interp.training.recording.trace import Writer


class WeightDirections:
    """Directions in weight space that everything weight-shaped is projected on.

    parameters: the weights that train
    given: by the direction's name, one tensor for each of them
    """

    def __init__(self, parameters: Sequence[Tensor], given: Mapping[str, Sequence[Tensor]]) -> None:
        self.names = list(given)
        self.lengths = {name: norms(tensors) for name, tensors in given.items()}
        """Length by direction: [parameter]."""
        self._stacked = [
            torch.stack([d.to(p).flatten() for d in own])
            for p, own in zip(parameters, zip(*given.values(), strict=True), strict=bool(given))
        ]
        """For each parameter, all directions: [direction, number]."""

    def dots(self, what: str, tensors: Sequence[Tensor]) -> dict[str, Float[Tensor, " parameter"]]:
        """Dot products of weight-shaped tensors with each direction, by `{what}_dot/{direction}`."""
        if not self.names:
            return {}
        dots = torch.stack([d @ t.flatten().to(d) for d, t in zip(self._stacked, tensors, strict=True)], 1)
        return {f"{what}_dot/{name}": row for name, row in zip(self.names, dots, strict=True)}

    def cosines(self, series: Mapping[str, Float[Tensor, "step parameter"]]) -> dict[str, Tensor]:
        """With every dot product among the series of gradients and updates, the cosine to that direction."""
        found = {}
        for what in ("gradient", "update"):
            for name, length in self.lengths.items():
                if f"{what}_dot/{name}" in series:
                    scale = (series[f"{what}_norm"] * length.cpu()).clamp_min(1e-30)
                    found[f"{what}_cos/{name}"] = series[f"{what}_dot/{name}"] / scale
        return found


class Series:
    """Measures updates, and keeps what it measured until it is written.

    parameters: the weights that train
    optimizer: what makes the updates; None where there are none
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer | None,
        directions: WeightDirections,
        recording: Recording,
    ) -> None:
        self._parameters, self._optimizer, self._directions = list(parameters), optimizer, directions
        self._every = recording.every(sum(p.numel() for p in parameters))
        self._slow = self._every * recording.moments
        self._before = [p.detach().clone() for p in parameters]
        self._gradients: dict[str, Tensor] = {}
        self._rows: dict[str, dict[int, dict[str, Tensor]]] = {"norms": {}, "moments": {}}
        """Sort of shard → update → what was measured of it."""
        self.losses: list[Any] = []
        self.first = 0
        """The update whose loss comes first in `losses`."""

    @torch.no_grad()
    def see_gradients(self, update: int) -> None:
        """Just before the optimizer moves: the gradients as they enter the update, clipped if they are."""
        if update % self._every or self._gradients:  # of several steps in one update the first says where it began
            return
        # A GradScaler leaves it to a fused optimizer to divide by the scale, and to skip an update that overflowed.
        if (overflow := getattr(self._optimizer, "found_inf", None)) is not None and overflow:
            return
        torch._foreach_copy_(self._before, self._parameters)  # type: ignore[reportPrivateImportUsage]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        seen = {"gradient_norm": norms(gradients), **self._directions.dots("gradient", gradients)}
        scale = getattr(self._optimizer, "grad_scale", None)
        self._gradients = seen if scale is None else {name: value / scale for name, value in seen.items()}

    @torch.no_grad()
    def see_update(self, update: int, loss: Tensor | float) -> None:
        """Just after it: norms and projections of what it did, where it did anything, and the loss."""
        self.losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        if update % self._every or not self._gradients:
            return
        moved = minus(self._parameters, self._before)
        self._rows["norms"][update] = {
            **self._gradients, "update_norm": norms(moved), **self._directions.dots("update", moved)
        }  # fmt: skip
        self._gradients = {}
        if update % self._slow == 0:
            found = {f"{state}_norm": norms(tensors) for state, tensors in self.moments().items()}
            if found:
                self._rows["moments"][update] = found

    def moments(self) -> dict[str, list[Tensor]]:
        """By name, each state that the optimizer keeps now, for every parameter."""
        found: dict[str, list[Tensor]] = {}
        if self._optimizer is None:
            return found
        for state in all_moments():
            values = [self._optimizer.state.get(p, {}).get(state) for p in self._parameters]
            if any(value is not None for value in values):
                pairs = zip(values, self._parameters, strict=True)
                found[state] = [torch.zeros_like(p) if value is None else value for value, p in pairs]
        return found

    def write(self, writer: Writer, done: int) -> None:
        """Writes what was measured of the first `done` updates and is not written yet, as a shard of each sort."""
        for sort, rows in self._rows.items():
            # One shard, unless the optimizer began or ceased to keep a moment on the way.
            for names, some in groupby(rows.items(), key=lambda item: tuple(item[1])):
                updates, values = zip(*some, strict=True)
                series = {name: torch.stack([row[name] for row in values]).float().cpu() for name in names}
                writer.append(sort, updates, done, series | self._directions.cosines(series))
            rows.clear()
        if self.losses:
            losses = torch.tensor([float(value) for value in self.losses])
            writer.append("series", range(self.first, done), done, {"loss": losses})
            self.losses, self.first = [], done


# One call for all tensors: a loop over them would cost more than the arithmetic.
@torch.no_grad()
def norms(tensors: Sequence[Tensor]) -> Float[Tensor, " parameter"]:
    """Length of each tensor, in float32, or in their own precision where that is wider."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack(list(torch._foreach_norm(list(tensors), 2, wide)))  # type: ignore[reportPrivateImportUsage]


@torch.no_grad()
def minus(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor of `a` minus that of `b`."""
    return list(torch._foreach_sub(list(a), list(b)))  # type: ignore[reportPrivateImportUsage]
