"""What is seen inside a model at a recorded step: residuals, answers, gradients, single hook points."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.core.device import device_of
from sublim_interp.models.architectures import decoder_layers, text_config
from sublim_interp.models.forward import resting
from sublim_interp.models.hooks import (
    attached,
    axes_of,
    hook_names,
    kind_of,
    layer_of,
    places_of,
    require_fired,
)
from sublim_interp.models.points import Place, Stream
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
    with resting(model):
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


class _Part(NamedTuple):
    """Rows of a probe that run together."""

    aim: Callable[..., Tensor | None]
    """What gradients are of."""
    ids: Ids
    real: Bool[Tensor, "example position"]
    """Which positions are the rows' own."""
    tokens: Int[Tensor, " token"]
    """Their places, all positions counted one row after another."""
    square: Bool[Tensor, "example 1 query key"]
    """Where a row's own position attends to one of its own."""


class Sight:
    """Hook points on a probe, to be looked at again and again: what every look needs is found at the first."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._widest = max(map(len, probe.rows))
        self._parts: list[_Part] = []
        for rows, aim in ((probe.rows[: probe.questions], _ask), (probe.rows[probe.questions :], _predict)):
            if rows:
                ids, real = _padded(rows)
                square = rearrange(real, "row query -> row 1 query 1") & rearrange(real, "row key -> row 1 1 key")
                self._parts.append(_Part(aim, ids, real, real.flatten().nonzero()[:, 0], square))
        self._model: torch.nn.Module | None = None
        self._places: dict[str, Place] = {}

    def look(
        self, model: torch.nn.Module, wanted: Sequence[str], into: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Runs a model on the probe, in eval mode, and gives what hooks show, on the CPU.

        wanted: names of hooks; with `.grad` behind, the gradient there: of the mean margin at questions, of the loss at
            texts
        into: by name, where it is put, of an earlier look's shape; new memory where None

        Of each token of all rows what has positions: [token, …]; scores and patterns [row, head, query, key], 0 beyond
        a row's end. Without gradients the model runs as far as the last of the hooks.
        """
        if model is not self._model:
            self._model, self._places = model, {}
        names = list(dict.fromkeys(name.removesuffix(".grad") for name in wanted))
        self._places |= places_of(model, [name for name in names if name not in self._places])
        pushed = [name for name in names if f"{name}.grad" in wanted]
        found: dict[str, list[Tensor]] = {name: [] for name in wanted}
        device = device_of(model)
        with ExitStack() as held:
            held.enter_context(resting(model))
            held.enter_context(torch.set_grad_enabled(bool(pushed)))
            # Once for all rows: to hook 21 points costs a third of a small model's forward.
            run = None if pushed else held.enter_context(_as_far_as_needed(model, names, self._places))
            for part in self._parts:
                ids = part.ids.to(device)
                if run is None:
                    shown, logits = _forward(model, names, ids, self._places)
                    target = part.aim(self._probe, logits, part.ids, {})
                    slopes: Sequence[Tensor | None] = [None] * len(pushed)
                    if target is not None:
                        slopes = torch.autograd.grad(target, [shown[name] for name in pushed], allow_unused=True)
                    for name, slope in zip(pushed, slopes, strict=True):
                        shown[f"{name}.grad"] = torch.zeros_like(shown[name]) if slope is None else slope
                else:
                    shown = run(ids)
                for name in wanted:
                    found[name].append(self._own(name, shown[name].detach().cpu(), part))
        return {name: torch.cat(values, out=into[name] if into else None) for name, values in found.items()}

    def _own(self, name: str, value: Tensor, part: _Part) -> Tensor:
        """What is of the rows' own tokens: side by side, or for scores and patterns in a square with zeros around."""
        if axes_of(name.removesuffix(".grad"))[1] == "position":
            return value.flatten(0, 1).index_select(0, part.tokens)
        more = self._widest - part.ids.shape[1]
        return F.pad(torch.where(part.square, value, 0), (0, more, 0, more))


class _Enough(Exception):
    """The last of the hooks has been seen."""


@contextmanager
def _as_far_as_needed(
    model: torch.nn.Module, names: Sequence[str], places: Mapping[str, Place]
) -> Iterator[Callable[[Ids], dict[str, Tensor]]]:
    """Inside the block a function gives what hooks show in a forward that ends behind the last layer with one."""
    layers = [layer_of(name) for name in names if name.startswith("blocks.")]
    within = len(layers) == len([name for name in names if not name.endswith("embed")]) and layers
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        # An edit of the middle of a layer writes into the tensor that was seen there.
        seen[name] = value.clone() if kind_of(name) == "resid_mid" else value

    def stop(*_: object) -> None:
        raise _Enough

    def run(ids: Ids) -> dict[str, Tensor]:
        seen.clear()
        with suppress(_Enough):
            model(input_ids=ids, use_cache=False)
        require_fired(model, set(names), set(seen))
        return dict(seen)

    with attached(model, {name: partial(keep, name) for name in names}, places), ExitStack() as held:
        if within:  # registered last, so that it comes after those that see
            held.callback(decoder_layers(model)[max(layers)].register_forward_hook(stop).remove)
        yield run


def _forward(
    model: torch.nn.Module, names: Sequence[str], ids: Ids, places: Mapping[str, Place] | None = None
) -> tuple[dict[str, Tensor], Logits]:
    """(the hooks' tensors in the graph, by name; logits)."""
    stream: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        value = value.clone() if value._is_view() else value  # what it is a view of may be written into
        stream[name] = value if value.requires_grad else value.requires_grad_()
        return value  # what is a view of the model's tensor takes its part in the graph

    with attached(model, {name: partial(keep, name) for name in names}, places):
        logits = model(input_ids=ids, use_cache=False).logits
    return stream, logits
