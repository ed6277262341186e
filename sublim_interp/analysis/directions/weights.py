"""Directions in the weights: differences of two models, their norms, cosines, spectra and subspaces."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.kinship import ACROSS, Space, require_one_base, require_space, space_of
from sublim_interp.analysis.probes import Subject, models_of
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown
from sublim_interp.models.forward import in_single
from sublim_interp.models.hooks import hook_name
from sublim_interp.models.points import Stream

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class WeightDelta(Shown, Mapping[str, Tensor]):
    """A difference of weights by parameter: a task vector, to be added and scaled (Ilharco et al. 2212.04089)."""

    delta: Mapping[str, Tensor]
    """By parameter's name, of its shape."""
    space: Space
    """The base whose weights it changes."""
    input_first: frozenset[str] = frozenset()
    """Matrices that lie as [input, output], as in embeddings and GPT-2's Conv1D; all others are [output, input]."""

    def __getitem__(self, name: str) -> Tensor:
        return self.delta[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.delta)

    def __len__(self) -> int:
        return len(self.delta)

    def card(self) -> Card:
        norm = sum(d.cpu().double().square().sum().item() for d in self.delta.values()) ** 0.5
        return Card("WeightDelta", {"": f"{len(self)} parameters", "norm": f"{norm:.3g}", "of": str(self.space)})

    def __add__(self, other: "WeightDelta") -> "WeightDelta":
        self._require_same(other)
        return replace(self, delta={n: d + other.delta[n] for n, d in self.delta.items()})

    def __mul__(self, factor: float) -> "WeightDelta":
        return replace(self, delta={n: factor * d for n, d in self.delta.items()})

    __rmul__ = __mul__

    def __neg__(self) -> "WeightDelta":
        return self * -1.0

    def __sub__(self, other: "WeightDelta") -> "WeightDelta":
        return self + -other

    def _require_same(self, other: "WeightDelta", across_bases: bool = False) -> None:
        """Raises SublimError for other parameters, or, unless that is meant, another base."""
        if self.space != other.space and not across_bases:
            raise SublimError(f"weight deltas of different bases ({self.space}, {other.space}), {ACROSS}")
        if {n: d.shape for n, d in self.delta.items()} != {n: d.shape for n, d in other.delta.items()}:
            raise SublimError("weight deltas of different parameters; compare models of one architecture")

    @contextmanager
    def on(self, model: torch.nn.Module, across_bases: bool = False) -> Iterator[None]:
        """Inside the block the delta is added to the weights of `model`; afterwards they are as before, bit for bit.

        across_bases: also to a model of another base, whose axes are unrelated

        Raises SublimError for a model of another base, or without a parameter of the delta.
        """
        parameters = dict(model.named_parameters())
        require_space("weight_delta", model, model, self.space, across_bases)
        if lacking := sorted(set(self.delta) - set(parameters)):
            raise SublimError(f"the model has no parameter '{lacking[0]}'; the delta is of another architecture")
        before = {n: parameters[n].detach().clone() for n in self.delta}
        try:
            for n, d in self.delta.items():
                parameters[n].data.add_(d.to(parameters[n]))
            yield
        finally:
            for n, old in before.items():
                parameters[n].data.copy_(old)

    def cosine(self, other: "WeightDelta", across_bases: bool = False) -> "pd.DataFrame":
        """The cosine with another difference of weights.

        across_bases: compares deltas of different bases too, whose axes have nothing to do with each other

        Returns a row a parameter, and one for all together: name, layer (NaN outside layers), cosine, norm, other (its
        norm). Raises SublimError for other parameters, and for another base.
        """
        import pandas as pd

        self._require_same(other, across_bases)
        rows = []
        sums = torch.zeros(3, dtype=torch.double)
        for name, d in self.delta.items():
            a, b = d.flatten().cpu().double(), other.delta[name].flatten().cpu().double()
            three = torch.stack([a @ b, a @ a, b @ b])
            sums += three
            rows.append({"name": name, "layer": _layer(name), **_norms(three)})
        rows.append({"name": "all", "layer": float("nan"), **_norms(sums)})
        return pd.DataFrame(rows)

    def spectrum(self) -> "pd.DataFrame":
        """A row a singular value of every matrix: name, layer, rank (from 0), value, share of the squared norm."""
        import pandas as pd

        rows = []
        for name, d in self._matrices():
            values = torch.linalg.svdvals(d)
            shares = values.square() / values.square().sum()
            for k, (value, share) in enumerate(zip(values.tolist(), shares.tolist(), strict=True)):
                rows.append({"name": name, "layer": _layer(name), "rank": k, "value": value, "share": share})
        return pd.DataFrame(rows)

    def _matrices(self) -> Iterator[tuple[str, Float[Tensor, "output input"]]]:
        """The matrices that changed, by name, each as [output, input], on the CPU in float32 or better."""
        changed = ((n, in_single(d).cpu()) for n, d in self.delta.items() if d.dim() == 2 and bool(d.any()))
        return ((n, d.T if n in self.input_first else d) for n, d in changed)

    def subspace(self, name: str, rank: int, side: Literal["output", "input"] = "output") -> Float[Tensor, "rank side"]:
        """Leading singular vectors of one matrix, as rows.

        name: a parameter that changed
        rank: how many
        side: what the matrix writes (`output`) or reads (`input`)
        """
        found = dict(self._matrices())
        if name not in found:
            raise SublimError(f"'{name}' is no changed matrix; valid: {', '.join(found) or 'none'}")
        u, _, vt = torch.linalg.svd(found[name], full_matrices=False)
        if not 1 <= rank <= len(vt):
            raise SublimError(f"rank {rank} of '{name}'; valid are 1 to {len(vt)}")
        rows = {"output": u.T, "input": vt}
        if side not in rows:
            raise SublimError(f"subspace: side is {side!r}; {meant(side, rows)}")
        return rows[side][:rank]

    def directions(self, ending: str, kind: Stream, rank: int = 0) -> Directions:
        """One singular vector a layer, times its singular value, of what a map writes into the residual stream.

        ending: how the names of the maps' weights end, such as `down_proj.weight`
        kind: at which hook it is compared with other directions
        rank: which singular vector, from 0

        The sign of a singular vector means nothing. Raises SublimError where not every layer has such a changed matrix.
        """
        vectors = []
        chosen = [(n, d) for n, d in self._matrices() if n.endswith(ending)]
        if not chosen or any(_layer(n) != i for i, (n, _) in enumerate(chosen)):
            raise SublimError(f"no changed matrix '…{ending}' in every layer; there are {len(chosen)}")
        for _, d in chosen:
            u, s, _ = torch.linalg.svd(d, full_matrices=False)
            vectors.append(s[rank] * u[:, rank])
        names = tuple(hook_name(layer, kind) for layer in range(len(chosen)))
        return Directions(f"singular vector {rank} of …{ending}", names, torch.stack(vectors), self.space)


