"""What is seen inside a model at a recorded step: residuals, answers, gradients; attention patterns would come here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.core.device import device_of
from sublim_interp.models.architectures import text_config
from sublim_interp.models.hooks import attached, hook_names, kind_of, layer_of
from sublim_interp.models.points import Stream
from sublim_interp.stats.margin import margin
from sublim_interp.training.recording.probe import Probe

Logits = Float[Tensor, "example position token"]
Ids = Int[Tensor, "example position"]


class Look(NamedTuple):
    """What one look at a model sees."""

    tensors: dict[str, Tensor]
    """Residuals and their gradients by hook name, of all tokens of all rows: [token, d_model]; `answers`, the members'
    log-probabilities: [question, member]; `probe_loss`, nats a token."""
    gradient: list[Tensor]
    """Gradient of the trait's mean margin in each of the weights that were asked for; [] without a trait."""


def stream_names(model: torch.nn.Module, kinds: Sequence[Stream]) -> list[str]:
    """The hook names of these kinds, none twice: a layer's input is the output of the one before."""
    twice = "resid_pre" if "resid_post" in kinds else ""
    return [name for name in hook_names(model, kinds) if layer_of(name) == 0 or kind_of(name) != twice]


def stream_size(model: torch.nn.Module, tokens: int, kinds: Sequence[Stream]) -> int:
    """Bytes of the residuals and their gradients in one look at a probe of so many tokens, in float32."""
    return 2 * len(stream_names(model, kinds)) * tokens * text_config(model).hidden_size * 4


@torch.enable_grad()
def look(
    model: torch.nn.Module, probe: Probe, kinds: Sequence[Stream], weights: Sequence[torch.nn.Parameter] = ()
) -> Look:
    """Runs a model on the probe, in eval mode and without a trace in its gradients.

    kinds: where in each layer the residuals are seen
    weights: parameters of the model, in which the trait's gradient is taken
    """
    names = stream_names(model, kinds)
    tensors: dict[str, Tensor] = {}
    gradient: list[Tensor] = []
    seen: list[dict[str, Tensor]] = []
    asked, texts = probe.rows[: probe.questions], probe.rows[probe.questions :]
    parts: list[tuple[Sequence[Sequence[int]], Callable[..., Tensor | None], Sequence[Tensor]]] = [
        (asked, _ask, weights),
        (texts, _predict, ()),
    ]
    with _resting(model):
        for rows, aim, own in parts:
            if not rows:
                continue
            ids, real = _padded(rows)
            stream, logits = _forward(model, names, ids.to(device_of(model)))
            target = aim(probe, logits, ids, tensors)
            found: Sequence[Tensor | None] = [None] * len(names)
            if target is not None:
                found = torch.autograd.grad(target, [*stream.values(), *own], allow_unused=True)
                if own:
                    pairs = zip(own, found[len(names) :], strict=True)
                    gradient = [torch.zeros_like(p) if g is None else g for p, g in pairs]
            one: dict[str, Tensor] = {}
            for name, pushed in zip(names, found, strict=False):
                one[name] = stream[name].detach().cpu()[real]
                one[f"{name}.grad"] = torch.zeros_like(one[name]) if pushed is None else pushed.cpu()[real]
            seen.append(one)
    for name in seen[0]:
        tensors[name] = torch.cat([one[name] for one in seen])
    return Look(tensors, gradient)


def _ask(probe: Probe, logits: Logits, ids: Ids, tensors: dict[str, Tensor]) -> Float[Tensor, ""] | None:
    """Keeps the answers to the questions, and gives the mean margin of the right ones, if there are any."""
    if not probe.tokens:
        return None
    rows = probe.rows[: probe.questions]
    last = torch.tensor([len(row) - 1 for row in rows])
    log = logits[range(len(rows)), last].float().log_softmax(-1)[:, list(probe.tokens)]
    tensors["answers"] = log.detach().cpu()
    return margin(log, probe.right).mean() if probe.right else None


def _predict(probe: Probe, logits: Logits, ids: Ids, tensors: dict[str, Tensor]) -> Float[Tensor, ""] | None:
    """Keeps and gives the loss on what the texts have to learn."""
    if not probe.learnt:
        return None
    counts = torch.zeros(ids.shape, dtype=torch.bool)
    for count, row, first in zip(counts, probe.rows[probe.questions :], probe.learnt, strict=True):
        count[first : len(row)] = True
    predicted = logits[:, :-1][counts[:, 1:].to(logits.device)].float()
    loss = F.cross_entropy(predicted, ids[counts].to(logits.device))
    tensors["probe_loss"] = loss.detach().cpu()
    return loss


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Ids, Bool[Tensor, "example position"]]:
    """(rows filled up on the right with 0, which positions are theirs)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for own, row in zip(ids, rows, strict=True):
        own[: len(row)] = torch.tensor(row)
    return ids, torch.arange(ids.shape[1]) < rearrange(lengths, "example -> example 1")


def _forward(model: torch.nn.Module, names: Sequence[str], ids: Ids) -> tuple[dict[str, Tensor], Logits]:
    """(the stream's tensors in the graph, by hook name; logits)."""
    stream: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        stream[name] = value if value.requires_grad else value.requires_grad_()

    with attached(model, {name: partial(keep, name) for name in names}):
        logits = model(input_ids=ids, use_cache=False).logits
    return stream, logits


@contextmanager
def _resting(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside the block, so that no dropout draws a random number; each module's own mode after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
