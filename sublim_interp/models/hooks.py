"""Hooks: the names of what a model computes, and `with` blocks that capture or edit it. Plain Hugging Face models.

Names are TransformerLens's: `blocks.{layer}.hook_{kind}`. Where a kind lies in a layer is a row of architectures.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, NamedTuple, cast, get_args
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sublim_interp.core.choices import meant
from sublim_interp.core.device import device_of
from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import (
    Architecture,
    architecture_of,
    decoder_layers,
    final_norm,
    has_middle,
    text_config,
)
from sublim_interp.models.forward import resting
from sublim_interp.models.loading import reason_of

Stream = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
"""What a layer reads, adds and leaves, in the order in which it computes them: [batch, position, d_model].

These can be captured, recorded, edited and patched, and have directions.
"""

Kind = Literal[Stream, "pattern"]
"""All that can be captured; a pattern is [batch, head, query, key], and is never edited."""

_ENDS = ("resid_pre", "resid_post")
"""What every layer has, whatever it holds."""
_WHERE: dict[str, str] = {"attn_out": "attn_out", "resid_mid": "mid", "mlp_out": "mlp_out", "pattern": "attention"}
"""In which field of an architecture's row the module of a kind is named."""

STREAM: tuple[Stream, ...] = get_args(Stream)
KINDS: tuple[Kind, ...] = get_args(Kind)

Edit = Callable[[Float[Tensor, "batch position d_model"]], Float[Tensor, "batch position d_model"]]
"""Gives what takes the place of a tensor, of the same shape; it must not write into what it gets."""


Positions = slice | Sequence[int] | None
"""Which positions of a text: a slice, or places from the start, from the end where negative; None means all."""


def hook_name(layer: int, kind: Kind) -> str:
    """The name of one kind in one layer, counted from 0."""
    return f"blocks.{layer}.{'attn.' if kind == 'pattern' else ''}hook_{kind}"


def layer_of(name: str) -> int:
    """The layer in a hook's name."""
    return int(name.split(".")[1])


def kind_of(name: str) -> str:
    """The kind in a hook's name, as it stands there."""
    return name.rpartition("hook_")[2]


def hook_names(model: torch.nn.Module, kinds: Iterable[Kind] = KINDS) -> list[str]:
    """The names that a model has of some kinds, layer by layer, in the order in which a layer computes them.

    A layer whose attention and MLP read the same stream (parallel residual) has no `resid_mid`. An architecture
    without a row in the table has `resid_pre` and `resid_post` only, and so has a layer without the row's modules.
    """
    wanted, row = set(kinds), architecture_of(model)
    if not has_middle(model):
        wanted.discard("resid_mid")
    names = []
    for number, layer in enumerate(decoder_layers(model)):
        modules = {name for name, _ in layer.named_modules() if name}
        has = {kind for kind in wanted if kind in _ENDS or (row and getattr(row, _WHERE[kind]) in modules)}
        names += [hook_name(number, kind) for kind in KINDS if kind in has]
    return names


def names_of(model: torch.nn.Module, kind: Stream, others: Sequence[str] = ()) -> list[str]:
    """The names of one kind, one a layer.

    kind: what the caller was asked for
    others: what the caller takes beside kinds of hooks, for the error

    Raises SublimError, with the kinds that the model has, where it has no such one.
    """
    names = hook_names(model, (kind,) if kind in STREAM else ())
    if not names:
        known = dict.fromkeys(kind_of(name) for name in hook_names(model, STREAM))
        raise SublimError(f"{type(model).__name__} has no '{kind}'; valid: {', '.join([*known, *others])}")
    if len(names) < (depth := len(decoder_layers(model))):
        raise SublimError(f"{type(model).__name__} has '{kind}' in {len(names)} of its {depth} layers only")
    return names


def matching(model: torch.nn.Module, pattern: str) -> list[str]:
    """The names that can be edited and match a glob, such as `blocks.*.hook_resid_post`; SublimError if none does."""
    names = hook_names(model, STREAM)
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise SublimError(f"no hook matches '{pattern}'; {meant(pattern, names)}")
    return found


class _Point(NamedTuple):
    """Where a name is: the input of a module, or its output."""

    module: torch.nn.Module
    side: Literal["input", "output"]
    place: int = 0
    """Which entry of the output counts, where that is a tuple."""
    shared: bool = False
    """The layer keeps the same tensor for its residual: a change must be made in place to reach both."""
    scale: float = 1.0
    """By which the layer multiplies the tensor before it adds it."""
    flat: bool = False
    """The tensor is [batch · position, d_model]; visitors see it as [batch, position, d_model]."""
    in_place: bool = False
    """The layer writes into the tensor later: visitors see a copy."""


