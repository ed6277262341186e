"""The one training loop: pre-training, teachers and students all use it. It knows tokens and weights, no experiment."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from sublim_interp.core.memory import give_back
from sublim_interp.models.precision import casts_kept
from sublim_interp.models.trainable import checkpointing, trained_parameters
from sublim_interp.training.batches import Batch
from sublim_interp.training.losses import Loss, token_loss
from sublim_interp.training.optimizers import OPTIMIZERS
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization


def rate(optimization: Optimization, step: int) -> float:
    """Learning rate of update `step` (0, 1, …)."""
    warm = min(1.0, (step + 1) / (optimization.warmup + 1))
    done = step / optimization.steps
    fall = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
    return optimization.lr * warm * fall[optimization.schedule]


def nothing(_model: torch.nn.Module, _step: int) -> AbstractContextManager[object]:
    """The block around an update that does nothing."""
    return nullcontext()


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
    around: Callable[[torch.nn.Module, int], AbstractContextManager[object]] = nothing,
    record: Callable[[torch.nn.Module, torch.optim.Optimizer], Recorder] | None = None,
) -> None:
    """Trains, in place, the weights of `model` that require gradients.

    Every part stays in eval mode: dropout, a router's jitter and sampled experts draw from no seed. So the logits that
    learn are those that are evaluated.

    batches: the micro-batches of update `step`; a pure function, so that an interrupted training ends in the same bits
    optimization: optimizer, rate, number of updates
    loss: summed over a batch; it is averaged over all labelled tokens of an update, not over sequences, or over pairs
    first: the update to begin with
    resume: where a half-done training is kept, and gone on from
    observe: called after each update with its step and its loss, nats per token or pair
    intervene: opens a block around all updates; an optimizer that it patches is what a training starts from, while a
        resumed one goes on from its own state
    around: opens a block around forward and backward of update `step`; a pure function, as `batches`
    record: makes a recorder, which changes nothing; a state is gone on from only where its trace is whole up to there
    """
    named = trained_parameters(model)
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
            units = sum(b.units for b in micro)
            optimizer.zero_grad(set_to_none=True)
            values = []
            with around(model, step), casts_kept(model):
                for batch in micro:
                    value = loss(model, batch) / units
                    value.backward()
                    values.append(value.detach())
            total = sum(value.item() for value in values)  # once an update: each waits for the GPU
            if optimization.clip is not None:
                torch.nn.utils.clip_grad_norm_(named.values(), optimization.clip)
            optimizer.step()
            give_back()
            if recorder:
                recorder.step(total)
            if observe:
                observe(step, total)
            if resume and step + 1 < optimization.steps and resume.due(step + 1):
                if recorder:
                    recorder.flush()
                resume.save(step + 1, named, optimizer)
    model.eval()
