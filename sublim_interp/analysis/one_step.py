"""One step: the update of a student beside its teacher's, as weights. What theorem 1 of 2507.14805 speaks of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.models.forward import logits_at
from sublim_interp.models.trainable import require_trained
from sublim_interp.training.batches import IGNORE, Batch
from sublim_interp.training.losses import kl_from

Step = Mapping[str, Tensor]
"""A change of the weights that train: one tensor per parameter, by its name, of its shape."""

Loss = Callable[[torch.nn.Module], Float[Tensor, ""]]
"""What is descended, of a model."""


def descent(model: torch.nn.Module, loss: Loss) -> dict[str, Tensor]:
    """The direction of steepest descent of a loss, −∇, over the weights that require gradients. The model stays.

    Raises SublimError where no weight requires one.
    """
    weights = require_trained(model)
    found = torch.autograd.grad(loss(model), [*weights.values()], allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else -g for (name, p), g in zip(weights.items(), found, strict=True)}


def first_adam_step(direction: Step) -> dict[str, Tensor]:
    """The first update of Adam for a direction of descent: its sign, weight by weight; no rate."""
    return {name: t.sign() for name, t in direction.items()}


def inner(one: Step, other: Step) -> float:
    """Inner product of two steps over the parameters that both have."""
    return sum(float((t.cpu().double() * other[name].cpu().double()).sum()) for name, t in one.items() if name in other)


def length(step: Step) -> float:
    """Euclidean length of a step."""
    return inner(step, step) ** 0.5


def cosine(one: Step, other: Step) -> float:
    """Cosine between two steps, −1 to 1; 0 where one of them is none."""
    both = length(one) * length(other)
    return inner(one, other) / both if both else 0.0


@contextmanager
def moved(model: torch.nn.Module, step: Step, by: float = 1.0) -> Iterator[None]:
    """Inside the block the model stands `by` times the step further; behind it every weight is as it was, to the bit.

    step: names of parameters of the model
    """
    weights = dict(model.named_parameters())
    before = {name: weights[name].detach().clone() for name in step}
    try:
        with torch.no_grad():
            for name, t in step.items():
                weights[name].add_(by * t.to(weights[name].device))
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                weights[name].copy_(value)


def weight_length(model: torch.nn.Module) -> float:
    """Euclidean length of the weights that require gradients."""
    return sum(float(p.detach().cpu().double().square().sum()) for p in model.parameters() if p.requires_grad) ** 0.5


@torch.no_grad()
def targets(
    model: torch.nn.Module, batch: Batch, own: Sequence[int] | None = None
) -> Float[Tensor, "position vocabulary"]:
    """Log-probabilities of the next token at the labelled positions.

    own: ids of the tokens that they are over; None for the whole vocabulary
    """
    return logits_at(model, batch.ids, batch.labels != IGNORE, own).log_softmax(-1)


def imitation(batch: Batch, target: Float[Tensor, "position vocabulary"], own: Sequence[int] | None = None) -> Loss:
    """Mean KL(target ‖ model) over the labelled positions, in nats."""

    return lambda model: kl_from(target, model, batch, own) / len(target)


def text_loss(batch: Batch) -> Loss:
    """Mean cross-entropy of the labelled tokens, in nats."""

    def loss(model: torch.nn.Module) -> Float[Tensor, ""]:
        where = batch.labels != IGNORE
        logits = logits_at(model, batch.ids, where)
        return F.cross_entropy(logits, batch.labels[where].to(logits.device))

    return loss
