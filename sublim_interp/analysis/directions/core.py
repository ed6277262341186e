"""Directions in the residual stream: how they are found in models, compared, and tested against nulls."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.kinship import ACROSS, Space, require_one_base, space_of
from sublim_interp.analysis.probes import (
    Metric,
    Subject,
    asked_of,
    at_answer,
    batches,
    frozen,
    logits_of,
    model_of,
    models_of,
    part_of,
    residuals,
)
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown
from sublim_interp.models.hooks import capture, names_of
from sublim_interp.models.points import Stream
from sublim_interp.models.prompts import Prompts

if TYPE_CHECKING:
    import pandas as pd


Null = Literal["shuffled", "covariance"]
"""What is compared with: samples whose labels are shuffled, or normal vectors of the samples' covariance."""
Likeness = Literal["cosine", "projection"]
"""How alike two directions are: their cosine, or how far the first goes along the second, in the first's unit."""
ASKS = {
    "shuffled": "Would these samples point there as much if their labels meant nothing?",
    "covariance": "Would a random vector of these samples' own scatter point there as much?",
    "traits": "Do the directions of other traits point there as much?",
    "interval": "Would other questions of the same sort give about the same? It says nothing of other students.",
}
"""The question that each null or interval answers; frames have it as `frame.attrs["asks"]`."""

TIE = 1e-6
"""A draw that is smaller by no more than this share counts as large: single precision sums the observed one anew."""
OF_TRACE = "trace "
"""How the key of a space begins of which only the trace is known."""


