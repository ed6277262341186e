"""Cells of a patching grid: how many patches are computed in one forward.

Its batch grows from layer to layer, by the rows that are patched there, so that nothing is computed before a patch. For
patches of single positions, nothing before that position is computed either: the rest of the prompt, from each position
on, lies side by side in rows, under a mask.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from sublim_interp.analysis.patching.patch import axis_of
from sublim_interp.analysis.probes import TOKENS, Metric, frozen, logits_of
from sublim_interp.core.device import device_of
from sublim_interp.core.errors import SublimError
from sublim_interp.models.forward import in_single
from sublim_interp.models.hooks import attached, capture, hook_name, hook_names, kind_of, places_of, require_each_layer
from sublim_interp.models.points import Anatomy, Stream, Visitor

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
    seen, ids = Anatomy.of(model), ids.to(device_of(model))
    masks = _takes_masks(seen, ids.shape[1])
    if seen.row and seen.row.grows and kind in BY_PART:
        return _parts(seen, ids, src, kind, metric, at_once, masks)
    if seen.row and seen.row.grows and masks:
        return _positions(seen, ids, src, kind, metric, at_once)
    return _one_by_one(model, ids, src, kind, metric)


def _takes_masks(seen: Anatomy, length: int) -> bool:
    """Whether a mask alone says what each token sees, in texts of this length."""
    windows = (getattr(seen.config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return bool(
        seen.row
        and seen.row.packs
        and seen.config._attn_implementation in ("sdpa", "eager")
        and all(window is None or length <= window for window in windows)
    )


# --- cells of positions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packed:
    """Rows of tokens that hold the prompt from each of some positions on: all that a patch there changes.

    They are those of one prompt and one layer; all others are alike.
    """

    positions: Int[Tensor, "row token"]
    """Which position of the prompt a token is."""
    mask: Float[Tensor, "row 1 token key"]
    """What is added to the scores, so that a token sees its own stretch and the prompt before it."""
    row: Int[Tensor, " cell"]
    """The row that holds a cell."""
    start: Int[Tensor, " cell"]
    """The token of that row which is patched."""
    end: Int[Tensor, " cell"]
    """The token of that row where the answer is read."""


@lru_cache(maxsize=32)
def _packed(places: range, length: int, cached: bool, dtype: torch.dtype, device: torch.device) -> _Packed:
    """The rows of some positions.

    cached: whether the prompt itself comes from a cache, before all keys; else it is the start of the only row
    """
    # Each token: (the stretch that it belongs to, where that starts, its position).
    rows = [] if cached else [[(length, 0, position) for position in range(length)]]
    where = []
    for place in places:  # the longest first, so that short ones fill what is left
        stretch = [(place, place, position) for position in range(place, length)]
        fits = (i for i, row in enumerate(rows) if not cached or len(row) + len(stretch) <= max(_WIDTH, length))
        if (at := next(fits, len(rows))) == len(rows):
            rows.append([])
        where.append((at, len(rows[at]), len(rows[at]) + len(stretch) - 1))
        rows[at] += stretch
    width = max(map(len, rows))
    filled = [row + [(-1, 0, 0)] * (width - len(row)) for row in rows]  # what fills up is seen by itself alone
    stretch, start, position = torch.tensor(filled).unbind(-1)
    sees = (stretch[:, :, None] == stretch[:, None]) & (position[:, None] <= position[:, :, None])
    before = torch.arange(length) < start[..., None]
    if cached:
        sees = torch.cat([before, sees], -1)
    else:
        sees[..., :length] |= before
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]
    row, first, last = torch.tensor(where).unbind(-1)
    return _Packed(*(x.to(device) for x in (position, mask, row, first, last)))


def _positions(
    seen: Anatomy,
    ids: Int[Tensor, "prompt position"],
    src: dict[str, Tensor],
    kind: GridKind,
    metric: Metric,
    at_once: int | None,
) -> tuple[Float[Tensor, "prompt layer place"], Float[Tensor, " prompt"]]:
    """`patched_cells` of positions: what lies before a position is computed once, for all cells."""
    (prompts, length), depth = ids.shape, len(seen.layers)
    groups = _groups(length, at_once, depth * prompts)
    cached = len(groups) > 1 or length + sum(length - place for place in groups[0]) > _WIDTH
    own = _unpatched(seen, ids) if cached else None
    first = next(iter(src.values()))
    places_in_model, found = places_of(seen.model, src), []
    before = own and metric(own.logits).float().cpu()
    for places in groups:
        packed = _packed(places, length, cached, first.dtype, first.device)
        rows, cells = len(packed.positions), len(places)
        chosen = [value[:, places.start : places.stop].transpose(0, 1) for value in src.values()]

        def fresh(layer: int, stream: Tensor, packed: _Packed = packed) -> Tensor:
            whole = own.streams[layer] if own else stream[:prompts, :length]
            return rearrange(whole[:, packed.positions], "prompt row token d -> (row prompt) token d")

        def swap(layer: int, packed: _Packed = packed, chosen: list[Tensor] = chosen) -> Visitor:
            def put(stream: Tensor) -> Tensor:  # has just been computed, for this place alone: no copy is needed
                rows = len(packed.positions)
                stream[-rows * prompts :].unflatten(0, (rows, prompts))[packed.row, :, packed.start] = chosen[layer]
                return stream

            return put

        # The rows are in the order of layer, row and prompt, the answers in that of layer, cell and prompt.
        row = (torch.arange(depth)[:, None] * rows + packed.row.cpu())[..., None] * prompts + torch.arange(prompts)
        at = row.flatten(), packed.end.cpu().repeat_interleave(prompts).repeat(depth)
        if not own:
            at = torch.cat([torch.arange(prompts), at[0]]), torch.cat([torch.full((prompts,), length - 1), at[1]])
        batch = _Batch(
            rearrange(ids[:, packed.positions], "prompt row token -> (row prompt) token"),
            at,
            fresh,
            packed.positions if rows == 1 else packed.positions.repeat_interleave(prompts, 0),
            packed.mask if rows == 1 else packed.mask.repeat_interleave(prompts, 0),
            own.past(rows) if own else None,
        )
        with ExitStack() as held:
            held.enter_context(attached(seen.model, {name: swap(i) for i, name in enumerate(src)}, places_in_model))
            each = metric(_logits(seen, batch, held, kind != "mlp_out")).float().cpu()
        if before is None:
            before, each = each[:prompts], each[prompts:]
        found.append(rearrange(each, "(layer cell prompt) -> prompt layer cell", layer=depth, cell=cells))
    assert before is not None, "a model has a layer"
    return torch.cat(found, -1), before


def _groups(length: int, at_once: int | None, copies: int) -> list[range]:
    """The positions that run in one forward each, so that its last layer has TOKENS tokens at most.

    copies: how often each cell's tokens are there: of each layer and prompt
    """
    if at_once:
        return [range(i, min(length, i + at_once)) for i in range(0, length, at_once)]
    groups, start, tokens = [], 0, 0
    for place in range(length):
        tokens += copies * (length - place)
        if tokens > TOKENS and place > start:
            groups.append(range(start, place))
            start, tokens = place, copies * (length - place)
    return [*groups, range(start, length)]


@dataclass(frozen=True)
class _Own:
    """The prompts without a patch."""

    streams: list[Float[Tensor, "prompt position d_model"]]
    """At the entry of each layer."""
    logits: Float[Tensor, "prompt vocabulary"]
    """At the answer."""
    cache: Any
    """Keys and values."""

    def past(self, rows: int) -> Any:
        """A cache that begins with these keys and values: in each layer for so many rows a prompt more."""
        past = _cache()
        for layer, one in enumerate(self.cache.layers):
            past.update(*(x.repeat((layer + 1) * rows, 1, 1, 1) for x in (one.keys, one.values)), layer)
        return past


def _unpatched(seen: Anatomy, ids: Int[Tensor, "prompt position"]) -> _Own:
    """One forward of the prompts."""
    cache, names = _cache(), [hook_name(layer, "resid_pre") for layer in range(len(seen.layers))]
    with capture(seen.model, names) as streams:
        out = seen.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return _Own([streams[name] for name in names], in_single(out.logits[:, -1]), cache)


def _cache() -> Any:
    """An empty key-value cache that forgets nothing."""
    from transformers import DynamicCache

    return DynamicCache()


# --- cells of heads and neurons ---------------------------------------------------------------------------------------


def _parts(
    seen: Anatomy,
    ids: Int[Tensor, "prompt position"],
    src: dict[str, Tensor],
    kind: GridKind,
    metric: Metric,
    at_once: int | None,
    masks: bool,
) -> tuple[Float[Tensor, "prompt layer part"], Float[Tensor, " prompt"]]:
    """`patched_cells` of heads or neurons, at all positions."""
    first, (prompts, length), depth = next(iter(src.values())), ids.shape, len(seen.layers)
    axis, places_in_model = axis_of(next(iter(src)), BY_PART[kind][1]), places_of(seen.model, src)
    each, values = at_once or max(1, _ROWS // (depth * prompts * length)), list(src.values())
    positions = torch.arange(length, device=ids.device)[None]
    never = torch.full((1, 1, length, length), torch.finfo(first.dtype).min, dtype=first.dtype, device=first.device)
    mask = never.triu(1) if masks else None
    # A head's output is patched behind attention, which the rows of its own layer then do not need.
    late = bool(masks and BY_PART[kind][0] == "z" and seen.row and seen.row.attention)
    found, before = [], torch.empty(0)
    for parts in (range(i, min(first.shape[axis], i + each)) for i in range(0, first.shape[axis], each)):

        def fresh(_layer: int, stream: Tensor, cells: int = len(parts)) -> Tensor:
            return stream[:prompts].repeat(cells, *[1] * (stream.dim() - 1))

        def swap(layer: int, parts: range = parts, fresh: Callable[[int, Tensor], Tensor] = fresh) -> Visitor:
            def put(stream: Tensor) -> Tensor:  # in place, as above
                if late:
                    stream = torch.cat([stream, fresh(layer, stream)])
                tail = stream[-len(parts) * prompts :].unflatten(0, (-1, prompts))
                for cell, part in enumerate(parts):
                    tail[cell].select(axis, part).copy_(values[layer].select(axis, part))
                return stream

            return put

        rows = (1 + depth * len(parts)) * prompts
        at = torch.arange(rows), torch.full((rows,), length - 1)
        batch = _Batch(ids.repeat(1 + len(parts), 1), at, fresh, positions, mask)
        with ExitStack() as held:
            held.enter_context(attached(seen.model, {name: swap(i) for i, name in enumerate(src)}, places_in_model))
            if late:
                _without_the_last(seen, len(parts) * prompts, held)
            told = metric(_logits(seen, batch, held, kind != "neurons")).float().cpu()
        before = told[:prompts]
        found.append(rearrange(told[prompts:], "(layer cell prompt) -> prompt layer cell", layer=depth, prompt=prompts))
    return torch.cat(found, -1), before


def _without_the_last(seen: Anatomy, rows: int, held: ExitStack) -> None:
    """Until the stack closes each layer's attention does not see so many last rows of its batch."""
    assert seen.row

    def cut(_attention: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (args[0][:-rows], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"][:-rows]}

    for layer in seen.layers:
        attention = layer.get_submodule(seen.row.attention)
        held.callback(attention.register_forward_pre_hook(cut, with_kwargs=True).remove)


_ROWS = 1 << 16
"""Positions of all cells that one forward may have where parts are patched."""

_WIDTH = 128
"""Tokens of a row of several stretches: more are seen by attention for nothing, fewer leave rows half empty."""


# --- one forward for many cells ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """What runs in one forward whose batch grows: at the entry of each layer come the rows that are patched there."""

    ids: Int[Tensor, "row token"]
    """Of the rows that are there from the first layer on."""
    at: tuple[Int[Tensor, " answer"], Int[Tensor, " answer"]]
    """(row, token) of each answer."""
    fresh: Callable[[int, Tensor], Tensor]
    """The rows that come in at a later layer, of its number and the stream at its entry."""
    positions: Int[Tensor, "#row token"]
    """Of the tokens of `ids`; one row where all are alike."""
    mask: Float[Tensor, "#row 1 token key"] | None
    """What is added to the scores; one row where all are alike; None for the model's own."""
    past: Any = None
    """A cache of keys and values before all rows, of each layer's own number of them."""


def _logits(seen: Anatomy, batch: _Batch, held: ExitStack, last_mlp: bool) -> Float[Tensor, "answer vocabulary"]:
    """The logits of each answer.

    held: keeps the hooks of the forward until it closes
    last_mlp: whether the last layer's MLP runs at the answers alone
    """
    at = tuple(x.to(batch.ids.device) for x in batch.at)
    starting = len(batch.ids)

    def grow(value: Any, rows: int) -> Any:
        """More copies of what has a row for each row; what has one for all serves more as well."""
        if isinstance(value, tuple):
            return tuple(grow(v, rows) for v in value)
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != starting or starting == 1:
            return value
        return value[torch.arange(rows, device=value.device) % starting]

    def enter(number: int) -> Callable[..., Any]:
        def add(_layer: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            stream = args[0] if args else kwargs["hidden_states"]
            wider = torch.cat([stream, batch.fresh(number, stream)])
            rest = {k: grow(v, len(wider)) for k, v in kwargs.items() if k != "hidden_states"}
            return (wider, *(grow(a, len(wider)) for a in args[1:])), rest

        return add

    for number, layer in enumerate(seen.layers):
        if number:
            held.callback(layer.register_forward_pre_hook(enter(number), with_kwargs=True, prepend=True).remove)
    if last_mlp and seen.row and not seen.row.flat:
        _only_at(seen.layers[-1].get_submodule(seen.row.mlp), at, held)
    head = seen.model.get_output_embeddings()
    held.callback(head.register_forward_pre_hook(lambda _head, args: (args[0][at][None], *args[1:])).remove)
    logits = seen.model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=batch.mask,
        past_key_values=batch.past,
        use_cache=batch.past is not None,
    ).logits
    return in_single(logits[0])


def _only_at(mlp: torch.nn.Module, at: tuple[Tensor, ...], held: ExitStack) -> None:
    """Until the stack closes an MLP sees some tokens alone, (row, token) of each; at all others it adds nothing."""
    shape: list[torch.Size] = []

    def pre(_mlp: torch.nn.Module, args: tuple) -> tuple:
        shape[:] = [args[0].shape]
        return (args[0][at][None], *args[1:])

    def post(_mlp: torch.nn.Module, _args: tuple, output: Any) -> Any:
        some = output[0] if isinstance(output, tuple) else output
        whole = some.new_zeros(shape[0])
        whole[at] = some[0]
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    held.callback(mlp.register_forward_pre_hook(pre).remove)
    held.callback(mlp.register_forward_hook(post).remove)


# --- any architecture -------------------------------------------------------------------------------------------------


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
