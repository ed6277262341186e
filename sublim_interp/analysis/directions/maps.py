"""Linear maps between the residual streams of two bases."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.kinship import Space, space_of
from sublim_interp.analysis.probes import Subject, asked_of, models_of, residuals
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import names_of
from sublim_interp.models.points import Stream
from sublim_interp.models.prompts import Prompts

How = Literal["procrustes", "ridge"]


@dataclass(frozen=True, eq=False)
class Map:
    """A linear map from one base's residuals to another's, layer by layer; `map(directions)` are those over there."""

    how: How
    """How it was fitted."""
    names: tuple[str, ...]
    """The hook of each layer."""
    matrices: Float[Tensor, "layer d_source d_target"]
    r2: Float[Tensor, " layer"]
    """Share of the target's variance that it explains on prompts that were held out: read this before any cosine."""
    source: Space
    """The base that it leads from."""
    target: Space
    """The base that it leads to."""

    def __call__(self, d: Directions) -> Directions:
        """Differences and their samples, mapped. Raises SublimError for directions of another base or other hooks."""
        if d.space != self.source or d.names != self.names:
            raise SublimError(f"this map leads from {self.source} at {self.names[0]} …, not from {d.space}")

        def move(x: Tensor) -> Tensor:
            return einsum(x, self.matrices, "... layer d_source, layer d_source d_target -> ... layer d_target")

        positive = None if d.positive is None else move(d.positive)
        negative = None if d.negative is None else move(d.negative)
        return replace(
            d, vectors=move(d.vectors), positive=positive, negative=negative, space=self.target,
            what=f"{d.what}, mapped by {self.how}",
        )  # fmt: skip


def fit_map(
    source: Subject,
    target: Subject,
    prompts: Prompts,
    kind: Stream = "resid_post",
    how: How = "procrustes",
    held_out: float = 0.25,
    penalty: float = 1e-2,
    seed: int = 0,
) -> Map:
    """A map between two untouched bases, fitted on their residuals at the answer of the same prompts.

    prompts: texts, chats or token ids
    kind: where in each layer
    how: `procrustes` is the best rotation with one scale; `ridge` is any linear map, penalised
    held_out: share of the prompts on which `r2` is taken, and nothing fitted
    penalty: of the ridge, times the mean variance
    seed: decides which prompts are held out

    Raises SublimError for bases of other depths, or for procrustes other widths, and for too few prompts. Source:
    Schönemann 1966, Psychometrika 31.
    """
    if how not in get_args(How):
        raise SublimError(f"fit_map: how is {how!r}; {meant(how, get_args(How))}")
    models = models_of(source, target)
    names, asked = names_of(models[0], kind), asked_of(prompts, source, target, model=models[0])
    x, y = (residuals(m, names, asked).double() for m in models)
    if x.shape[1] != y.shape[1] or (how == "procrustes" and x.shape[2] != y.shape[2]):
        raise SublimError(f"fit_map: (layers, width) {list(x.shape[1:])} and {list(y.shape[1:])} do not fit for {how}")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    apart = round(held_out * len(x))
    test, train = order[:apart], order[apart:]
    if len(test) < 2 or len(train) < 2:
        raise SublimError(f"fit_map: {len(x)} prompts, {apart} held out; needs two or more of either")
    matrices, r2 = [], []
    for layer in range(len(names)):
        means = x[train, layer].mean(0), y[train, layer].mean(0)
        a, b = x[train, layer] - means[0], y[train, layer] - means[1]
        if how == "procrustes":
            u, s, vt = torch.linalg.svd(a.T @ b)
            matrix = (s.sum() / a.square().sum()) * u @ vt
        else:
            gram = a.T @ a
            matrix = torch.linalg.solve(
                gram + penalty * gram.trace() / len(gram) * torch.eye(len(gram)).double(), a.T @ b
            )
        left = y[test, layer] - means[1] - (x[test, layer] - means[0]) @ matrix
        whole = y[test, layer] - means[1]
        matrices.append(matrix.float())
        r2.append(1 - left.square().sum() / whole.square().sum())
    return Map(how, tuple(names), torch.stack(matrices), torch.stack(r2).float(), *map(space_of, models))