@dataclass(frozen=True, eq=False, repr=False)
class Directions(Shown):
    """One vector a layer, and what it was averaged from. `directions[2]` is the vector of layer 2, not normalised."""

    what: str
    """How it was found: mean difference, trait contrast, gradient, …"""
    names: tuple[str, ...]
    """The hook of each layer."""
    vectors: Float[Tensor, "layer d_model"]
    space: Space
    """The base whose axes these are."""
    positive: Float[Tensor, "sample layer d_model"] | None = None
    """What was averaged; `vectors` is mean positive − mean negative. None where nothing was."""
    negative: Float[Tensor, "other layer d_model"] | None = None
    paired: bool = False
    """Sample i of both comes from the same prompt."""

    def __getitem__(self, layer: int) -> Float[Tensor, " d_model"]:
        return self.vectors[layer]

    def __len__(self) -> int:
        return len(self.vectors)

    def at(self, hook: str) -> Float[Tensor, " d_model"]:
        """The vector at a hook. Raises SublimError, with the hooks there are, for another."""
        if hook not in self.names:
            raise SublimError(f"these directions have no vector at '{hook}'; {meant(hook, self.names)}")
        return self.vectors[self.names.index(hook)]

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a layer: layer, name (of its hook), norm (in the unit of the vectors)."""
        import pandas as pd

        return pd.DataFrame({"layer": range(len(self)), "name": self.names, "norm": self.vectors.norm(dim=1).tolist()})

    def card(self) -> Card:
        layers = f"{len(self)} × {self.vectors.shape[1]} at {self.names[0]} …"
        samples = {} if self.positive is None else {"of": f"{len(self.positive)} samples"}
        return Card("Directions", {"by": self.what, "": layers, "in": str(self.space), **samples}, self.frame)

    def __add__(self, other: "Directions") -> "Directions":
        """The sum, layer by layer; samples are kept where both have one a prompt. Raises SublimError as `cosine`."""
        return self._plus(other, 1.0, "+")

    def __sub__(self, other: "Directions") -> "Directions":
        """What is left of one without the other, such as a trait's shift without the neutral student's."""
        return self._plus(other, -1.0, "−")

    def __mul__(self, factor: float | int) -> "Directions":
        """The same directions, so many times as long."""
        a, b = (None if part is None else factor * part for part in (self.positive, self.negative))
        return Directions(f"{factor:g} × {self.what}", self.names, factor * self.vectors, self.space, a, b, self.paired)

    __rmul__ = __mul__

    def __neg__(self) -> "Directions":
        """The opposite directions."""
        return self * -1.0

    def _plus(self, other: "Directions", sign: float, word: str) -> "Directions":
        self._require_comparable(other)
        what = f"{self.what} {word} {other.what}"
        vectors, ours, theirs = self.vectors + sign * other.vectors, self._each(), other._each()
        if ours is None or theirs is None or len(ours) != len(theirs):
            return Directions(what, self.names, vectors, self.space)
        each = ours + sign * theirs
        return Directions(what, self.names, vectors, self.space, each, torch.zeros_like(each), paired=True)

    def _each(self) -> Float[Tensor, "sample layer d_model"] | None:
        """The difference of each pair of samples; None where they are no pairs."""
        if not self.paired or self.positive is None or self.negative is None:
            return None
        return self.positive - self.negative

    def random_like(self, n: int, covariance: bool = True, seed: int = 0) -> "list[Directions]":
        """Random directions of the same length in every layer, to steer, ablate and project with as a control.

        n: how many
        covariance: drawn with the covariance of the samples about their own means, as most of any shift is generic;
            else from all ways alike
        seed: decides the draws

        Raises SublimError where a covariance is asked of directions that keep no samples.
        """
        random = torch.Generator().manual_seed(seed)
        if covariance:
            positive, negative = self._samples("covariance of their samples; say covariance=False")
            drawn = _scattered(*_normals(self, n, random), positive, negative)
        else:
            drawn = torch.randn(n, *self.vectors.shape, generator=random)
        drawn = torch.nn.functional.normalize(drawn, dim=-1) * self.vectors.norm(dim=-1, keepdim=True)
        return [Directions(f"random like {self.what}", self.names, one, self.space) for one in drawn.to(self.vectors)]

    def interval(
        self, other: "Directions", of: Likeness = "cosine", draws: int = 999, seed: int = 0, level: float = 0.95
    ) -> "pd.DataFrame":
        """How much the likeness to other directions varies with the questions asked: a bootstrap over the samples.

        of: cosine, or projection (in the unit of these directions)
        draws: resamples
        level: of the percentile interval

        Intervals over seeds and bases are over replicates: `si.compare` gives them. Returns a row a layer: layer, the
        likeness, low, high. Raises SublimError as `cosine`, and for directions that keep no samples.
        """
        import pandas as pd

        self._require_comparable(other)
        like = _likeness(of)
        positive, negative = self._samples("interval over samples")
        random = torch.Generator().manual_seed(seed)

        def resampled(count: int) -> Float[Tensor, "draw sample"]:
            chosen = torch.randint(count, (draws, count), generator=random)
            return torch.zeros(draws, count).scatter_add_(1, chosen, torch.ones(draws, count)) / count

        a = resampled(len(positive))
        b = a if self.paired else resampled(len(negative))
        drawn = like(einsum(a, positive, _WEIGHTED) - einsum(b, negative, _WEIGHTED), other.vectors)
        edges = drawn.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=drawn.dtype), dim=0)
        found = like(self.vectors, other.vectors)
        frame = pd.DataFrame(
            {"layer": range(len(self)), of: found.tolist(), "low": edges[0].tolist(), "high": edges[1].tolist()}
        )
        frame.attrs["asks"] = ASKS["interval"]
        return frame

    def _samples(self, what: str) -> tuple[Tensor, Tensor]:
        if self.positive is None or self.negative is None:
            raise SublimError(f"directions by {self.what} keep no samples, so there is no {what}")
        return self.positive, self.negative

    def cosine(self, other: "Directions", across_bases: bool = False) -> "pd.DataFrame":
        """The cosine with other directions, layer by layer.

        across_bases: compares directions of different bases too, whose axes have nothing to do with each other

        Returns a row a layer: layer, name, cosine; NaN where a vector is zero. Raises SublimError for another number of
        layers or other hooks, and for directions of different bases: map one of them first (`fit_map`), or compare each
        with a direction of its own base.
        """
        import pandas as pd

        self._require_comparable(other, across_bases)
        cosines = _cosine(self.vectors, other.vectors)
        return pd.DataFrame({"layer": range(len(self)), "name": self.names, "cosine": cosines.tolist()})

    def _require_comparable(self, other: "Directions", across_bases: bool = False) -> None:
        """Raises SublimError for other hooks, another number of layers, or, unless that is meant, another base."""
        if self.names != other.names:
            raise SublimError(f"directions at {self.names[0]} … and {other.names[0]} …; compare those of equal hooks")
        if self.space != other.space and not across_bases:
            if sum(s.key.startswith(OF_TRACE) for s in (self.space, other.space)) == 1:
                raise SublimError("a trace does not tell whose coordinates it has: give from_trace or over_steps base=")
            raise SublimError(
                f"these directions belong to different bases ({self.space}, {other.space}), {ACROSS}; or compare each "
                "with its own base's"
            )
        if self.vectors.shape != other.vectors.shape:
            raise SublimError(f"directions of shape {list(self.vectors.shape)} and {list(other.vectors.shape)}")

    def null(
        self,
        other: "Directions",
        kind: Null,
        draws: int = 999,
        seed: int = 0,
        across_bases: bool = False,
        of: Likeness = "cosine",
    ) -> "pd.DataFrame":
        """What the likeness to other directions would be by chance.

        kind: `shuffled` shuffles the labels of the samples, paired ones within their pair, and asks how far the mean
            difference then goes along the other direction. `covariance` draws vectors of the covariance that a
            difference of the samples' means has
        draws: how many are drawn, 19 or more; where there are no more ways to shuffle, each is taken once
        seed: decides the draws
        across_bases: as for `cosine`
        of: cosine, or projection (in the unit of these directions)

        A shuffled cosine is a projection too, in lengths of these directions: what labels of no meaning leave of the
        difference is short, yet may point the same way. By `covariance`, projections follow Student's t, for the
        scatter is itself an estimate. Cosines do not: below some 16 samples their range is too narrow.

        Returns a row a layer: layer, the likeness, low, high, p; `attrs["asks"]` is the question it answers. 95 % of
        the draws lie between low and high. p is two-sided: (1 + as large) / (1 + draws), or the share of all ways to
        shuffle, which n pairs cannot bring below 2 / 2^n. It is NaN where a vector is zero; so are low, high and p by
        `covariance` where a side has one sample. Raises SublimError as `cosine`, for fewer draws, and for directions
        that keep no samples.
        Source: Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39.
        """
        self._require_comparable(other, across_bases)
        if kind not in get_args(Null):
            raise SublimError(f"null: kind is {kind!r}; {meant(kind, get_args(Null))}")
        like = _likeness(of)
        positive, negative = self._samples(f"{kind} null; use null_of")
        if draws < 19:
            raise SublimError(f"null: draws is {draws}; needs 19 or more for an interval of 95 %")
        random = torch.Generator().manual_seed(seed)
        found = like(self.vectors, other.vectors)
        if kind == "covariance":
            a, b = _normals(self, draws, random)
            if of == "projection":
                a, b = _as_t(a, b, self.paired, random)
            drawn = like(_scattered(a, b, positive, negative), other.vectors)
            if min(len(positive), len(negative)) < 2:  # one sample has no scatter
                drawn = torch.full_like(drawn, torch.nan)
            return _null_frame(found, drawn, of, kind)
        high, low = (_projection(samples, other.vectors) for samples in (positive, negative))
        drawn, every = _shuffled(high, low, self.paired, draws, random)
        if of == "cosine":
            length = self.vectors.double().norm(dim=-1)
            drawn = drawn / length.where(length > 0, torch.nan)
        return _null_frame(found, drawn, of, kind, every)

    def null_of(self, other: "Directions", traits: Sequence["Directions"], of: Likeness = "cosine") -> "pd.DataFrame":
        """The null of other traits: the likeness to `other`, and the range of those that `traits` have with it.

        Returns a row a layer as `null`. Raises SublimError as `cosine`, and where no trait is given.
        """
        for one in (self, *traits):
            one._require_comparable(other)
        if not traits:
            raise SublimError("null_of: give the directions of one other trait or more")
        like = _likeness(of)
        drawn = torch.stack([like(t.vectors, other.vectors) for t in traits])
        return _null_frame(like(self.vectors, other.vectors), drawn, of, "traits")

    def project(
        self, tensors: Float[Tensor, "step layer d_model"], steps: Sequence[int] | None = None
    ) -> "pd.DataFrame":
        """Where something that moves goes along these directions.

        tensors: differences from a common start, in the coordinates of these directions: a trace's residuals minus the
            base's, gradients, or updates
        steps: their numbers; 0, 1, … where None

        Returns a row a step and layer: step, layer, projection (in the unit of the tensors), cosine.
        """
        import pandas as pd

        numbers = list(range(len(tensors))) if steps is None else list(steps)
        if tensors.shape[1:] != self.vectors.shape or len(numbers) != len(tensors):
            raise SublimError(
                f"project: tensors {list(tensors.shape)} and {len(numbers)} steps; needs [step, "
                f"{', '.join(map(str, self.vectors.shape))}] and as many steps"
            )
        along, cosines = self.along(tensors), _cosine(tensors, self.vectors)
        return pd.DataFrame(
            {"step": s, "layer": l, "projection": along[i, l].item(), "cosine": cosines[i, l].item()}
            for i, s in enumerate(numbers)
            for l in range(len(self))  # noqa: E741
        )

    def along(self, tensors: Float[Tensor, "*more layer d_model"]) -> Float[Tensor, "*more layer"]:
        """Length of tensors along each layer's direction, in the unit of the tensors."""
        unit = torch.nn.functional.normalize(self.vectors, dim=-1)
        return reduce(tensors * unit, "... layer d_model -> ... layer", "sum")


