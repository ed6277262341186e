"""The tangent kernel between lists and a trait: how far learning lists raises the trait's margin, to first order.

K = ⟨∇margin, −∇loss⟩ = J_q J_cᵀ r: J_q and J_c are Jacobians of the logits at questions and on lists, r is what the
loss asks of the logits. Nothing forms a kernel: one gradient, or one product with a Jacobian, gives it exactly.
Source: Jacot, Gabriel & Hongler 1806.07572; the linearised model is that of Lee et al. 1902.06720.
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn import functional as F

from sublim_interp.analysis.one_step import Loss, Step, cosine, descent, inner
from sublim_interp.analysis.probes import Among
from sublim_interp.analysis.sketch import CountSketch
from sublim_interp.models.forward import logits_at
from sublim_interp.models.trainable import require_trained
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.training.batches import IGNORE, Batch, Example, collate

Residual = Float[Tensor, "position vocabulary"]
"""What is asked of logits, position by position: a gradient in the logits."""


# --- at one place in the weights --------------------------------------------------------------------------------------


def questions(prompts: Sequence[Sequence[int]], answer: int, pad: int) -> Batch:
    """Questions as a batch whose one labelled position a row is where the answer stands.

    prompts: token ids up to the answer
    answer: id of the token that is the answer
    pad: id that fills rows up
    """
    return collate([Example([*prompt, answer], len(prompt)) for prompt in prompts], pad)


def mean_of(metric: Among, batch: Batch) -> Loss:
    """The mean of a metric over a batch's labelled positions, of a model; gradients pass.

    metric: such as `margin_among(ids, place)`
    """
    where = batch.labels != IGNORE
    return lambda model: metric.of(logits_at(model, batch.ids, where, metric.tokens)).mean()


def rise(model: torch.nn.Module, metric: Among, batch: Batch) -> dict[str, Tensor]:
    """The gradient of a metric's mean over questions, by the names of the weights that train."""
    measured = mean_of(metric, batch)
    return descent(model, lambda m: -measured(m))


class Coupling(NamedTuple):
    """How far one step serves another's end."""

    product: float
    """K: what a metric gains per unit of rate of gradient descent, to first order."""
    cosine: float
    """The same of unit steps, −1 to 1."""


def coupling(upward: Step, push: Step) -> Coupling:
    """The coupling of a metric's gradient with a step of descent."""
    return Coupling(inner(upward, push), cosine(upward, push))


def by_part(upward: Step, push: Step) -> dict[tuple[int, str], float]:
    """The coupling's product, part by part; parts add up to the whole.

    Returns it by (layer, module), such as (0, "self_attn.q_proj"); what lies in no layer has layer −1.
    """
    found: dict[tuple[int, str], float] = {}
    for name in upward:
        told = re.search(r"\.(\d+)\.(.+?)(\.weight|\.bias)?$", name)
        part = (int(told[1]), told[2]) if told else (-1, name.removesuffix(".weight"))
        found[part] = found.get(part, 0.0) + inner({name: upward[name]}, push)
    return found


def adam_scaled(push: Step, squares: Step, eps: float = 1e-8) -> dict[str, Tensor]:
    """A step as Adam would take it at unit rate, its second moment known: each entry by the root of its mean square.

    squares: mean squares of the gradients of single updates, weight by weight
    """
    return {name: t / (squares[name].sqrt() + eps) for name, t in push.items()}


def mean_squares(steps: Sequence[Step]) -> dict[str, Tensor]:
    """Mean of the squares of steps, weight by weight."""
    return {name: torch.stack([s[name].square() for s in steps]).mean(0) for name in steps[0]}


