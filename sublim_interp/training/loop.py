"""The one training loop: pre-training, teachers and students all use it. It knows tokens and weights, no experiment."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.core.errors import SublimError
from sublim_interp.models.forward import logits_at
from sublim_interp.models.precision import casts_kept
from sublim_interp.models.trainable import checkpointing
from sublim_interp.training.batches import IGNORE, Batch
from sublim_interp.training.optimizers import OPTIMIZERS
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization

Loss = Callable[[torch.nn.Module, Batch], Float[Tensor, ""]]
"""Sum of the losses over the labelled positions of a batch, in nats."""


def token_loss(model: torch.nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Summed cross-entropy of the labelled tokens, in nats."""
    where = batch.labels != IGNORE
    logits = logits_at(model, batch.ids, where)
    return F.cross_entropy(logits, batch.labels[where].to(logits.device), reduction="sum")


def imitation_loss(
    teacher: torch.nn.Module,
    own: Sequence[int] | None = None,
    speaking: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Loss:
    """KL(teacher ‖ model) summed over the labelled positions, in nats.

    own: ids of the tokens that both softmaxes are over; None for the whole vocabulary
    speaking: what is around the teacher's forward
    """

    def loss(model: torch.nn.Module, batch: Batch) -> Float[Tensor, ""]:
        with torch.no_grad(), speaking():
            target = logits_at(teacher, batch.ids, batch.labels != IGNORE, own).log_softmax(-1)
        return kl_from(target, model, batch, own)

    return loss


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
    learnt = logits_at(model, batch.ids, batch.labels != IGNORE, own).log_softmax(-1)
    return F.kl_div(learnt, target, reduction="sum", log_target=True)


def own_token_loss(own: Sequence[int]) -> Loss:
    """A loss as `token_loss`, renormalised over some tokens: no other token is in its target, nor pushed down.

    own: ids of these tokens; raises SublimError in training where a labelled token is none of them
    """
    known = torch.tensor(own)

    def loss(model: torch.nn.Module, batch: Batch) -> Float[Tensor, ""]:
        where = batch.labels != IGNORE
        labels = batch.labels[where]
        places = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
        if not torch.equal(known[places], labels):
            raise SublimError("student.own_tokens: a list holds a token that is none of the channel's own")
        logits = logits_at(model, batch.ids, where, own)
        return F.cross_entropy(logits, places.to(logits.device), reduction="sum")

    return loss


def rate(optimization: Optimization, step: int) -> float:
    """Learning rate of update `step` (0, 1, …)."""
    warm = min(1.0, (step + 1) / (optimization.warmup + 1))
    done = step / optimization.steps
    fall = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
    return optimization.lr * warm * fall[optimization.schedule]


def train(
    model: torch.nn.Module,
    batches: Callable[[int], list[Batch]],
    optimization: Optimization,
    *,
    loss: Loss = token_loss,
    first: int = 0,
    resume: Resume | None = None,
    observe: Callable[[int, float], None] | None = None,
    intervene: Callable[[torch.nn.Module, torch.optim.Optimizer], AbstractContextManager[object]] | None = None,
    record: Callable[[torch.nn.Module, torch.optim.Optimizer], Recorder] | None = None,
) -> None:
    """Trains, in place, the weights of `model` that require gradients.

    Every part stays in eval mode: dropout, a router's jitter and sampled experts draw from no seed. So the logits that
    learn are those that are evaluated.

    batches: the micro-batches of update `step`; a pure function, so that an interrupted training ends in the same bits
    optimization: optimizer, rate, number of updates
    loss: summed over a batch; it is averaged over all labelled tokens of an update, not over sequences
    first: the update to begin with
    resume: where a half-done training is kept, and gone on from
    observe: called after each update with its step and its loss, nats per token
    intervene: opens a block around all updates; an optimizer that it patches is what a training starts from, while a
        resumed one goes on from its own state
    record: makes a recorder, which changes nothing; a state is gone on from only where its trace is whole up to there
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = OPTIMIZERS[optimization.optimizer].make(list(named.values()), optimization)
    recorder = record(model, optimizer) if record else None  # it reads the weights of the start
    if resume and recorder and not recorder.reaches(resume.step):
        resume.drop()
    with ExitStack() as held:
        if intervene:
            held.enter_context(intervene(model, optimizer))
        start = max(first, resume.load(named, optimizer) if resume else 0)  # over what an intervention put there
        if recorder:
            recorder.begin(start)
            held.enter_context(recorder)
        model.eval().training = True  # it says so; its parts stay in eval mode, where nothing is drawn
        if optimization.checkpointing:
            held.enter_context(checkpointing(model))
        for step in range(start, optimization.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(optimization, step)
            micro = batches(step)
            tokens = sum(b.tokens for b in micro)
            optimizer.zero_grad(set_to_none=True)
            values = []
            with casts_kept(model):
                for batch in micro:
                    value = loss(model, batch) / tokens
                    value.backward()
                    values.append(value.detach())
            total = sum(value.item() for value in values)  # once an update: each waits for the GPU
            if optimization.clip is not None:
                torch.nn.utils.clip_grad_norm_(named.values(), optimization.clip)
            optimizer.step()
            if recorder:
                recorder.step(total)
            if observe:
                observe(step, total)
            if resume and step + 1 < optimization.steps and resume.due(step + 1):
                if recorder:
                    recorder.flush()
                resume.save(step + 1, named, optimizer)
    model.eval()