def _cosine(a: Float[Tensor, "*#more d"], b: Float[Tensor, "*#more d"]) -> Float[Tensor, "*more"]:
    """Along the last axis; NaN for a zero vector."""
    a, b = a.double(), b.double()
    return reduce(a * b, "... d -> ...", "sum") / (a.norm(dim=-1) * b.norm(dim=-1))


def _projection(a: Float[Tensor, "*#more d"], b: Float[Tensor, "*#more d"]) -> Float[Tensor, "*more"]:
    """Length of a along b, in the unit of a; NaN for a zero b."""
    a, b = a.double(), b.double()
    return reduce(a * b, "... d -> ...", "sum") / b.norm(dim=-1)


_LIKENESS = {"cosine": _cosine, "projection": _projection}


def _likeness(of: Likeness) -> Callable[..., Any]:
    if of not in _LIKENESS:
        raise SublimError(f"of is {of!r}; {meant(of, _LIKENESS)}")
    return _LIKENESS[of]


_WEIGHTED = "draw sample, sample layer d_model -> draw layer d_model"


def _null_frame(
    found: Float[Tensor, " layer"], drawn: Float[Tensor, "draw layer"], of: Likeness, null: str, every: bool = False
) -> "pd.DataFrame":
    """The table of `Directions.null`, of what was found and drawn.

    every: the draws are all that there can be, the observed one among them
    """
    import pandas as pd

    edges = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0)
    as_large = (drawn.abs() >= found.abs() * (1 - TIE) - 1e-12).sum(0)
    p = as_large.clamp_min(1) / len(drawn) if every else (1 + as_large) / (1 + len(drawn))
    frame = pd.DataFrame(
        {
            "layer": range(len(found)),
            of: found.tolist(),
            "low": edges[0].tolist(),
            "high": edges[1].tolist(),
            "p": p.where(~found.isnan() & ~edges[0].isnan(), torch.nan).tolist(),
        }
    )
    frame.attrs["asks"] = ASKS[null]
    return frame


