"""Hook points: one row a name, with the module that it is reached on, how it is shown there and how it is put back.

Names and shapes are TransformerLens's. Where a module lies in a layer is a row of architectures.py; nothing here asks
for a model's type. A new hook point is one row of `POINTS`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import (
    Architecture,
    architecture_of,
    decoder_layers,
    final_norm,
    has_middle,
    output_map,
    text_config,
    without_adapters,
)

Stream = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
"""What a layer reads, adds and leaves, in the order in which it computes them: [batch, position, d_model].

These can be captured, recorded, edited and patched, and have directions.
"""

Visitor = Callable[[Tensor], Tensor | None]
"""Sees a tensor; what it returns, if anything, takes the tensor's place."""

STREAM: tuple[Stream, ...] = get_args(Stream)


class Anatomy(NamedTuple):
    """A model as hook points look at it, found once for all of them."""

    model: Any
    layers: torch.nn.ModuleList
    config: Any
    """Of the part that reads text."""
    row: Architecture | None

    @classmethod
    def of(cls, model: torch.nn.Module) -> "Anatomy":
        """That of a model. Raises SublimError where it has no list of layers."""
        return cls(model, decoder_layers(model), text_config(model), architecture_of(model))


class Place(NamedTuple):
    """A hook point of one model: the module that shows it, and the way it does."""

    module: torch.nn.Module
    layer: torch.nn.Module
    """The decoder layer; the embedding, for what lies before all layers."""
    config: Any
    """Of the part that reads text."""
    row: Architecture | None


Way = Callable[[Place, Visitor, ExitStack], None]
"""Makes a place show its tensor to a visitor until the stack closes."""


# --- ways: whole inputs and outputs -----------------------------------------------------------------------------------


