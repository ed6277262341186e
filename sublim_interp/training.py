"""The one training loop: pre-training, teachers and students all use it. It knows tokens and weights, no experiment."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.config import Optimization
from sublim_interp.errors import SublimError
from sublim_interp.models import logits_at
from sublim_interp.recorder import Recorder
from sublim_interp.store import is_sealed, seal

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Token ids, right-padded, and the labels to predict: `labels[b, t]` is the token after `ids[b, t]`, or IGNORE."""

    ids: Int[Tensor, "batch position"]
    labels: Int[Tensor, "batch position"]

    @property
    def tokens(self) -> int:
        """Number of labelled positions."""
        return int((self.labels != IGNORE).sum())


Row = tuple[Sequence[int], int]
"""Token ids of one example and the index of the first token to learn (1 for all of a document)."""
Loss = Callable[[torch.nn.Module, Batch], Float[Tensor, ""]]
"""Sum of the losses over the labelled positions of a batch, in nats."""


def collate(rows: Sequence[Row], pad: int) -> Batch:
    """Pads rows on the right and shifts the labels by one; padding and prompts are not learnt."""
    width = max(len(ids) for ids, _ in rows) - 1
    ids, labels = [], []
    for row, first in rows:
        lacking = width + 1 - len(row)
        ids.append([*row[:-1], *[pad] * lacking])
        labels.append([*[IGNORE] * (first - 1), *row[first:], *[IGNORE] * lacking])
    return Batch(torch.tensor(ids), torch.tensor(labels))


def micro_batches(rows: Sequence[Row], pad: int, parts: int = 1) -> list[Batch]:
    """The same rows sorted by length and cut into `parts` batches of about equal size, so that little is padding."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    size = math.ceil(len(rows) / parts)
    return [collate(rows[i : i + size], pad) for i in range(0, len(rows), size)]


def mask_labels(batch: Batch, share: float, random: torch.Generator) -> Batch:
    """The batch with a share of its labels, drawn at random, no longer to be learnt; one label at least stays."""
    places = (batch.labels != IGNORE).nonzero()
    gone = places[torch.randperm(len(places), generator=random)[: min(round(share * len(places)), len(places) - 1)]]
    labels = batch.labels.clone()
    labels[gone[:, 0], gone[:, 1]] = IGNORE
    return Batch(batch.ids, labels)


def keep_labels(batches: Sequence[Batch], learnt: Sequence[Batch]) -> list[Batch]:
    """The batches with those labels alone where `learnt`, made alike from rows of 0 and 1, has a 1; empty ones go.

    Raises SublimError where none is left.
    """
    pairs = zip(batches, learnt, strict=True)
    kept = [Batch(b.ids, b.labels.masked_fill(marks.labels != 1, IGNORE)) for b, marks in pairs]
    if not any(b.tokens for b in kept):
        raise SublimError("an update has no token to learn; leave more of the tokens, or take a larger batch")
    return [b for b in kept if b.tokens]


def freeze(model: torch.nn.Module, pattern: str) -> list[str]:
    """Freezes the parameters whose names match a glob, and returns their names.

    Raises SublimError where no parameter that trains matches, or all do.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    frozen = [name for name in names if fnmatchcase(name, pattern)]
    if not frozen or len(frozen) == len(names):
        raise SublimError(
            f"freeze '{pattern}' matches {'all' if frozen else 'none'} of what trains: {', '.join(names)}"
        )
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return frozen


def token_loss(model: torch.nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Summed cross-entropy of the labelled tokens, in nats."""
    where = batch.labels != IGNORE
    return F.cross_entropy(logits_at(model, batch.ids, where), batch.labels[where], reduction="sum")


def rate(optimization: Optimization, step: int) -> float:
    """Learning rate of update `step` (0, 1, …)."""
    warm = min(1.0, (step + 1) / (optimization.warmup + 1))
    done = step / optimization.steps
    fall = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
    return optimization.lr * warm * fall[optimization.schedule]


def _optimizer(parameters: list[torch.nn.Parameter], o: Optimization) -> torch.optim.Optimizer:
    if o.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=o.lr, momentum=o.beta1)
    betas = (o.beta1, o.beta2)
    if o.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=o.lr, betas=betas, weight_decay=o.weight_decay, fused=True)
    return torch.optim.Adam(parameters, lr=o.lr, betas=betas, fused=True)


class Resume:
    """The state of a half-done training in one safetensors file: trained weights, optimiser moments, next step."""

    def __init__(self, path: Path, every: int = 200) -> None:
        self.path, self.every = path, every

    def save(self, step: int, named: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        tensors = {f"weight/{name}": p.detach() for name, p in named.items()}
        for name, p in named.items():
            for key, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{key}/{name}"] = value
        tensors["step"] = torch.tensor(step)
        partial = self.path.with_suffix(".writing")
        save_file({k: v.contiguous() for k, v in tensors.items()}, str(partial))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        seal(self.path, partial)
        partial.replace(self.path)

    @property
    def step(self) -> int:
        """The step from which `load` goes on; 0 where nothing was kept."""
        if not is_sealed(self.path):
            return 0
        with safe_open(str(self.path), "pt") as file:
            return int(file.get_tensor("step"))

    def drop(self) -> None:
        """Forgets the state: the training starts anew."""
        self.path.unlink(missing_ok=True)

    def load(self, named: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
        if not is_sealed(self.path):
            return 0
        tensors = load_file(str(self.path))
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(tensors[f"weight/{name}"])
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, entry, name = key.split("/", 2)
                optimizer.state[named[name]][entry] = value
        return int(tensors["step"])


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

    `batches(step)` gives the micro-batches of one update and must be a pure function of the step: that is what makes an
    interrupted training end in the same bits. The loss is averaged over all labelled tokens of an update, not over
    sequences. Updates `first`, `first` + 1, … are made, up to the last; `observe(step, loss)` is called after each with
    the loss in nats per token.
    All updates are made within the block that `intervene` opens; where it patches the optimiser, a training starts from
    that, and a resumed one goes on from its own state. `record` makes a recorder, which changes nothing; an interrupted
    training goes on from a state only where its trace is whole up to there.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = _optimizer(list(named.values()), optimization)
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
        model.train()
        for step in range(start, optimization.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(optimization, step)
            micro = batches(step)
            tokens = sum(b.tokens for b in micro)
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for batch in micro:
                value = loss(model, batch) / tokens
                value.backward()
                total += value.item()
            if optimization.clip is not None:
                torch.nn.utils.clip_grad_norm_(named.values(), optimization.clip)
            optimizer.step()
            if recorder:
                recorder.step(total)
            if observe:
                observe(step, total)
            if resume and (step + 1) % resume.every == 0 and step + 1 < optimization.steps:
                if recorder:
                    recorder.flush()
                resume.save(step + 1, named, optimizer)
    model.eval()