def _scattered(
    a: Float[Tensor, "draw sample"], b: Float[Tensor, "draw other"], positive: Tensor, negative: Tensor
) -> Float[Tensor, "draw layer d_model"]:
    """Random vectors of the covariance that a difference of the samples' means has, by weights of the samples."""
    return einsum(a, positive - positive.mean(0), _WEIGHTED) + einsum(b, negative - negative.mean(0), _WEIGHTED)


def _shuffled(
    positive: Float[Tensor, "sample layer"],
    negative: Float[Tensor, "other layer"],
    paired: bool,
    draws: int,
    random: torch.Generator,
) -> tuple[Float[Tensor, "draw layer"], bool]:
    """Differences of means with shuffled labels, and whether these are all that there can be."""
    count = len(positive)
    if paired:
        each = (positive - negative) / count
        if every := 2 ** (count - 1) <= 1 + draws:  # the first sign stays: the other half mirrors this one
            sums = each[:1]
            for one in each[1:]:
                sums = torch.cat([sums + one, sums - one])
            return torch.cat([sums, -sums]), every
        signs = 2 * torch.randint(2, (draws, count), generator=random) - 1
        return signs.to(each) @ each, every
    pooled = torch.cat([positive, negative])
    if every := math.comb(len(pooled), count) <= 1 + draws:
        chosen = torch.tensor([*itertools.combinations(range(len(pooled)), count)])
    else:
        chosen = torch.rand(draws, len(pooled), generator=random).argsort(1)[:, :count]
    weights = torch.full((len(chosen), len(pooled)), -1 / len(negative), dtype=pooled.dtype)
    return weights.scatter_(1, chosen, 1 / count) @ pooled, every


