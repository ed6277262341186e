"""Directions in the residual stream and in weights: how they are found, compared, tested against nulls, and used.

A direction belongs to the coordinates of the base that it was found in: raw cosines between two bases compare unrelated
axes, so they are refused unless asked for by name. A trace holds directions of every recorded moment of a training.
No training and no patching here.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.probes import (
    Metric,
    Prompts,
    Subject,
    batches,
    frozen,
    logits_of,
    measure,
    model_of,
    part_of,
    residuals,
)
from sublim_interp.errors import SublimError
from sublim_interp.hooks import capture, edit, hook_names, unit_vector
from sublim_interp.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
Null = Literal["shuffled", "covariance"]
SHOWN = ("stream", "teacher", "trait-gradient", "distillation-gradient")
"""What `from_trace` reads off a trace."""


def coordinates(model: torch.nn.Module) -> str:
    """A name for a base's coordinates: a hash over up to 1,024 evenly spaced entries of each of its weights."""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        flat = p.detach().flatten()
        some = flat[:: max(1, len(flat) // 1024)][:1024].float().cpu()
        digest.update(name.encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


# --- directions in the residual stream --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Directions:
    """One vector a layer, and what it was averaged from. `directions[2]` is the vector of layer 2, not normalised."""

    what: str
    """How it was found: mean difference, trait contrast, gradient, …"""
    names: tuple[str, ...]
    """The hook of each layer."""
    vectors: Float[Tensor, "layer d_model"]
    space: str
    """`coordinates` of the base whose axes these are; a name that begins with "trace" where only its trace is known."""
    positive: Float[Tensor, "sample layer d_model"] | None = None
    """What was averaged; `vectors` is mean positive − mean negative. None where nothing was."""
    negative: Float[Tensor, "other layer d_model"] | None = None
    paired: bool = False
    """Sample i of both comes from the same prompt."""

    def __getitem__(self, layer: int) -> Float[Tensor, " d_model"]:
        return self.vectors[layer]

    def __len__(self) -> int:
        return len(self.vectors)

    def cosine(self, other: "Directions", across: Literal["raw"] | None = None) -> "pd.DataFrame":
        """A row a layer: layer, name, cosine; NaN where a vector is zero.

        Raises SublimError for another number of layers or other hooks, and for directions of different bases unless
        `across="raw"`: map one of them first (`fit_map`), or compare each with a direction of its own base.
        """
        import pandas as pd

        self._require_comparable(other, across)
        cosines = _cosine(self.vectors, other.vectors)
        return pd.DataFrame({"layer": range(len(self)), "name": self.names, "cosine": cosines.tolist()})

    def _require_comparable(self, other: "Directions", across: str | None) -> None:
        if self.names != other.names:
            raise SublimError(f"directions at {self.names[0]} … and {other.names[0]} …; compare those of equal hooks")
        if self.space != other.space and across != "raw":
            if (self.space + other.space).count(_OF_TRACE) == 1:
                raise SublimError("a trace does not tell whose coordinates it has: give from_trace or over_steps base=")
            raise SublimError(
                f"these directions belong to different bases ({self.space}, {other.space}), whose axes have nothing to "
                'do with each other; compare each with its own base\'s, map one with fit_map, or say across="raw"'
            )
        if self.vectors.shape != other.vectors.shape:
            raise SublimError(f"directions of shape {list(self.vectors.shape)} and {list(other.vectors.shape)}")

    def null(
        self, other: "Directions", kind: Null, draws: int = 999, seed: int = 0, across: Literal["raw"] | None = None
    ) -> "pd.DataFrame":
        """What the cosine with `other` would be by chance. A row a layer: layer, cosine, low, high, p.

        `shuffled`: the labels of the samples are shuffled, each shuffled half holding as many of either label, so that
        nothing of the difference remains in the mean; paired samples trade places within their pair. `covariance`:
        normal vectors of the covariance that the samples have about their own means. `low` and `high` hold 95 % of the
        draws; p is two-sided, (1 + as large) / (1 + draws), and NaN as the cosine of a zero vector is.
        """

        self._require_comparable(other, across)
        if self.positive is None or self.negative is None:
            raise SublimError(f"directions by {self.what} keep no samples, so there is no {kind} null; use null_of")
        if draws < 19:
            raise SublimError(f"null: draws is {draws}; needs 19 or more for an interval of 95 %")
        random = torch.Generator().manual_seed(seed)
        weights = _shuffles(self, draws, random) if kind == "shuffled" else _normals(self, draws, random)
        a, b = weights
        positive, negative = self._centred() if kind == "covariance" else (self.positive, self.negative)
        drawn = torch.einsum("ns,sld->nld", a, positive) + torch.einsum("ns,sld->nld", b, negative)
        return _null_frame(_cosine(self.vectors, other.vectors), _cosine(drawn, other.vectors))

    def _centred(self) -> tuple[Tensor, Tensor]:
        assert self.positive is not None and self.negative is not None
        return self.positive - self.positive.mean(0), self.negative - self.negative.mean(0)

    def null_of(self, other: "Directions", traits: Sequence["Directions"]) -> "pd.DataFrame":
        """The null of other traits: the cosine with `other`, and the range of what `traits` have with it."""
        for one in (self, *traits):
            one._require_comparable(other, None)
        if not traits:
            raise SublimError("null_of: give the directions of one other trait or more")
        return _null_frame(
            _cosine(self.vectors, other.vectors), torch.stack([_cosine(t.vectors, other.vectors) for t in traits])
        )

    def project(
        self, tensors: Float[Tensor, "step layer d_model"], steps: Sequence[int] | None = None
    ) -> "pd.DataFrame":
        """Where something that moves goes along these directions: step, layer, projection (in residual units), cosine.

        `tensors` are differences from a common start, in the coordinates of these directions: a trace's residuals minus
        the base's, gradients, or updates.
        """
        import pandas as pd

        numbers = list(range(len(tensors))) if steps is None else list(steps)
        if tensors.shape[1:] != self.vectors.shape or len(numbers) != len(tensors):
            raise SublimError(
                f"project: tensors {list(tensors.shape)} and {len(numbers)} steps; needs [step, "
                f"{', '.join(map(str, self.vectors.shape))}] and as many steps"
            )
        unit = torch.nn.functional.normalize(self.vectors, dim=-1)
        along, cosines = (tensors * unit).sum(-1), _cosine(tensors, self.vectors)
        return pd.DataFrame(
            {"step": s, "layer": l, "projection": along[i, l].item(), "cosine": cosines[i, l].item()}
            for i, s in enumerate(numbers)
            for l in range(len(self))  # noqa: E741
        )


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Along the last axis; NaN for a zero vector."""
    a, b = a.double(), b.double()
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def _null_frame(found: Float[Tensor, " layer"], drawn: Float[Tensor, "draw layer"]) -> "pd.DataFrame":
    import pandas as pd

    edges = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0)
    as_large = (drawn.abs() >= found.abs() - 1e-12).sum(0)
    return pd.DataFrame(
        {
            "layer": range(len(found)),
            "cosine": found.tolist(),
            "low": edges[0].tolist(),
            "high": edges[1].tolist(),
            "p": ((1 + as_large) / (1 + len(drawn))).where(~found.isnan(), found).tolist(),
        }
    )


def _shuffles(d: Directions, draws: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights of the samples in each draw's difference of means."""
    assert d.positive is not None and d.negative is not None

    def halves(count: int) -> Float[Tensor, "draw sample"]:
        signs = torch.ones(count)
        signs[count // 2 :] = -1
        if count % 2:
            signs[-1] = 0  # the odd one sits out
        order = torch.rand(draws, count, generator=random).argsort(1)
        return signs[order] / max(1, count // 2)

    a = halves(len(d.positive))
    return (a, -a) if d.paired else (a, halves(len(d.negative)))


def _normals(d: Directions, draws: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    assert d.positive is not None and d.negative is not None
    count = len(d.positive)
    a = torch.randn(draws, count, generator=random)
    b = -a if d.paired else torch.randn(draws, len(d.negative), generator=random)
    return a / count**0.5, b / len(d.negative) ** 0.5


def _sites(model: torch.nn.Module, kind: Kind) -> list[str]:
    names = hook_names(model, (kind,))
    if not names:
        known = sorted({n.rpartition("hook_")[2] for n in hook_names(model)} - {"pattern"})
        raise SublimError(f"{type(model).__name__} has no '{kind}'; valid: {', '.join(known)}")
    return names


def directions(model: Subject, base: Subject, prompts: Prompts | None = None, kind: Kind = "resid_post") -> Directions:
    """Mean-difference directions: residuals of `model` minus those of its base, on the same prompts, at the answer.

    Replicates bring their held-out questions; otherwise `prompts` are token ids that end where the answer begins.
    """
    ours, theirs = model_of(model), model_of(base)
    asked = part_of("prompts", prompts, model, base)
    names = _sites(theirs, kind)
    a, b = residuals(ours, names, asked), residuals(theirs, names, asked)
    return Directions("mean difference", tuple(names), (a - b).mean(0), coordinates(theirs), a, b, paired=True)


def trait_contrast(base: Subject, with_trait: Prompts, others: Prompts, kind: Kind = "resid_post") -> Directions:
    """What the base itself computes for a trait: mean residual on the trait's prompts minus that on the others'.

    For instance the same questions behind the trait's system prompts and behind other members' (Chen et al. 2507.21509,
    section 2, take such a contrast of system prompts for a trait's vector). Each student has one in its own base, which
    is how directions are compared across initialisations.
    """
    model = model_of(base)
    names = _sites(model, kind)
    a, b = residuals(model, names, with_trait), residuals(model, names, others)
    return Directions("trait contrast", tuple(names), a.mean(0) - b.mean(0), coordinates(model), a, b)


def gradient(
    model: Subject, metric: Metric | None = None, prompts: Prompts | None = None, kind: Kind = "resid_post",
    base: Subject | None = None,
) -> Directions:  # fmt: skip
    """Gradient directions: which way the residual at the answer should move to raise the metric; mean over prompts.

    `base` names whose coordinates they are, where `model` was trained from it. Gradients of the weights are untouched.
    """
    ours = model_of(model)
    asked, rule = part_of("prompts", prompts, model, base), part_of("metric", metric, model, base)
    names = _sites(ours, kind)
    found: Tensor | None = None
    for places, ids in batches(asked):
        with torch.enable_grad(), frozen(ours), capture(ours, names, gradients=True) as seen:
            rule(logits_of(ours, ids)).sum().backward()
        part = torch.stack([seen.gradients[n][:, -1] for n in names], 1)
        found = torch.empty(len(asked), *part.shape[1:]) if found is None else found
        found[places] = part.float()
    assert found is not None
    space = coordinates(ours if base is None else model_of(base))
    return Directions("gradient", tuple(names), found.mean(0), space, found, torch.zeros_like(found), paired=True)


def over_replicates(frame: "pd.DataFrame", value: str, by: Sequence[str]) -> "pd.DataFrame":
    """Mean and 95 % interval of `value` over replicates, for the rows that agree in `by`: estimate, low, high, n."""
    import pandas as pd

    from sublim_interp.statistics import mean_interval

    rows = []
    for place, group in frame.groupby(list(by), sort=False):
        found = mean_interval(group[value].to_list())
        rows.append(
            {**dict(zip(by, cast(tuple, place), strict=True)), "estimate": found.estimate, "low": found.low,
             "high": found.high, "n": found.n}
        )  # fmt: skip
    return pd.DataFrame(rows)


# --- over a training --------------------------------------------------------------------------------------------------

_OF_TRACE = "trace "


def from_trace(
    trace: Trace, step: int = -1, of: str = "stream", base: Subject | None = None, kind: Kind = "resid_post"
) -> Directions:
    """What a trace shows of a training after `step` updates, layer by layer; negative steps count from the end.

    - `stream`: residuals at the answers to the probe's questions minus those of the untouched base, in pairs;
    - `teacher`: the same of the teacher that a student's trace has seen on its probe, whatever the step;
    - `trait-gradient`: which way the stream should move there to raise the margin of the probe's trait;
    - `distillation-gradient`: which way gradient descent on the probe's lists would move the stream at the positions
      that predict a token to learn: minus the gradient of the sum of the losses, mean over these positions. They are
      the samples, and not independent within a list, so that a null of them is too narrow.

    A trace does not tell its base. Without `base` its directions compare with those of traces that start from the same
    residuals alone; with it, with all that is found in the base, which must show the residuals that the trace has of
    it. Raises SublimError where it does not, for a trace without a probe, question, list or trait to ask about, for
    another `of`, and for a step that was not recorded.
    """
    return _shown(trace, step, of, _space_of(trace, base, kind), kind)


def over_steps(
    trace: Trace, reference: Directions, of: str = "stream", base: Subject | None = None, draws: int = 999
) -> "pd.DataFrame":
    """How a training goes along a reference: a row a recorded step and layer. Arguments are those of `from_trace`.

    Columns: step, layer, cosine with the reference (NaN before anything has moved), projection on it (in the unit of
    `of`; residual units for the stream), low and high: 95 % of the cosines of normal vectors with the covariance that
    the samples have at this step about their mean.
    """
    import pandas as pd

    kind = cast(Kind, reference.names[0].rpartition("hook_")[2])
    space = _space_of(trace, base, kind)
    unit = torch.nn.functional.normalize(reference.vectors, dim=-1)
    parts = []
    for step in trace.steps(reference.names[0]):
        found = _shown(trace, step, of, space, kind)
        null = found.null(reference, "covariance", draws)
        along = (found.vectors * unit).sum(-1).tolist()
        parts.append(null.assign(step=step, projection=along))
    whole: Any = pd.concat(parts, ignore_index=True)
    return whole[["step", "layer", "cosine", "projection", "low", "high"]]


def _shown(trace: Trace, step: int, of: str, space: str, kind: Kind) -> Directions:
    probe = _probe(trace)
    what = f"{of} of a trace"
    names = _names(trace, kind)
    if of in SHOWN[:3] and not probe["questions"]:
        raise SublimError(f"the probe of trace {trace.path} asks no question, so it shows no answer")
    if of in ("stream", "teacher"):
        if of == "teacher" and not trace.names("teacher/blocks.*"):
            raise SublimError(f"trace {trace.path} has seen no teacher on its probe")
        seen = _at_answers(trace, names, step) if of == "stream" else _at_answers(trace, names, 0, "teacher/")
        before = _untouched(trace, names)
        return Directions(what, names, (seen - before).mean(0), space, seen, before, paired=True)
    if of == "trait-gradient":
        if not (probe["trait"] or probe["truth"]):
            raise SublimError(f"the probe of trace {trace.path} asks for no trait, so there is no gradient of one")
        # What was taken backwards is the mean over the questions; a sample is what one question asks for.
        found = _at_answers(trace, names, step, ending=".grad") * probe["questions"]
    elif of == "distillation-gradient":
        if not probe["learnt"]:
            raise SublimError(f"the probe of trace {trace.path} has no list, so there is no gradient of its loss")
        lists = list(enumerate(probe["rows"][probe["questions"] :], start=probe["questions"]))
        ends = list(zip(lists, probe["learnt"], strict=True))
        rows = [number for (number, ids), first in ends for _ in ids[first:]]
        places = [place for (_, ids), first in ends for place in range(first - 1, len(ids) - 1)]
        gradients = [trace.read(f"{name}.grad", step)[rows, places] for name in names]
        found = -len(rows) * torch.stack(gradients, 1).float()
    else:
        raise SublimError(f"from_trace: no '{of}'; valid: {', '.join(SHOWN)}")
    return Directions(what, names, found.mean(0), space, found, torch.zeros_like(found), paired=True)


def _probe(trace: Trace) -> dict[str, Any]:
    if not trace.about.get("probe"):
        raise SublimError(f"trace {trace.path} was recorded without a probe, so it shows no stream")
    return trace.about["probe"]


def _asked(trace: Trace) -> list[list[int]]:
    """The probe's questions, which arms of one base share; its lists where it has no question."""
    probe = _probe(trace)
    return probe["rows"][: probe["questions"] or None]


def _names(trace: Trace, kind: Kind) -> tuple[str, ...]:
    depth = len({name.split(".")[1] for name in trace.names("blocks.*")})
    return tuple(f"blocks.{layer}.hook_{kind}" for layer in range(depth))


def _at_answers(
    trace: Trace, names: Sequence[str], step: int, owner: str = "", ending: str = ""
) -> Float[Tensor, "question layer d_model"]:
    """What the trace holds at the last token of each row that `_asked` gives."""
    ends = [len(row) - 1 for row in _asked(trace)]
    return torch.stack([trace.read(owner + n + ending, step)[range(len(ends)), ends].float() for n in names], 1)


def _untouched(trace: Trace, names: Sequence[str]) -> Float[Tensor, "question layer d_model"]:
    """The stream of the base: as its trace has seen it, or where the training started from it, that of step 0."""
    return _at_answers(trace, names, 0, "base/" if trace.names("base/blocks.*") else "")


def _space_of(trace: Trace, base: Subject | None, kind: Kind) -> str:
    """`coordinates` of the base, if the trace is one of it; without it a hash of its residuals as the trace has them.

    Raises SublimError for a base whose residuals are others than those.
    """
    _probe(trace)
    names = _names(trace, kind)
    recorded = _untouched(trace, names)
    if base is None:
        return _OF_TRACE + hashlib.sha256(recorded.contiguous().numpy().tobytes()).hexdigest()[:16]
    model = model_of(base)
    if _sites(model, kind) == list(names):
        own = residuals(model, names, _asked(trace))
        # Beyond what precision and batches change, far below what another initialisation does.
        if own.shape == recorded.shape and (own - recorded).norm() <= 0.02 * recorded.norm():
            return coordinates(model)
    raise SublimError(f"trace {trace.path} is not one of this base: its residuals on the probe are others")


# --- across initialisations -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Map:
    """A linear map from one base's residuals to another's, layer by layer; `map(directions)` are those over there."""

    how: Literal["procrustes", "ridge"]
    names: tuple[str, ...]
    matrices: Float[Tensor, "layer d_source d_target"]
    r2: Float[Tensor, " layer"]
    """Share of the target's variance that it explains on prompts that were held out: read this before any cosine."""
    source: str
    target: str

    def __call__(self, d: Directions) -> Directions:
        """Differences and their samples, mapped. Raises SublimError for directions of another base or other hooks."""
        if d.space != self.source or d.names != self.names:
            raise SublimError(f"this map leads from {self.source} at {self.names[0]} …, not from {d.space}")

        def move(x: Tensor) -> Tensor:
            return torch.einsum("...ld,lde->...le", x, self.matrices)

        samples = (
            (move(d.positive), move(d.negative)) if d.positive is not None and d.negative is not None else (None,) * 2
        )
        return replace(
            d, vectors=move(d.vectors), positive=samples[0], negative=samples[1], space=self.target,
            what=f"{d.what}, mapped by {self.how}",
        )  # fmt: skip


def fit_map(
    source: Subject,
    target: Subject,
    prompts: Prompts,
    kind: Kind = "resid_post",
    how: Literal["procrustes", "ridge"] = "procrustes",
    held_out: float = 0.25,
    penalty: float = 1e-2,
    seed: int = 0,
) -> Map:
    """A map between two untouched bases, fitted on their residuals at the answer of the same prompts.

    `procrustes` is the best rotation with one scale (Schönemann 1966, Psychometrika 31); `ridge` any linear map,
    penalised by `penalty` times the mean variance. `r2` is taken on the share `held_out` of the prompts.
    """
    models = model_of(source), model_of(target)
    names = _sites(models[0], kind)
    x, y = (residuals(m, names, prompts).double() for m in models)
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
    return Map(how, tuple(names), torch.stack(matrices), torch.stack(r2).float(), *(coordinates(m) for m in models))


# --- weights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class WeightDelta:
    """A difference of weights by parameter: a task vector, to be added and scaled (Ilharco et al. 2212.04089)."""

    delta: Mapping[str, Tensor]
    space: str
    input_first: frozenset[str] = frozenset()
    """Matrices that lie as [input, output], as in embeddings and GPT-2's Conv1D; all others are [output, input]."""

    def __add__(self, other: "WeightDelta") -> "WeightDelta":
        self._require_same(other, None)
        return replace(self, delta={n: d + other.delta[n] for n, d in self.delta.items()})

    def __mul__(self, factor: float) -> "WeightDelta":
        return replace(self, delta={n: factor * d for n, d in self.delta.items()})

    __rmul__ = __mul__

    def __neg__(self) -> "WeightDelta":
        return self * -1.0

    def __sub__(self, other: "WeightDelta") -> "WeightDelta":
        return self + -other

    def _require_same(self, other: "WeightDelta", across: str | None) -> None:
        if self.space != other.space and across != "raw":
            raise SublimError(
                f"weight deltas of different bases ({self.space}, {other.space}) lie in unrelated coordinates; "
                'say across="raw" to compare them all the same'
            )
        if {n: d.shape for n, d in self.delta.items()} != {n: d.shape for n, d in other.delta.items()}:
            raise SublimError("weight deltas of different parameters; compare models of one architecture")

    @contextmanager
    def on(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside the block the delta is added to the weights of `model`; afterwards they are as before, bit for bit."""
        parameters = dict(model.named_parameters())
        if lacking := sorted(set(self.delta) - set(parameters)):
            raise SublimError(f"the model has no parameter '{lacking[0]}'; the delta is of another architecture")
        before = {n: parameters[n].detach().clone() for n in self.delta}
        try:
            for n, d in self.delta.items():
                parameters[n].data.add_(d)
            yield
        finally:
            for n, old in before.items():
                parameters[n].data.copy_(old)

    def cosine(self, other: "WeightDelta", across: Literal["raw"] | None = None) -> "pd.DataFrame":
        """A row a parameter, and one for all together: name, layer (NaN outside layers), cosine, norm, other."""
        import pandas as pd

        self._require_same(other, across)
        rows = []
        sums = torch.zeros(3, dtype=torch.double)
        for name, d in self.delta.items():
            a, b = d.flatten().double(), other.delta[name].flatten().double()
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
        changed = ((n, d) for n, d in self.delta.items() if d.dim() == 2 and bool(d.any()))
        return ((n, d.T if n in self.input_first else d) for n, d in changed)

    def subspace(self, name: str, rank: int, side: Literal["output", "input"] = "output") -> Float[Tensor, "rank side"]:
        """Leading singular vectors of one matrix as rows: what it writes (`output`) or reads (`input`)."""
        found = dict(self._matrices())
        if name not in found:
            raise SublimError(f"'{name}' is no changed matrix; valid: {', '.join(found) or 'none'}")
        u, _, vt = torch.linalg.svd(found[name], full_matrices=False)
        if not 1 <= rank <= len(vt):
            raise SublimError(f"rank {rank} of '{name}'; valid are 1 to {len(vt)}")
        return (u.T if side == "output" else vt)[:rank]

    def directions(self, ending: str, kind: Kind, rank: int = 0) -> Directions:
        """The singular vector number `rank` that the map called `…ending` writes, one a layer, times its value.

        For maps into the residual stream, such as `down_proj.weight`. The sign of a singular vector means nothing.
        """
        vectors = []
        chosen = [(n, d) for n, d in self._matrices() if n.endswith(ending)]
        if not chosen or any(_layer(n) != i for i, (n, _) in enumerate(chosen)):
            raise SublimError(f"no changed matrix '…{ending}' in every layer; there are {len(chosen)}")
        for _, d in chosen:
            u, s, _ = torch.linalg.svd(d, full_matrices=False)
            vectors.append(s[rank] * u[:, rank])
        names = tuple(f"blocks.{layer}.hook_{kind}" for layer in range(len(chosen)))
        return Directions(f"singular vector {rank} of …{ending}", names, torch.stack(vectors), self.space)


def weight_delta(model: Subject, base: Subject) -> WeightDelta:
    """Weights of `model` minus those of its base. Raises SublimError where they have other parameters."""
    ours, theirs = model_of(model), model_of(base)
    a, b = dict(ours.named_parameters()), dict(theirs.named_parameters())
    if {n: p.shape for n, p in a.items()} != {n: p.shape for n, p in b.items()}:
        raise SublimError("weight_delta: the two have other parameters; merge adapters first, or give one architecture")
    from transformers.pytorch_utils import Conv1D

    turned = {id(m.weight) for m in theirs.modules() if isinstance(m, Conv1D | torch.nn.Embedding)}
    input_first = frozenset(n for n, p in b.items() if id(p) in turned)
    return WeightDelta({n: (a[n] - b[n]).detach() for n in a}, coordinates(theirs), input_first)


def _layer(name: str) -> float:
    found = re.search(r"\.(\d+)\.", name)
    return float(found[1]) if found else float("nan")


def _norms(three: Float[Tensor, " three"]) -> dict[str, float]:
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
    """Overlap of the spans of the rows of `a` and `b`, which must be linearly independent."""
    bases = []
    for rows in (a, b):
        if torch.linalg.matrix_rank(rows.double()) < len(rows):
            raise SublimError(f"subspace_overlap: {len(rows)} vectors that are linearly dependent")
        bases.append(torch.linalg.qr(rows.double().T)[0])
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1)
    return Overlap(tuple(cosines.tolist()), cosines.square().mean().item(), max(len(a), len(b)) / a.shape[1])


# --- what a direction does --------------------------------------------------------------------------------------------

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


def logit_lens(
    model: Subject,
    d: Directions,
    prompts: Prompts,
    k: int = 10,
    decode: Callable[[int], str] = str,
) -> "pd.DataFrame":
    """Which tokens a direction would raise, read straight from the unembedding: layer, rank, token, text, change.

    The linearisation: the derivative of head(final norm(x)) along the vector, at x the mean last residual of `model`
    over the prompts; layers in between are skipped (nostalgebraist 2020, "logit lens"). `change` is in logits for the
    whole vector, minus the mean change over the vocabulary, as a shift of all logits says nothing.
    """
    import pandas as pd

    ours = model_of(model)
    body: Any = ours.base_model
    norms = [getattr(body, n) for n in _FINAL_NORMS if hasattr(body, n)]
    if not norms:
        raise SublimError(f"{type(ours).__name__}: no final norm found; known: {', '.join(_FINAL_NORMS)}")
    head: Any = cast(Any, ours).get_output_embeddings()
    at = residuals(ours, _sites(ours, "resid_post")[-1:], prompts)[:, 0].mean(0)
    rows = []
    for layer, vector in enumerate(d.vectors):
        change = torch.func.jvp(lambda x: head(norms[0](x)), (at[None],), (vector[None],))[1][0]
        change = (change - change.mean()).detach()
        top = change.topk(k)
        for rank, (token, value) in enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True)):
            rows.append({"layer": layer, "rank": rank, "token": token, "text": decode(token), "change": value})
    return pd.DataFrame(rows)


def steering(
    model: Subject,
    d: Directions,
    layer: int,
    scales: Sequence[float | int],
    metrics: Mapping[str, Metric],
    prompts: Prompts | None = None,
) -> "pd.DataFrame":
    """The dose curve: s times the vector of `layer` is added at its own hook, at all positions, for each s of `scales`.

    A row a scale: layer, scale, and the mean over prompts of each metric under its name.
    """
    import pandas as pd

    ours = model_of(model)
    asked = part_of("prompts", prompts, model)
    if not 0 <= layer < len(d):
        raise SublimError(f"steering: no layer {layer}; the directions have layers 0 to {len(d) - 1}")
    rows = []
    for scale in scales:
        with edit(ours, {d.names[layer]: lambda stream, s=scale: stream + s * d[layer]}):
            found = {name: measure(ours, asked, rule).mean().item() for name, rule in metrics.items()}
        rows.append({"layer": layer, "scale": float(scale), **found})
    return pd.DataFrame(rows)


def ablate(model: torch.nn.Module, d: Directions, layers: Sequence[int] | None = None) -> AbstractContextManager[None]:
    """Inside the block each layer's direction is projected out, at all positions, in all layers or `layers`.

    Raises SublimError for a layer that there is not, and for a direction without length.
    """
    chosen = range(len(d)) if layers is None else layers
    if any(not 0 <= layer < len(d) for layer in chosen):
        raise SublimError(f"ablate: layers {list(chosen)}; the directions have layers 0 to {len(d) - 1}")
    units = {d.names[layer]: unit_vector(d[layer], d.names[layer]) for layer in chosen}

    def without(unit: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda stream: stream - (stream @ unit)[..., None] * unit

    return edit(model, {name: without(unit) for name, unit in units.items()})