def _input(place: Place, visit: Visitor, held: ExitStack) -> None:
    """The input of a module."""

    def pre(_module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        seen = args[0] if args else kwargs["hidden_states"]
        new = visit(seen)
        if new is None or new is seen:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    held.callback(place.module.register_forward_pre_hook(pre, with_kwargs=True).remove)


def _output(place: Place, visit: Visitor, held: ExitStack) -> None:
    """The output of a module, or the first of several."""

    def post(_module: torch.nn.Module, _args: tuple, output: Any) -> Any:
        seen = output[0] if isinstance(output, tuple) else output
        new = visit(seen)
        if new is None or new is seen:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    held.callback(place.module.register_forward_hook(post).remove)


def _shared_input(place: Place, visit: Visitor, held: ExitStack) -> None:
    """The input of a module of which the layer keeps the same tensor: a change is made in place, to reach both."""

    def put(seen: Tensor) -> None:
        new = visit(seen)
        if new is not None and new is not seen:
            seen.copy_(new)

    _input(place, put, held)


# --- ways: parts of an input or output --------------------------------------------------------------------------------


def _through(visit: Visitor, show: Callable[[Tensor], Tensor], put: Callable[[Tensor, Tensor], Tensor]) -> Visitor:
    """A visitor of the whole that lets another see a part, and puts back what that returns."""

    def visit_whole(whole: Tensor) -> Tensor | None:
        new = visit(show(whole))
        return None if new is None else put(whole, new)

    return visit_whole


def _counts(place: Place) -> tuple[int, int]:
    """(heads of the queries, heads of the keys and values)."""
    queries = place.config.num_attention_heads
    return queries, getattr(place.config, "num_key_value_heads", None) or queries


def _heads(which: Literal["q", "k", "v"]) -> Way:
    """Heads in the output of a module of their own, or of one that gives queries, keys and values."""

    def way(place: Place, visit: Visitor, held: ExitStack) -> None:
        assert place.row
        queries, others = _counts(place)
        number, count = "qkv".index(which), queries if which == "q" else others
        if place.row.q != place.row.k:
            seen = _through(visit, lambda x: x.unflatten(-1, (count, -1)), lambda _, new: new.flatten(-2))
        elif place.row.qkv_by_head:

            def put(whole: Tensor, new: Tensor) -> Tensor:
                parts = [*whole.unflatten(-1, (count, 3, -1)).unbind(-2)]
                parts[number] = new
                return torch.stack(parts, -2).flatten(-3)

            seen = _through(visit, lambda x: x.unflatten(-1, (count, 3, -1))[..., number, :], put)
        else:
            shares = {"q": (0, queries), "k": (queries, others), "v": (queries + others, others)}
            seen = _part(visit, *shares[which], queries + 2 * others, count)
        _output(place, seen, held)

    return way


def _part(visit: Visitor, first: int, share: int, of: int, count: int | None) -> Visitor:
    """Shows `share` of `of` equal pieces of the last axis, from piece `first` on; as `count` heads where it is told."""

    def bounds(whole: Tensor) -> tuple[int, int]:
        return first * whole.shape[-1] // of, (first + share) * whole.shape[-1] // of

    def show(whole: Tensor) -> Tensor:
        start, stop = bounds(whole)
        return whole[..., start:stop] if count is None else whole[..., start:stop].unflatten(-1, (count, -1))

    def put(whole: Tensor, new: Tensor) -> Tensor:
        start, stop = bounds(whole)
        return torch.cat([whole[..., :start], new if count is None else new.flatten(-2), whole[..., stop:]], -1)

    return _through(visit, show, put)


def _half(number: int) -> Way:
    """The output of the gate (0) or of the map beside it (1), which may be one module."""

    def way(place: Place, visit: Visitor, held: ExitStack) -> None:
        assert place.row
        one = place.row.pre == place.row.pre_linear
        _output(place, _part(visit, number, 1, 2, None) if one else _shaped(place, visit, held), held)

    return way


def _z(place: Place, visit: Visitor, held: ExitStack) -> None:
    """The heads' outputs, as the output map reads them."""
    _input(place, _through(visit, partial(_of_heads, place), lambda _, new: new.flatten(-2)), held)


def _of_heads(place: Place, z: Tensor) -> Tensor:
    """What an output map reads, head by head. Raises SublimError where that are others than the configuration's."""
    count = _counts(place)[0]
    if z.shape[-1] % count:
        raise SublimError(f"{type(place.layer).__name__} has other heads than the {count} of its configuration")
    return z.unflatten(-1, (count, -1))


def _as_added(way: Way) -> Way:
    """A way that shows what attention or MLP give as the layer adds it to the stream, scaled, where it scales it."""

    def shown(place: Place, visit: Visitor, held: ExitStack) -> None:
        field = place.row.residual_scale if place.row else ""
        scale = float(getattr(place.config, field)) if field else 1.0
        way(place, visit if scale == 1.0 else _copied(visit, scale), held)

    return shown


def _kept(way: Way) -> Way:
    """A way that shows a copy where the layer writes into what it has shown."""

    def shown(place: Place, visit: Visitor, held: ExitStack) -> None:
        way(place, _copied(visit, 1.0) if place.row and place.row.in_place else visit, held)

    return shown


def _copied(visit: Visitor, scale: float) -> Visitor:
    """A visitor of so many times the tensor, which is a copy of it."""

    def see(own: Tensor) -> Tensor | None:
        value = own.clone() * scale
        new = visit(value)
        if new is None and not torch.is_grad_enabled():
            return None
        return (value if new is None else new) / scale  # else a gradient would pass it by

    return see


def _shaped(place: Place, visit: Visitor, held: ExitStack) -> Visitor:
    """A visitor of [batch, position, …], also where a layer runs on all tokens of a batch as one row."""
    shape: list[tuple[int, ...]] = []

    def note(_layer: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        shape[:] = [(args[0] if args else kwargs["hidden_states"]).shape[:2]]

    def see(value: Tensor) -> Tensor | None:
        if value.dim() > 2 or not shape:
            return visit(value)
        # A copy, as what is put in place may not be a view of what it replaces.
        new = visit(value.view(*shape[0], *value.shape[1:]).clone())
        return None if new is None else new.flatten(0, 1)

    if place.row and place.row.flat:
        held.callback(place.layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        return see
    return visit


def _flat(way: Way) -> Way:
    """A way that shows [batch, position, …], also where a layer runs on all tokens of a batch as one row."""
    return lambda place, visit, held: way(place, _shaped(place, visit, held), held)


def _for_each_text(place: Place, visit: Visitor, held: ExitStack) -> None:
    """The output of a module that is computed once for all texts, for each of them."""
    texts: list[int] = []
    note = place.layer.register_forward_pre_hook(lambda _module, args: texts.__setitem__(slice(None), [len(args[0])]))
    held.callback(note.remove)
    _output(place, lambda x: visit(x.expand(texts[0], -1, -1) if texts else x), held)


# --- ways: what a module computes within ------------------------------------------------------------------------------


class _Opened:
    """A module that shows what it computes within."""

    def __init__(self) -> None:
        self.visitors: list[tuple[str, Visitor]] = []
        """(part, who sees it), in the order of the blocks."""
        self.close: Callable[[], None] = lambda: None
        """Ends it, when nobody sees anything any more."""


_OPENED: WeakKeyDictionary[torch.nn.Module, _Opened] = WeakKeyDictionary()


def _see_inside(module: torch.nn.Module, part: str, value: Tensor) -> Tensor:
    """The value, or what those who see this part made of it."""
    for name, visit in _OPENED[module].visitors if module in _OPENED else ():
        if name == part and (new := visit(value)) is not None:
            value = new
    return value


Again = Callable[[Place, tuple, Tensor], Tensor | None]
"""Makes a module's output again from its parts: (where it is, what it got, what it gave)."""


def _made_again(post: Again, place: Place, _module: torch.nn.Module, args: tuple, output: Tensor) -> Tensor | None:
    return post(place, args, output)


def _within(part: str, post: Again | None = None) -> Way:
    """A part of what a module computes within.

    post: makes the module's output again from its parts, which it shows; None where the module itself shows them
    """

    def way(place: Place, visit: Visitor, held: ExitStack) -> None:
        opened = _OPENED.setdefault(place.module, _Opened())
        if post and not opened.visitors:
            opened.close = place.module.register_forward_hook(partial(_made_again, post, place)).remove
        entry = (part, visit)
        opened.visitors.append(entry)

        def leave() -> None:
            opened.visitors[:] = [other for other in opened.visitors if other is not entry]
            if not opened.visitors:
                opened.close()

        held.callback(leave)

    return way


def _again(output: Tensor, same: Tensor, changed: Tensor) -> Tensor:
    """A module's output computed another way from something that may be changed: with no change, bit for bit the same.

    same, changed: the other way's results without and with the change
    """
    return (changed + (output - same).detach()).to(output)


def _summed(place: Place, args: tuple, output: Tensor) -> Tensor | None:
    """An output map, head by head: the output of each through its part of the map, then the sum."""
    module, z, count = place.module, args[0], _counts(place)[0]
    heads = _of_heads(place, z)
    none = module.forward(z.new_zeros(1, z.shape[-1]))
    weight = module.forward(torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)) - none
    each = torch.einsum("...hd,hdm->...hm", heads, weight.unflatten(0, (count, -1)))
    seen = _see_inside(module, "result", each)
    if seen is each and not each.requires_grad:
        return None
    return _again(output, each.sum(-2) + none[0], seen.sum(-2) + none[0])


def _normed(place: Place, args: tuple, output: Tensor) -> Tensor | None:
    """A norm in two steps: its input divided by its scale, then its weights."""
    module = place.module
    x = args[0].float() if args[0].element_size() < 4 else args[0]
    epsilon = getattr(module, "eps", getattr(module, "variance_epsilon", 1e-5))
    one = torch.ones(1, x.shape[-1], dtype=args[0].dtype, device=x.device)
    ones = module.forward(one)
    centred = torch.equal(ones, module.forward(-one))  # it takes the mean away
    if centred:
        x = x - x.mean(-1, keepdim=True)
    scale = (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
    divisor = _see_inside(module, "scale", scale)
    plain = x / divisor
    seen = _see_inside(module, "normalized", plain)
    if divisor is scale and seen is plain and not plain.requires_grad:
        return None

    bias: Any = None
    if centred:
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if type(module) is not torch.nn.LayerNorm:  # as below: some store differences from 1, or have none
            even = torch.full_like(one, -1.0)
            even[..., 0] = even.shape[-1] - 1  # of mean 0, and nowhere 0
            bias = module.forward(torch.zeros_like(one))
            weight = (module.forward(even) - bias) / even * (even.pow(2).mean() + epsilon).sqrt()
        weight = one if weight is None else weight
    else:  # not the module's own weights: some store them as differences from 1
        weight = ones * (1 + epsilon) ** 0.5

    def weighed(value: Tensor) -> Tensor:
        return value * weight if bias is None else value * weight + bias

    return _again(output, weighed(x / scale), weighed(seen))


def _pattern(place: Place, visit: Visitor, held: ExitStack) -> None:
    """The pattern; of attention that transformers cannot exchange, when it has been used: to be seen, not changed."""
    if _eager_of(place.module):
        _within("pattern")(place, visit, held)
        return

    def post(_module: torch.nn.Module, _args: tuple, output: Any) -> None:
        if visit(output[1]) is not None:
            raise SublimError(
                f"the pattern of {type(place.module).__name__} can be captured, but has no gradient and cannot be "
                "edited: the model has used it when it is seen"
            )

    held.callback(place.module.register_forward_hook(post).remove)


_EAGER = "sublim_interp"
"""The name in transformers' registry of attention functions under which attention shows its insides."""


@cache
def _register_attention() -> None:
    """Makes attention that shows its insides known to transformers, once."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(_EAGER, _attention)
    AttentionMaskInterface.register(_EAGER, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def _eager_of(module: torch.nn.Module) -> Callable[..., Any] | None:
    """The step by step attention in the file that defines an attention module; None where it has none."""
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
    """The model's own step by step attention, whose steps are shown: called by transformers in place of another."""
    plain = _eager_of(module)
    assert plain, "names within attention exist only where there is one"
    query, key = (
        _see_inside(module, part, x.transpose(1, 2)).transpose(1, 2) for part, x in (("rot_q", query), ("rot_k", key))
    )
    if module not in _OPENED or not _OPENED[module].visitors:
        return plain(module, query, key, value, *rest, **options)
    with _AtSoftmax(module, key.shape[-2]):
        return plain(module, query, key, value, *rest, **options)


class _AtSoftmax(TorchFunctionMode):
    """Inside the block the scores that go into a softmax, and the pattern that comes out, are shown."""

    def __init__(self, module: torch.nn.Module, keys: int) -> None:
        super().__init__()
        self._module, self._keys = module, keys

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func not in (F.softmax, torch.softmax, Tensor.softmax):
            return func(*args, **(kwargs or {}))
        scores = self._see("attn_scores", args[0])
        return self._see("pattern", func(scores, *args[1:], **(kwargs or {})))

    def _see(self, part: str, whole: Tensor) -> Tensor:
        if whole.shape[-1] == self._keys:
            return _see_inside(self._module, part, whole)
        keys, sink = whole.split([self._keys, whole.shape[-1] - self._keys], -1)  # a sink is no key
        new = _see_inside(self._module, part, keys)
        return whole if new is keys else torch.cat([new, sink], -1)


@contextmanager
def eager(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block attention is computed step by step, so that its steps exist; SublimError in training mode."""
    if model.training:
        raise SublimError("attention patterns need eager attention, which changes a training; call model.eval() first")
    _register_attention()
    before = text_config(model)._attn_implementation
    choose: Any = model.set_attn_implementation
    choose(_EAGER if any(map(_eager_of, decoder_layers(model))) else "eager")
    try:
        yield
    finally:
        choose(before)


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HookPoint:
    """One name that models have, in each layer or once."""

    kind: str
    """The short word for it."""
    name: str
    """The name, with {} for the layer, where each layer has one."""
    axes: tuple[str, ...]
    """Names of its axes."""
    module: str
    """The field of the architecture's row that names the module within a layer; `layer`, `output_map`, `final_norm`,
    `embedding` and `pos_embed` are known to the model itself."""
    way: Way
    """How the module shows it."""
    eager: bool = False
    """Whether attention must be computed step by step for it."""

    @property
    def each_layer(self) -> bool:
        """Whether each layer has one."""
        return "{}" in self.name

    def at(self, seen: Anatomy, layer: int = 0) -> Place | None:
        """Where it is on a model; None where the architecture, or this layer, has no such thing."""
        model, layers, config, row = seen
        if self.each_layer and not 0 <= layer < len(layers):
            return None
        if self.kind == "resid_mid" and not has_middle(model):
            return None
        try:
            block = layers[layer] if self.each_layer else model.get_input_embeddings()
            if self.module == "layer":
                module = block
            elif self.module in _FOUND and not (row and self.module == "output_map"):
                module = _FOUND[self.module](model, layer)
            else:
                path = getattr(row, self.module, "")
                module = block.get_submodule(path) if path else None
        except (SublimError, AttributeError, NotImplementedError):
            return None
        if module is None or block is None or (self.eager and not self._is_shown(module)):
            return None
        return Place(module, block, config, row)

    def _is_shown(self, module: torch.nn.Module) -> bool:
        """Whether attention shows it: a pattern always, what comes before where it can be exchanged."""
        if self.kind == "attn_scores" and hasattr(module, "sinks"):
            return False  # what goes into the softmax is less by the maximum, the sink's included
        return self.kind == "pattern" or _eager_of(module) is not None


def _pos_embed(model: Any, _layer: int) -> torch.nn.Module | None:
    """The table of learned positions, where there is one."""
    row = architecture_of(model)
    return without_adapters(model).base_model.get_submodule(row.pos_embed) if row and row.pos_embed else None


_FOUND: dict[str, Callable[[Any, int], torch.nn.Module | None]] = {
    "embedding": lambda model, _layer: model.get_input_embeddings(),
    "pos_embed": _pos_embed,
    "output_map": output_map,
    "final_norm": lambda model, _layer: final_norm(model),
}
"""Modules that are found without a row, or outside the layers."""

_HIDDEN = ("batch", "position", "d_model")
_PER_HEAD = ("batch", "position", "head", "d_head")
_SQUARE = ("batch", "head", "query", "key")
_INNER = ("batch", "position", "d_mlp")


def _stream(kind: Stream, module: str, way: Way) -> HookPoint:
    return HookPoint(kind=kind, name=f"blocks.{{}}.hook_{kind}", axes=_HIDDEN, module=module, way=way)


def _in_attention(kind: str, axes: tuple[str, ...], module: str, way: Way, eager: bool = False) -> HookPoint:
    name = f"blocks.{{}}.attn.hook_{kind}"
    return HookPoint(kind=kind, name=name, axes=axes, module=module, way=way, eager=eager)


def _in_mlp(kind: str, module: str, way: Way) -> HookPoint:
    return HookPoint(kind=kind, name=f"blocks.{{}}.mlp.hook_{kind}", axes=_INNER, module=module, way=way)


def _norm(of: str, module: str, block: str = "blocks.{}.") -> tuple[HookPoint, HookPoint]:
    """The two names of a norm."""
    scale, normalized = (
        HookPoint(
            kind=f"{of}.{part}", name=f"{block}{of}.hook_{part}", axes=(*_HIDDEN[:2], last), module=module,
            way=_flat(_within(part, _normed)),
        )
        for part, last in (("scale", "one"), ("normalized", "d_model"))
    )  # fmt: skip
    return scale, normalized


POINTS: dict[str, HookPoint] = {
    point.kind: point
    for point in (
        HookPoint(kind="embed", name="hook_embed", axes=_HIDDEN, module="embedding", way=_output),
        HookPoint(kind="pos_embed", name="hook_pos_embed", axes=_HIDDEN, module="pos_embed", way=_for_each_text),
        _stream("resid_pre", "layer", _input),
        *_norm("ln1", "ln1"),
        _in_attention("q", _PER_HEAD, "q", _heads("q")),
        _in_attention("k", _PER_HEAD, "k", _heads("k")),
        _in_attention("v", _PER_HEAD, "v", _heads("v")),
        _in_attention("rot_q", _PER_HEAD, "rotary", _within("rot_q"), eager=True),
        _in_attention("rot_k", _PER_HEAD, "rotary", _within("rot_k"), eager=True),
        _in_attention("attn_scores", _SQUARE, "attention", _within("attn_scores"), eager=True),
        _in_attention("pattern", _SQUARE, "attention", _pattern, eager=True),
        _in_attention("z", _PER_HEAD, "output_map", _z),
        _in_attention(
            "result", ("batch", "position", "head", "d_model"), "output_map", _as_added(_within("result", _summed))
        ),
        *_norm("ln1_post", "ln1_post"),
        _stream("attn_out", "attn_out", _as_added(_output)),
        _stream("resid_mid", "mid", _flat(_shared_input)),
        *_norm("ln2", "ln2"),
        _in_mlp("pre", "pre", _half(0)),
        _in_mlp("pre_linear", "pre_linear", _half(1)),
        _in_mlp("post", "post", _flat(_input)),
        *_norm("ln2_post", "ln2_post"),
        _stream("mlp_out", "mlp_out", _as_added(_kept(_flat(_output)))),
        _stream("resid_post", "layer", _output),
        *_norm("ln_final", "final_norm", ""),
    )
}
"""By its short word, in the order in which a model computes them."""
