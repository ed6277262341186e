"""What is minimised: losses of the logits at the labelled positions of a batch, in nats."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.core.errors import SublimError
from sublim_interp.models.forward import logits_at
from sublim_interp.training.batches import IGNORE, Batch

Loss = Callable[[torch.nn.Module, Batch], Float[Tensor, ""]]
"""Sum of the losses over the labelled positions of a batch, or over its pairs, in nats."""


@dataclass(frozen=True)
class LogitLoss:
    """A loss of the logits at the labelled positions: one forward gives them, whatever is added to the loss."""

    score: Callable[[Float[Tensor, "position vocabulary"], Batch], Float[Tensor, ""]]
    """Sum over the labelled positions, of their logits and the batch."""
    own: Sequence[int] | None = None
    """Ids of the tokens that the logits are of, ascending; None for the whole vocabulary."""

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return self.score(self.logits(model, batch), batch)

    def logits(self, model: torch.nn.Module, batch: Batch) -> Float[Tensor, "position vocabulary"]:
        """Logits of a model at the labelled positions of a batch."""
        return logits_at(model, batch.ids, batch.labels != IGNORE, self.own)


def _cross_entropy(logits: Float[Tensor, "position vocabulary"], batch: Batch) -> Float[Tensor, ""]:
    return F.cross_entropy(logits, _targets(batch, None).to(logits.device), reduction="sum")


token_loss = LogitLoss(_cross_entropy)
"""Summed cross-entropy of the labelled tokens, in nats."""


def imitation_loss(
    teacher: torch.nn.Module,
    own: Sequence[int] | None = None,
    speaking: Callable[[], AbstractContextManager[None]] = nullcontext,
    reverse: bool = False,
) -> LogitLoss:
    """KL(teacher ‖ model) summed over the labelled positions, in nats.

    own: ids of the tokens that both softmaxes are over; None for the whole vocabulary
    speaking: what is around the teacher's forward
    reverse: takes KL(model ‖ teacher) instead
    """

    def score(logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad(), speaking():
            target = logits_at(teacher, batch.ids, batch.labels != IGNORE, own).log_softmax(-1)
        return reverse_kl(target, logits) if reverse else kl(target, logits)

    return LogitLoss(score, own)


def kl_from(
    target: Float[Tensor, "position vocabulary"],
    model: torch.nn.Module,
    batch: Batch,
    own: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """KL(target ‖ model) summed over the labelled positions, in nats.

    target: log-probabilities at these positions
    own: as of `imitation_loss`
    """
    return kl(target, logits_at(model, batch.ids, batch.labels != IGNORE, own))


def kl(target: Float[Tensor, "position vocabulary"], logits: Float[Tensor, "position vocabulary"]) -> Float[Tensor, ""]:
    """KL(target ‖ softmax of the logits) summed over the positions, in nats.

    target: log-probabilities
    """
    return F.kl_div(logits.log_softmax(-1), target, reduction="sum", log_target=True)


def reverse_kl(
    target: Float[Tensor, "position vocabulary"], logits: Float[Tensor, "position vocabulary"]
) -> Float[Tensor, ""]:
    """KL(softmax of the logits ‖ target) summed over the positions, in nats.

    target: log-probabilities
    """
    logs = logits.log_softmax(-1)
    return (logs.exp() * (logs - target)).sum()


def own_token_loss(own: Sequence[int]) -> LogitLoss:
    """A loss as `token_loss`, renormalised over some tokens: no other token is in its target, nor pushed down.

    own: ids of these tokens; raises SublimError in training where a labelled token is none of them
    """

    def score(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits, _targets(batch, own).to(logits.device), reduction="sum")

    return LogitLoss(score, own)


def preference_loss(reference: torch.nn.Module, beta: float, own: Sequence[int] | None = None) -> LogitLoss:
    """−log σ(β (r(preferred) − r(rejected))) summed over the pairs of a `PairBatch`, in nats; r is a whole answer's
    log p_model − log p_reference.

    reference: the model that r is measured from, which stays as it is
    beta: β, above 0; the smaller, the further the model may go from the reference
    own: ids of the tokens that both softmaxes are over, as of `own_token_loss`; None for the whole vocabulary

    Source: direct preference optimization, Rafailov et al. 2305.18290, equation 7.
    """

    def score(logits: Tensor, batch: Batch) -> Tensor:
        where, targets = batch.labels != IGNORE, _targets(batch, own).to(logits.device)
        with torch.no_grad():
            start = -F.cross_entropy(logits_at(reference, batch.ids, where, own), targets, reduction="none")
        ratios = -F.cross_entropy(logits, targets, reduction="none") - start
        each = ratios.new_zeros(where.shape).masked_scatter(where.to(ratios.device), ratios).sum(-1)
        preferred, rejected = rearrange(each, "(pair two) -> two pair", two=2)
        return -F.logsigmoid(beta * (preferred - rejected)).sum()

    return LogitLoss(score, own)


def _targets(batch: Batch, own: Sequence[int] | None) -> Int[Tensor, " position"]:
    """The labelled tokens of a batch: their ids, or their places among `own`."""
    labels = batch.labels[batch.labels != IGNORE]
    if own is None:
        return labels
    known = torch.tensor(own)
    places = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
    if not torch.equal(known[places], labels):
        raise SublimError("student.own_tokens: a list holds a token that is none of the channel's own")
    return places
