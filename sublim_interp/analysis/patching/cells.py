"""Cells of a patching grid: how many patches are computed in one forward, whose batch grows from layer to layer."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from sublim_interp.analysis.patching.patch import axis_of
from sublim_interp.analysis.probes import TOKENS, Metric, frozen, logits_of
from sublim_interp.core.device import device_of
from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import architecture_of, decoder_layers
from sublim_interp.models.forward import in_single
from sublim_interp.models.hooks import attached, capture, hook_names, kind_of, require_each_layer
from sublim_interp.models.points import Stream

GridKind = Literal[Stream, "heads", "q", "k", "v", "z", "pattern", "neurons", "weights"]
"""What the cells of a grid are: a kind of hook by position, single heads or neurons, or the modules of a layer."""

BY_PART: dict[str, tuple[str, str]] = {
    "heads": ("z", "head"), "q": ("q", "head"), "k": ("k", "head"), "v": ("v", "head"), "z": ("z", "head"),
    "pattern": ("pattern", "head"), "neurons": ("post", "neuron"),
}  # fmt: skip
"""Kinds whose cells are parts of a hook point, at all positions: (the hook point, what its parts are)."""


def sites_of(model: torch.nn.Module, kind: GridKind) -> list[str]:
    """The names of one kind, one a layer. Raises SublimError, with the kinds there are, where there is no such one."""
    names = hook_names(model, (BY_PART.get(kind, (kind, ""))[0],)) if kind in get_args(GridKind) else []
    if not names:  # to look for all kinds takes as long as a small grid
        raise SublimError(f"{type(model).__name__} has no '{kind}'; valid: {', '.join(kinds_of(model))}")
    require_each_layer(model, kind, names)
    return names


def kinds_of(model: torch.nn.Module) -> list[str]:
    """The kinds of grids that a model has."""
    known = {kind_of(name) for name in hook_names(model)}
    return [k for k in get_args(GridKind) if k == "weights" or BY_PART.get(k, (k, ""))[0] in known]


def see(
    model: torch.nn.Module, sites: Sequence[str], ids: Int[Tensor, "prompt position"]
) -> tuple[dict[str, Tensor], Float[Tensor, "prompt vocabulary"]]:
    """What one forward shows at the sites, and its logits at the answer."""
    with torch.no_grad(), capture(model, sites) as seen:
        logits = logits_of(model, ids)
    return dict(seen), logits


def slopes_at(
    model: torch.nn.Module, sites: Sequence[str], ids: Int[Tensor, "prompt position"], metric: Metric
) -> tuple[dict[str, Tensor], dict[str, Tensor], Float[Tensor, " prompt"]]:
    """(values at the sites, the metric's gradients there, the metric of each prompt)."""
    with torch.enable_grad(), frozen(model), capture(model, sites, gradients=True) as seen:
        measured = metric(logits_of(model, ids))
        measured.sum().backward()
    return dict(seen), seen.gradients, measured.detach()


def patched_cells(
    model: torch.nn.Module,
    ids: Int[Tensor, "prompt position"],
    src: dict[str, Tensor],
    kind: GridKind,
    metric: Metric,
    at_once: int | None,
) -> tuple[Float[Tensor, "prompt layer place"], Float[Tensor, " prompt"]]:
    """The metric of each patch of one kind, and without any, on prompts of one length.

    ids: of the prompts
    src: by site, what is put there, with the axes of the hook
    metric: what is measured at the answer
    at_once: how many positions, heads or neurons run in one forward; None chooses

    Cells are on the CPU.
    """
    depth, (prompts, length) = len(decoder_layers(model)), ids.shape
    values, unpatched = list(src.values()), _Unpatched()
    row = architecture_of(model)
    if not (row and row.grows):
        return _one_by_one(model, ids, src, kind, metric)
    if kind in BY_PART:
        return _parts(model, ids, src, kind, metric, at_once, unpatched), unpatched.metric

    if at_once is None:
        size = sum(p.numel() for p in decoder_layers(model).parameters())
        pieces = math.ceil(length / max(1, _WORTH // (size * depth * prompts * length)))
        at_once = math.ceil(length / pieces)
    if at_once < length:
        unpatched = _Unpatched(_cache(model))
    out = torch.empty(prompts, depth, length)
    for start in range(0, length, at_once):
        places = torch.arange(start, min(length, start + at_once))
        prefix = start if unpatched.whole(length) else 0

        def swap_at(layer: int, places: Tensor = places, prefix: int = prefix) -> Callable[[Tensor], Tensor]:
            def put(stream: Tensor) -> Tensor:  # has just been computed, for this place alone: no copy is needed
                cells = len(places)
                tail = rearrange(stream[-cells * prompts :], "(cell prompt) ... -> cell prompt ...", cell=cells)
                new = rearrange(values[layer][:, places], "prompt cell d_model -> cell prompt d_model")
                tail[torch.arange(cells), :, places - prefix] = new
                return stream

            return put

        with ExitStack() as held:
            held.enter_context(attached(model, {name: swap_at(layer) for layer, name in enumerate(src)}))
            if kind != "mlp_out":
                held.enter_context(_last_mlp_at_the_answer(model))
            out[:, :, places] = _in_a_growing_batch(model, ids, unpatched, prefix, len(places), metric)
    return out, unpatched.metric


def _parts(
    model: torch.nn.Module,
    ids: Int[Tensor, "prompt position"],
    src: dict[str, Tensor],
    kind: GridKind,
    metric: Metric,
    at_once: int | None,
    unpatched: "_Unpatched",
) -> Float[Tensor, "prompt layer part"]:
    """The metric of each patch of a head, or neuron, at all positions; `unpatched` is filled."""
    values = list(src.values())
    axis, (prompts, length) = axis_of(next(iter(src)), BY_PART[kind][1]), ids.shape
    count = values[0].shape[axis]
    each = at_once or max(1, _ROWS // (len(values) * prompts * length))
    found = []
    for start in range(0, count, each):
        parts = range(start, min(count, start + each))

        def swap(layer: int, parts: range = parts) -> Callable[[Tensor], Tensor]:
            def put(stream: Tensor) -> Tensor:
                new = stream.clone()
                # A view, written in place.
                tail = rearrange(new[-len(parts) * prompts :], "(cell prompt) ... -> cell prompt ...", prompt=prompts)
                for cell, part in enumerate(parts):
                    tail[cell].select(axis, part).copy_(values[layer].select(axis, part))
                return new

            return put

        with attached(model, {name: swap(layer) for layer, name in enumerate(src)}):
            found.append(_in_a_growing_batch(model, ids, unpatched, 0, len(parts), metric))
    return torch.cat(found, -1)


def _one_by_one(
    model: torch.nn.Module,
    ids: Int[Tensor, "prompt position"],
    src: dict[str, Tensor],
    kind: GridKind,
    metric: Metric,
) -> tuple[Float[Tensor, "prompt layer place"], Float[Tensor, " prompt"]]:
    """`patched_cells` for any architecture: one forward for the cells of a layer, of as many copies of the prompts."""
    (prompts, length), depth, first = ids.shape, len(src), next(iter(src))
    axis = axis_of(first, BY_PART[kind][1] if kind in BY_PART else "position")
    cells = src[first].shape[axis]
    out = torch.empty(prompts, depth, cells)
    for some in torch.arange(cells).split(max(1, TOKENS // (prompts * length))):
        copies = repeat(ids, "prompt position -> (cell prompt) position", cell=len(some))
        for layer, (site, values) in enumerate(src.items()):

            def put(stream: Tensor, values: Tensor = values, some: Tensor = some) -> Tensor:
                new = stream.clone()
                for own, cell in zip(new.chunk(len(some)), some.tolist(), strict=True):
                    own.select(axis, cell).copy_(values.select(axis, cell))
                return new

            with attached(model, {site: put}):
                each = metric(logits_of(model, copies)).float().cpu()
            out[:, layer, some] = rearrange(each, "(cell prompt) -> prompt cell", cell=len(some))
    return out, metric(logits_of(model, ids)).float().cpu()


_ROWS = 1 << 16
"""Positions of all cells that one forward may have where parts are patched."""


_WORTH = 300_000_000
"""Parameters × tokens that one forward should carry: with fewer the calls themselves cost more than the sums."""


@contextmanager
def _last_mlp_at_the_answer(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block the last layer's MLP sees the last position alone, all that the answer depends on.

    What it adds there is added to the other positions too, where nobody looks. Architectures without a row are left
    as they are.
    """
    with ExitStack() as held:
        if (row := architecture_of(model)) and not row.flat:
            mlp = decoder_layers(model)[-1].get_submodule(row.mlp)
            held.callback(mlp.register_forward_pre_hook(lambda _mlp, args: (args[0][:, -1:],)).remove)
        yield


def _cache(model: torch.nn.Module) -> Any:
    """An empty key-value cache that fits the model."""
    from transformers import DynamicCache

    return DynamicCache(config=cast(Any, model.config))


@dataclass
class _Unpatched:
    """The prompts without a patch: the first forward of a grid fills this, the others build on it."""

    cache: Any = None
    """Keys and values; None where the first forward is the only one."""
    streams: list[Float[Tensor, "prompt position d_model"]] = field(default_factory=list)
    """At the entry of each layer."""
    metric: Float[Tensor, " prompt"] = field(default_factory=lambda: torch.empty(0))

    def keeps(self) -> bool:
        """Whether keys and values are kept."""
        return self.cache is not None

    def whole(self, length: int) -> bool:
        """Whether the cache holds all positions: a sliding window forgets the first, and is then of no use."""
        layers = self.cache.layers if self.streams and self.keeps() else []
        return bool(layers) and all(x.get_seq_length() == length == x.keys.shape[-2] for x in layers)


def _in_a_growing_batch(
    model: torch.nn.Module,
    ids: Int[Tensor, "prompt position"],
    unpatched: _Unpatched,
    prefix: int,
    cells: int,
    metric: Metric,
) -> Float[Tensor, "prompt layer cell"]:
    """The metric of each cell, from one forward whose batch grows.

    unpatched: filled by the first forward of a grid, whose batch begins with the prompts themselves
    prefix: how many positions are read from the cache
    cells: how many copies of its unpatched stream come in at the entry of each layer; edits find the rows of their
        layer at the end of the batch
    """
    depth, prompts = len(decoder_layers(model)), len(ids)
    first = not unpatched.streams
    own = prompts if first else 0

    def grow(value: Any, rows: int) -> Any:
        """More copies of a tensor that has a row a prompt; what has one row for all prompts serves all cells too."""
        if isinstance(value, tuple):
            return tuple(grow(v, rows) for v in value)
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != prompts or prompts == 1:
            return value
        return repeat(value, "prompt ... -> (copy prompt) ...", copy=rows)

    past: Any = _cache(model) if prefix or (first and unpatched.keeps()) else None
    if prefix:
        for layer, full in enumerate(unpatched.cache.layers):
            copied = "prompt head position d_head -> (copy prompt) head position d_head"
            keys, values = (x[:, :, :prefix] for x in (full.keys, full.values))
            past.update(*(repeat(x, copied, copy=(layer + 1) * cells) for x in (keys, values)), layer)

    def enter(layer: int) -> Callable[..., Any]:
        rows = first + (layer + 1) * cells

        def add(_module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            stream = args[0] if args else kwargs["hidden_states"]
            if first:
                unpatched.streams.append(stream[:prompts].clone())
            fresh = [unpatched.streams[layer][:, prefix:]] * cells
            wider = torch.cat([stream, *fresh] if first or layer else fresh)
            rest = {k: grow(v, rows) for k, v in kwargs.items() if k != "hidden_states"}
            return (wider, *(grow(a, rows) for a in args[1:])), rest

        return add

    with ExitStack() as held:
        for number, layer in enumerate(decoder_layers(model)):
            handle = layer.register_forward_pre_hook(enter(number), with_kwargs=True, prepend=True)
            held.callback(handle.remove)
        rest = ids[:, prefix:].to(device_of(model))
        logits = model(input_ids=rest, past_key_values=past, use_cache=past is not None, logits_to_keep=1).logits
    each = metric(in_single(logits[:, -1])).float().cpu()
    if first:
        unpatched.metric = each[:prompts]
        for layer, full in enumerate(past.layers if past else ()):
            unpatched.cache.update(full.keys[:prompts], full.values[:prompts], layer)
    return rearrange(each[own:], "(layer cell prompt) -> prompt layer cell", layer=depth, cell=cells)