def _normals(d: Directions, draws: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normal weights of the samples, so that their weighted sums have the covariance of a difference of means."""
    assert d.positive is not None and d.negative is not None
    count = len(d.positive)
    a = torch.randn(draws, count, generator=random)
    b = -a if d.paired else torch.randn(draws, len(d.negative), generator=random)
    return a / count, b / len(d.negative)


def _as_t(a: Tensor, b: Tensor, paired: bool, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normal weights of the samples made Student's t, as each side's scatter is estimated from its n samples.

    A scatter about the samples' own mean lacks the factor n / (n − 1).
    """

    def scale(count: int) -> Float[Tensor, "draw 1"]:
        chi_squared = torch.randn(len(a), max(1, count - 1), generator=random).pow(2).sum(1, keepdim=True)
        return (count / chi_squared) ** 0.5  # √(n / (n − 1)) / √(χ² / (n − 1))

    of_a = scale(a.shape[1])
    return a * of_a, b * (of_a if paired else scale(b.shape[1]))


def directions(
    model: Subject,
    base: Subject,
    prompts: Prompts = None,
    kind: Stream = "resid_post",
    across_bases: bool = False,
) -> Directions:
    """Mean-difference directions: residuals of a model minus those of its base, on the same prompts, at the answer.

    prompts: texts, chats, or token ids that end where the answer begins; replicates bring their held-out questions
    kind: where in each layer
    across_bases: takes the difference from another base than the model's own too, whose axes are unrelated

    Raises SublimError where the model does not come from the base, and for prompts that are none.
    """
    ours, theirs = models_of(model, base)
    require_one_base("directions", model, base, [ours, theirs], across_bases)
    asked = asked_of(prompts, model, base, model=theirs)
    names = names_of(theirs, kind)
    a, b = residuals(ours, names, asked), residuals(theirs, names, asked)
    return Directions("mean difference", tuple(names), (a - b).mean(0), space_of(theirs), a, b, paired=True)


def trait_contrast(base: Subject, with_trait: Prompts, others: Prompts, kind: Stream = "resid_post") -> Directions:
    """What a base itself computes for a trait: mean residual on the trait's prompts minus that on other prompts.

    with_trait, others: for instance the same questions behind the trait's system prompts, and behind other members'
    kind: where in each layer

    Each student has such a direction in its own base, which is how students are compared across initialisations.
    Source: Chen et al. 2507.21509, section 2, take this contrast of system prompts for a trait's vector.
    """
    model = model_of(base)
    names = names_of(model, kind)
    a, b = (residuals(model, names, asked_of(some, base, model=model)) for some in (with_trait, others))
    return Directions("trait contrast", tuple(names), a.mean(0) - b.mean(0), space_of(model), a, b)


def gradient(
    model: Subject, metric: Metric | None = None, prompts: Prompts = None, kind: Stream = "resid_post",
    base: Subject | None = None, across_bases: bool = False,
) -> Directions:  # fmt: skip
    """Gradient directions: which way the residual at the answer should move to raise a metric, mean over prompts.

    metric, prompts: replicates bring the trait's margin and their held-out questions
    kind: where in each layer
    base: whose coordinates they are, where the model was trained from another
    across_bases: names another base than the model's own too

    Gradients of the weights are untouched. Raises SublimError where the model does not come from the base.
    """
    ours = model_of(model)
    theirs = ours if base is None else model_of(base)
    if base is not None:
        require_one_base("gradient", model, base, [ours, theirs], across_bases)
    asked, rule = asked_of(prompts, model, base, model=ours), part_of("metric", metric, model, base)
    names = names_of(ours, kind)
    each: dict[int, Tensor] = {}
    for places, ids in batches(asked):
        with torch.enable_grad(), frozen(ours), capture(ours, names, gradients=True) as seen:
            rule(logits_of(ours, ids)).sum().backward()
        each.update(zip(places, at_answer([seen.gradients[n] for n in names]), strict=True))
    found = torch.stack([each[place] for place in range(len(each))])
    zeros = torch.zeros_like(found)
    return Directions("gradient", tuple(names), found.mean(0), space_of(theirs), found, zeros, paired=True)