def _points(model: Any, wanted: Iterable[str]) -> list[_Point]:
    """Where each name is on this model; SublimError for one that it lacks."""
    if not isinstance(model, torch.nn.Module):
        raise SublimError(
            f"hooks need the model that runs, not a {type(model).__name__}: take x.load() of a base, or x.model "
            "of a replicate, once, and use it inside the block"
        )
    names, layers, row = set(hook_names(model)), decoder_layers(model), architecture_of(model)
    points = []
    for name in wanted:
        if name not in names:
            first = ", ".join(n for n in hook_names(model) if n.startswith("blocks.0."))
            near = get_close_matches(name, hook_names(model), n=1)
            lacks = f"; of the architecture {text_config(model).model_type} only the residual stream is known"
            raise SublimError(
                f"no hook '{name}' on {type(model).__name__} of {len(layers)} layers (from 0); "
                f"{f'did you mean {near[0]}? ' if near else ''}each has: {first}{'' if row else lacks}"
            )
        points.append(_point(model, layers[layer_of(name)], kind_of(name), row))
    return points


def _point(model: torch.nn.Module, layer: torch.nn.Module, kind: str, row: Architecture | None) -> _Point:
    """Where one kind is within a layer."""
    if kind == "resid_pre":
        return _Point(layer, "input")
    if kind == "resid_post":
        return _Point(layer, "output")
    assert row, "other kinds are names of architectures with a row only"
    if kind == "resid_mid":
        return _Point(layer.get_submodule(row.mid), "input", shared=True, flat=row.flat)
    if kind == "pattern":
        return _Point(layer.get_submodule(row.attention), "output", place=1)
    scale = float(getattr(text_config(model), row.residual_scale)) if row.residual_scale else 1.0
    if kind == "attn_out":
        return _Point(layer.get_submodule(row.attn_out), "output", scale=scale)
    return _Point(layer.get_submodule(row.mlp_out), "output", scale=scale, flat=row.flat, in_place=row.in_place)


