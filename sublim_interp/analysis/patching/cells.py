"""Cells of a patching grid: how many patches are computed in one forward.

Its batch grows from layer to layer, by the rows that are patched there, so that nothing is computed before a patch. For
patches of single positions, nothing before that position is computed either: the rest of the prompt, from each position
on, lies side by side in rows, under a mask.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from sublim_interp.analysis.patching.patch import axis_of
from sublim_interp.analysis.probes import TOKENS, Among, Metric, frozen, logits_of, told_by
from sublim_interp.core.device import device_of
from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import final_norm, has_middle, without_adapters
from sublim_interp.models.forward import has_plain_head, in_single
from sublim_interp.models.hooks import attached, capture, hook_name, hook_names, kind_of, require_each_layer
from sublim_interp.models.points import POINTS, Anatomy, Place, Stream, Visitor

GridKind = Literal[Stream, "heads", "q", "k", "v", "z", "pattern", "neurons", "weights"]
"""What the cells of a grid are: a kind of hook by position, single heads or neurons, or the modules of a layer."""

BY_PART: dict[str, tuple[str, str]] = {
    "heads": ("z", "head"), "q": ("q", "head"), "k": ("k", "head"), "v": ("v", "head"), "z": ("z", "head"),
    "pattern": ("pattern", "head"), "neurons": ("post", "neuron"),
}  # fmt: skip
"""Kinds whose cells are parts of a hook point, at all positions: (the hook point, what its parts are)."""


def sites_of(model: torch.nn.Module, kind: GridKind) -> dict[str, Place]:
    """Where one kind is, by name, one a layer. Raises SublimError, with the kinds there are, where it is not."""
    seen, point = (
        Anatomy.of(model),
        POINTS.get(BY_PART.get(kind, (kind, ""))[0]) if kind in get_args(GridKind) else None,
    )
    each = range(len(seen.layers)) if point else ()
    sites = {hook_name(layer, point.kind): place for layer in each if point and (place := point.at(seen, layer))}
    if not sites:  # to look for all kinds takes as long as a small grid
        raise SublimError(f"{type(model).__name__} has no '{kind}'; valid: {', '.join(kinds_of(model))}")
    require_each_layer(model, kind, [*sites])
    return sites


def kinds_of(model: torch.nn.Module) -> list[str]:
    """The kinds of grids that a model has."""
    known = {kind_of(name) for name in hook_names(model)}
    return [k for k in get_args(GridKind) if k == "weights" or BY_PART.get(k, (k, ""))[0] in known]


def see(model: torch.nn.Module, sites: Sequence[str], ids: Int[Tensor, "prompt position"]) -> dict[str, Tensor]:
    """What one forward shows at the sites."""
    return see_and_tell(model, sites, ids, lambda logits: logits[:, 0])[0]


def see_and_tell(
    model: torch.nn.Module, sites: Sequence[str], ids: Int[Tensor, "prompt position"], metric: Metric
) -> tuple[dict[str, Tensor], Float[Tensor, " prompt"]]:
    """What one forward shows at the sites, and the metric of each prompt."""
    plain = without_adapters(model)
    with torch.no_grad(), capture(model, sites) as seen:
        if isinstance(metric, Among) and has_plain_head(plain):
            body = plain.base_model(input_ids=ids.to(device_of(model)), use_cache=False)
            told = told_by(plain, body.last_hidden_state[:, -1], metric)
        else:
            told = metric(logits_of(model, ids))
    return dict(seen), told


def slopes_at(
    model: torch.nn.Module, sites: Sequence[str], ids: Int[Tensor, "prompt position"], metric: Metric
) -> tuple[dict[str, Tensor], dict[str, Tensor], Float[Tensor, " prompt"]]:
    """(values at the sites, the metric's gradients there, the metric of each prompt)."""
    with torch.enable_grad(), frozen(model), capture(model, sites, gradients=True) as seen:
        measured = metric(logits_of(model, ids))
        measured.sum().backward()
    return dict(seen), seen.gradients, measured.detach()


@dataclass(frozen=True)
class _Grid:
    """The cells that are asked for, all of one kind, on prompts of one length."""

    seen: Anatomy
    """The model that is patched."""
    ids: Int[Tensor, "prompt position"]
    """Of the prompts."""
    src: dict[str, Tensor]
    """By site, a layer each, what is put there, with the axes of the hook."""
    places: dict[str, Place]
    """Where the sites are."""
    kind: GridKind
    metric: Metric
    """What is measured at the answer."""
    at_once: int | None
    """How many positions, heads or neurons run in one forward; None chooses."""
    masks: bool
    """Whether a mask alone says what each token sees."""

    @property
    def narrow(self) -> bool:
        """Whether the last layer is down to the answers where it is patched (`_told`)."""
        order = list(POINTS)
        return order.index(kind_of(next(iter(self.src)))) >= order.index("z")


def patched_cells(
    model: torch.nn.Module,
    ids: Int[Tensor, "prompt position"],
    src: dict[str, Tensor],
    places: dict[str, Place],
    kind: GridKind,
    metric: Metric,
    at_once: int | None,
) -> tuple[Float[Tensor, "prompt layer place"], Float[Tensor, " prompt"]]:
    """The metric of each patch of one kind, and without any, on prompts of one length.

    ids: of the prompts
    src: by site, what is put there, with the axes of the hook
    places: where the sites are, from `sites_of`
    metric: what is measured at the answer
    at_once: how many positions, heads or neurons run in one forward; None chooses

    Cells are on the CPU.
    """
    seen, ids = Anatomy.of(model), ids.to(device_of(model))
    asked = _Grid(seen, ids, src, places, kind, metric, at_once, _takes_masks(seen, ids.shape[1]))
    if seen.row and seen.row.grows and kind in BY_PART:
        return _parts(asked)
    if seen.row and seen.row.grows and asked.masks:
        return _positions(asked)
    return _one_by_one(asked)


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


def _positions(asked: _Grid) -> tuple[Float[Tensor, "prompt layer place"], Float[Tensor, " prompt"]]:
    """`patched_cells` of positions: what lies before a position is computed once, for all cells."""
    seen, ids, metric = asked.seen, asked.ids, asked.metric
    (prompts, length), depth = ids.shape, len(seen.layers)
    groups = _groups(length, asked.at_once, depth * prompts)
    cached = len(groups) > 1 or length + sum(length - place for place in groups[0]) > _WIDTH
    own = _unpatched(seen, ids) if cached else None
    first = next(iter(asked.src.values()))
    found = []
    before = own and metric(own.logits).float().cpu()
    for places in groups:
        packed = _packed(places, length, cached, first.dtype, first.device)
        rows, cells = len(packed.positions), len(places)
        chosen = [value[:, places.start : places.stop].transpose(0, 1) for value in asked.src.values()]

        def fresh(layer: int, stream: Tensor, packed: _Packed = packed) -> list[Tensor]:
            whole = own.streams[layer] if own else stream[:prompts, :length]
            return [*whole[:, packed.positions].unbind(1)]

        def swap(
            layer: int, packed: _Packed = packed, chosen: list[Tensor] = chosen, last: bool = places.stop == length
        ) -> Visitor:
            def put(stream: Tensor) -> Tensor:  # has just been computed, for this place alone: no copy is needed
                rows = len(packed.positions)
                stream[-rows * prompts :].unflatten(0, (rows, prompts))[packed.row, :, packed.start] = chosen[layer]
                return stream

            def put_at_answers(stream: Tensor) -> Tensor:  # which a patch behind attention reaches at its own alone
                if last:
                    stream[-prompts:, 0] = chosen[layer][-1]
                return stream

            return put_at_answers if asked.narrow and layer == depth - 1 else put

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
        with attached(seen.model, {name: swap(i) for i, name in enumerate(asked.src)}, asked.places):
            each = _told(seen, batch, metric)
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


def _parts(asked: _Grid) -> tuple[Float[Tensor, "prompt layer part"], Float[Tensor, " prompt"]]:
    """`patched_cells` of heads or neurons, at all positions."""
    seen, (prompts, length), values = asked.seen, asked.ids.shape, list(asked.src.values())
    first, depth, (point, part_name) = values[0], len(seen.layers), BY_PART[asked.kind]
    axis = axis_of(next(iter(asked.src)), part_name)
    if asked.narrow:
        values[-1] = values[-1][:, -1:]
    each = asked.at_once or max(1, _ROWS // (depth * prompts * length))
    positions = torch.arange(length, device=asked.ids.device)[None]
    never = torch.full((1, 1, length, length), torch.finfo(first.dtype).min, dtype=first.dtype, device=first.device)
    mask = never.triu(1) if asked.masks else None
    # A head's output is patched behind attention, which the rows of its own layer then do not need.
    late = bool(asked.masks and point == "z" and seen.row and seen.row.attention)
    found, before = [], torch.empty(0)
    for parts in (range(i, min(first.shape[axis], i + each)) for i in range(0, first.shape[axis], each)):

        def fresh(_layer: int, stream: Tensor, cells: int = len(parts)) -> list[Tensor]:
            return [stream[:prompts]] * cells

        def swap(layer: int, parts: range = parts) -> Visitor:
            some = values[layer].narrow(axis, parts.start, len(parts)).movedim(axis, -1)

            def put(stream: Tensor) -> Tensor:  # in place, as above
                if late:
                    stream = torch.cat([stream, *[stream[:prompts]] * len(parts)])
                tail = stream[-len(parts) * prompts :].unflatten(0, (-1, prompts))
                tail.diagonal(parts.start, 0, axis + 1).copy_(some)  # of each cell its own part
                return stream

            return put

        rows = (1 + depth * len(parts)) * prompts
        at = torch.arange(rows), torch.full((rows,), length - 1)
        unseen = len(parts) * prompts if late else 0
        batch = _Batch(asked.ids.repeat(1 + len(parts), 1), at, fresh, positions, mask, unseen=unseen)
        with attached(seen.model, {name: swap(i) for i, name in enumerate(asked.src)}, asked.places):
            told = _told(seen, batch, asked.metric)
        before = told[:prompts]
        found.append(rearrange(told[prompts:], "(layer cell prompt) -> prompt layer cell", layer=depth, prompt=prompts))
    return torch.cat(found, -1), before


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
    fresh: Callable[[int, Tensor], list[Tensor]]
    """The rows that come in at a later layer, of its number and the stream at its entry."""
    positions: Int[Tensor, "#row token"]
    """Of the tokens of `ids`; one row where all are alike."""
    mask: Float[Tensor, "#row 1 token key"] | None
    """What is added to the scores; one row where all are alike; None for the model's own."""
    past: Any = None
    """A cache of keys and values before all rows, of each layer's own number of them."""
    unseen: int = 0
    """So many rows come in behind the attention of their own layer, which does not see them."""


def _told(seen: Anatomy, batch: _Batch, metric: Metric) -> Float[Tensor, " answer"]:
    """The metric of each answer, on the CPU.

    Behind the attention of the last layer answers are all that is left: [answer, 1, d_model].
    """
    row, at = seen.row, tuple(x.to(batch.ids.device) for x in batch.at)
    assert row
    starting, answers = len(batch.ids), len(at[0])

    def grow(value: Any, rows: int) -> Any:
        """More copies of what has a row for each row; what has one for all serves more as well."""
        if isinstance(value, tuple):
            return tuple(grow(v, rows) for v in value)
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != starting or starting == 1:
            return value
        return value[torch.arange(rows, device=value.device) % starting]

    def enter(number: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        stream = args[0] if args else kwargs["hidden_states"]
        wider = torch.cat([stream, *batch.fresh(number, stream)])
        rest = {k: grow(v, len(wider)) for k, v in kwargs.items() if k != "hidden_states"}
        return (wider, *(grow(a, len(wider)) for a in args[1:])), rest

    whole: list[Tensor] = []
    """The stream that the last layer reads."""

    def keep(stream: Tensor) -> Tensor:
        whole[:] = [stream]
        return stream[at][:, None]

    def of_those_seen(stream: Tensor) -> Tensor:
        return stream[tuple(x[: answers - batch.unseen] for x in at)][:, None]

    def at_answers(stream: Tensor) -> Tensor:
        """Where attention and MLP read one norm."""
        return stream if stream.shape[:2] == (answers, 1) else stream[at][:, None]

    # A norm that only attention reads need not see what attention does not.
    unread = row.ln1 if row.ln1 and has_middle(seen.model) else row.attention
    with ExitStack() as held:
        for number, layer in enumerate(seen.layers):
            if number:
                add = partial(enter, number)
                hook = layer.register_forward_pre_hook(
                    lambda _, args, kwargs, add=add: add(args, kwargs), with_kwargs=True, prepend=True
                )
                held.callback(hook.remove)
            if batch.unseen:
                _reads(layer.get_submodule(unread), lambda stream: stream[: -batch.unseen], held)
        last = seen.layers[-1]
        _reads(last, keep, held)
        _reads(last.get_submodule(row.ln1 or row.attention), lambda _: whole[0], held, first=True)
        _reads(last.get_submodule(row.output_map), of_those_seen, held, first=True)
        _reads(last.get_submodule(row.mlp), at_answers, held, first=True)
        normed: list[Tensor] = []

        def end(_norm: torch.nn.Module, _args: tuple, output: Tensor) -> Tensor:
            normed[:] = [output]
            return output.new_zeros(()).expand_as(
                whole[0]
            )  # some bodies reshape what they give to what they were given

        held.callback(final_norm(seen.model).register_forward_hook(end).remove)
        inputs: dict[str, Any] = {
            "input_ids": batch.ids, "position_ids": batch.positions, "attention_mask": batch.mask,
            "past_key_values": batch.past, "use_cache": batch.past is not None,
        }  # fmt: skip
        model = without_adapters(seen.model)
        if has_plain_head(model):
            model.base_model(**inputs)
            return told_by(model, normed[0][:, 0], metric).float().cpu()
        _reads(model.get_output_embeddings(), lambda _: normed[0], held)
        return metric(in_single(model(**inputs).logits[:, 0])).float().cpu()


def _reads(module: torch.nn.Module, change: Callable[[Tensor], Tensor], held: ExitStack, first: bool = False) -> None:
    """Until the stack closes a module reads what a function makes of its input.

    first: before all other hooks of this input, not after them
    """

    def pre(_module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    held.callback(module.register_forward_pre_hook(pre, with_kwargs=True, prepend=first).remove)


# --- any architecture -------------------------------------------------------------------------------------------------


def _one_by_one(asked: _Grid) -> tuple[Float[Tensor, "prompt layer place"], Float[Tensor, " prompt"]]:
    """`patched_cells` for any architecture: one forward for the cells of a layer, of as many copies of the prompts."""
    model, ids, src, kind, metric = asked.seen.model, asked.ids, asked.src, asked.kind, asked.metric
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