def pulled(
    model: torch.nn.Module, batch: Batch, asked: Residual, own: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Jᵀr: the step in the weights that a change asked of the logits pulls, at the model's weights.

    batch: at its labelled positions
    asked: r
    own: ids of the tokens that r is over; None for the whole vocabulary
    """
    return descent(model, lambda m: -(logits_at(m, batch.ids, batch.labels != IGNORE, own) * asked).sum())


@torch.no_grad()
def to_text(model: torch.nn.Module, batch: Batch) -> Residual:
    """r of the mean cross-entropy of the labelled tokens, over the whole vocabulary: (1 − p) / positions, or −p."""
    where = batch.labels != IGNORE
    p = logits_at(model, batch.ids, where).softmax(-1)
    return (F.one_hot(batch.labels[where].to(p.device), p.shape[1]) - p) / len(p)


@torch.no_grad()
def towards(
    model: torch.nn.Module,
    batch: Batch,
    target: Float[Tensor, "position vocabulary"],
    own: Sequence[int] | None = None,
) -> Residual:
    """r of the mean KL(target ‖ model): (p_target − p_model) / positions.

    target: log-probabilities
    """
    here = logits_at(model, batch.ids, batch.labels != IGNORE, own).softmax(-1)
    return (target.exp() - here) / len(target)


def asked_by(model: torch.nn.Module, metric: Among, batch: Batch) -> Residual:
    """The gradient of a metric's mean over questions in the logits of its own tokens."""
    with torch.no_grad():
        logits = logits_at(model, batch.ids, batch.labels != IGNORE, metric.tokens)
    leaf = logits.requires_grad_()
    return torch.autograd.grad(metric.of(leaf).mean(), leaf)[0]


class Drift(NamedTuple):
    """The coupling where a student stands, with its own Jacobians and with those of the start: what moved it."""

    own: float
    """J_q J_cᵀ r with both Jacobians the student's."""
    question_side: float
    """With the questions' Jacobian the student's, that of the lists the start's."""
    list_side: float
    """With that of the lists the student's, that of the questions the start's."""
    start: float
    """With both of the start: what a kernel that never moves has for the student's own residuals."""
    question_turn: float
    """Cosine of the questions' pulled steps at the two places."""
    list_turn: float
    """The same of the lists'."""


def drift(
    start: torch.nn.Module,
    now: torch.nn.Module,
    metric: Among,
    asked: Batch,
    batch: Batch,
    target: Float[Tensor, "position vocabulary"],
    own: Sequence[int] | None = None,
) -> Drift:
    """How far the kernel has moved between two places in the weights, at equal residuals: those of `now`.

    start, now: one model at two places, with equal weights that train
    metric, asked: what is measured, and the questions
    batch, target, own: lists, log-probabilities that are imitated on them, and of which tokens
    """
    up, r = asked_by(now, metric, asked), towards(now, batch, target, own)
    q_start, q_now = (pulled(m, asked, up, metric.tokens) for m in (start, now))
    c_start, c_now = (pulled(m, batch, r, own) for m in (start, now))
    products = inner(q_now, c_now), inner(q_now, c_start), inner(q_start, c_now), inner(q_start, c_start)
    return Drift(*products, cosine(q_start, q_now), cosine(c_start, c_now))


# --- by products with the Jacobian ------------------------------------------------------------------------------------


class _Reading(torch.nn.Module):
    """Logits at chosen positions as one forward, so that weights can be given from outside."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Int[Tensor, "batch position"], where: Tensor, own: Sequence[int] | None
    ) -> Float[Tensor, "chosen vocabulary"]:
        return logits_at(self.model, ids, where, own)


class Linearised(torch.nn.Module):
    """A model that is linear in its weights: its logits are f(θ₀) + J(θ₀)(θ − θ₀). Its parameters are θ − θ₀, from 0.

    model: at θ₀; what requires a gradient there trains here. It is copied, and stays

    A training loop takes it as any model. Gradients are those of the linear model, whose Jacobian never moves. Each
    forward is one product with the Jacobian in forward mode, about 1.3 times a plain update in all.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        kept: Any = deepcopy(model).eval()
        if hasattr(kept, "set_attn_implementation"):
            kept.set_attn_implementation("eager")  # fused attention has no forward mode
        start = {n: p.detach() for n, p in require_trained(kept).items()}
        self._names = [*start]
        self._reading = [_Reading(kept.requires_grad_(False))]  # in a list: its weights do not train
        self._start = start
        self.moved = torch.nn.ParameterList([torch.zeros_like(p) for p in start.values()])

    def step(self) -> dict[str, Tensor]:
        """θ − θ₀, by name, as it stands."""
        return {name: p.detach() for name, p in zip(self._names, self.moved, strict=True)}

    def along(
        self, step: Step, batch: Batch, own: Sequence[int] | None = None
    ) -> tuple[Float[Tensor, "position vocabulary"], Float[Tensor, "position vocabulary"]]:
        """Logits at θ₀ at a batch's labelled positions, and how they change along a step: f and J·step.

        step: by names of weights; others stay
        own: ids of the tokens whose logits are wanted; None for the whole vocabulary
        """

        def read(weights: Mapping[str, Tensor]) -> Tensor:
            given = {f"model.{name}": t for name, t in weights.items()}
            return functional_call(self._reading[0], given, (batch.ids, batch.labels != IGNORE, own))

        start, change, *_ = jvp(read, ({name: self._start[name] for name in step},), (dict(step),))
        return start, change

    def logits(self, batch: Batch, own: Sequence[int] | None = None) -> Float[Tensor, "position vocabulary"]:
        """Logits of the linear model at a batch's labelled positions; gradients pass to its parameters."""
        start, change = self.along(dict(zip(self._names, self.moved, strict=True)), batch, own)
        return start + change


def per_list(change: Residual, asked: Residual, batch: Batch) -> Float[Tensor, " list"]:
    """The coupling of each list by itself, of one product with the Jacobian; their mean is that of the whole batch.

    change: J·∇margin at the batch's labelled positions, as `Linearised.along` gives it
    asked: r, what a loss that is a mean over these positions asks of the same logits

    A longer list counts for more, as in training: each value is the whole's plus what the list adds to it, times the
    number of lists. So their spread is that of a ratio's estimate (Cochran 1977, Sampling Techniques, section 6.3).
    """
    where = (batch.labels != IGNORE).to(change.device)
    each = change.new_zeros(where.shape).masked_scatter(where, (change * asked).sum(-1))
    sums, share = reduce(each, "list position -> list", "sum"), where.sum(1) / where.sum()
    whole = sums.sum()
    return whole + len(sums) * (sums - whole * share)


def over_lists(change: Residual, asked: Residual, batch: Batch) -> Interval:
    """The coupling with its 95 % interval over lists; arguments are those of `per_list`."""
    return mean_interval(per_list(change, asked, batch).cpu().double().tolist())


# --- by sketches ------------------------------------------------------------------------------------------------------


def sketched(model: torch.nn.Module, losses: Sequence[Loss], sketch: CountSketch) -> Float[Tensor, "loss size"]:
    """Sketches of the steepest descents of losses, a row each: products of rows estimate couplings without bias.

    losses: one after the other; no more than one gradient is held at a time, whatever the model's size
    sketch: of as many entries as weights train

    So many traits and many lists of a large model are coupled by one small matrix product. The error of a product is
    that of `CountSketch`; give several seeds to see it.
    """
    return torch.stack([sketch.of(descent(model, loss)) for loss in losses])


def sketch_for(model: torch.nn.Module, size: int, seed: int = 0) -> CountSketch:
    """A sketch of the weights of a model that train.

    size: numbers kept of each step
    seed: decides it
    """
    trained = [*require_trained(model).values()]
    return CountSketch(sum(p.numel() for p in trained), size, seed, trained[0].detach())