@contextmanager
def attached(model: torch.nn.Module, visits: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Inside the block a visitor sees the tensor of its name in every forward: what `capture` and `edit` are made of.

    visits: by hook name, a function of the tensor; what it returns, if anything, takes the tensor's place

    Raises SublimError for a name that the model lacks, and where `require_stream` does.
    """
    points = _points(model, visits)
    if points:
        require_stream(model)
    shape: list[torch.Size] = []

    def keep_shape(_module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        shape[:] = [(args[0] if args else kwargs["hidden_states"]).shape]

    with ExitStack() as held:
        if any(point.flat for point in points):
            first = decoder_layers(model)[0].register_forward_pre_hook(keep_shape, with_kwargs=True)
            held.callback(first.remove)
        for point, visit in zip(points, visits.values(), strict=True):
            held.callback(_attach(point, _as_added(point, visit, shape)).remove)
        yield


def _as_added(
    point: _Point, visit: Callable[[Tensor], Tensor | None], shape: list[torch.Size]
) -> Callable[[Tensor], Tensor | None]:
    """The visitor of a tensor as it stands in the residual stream: [batch, position, d_model], scaled.

    shape: of the stream in the forward that runs
    """
    if not (point.flat or point.in_place or point.scale != 1.0):
        return visit

    def shown(own: Tensor) -> Tensor | None:
        value = (own.view(shape[0]) if point.flat else own).clone() * point.scale
        new = visit(value)
        if new is None and not torch.is_grad_enabled():
            return None
        return ((value if new is None else new) / point.scale).view(own.shape)  # else a gradient would pass it by

    return shown


_SEEN: "WeakSet[torch.nn.Module]" = WeakSet()
"""Models without a row whose stream has been tried out."""


def require_stream(model: torch.nn.Module) -> None:
    """Raises SublimError unless every layer reads and leaves the one residual stream: [batch, position, d_model].

    A type with a row in the table is known to. Any other is tried out once, on two short rows; nothing is drawn at
    random, and the model is left as it was.
    """
    if architecture_of(model) or model in _SEEN:
        return
    layers, width = decoder_layers(model), text_config(model).hidden_size
    kind, seen = text_config(model).model_type, []
    ids = _tried_ids(model)
    with ExitStack() as held, torch.no_grad(), torch.random.fork_rng():
        held.enter_context(resting(model))
        for number, layer in enumerate(layers):
            for side in ("input", "output"):
                keep = partial(lambda *at: seen.append(at), number, side)
                held.callback(_attach(_Point(layer, side), keep).remove)
        try:
            cast(Any, model)(input_ids=ids, use_cache=False)
        except Exception as error:  # of an architecture that nobody has seen here, it may be anything
            raise SublimError(f"{kind}: its residual stream cannot be seen ({reason_of(error)})") from None
    fail = f"{kind}: its layers do not read and leave one residual stream [batch, position, d_model], which hooks need"
    if [at[:2] for at in seen] != [(n, side) for n in range(len(layers)) for side in ("input", "output")]:
        raise SublimError(f"{fail}: they do not run once each, in order")
    for number, side, value in seen:
        if not isinstance(value, Tensor) or value.shape != (*ids.shape, width):
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SublimError(f"{fail}: the {side} of layer {number} is {found} for {[*ids.shape, width]}")
    if any(not torch.equal(seen[i][2], seen[i + 1][2]) for i in range(1, len(seen) - 1, 2)):
        raise SublimError(f"{fail}: a layer's input is not the output of the one before")
    _SEEN.add(model)


def lens_of(model: torch.nn.Module) -> tuple[torch.nn.Module, Any]:
    """(final norm, head): the head of the normed stream orders the vocabulary as the logits do.

    A type without a row is tried out on two short rows. Raises SublimError where there is no such norm or head.
    """
    norm, head = final_norm(model), cast(Any, model).get_output_embeddings()
    kind = text_config(model).model_type
    if head is None:
        raise SublimError(f"{kind}: it names no head")
    if architecture_of(model):
        return norm, head
    require_stream(model)
    seen: dict[str, Tensor] = {}
    places = {"left": (decoder_layers(model)[-1], "output"), "read": (norm, "input"), "normed": (norm, "output")}
    with ExitStack() as held, torch.no_grad(), torch.random.fork_rng():
        held.enter_context(resting(model))
        for name, (module, side) in {**places, "given": (head, "input")}.items():
            held.callback(_attach(_Point(module, side), partial(seen.__setitem__, name)).remove)
        cast(Any, model)(input_ids=_tried_ids(model), use_cache=False)
    same = len(seen) == 4 and torch.equal(seen["left"], seen["read"]) and torch.equal(seen["normed"], seen["given"])
    if not same:
        raise SublimError(f"{kind}: its logits are not head(final norm(stream)) alone, which a logit lens needs")
    return norm, head


def _tried_ids(model: torch.nn.Module) -> Tensor:
    """Two short rows on which a type without a row is tried out."""
    return torch.tensor([[1, 2, 3], [3, 1, 2]], device=device_of(model)) % text_config(model).vocab_size


def _attach(point: _Point, visitor: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Makes a module show one of its tensors; what the visitor returns, if anything, replaces the tensor."""

    def visit(seen: Tensor) -> Tensor | None:
        if not torch.is_autocast_enabled(seen.device.type):
            return visitor(seen)
        with torch.autocast(seen.device.type, enabled=False):  # the model's, not of what is done with its tensors
            return visitor(seen)

    def pre(_module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        seen = args[0] if args else kwargs["hidden_states"]
        new = visit(seen)
        if new is None:
            return None
        if point.shared:
            seen.copy_(new)
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def post(_module: torch.nn.Module, _args: tuple, output: Any) -> Any:
        if not isinstance(output, tuple):
            return visit(output)
        new = visit(output[point.place])
        return None if new is None else (*output[: point.place], new, *output[point.place + 1 :])

    if point.side == "input":
        return point.module.register_forward_pre_hook(pre, with_kwargs=True)
    return point.module.register_forward_hook(post)


class Captured(Mapping[str, Tensor]):
    """What was seen in the latest forward, by name, and after a backward its gradients.

    Tensors are detached, and on the model's device: [batch, position, d_model], or for a pattern
    [batch, head, query, key].
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.gradients: dict[str, Tensor] = {}
        """Gradient of whatever was run backwards, by name; those of several backwards are added up."""
        self._seen: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._seen:
            known = ", ".join(self._seen) or "nothing: run the model inside the block"
            raise SublimError(f"'{name}' was not captured; there is: {known}")
        return self._seen[name]

    def __contains__(self, name: object) -> bool:
        return name in self._seen

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def _see(self, name: str, value: Tensor, *, gradients: bool) -> None:
        # An edit of the middle of a layer writes into the tensor that was seen there.
        self._seen[name] = value.detach().clone() if kind_of(name) == "resid_mid" else value.detach()
        if not gradients:
            return
        if not torch.is_grad_enabled():
            raise SublimError(f"gradients of '{name}' are asked for, but the model ran under torch.no_grad()")
        if not value.requires_grad:  # behind frozen weights
            value.requires_grad_()
        self.gradients.pop(name, None)

        def add(gradient: Tensor) -> None:
            before = self.gradients.get(name)
            self.gradients[name] = gradient.detach() if before is None else before + gradient.detach()

        value.register_hook(add)


@contextmanager
def capture(model: torch.nn.Module, names: str | Iterable[str], *, gradients: bool = False) -> Iterator[Captured]:
    """Inside the block every forward of `model` leaves the tensors of these names in the block's value.

    names: hook names, or one
    gradients: whether a backward inside the block leaves the tensors' gradients in `.gradients`; patterns have none

    A pattern needs eager attention. It is switched on for the block and changes the last bits of everything, so it is
    refused while the model trains. The hooks go with the block, also after an exception.

    Raises SublimError on entry for a name that the model lacks, and on leaving for one that never fired.
    """
    caught = Captured([names] if isinstance(names, str) else names)
    patterns = {name for name in caught.names if kind_of(name) == "pattern"}
    visits = {name: partial(caught._see, name, gradients=gradients and name not in patterns) for name in caught.names}
    with attached(model, visits), _eager(model) if patterns else nullcontext():
        yield caught
    _require_all(model, set(caught.names), set(caught))


def _require_all(model: torch.nn.Module, wanted: set[str], fired: set[str]) -> None:
    """Raises SublimError where a hook was not reached by any forward."""
    if lacking := sorted(wanted - fired):
        raise SublimError(
            f"hook '{lacking[0]}' never fired: no forward of this model reached it inside the block; "
            f"fired: {', '.join(sorted(fired)) or 'none'}; the model has: {', '.join(hook_names(model))}"
        )


@contextmanager
def _eager(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block attention is computed step by step, so that its pattern exists; SublimError in training mode."""
    if model.training:
        raise SublimError("attention patterns need eager attention, which changes a training; call model.eval() first")
    before = text_config(model)._attn_implementation
    choose: Any = model.set_attn_implementation
    choose("eager")
    try:
        yield
    finally:
        choose(before)


@contextmanager
def edit(model: torch.nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Inside the block tensors are replaced, in every forward of `model`, by what functions make of them.

    edits: by hook name, a function from [batch, position, d_model] to the same shape

    Blocks nest: the outer edit acts first. The hooks go with the block, also after an exception.

    Raises SublimError for a name that the model lacks, for an attention pattern, and for an edit that never fired.
    """
    if patterns := [name for name in edits if kind_of(name) == "pattern"]:
        raise SublimError(f"'{patterns[0]}' can be captured but not edited: the model has used it when it is seen")
    fired: set[str] = set()

    def visit(name: str, value: Tensor) -> Tensor:
        fired.add(name)
        # The new middle of a layer is written over the old, of which autograd may keep a copy only.
        new = edits[name](value.clone() if kind_of(name) == "resid_mid" else value)
        if new.shape != value.shape:
            raise SublimError(f"edit of '{name}': returned shape {list(new.shape)}, not {list(value.shape)}")
        return new

    with attached(model, {name: partial(visit, name) for name in edits}):
        yield
    _require_all(model, set(edits), fired)


def added(
    model: torch.nn.Module, vector: Float[Tensor, " d_model"], at: str, positions: Positions = None
) -> AbstractContextManager[None]:
    """Inside the block a vector is added at a hook, in every forward.

    vector: in the unit of what the hook shows
    at: the hook's name
    positions: where it is added, from the end where negative; everywhere where None

    Raises SublimError for a name that the model lacks, a vector of another width, and in a forward on fewer positions.
    """
    width = text_config(model).hidden_size
    if list(vector.shape) != [width]:
        raise SublimError(
            f"the vector to add at {at} has the shape {list(vector.shape)}; the model's d_model is {width}"
        )

    def add(stream: Float[Tensor, "batch position d_model"]) -> Float[Tensor, "batch position d_model"]:
        if positions is None:
            return stream + vector.to(stream)
        mask = torch.zeros(stream.shape[1], 1, dtype=stream.dtype, device=stream.device)
        try:
            mask[positions if isinstance(positions, slice) else list(positions)] = 1
        except IndexError:
            raise SublimError(f"positions {positions} at {at}: the text has {stream.shape[1]} tokens") from None
        return stream + mask * vector.to(stream)

    return edit(model, {at: add})


def unit_vector(direction: Tensor, where: str) -> Tensor:
    """The direction at length 1. Raises SublimError, which names `where`, for one without length."""
    length = direction.norm()
    if not torch.isfinite(length) or not length:
        raise SublimError(f"the direction at {where} has no length: there is nothing to remove")
    return direction / length


def part_along(value: Float[Tensor, "... d"], unit: Float[Tensor, " d"]) -> Float[Tensor, "... d"]:
    """The part of a value along a unit vector of its last axis, in the value's precision and on its device."""
    unit = unit.to(value)
    return (value @ unit)[..., None] * unit


def without(unit: Float[Tensor, " d"]) -> Callable[[Tensor], Tensor]:
    """The edit that takes the part along a unit vector out."""
    return lambda value: value - part_along(value, unit)