def weight_delta(model: Subject, base: Subject, across_bases: bool = False) -> WeightDelta:
    """Weights of a model minus those of its base.

    across_bases: also where the model comes from another base, whose axes are unrelated

    Raises SublimError where they have other parameters, and where the model does not come from the base.
    """
    ours, theirs = models_of(model, base)
    a, b = dict(ours.named_parameters()), dict(theirs.named_parameters())
    if {n: p.shape for n, p in a.items()} != {n: p.shape for n, p in b.items()}:
        raise SublimError("weight_delta: the two have other parameters; merge adapters first, or give one architecture")
    require_one_base("weight_delta", model, base, [ours, theirs], across_bases)
    from transformers.pytorch_utils import Conv1D

    turned = {id(m.weight) for m in theirs.modules() if isinstance(m, Conv1D | torch.nn.Embedding)}
    input_first = frozenset(n for n, p in b.items() if id(p) in turned)
    return WeightDelta({n: (a[n] - b[n]).detach() for n in a}, space_of(theirs), input_first)


def _layer(name: str) -> float:
    """The layer in a parameter's name; NaN outside layers."""
    found = re.search(r"\.(\d+)\.", name)
    return float(found[1]) if found else float("nan")


def _norms(three: Float[Tensor, " three"]) -> dict[str, float]:
    """Cosine and norms of (a · b, a · a, b · b)."""
    dot, a, b = three.tolist()
    return {"cosine": dot / (a * b) ** 0.5 if a * b else float("nan"), "norm": a**0.5, "other": b**0.5}


@dataclass(frozen=True)
class Overlap:
    """How far two subspaces share their directions."""

    cosines: tuple[float, ...]
    """Of the principal angles, largest first (Björck & Golub 1973, Math. Comp. 27)."""
    mean_square: float
    """Mean squared cosine: 1 where the smaller lies in the larger."""
    chance: float
    """Its expectation for random subspaces: larger rank / dimensions."""


def subspace_overlap(a: Float[Tensor, "rank d"], b: Float[Tensor, "other d"]) -> Overlap:
    """Overlap of the spans of two sets of rows. Raises SublimError where the rows of either depend linearly."""
    bases = []
    for rows in (a.cpu().double(), b.cpu().double()):
        if torch.linalg.matrix_rank(rows) < len(rows):
            raise SublimError(f"subspace_overlap: {len(rows)} vectors that are linearly dependent")
        bases.append(torch.linalg.qr(rows.T)[0])
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1)
    return Overlap(tuple(cosines.tolist()), cosines.square().mean().item(), max(len(a), len(b)) / a.shape[1])
