"""Hooks: the names of what a model computes, and `with` blocks that capture or edit it. Plain Hugging Face models.

Names are TransformerLens's, such as `blocks.{layer}.hook_resid_post`; globs mean all that match. What each is on a
model is a row of points.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import groupby
from typing import Any, cast
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sublim_interp.core.choices import meant
from sublim_interp.core.device import device_of
from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import architecture_of, decoder_layers, final_norm, text_config
from sublim_interp.models.forward import resting
from sublim_interp.models.loading import reason_of
from sublim_interp.models.points import POINTS, STREAM, Anatomy, HookPoint, Place, Stream, Visitor, eager

Edit = Callable[[Float[Tensor, "*axes"]], Float[Tensor, "*axes"]]
"""Gives what takes the place of a tensor, of the same shape; it must not write into what it gets."""


Positions = slice | Sequence[int] | None
"""Which positions of a text: a slice, or places from the start, from the end where negative; None means all."""


def hook_name(layer: int, kind: str) -> str:
    """The name of one kind in one layer, counted from 0."""
    return POINTS[kind].name.format(layer)


def layer_of(name: str) -> int:
    """The layer in a hook's name."""
    return int(name.split(".")[1])


_BY_NAME = {point.name: point for point in POINTS.values()}


def point_of(name: str) -> HookPoint:
    """The row of a name. Raises SublimError for one that no model has."""
    if not (point := _known(name)):
        raise SublimError(f"no hook '{name}'; {meant(name, _BY_NAME)}")
    return point


@cache
def _known(name: str) -> HookPoint | None:
    """The row of a name; None for one that no model has."""
    return _BY_NAME.get(_template(name))


def _template(name: str) -> str:
    """A name with {} for its layer, where it has one."""
    block, _, rest = name.partition(".")
    layer, _, within = rest.partition(".")
    return f"blocks.{{}}.{within}" if block == "blocks" and layer.isdecimal() and layer == str(int(layer)) else name


def kind_of(name: str) -> str:
    """The kind of a hook's name."""
    return point_of(name).kind


def axes_of(name: str) -> tuple[str, ...]:
    """Names of the axes of what a hook shows."""
    return point_of(name).axes


def hook_names(model: torch.nn.Module, kinds: Iterable[str] = tuple(POINTS)) -> list[str]:
    """The names that a model has of some kinds, in the order in which it computes them.

    A layer whose attention and MLP read the same stream (parallel residual) has no `resid_mid`. An architecture
    without a row in the table has what can be found without one: embeddings, the stream before and after each layer,
    and mostly `z`, `result` and the final norm. A layer lacks what its own modules do not have.
    """
    wanted, seen = set(kinds), Anatomy.of(model)
    known = [point for point in POINTS.values() if point.kind in wanted]
    names: list[str] = []
    for each_layer, group in groupby(known, lambda point: point.each_layer):
        some, layers = [*group], range(len(seen.layers) if each_layer else 1)
        names += [point.name.format(layer) for layer in layers for point in some if point.at(seen, layer)]
    return names


def names_of(model: torch.nn.Module, kind: Stream) -> list[str]:
    """The names of one kind of the stream, one a layer.

    Raises SublimError, with the kinds that the model has, where it has no such one.
    """
    names = hook_names(model, (kind,) if kind in STREAM else ())
    if not names:
        known = dict.fromkeys(kind_of(name) for name in hook_names(model, STREAM))
        raise SublimError(f"{type(model).__name__} has no '{kind}'; valid: {', '.join(known)}")
    require_each_layer(model, kind, names)
    return names


def require_each_layer(model: torch.nn.Module, kind: str, names: Sequence[str]) -> None:
    """Raises SublimError where the names of a kind are not of all layers."""
    if len(names) < (depth := len(decoder_layers(model))):
        raise SublimError(f"{type(model).__name__} has '{kind}' in {len(names)} of its {depth} layers only")


def matching(model: torch.nn.Module, pattern: str, kinds: Iterable[str] = STREAM) -> list[str]:
    """The names of some kinds that match a glob, such as `blocks.*.hook_resid_post`; SublimError if none does."""
    names = hook_names(model, kinds)
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise SublimError(f"no hook matches '{pattern}'; {meant(pattern, names)}")
    return found


def expanded(model: torch.nn.Module, names: Iterable[str]) -> list[str]:
    """Names, and for each glob all that match it, none twice. Raises SublimError for what the model lacks."""
    return list(_places(model, names))


def _places(model: torch.nn.Module, names: Iterable[str]) -> dict[str, Place]:
    """`expanded`, and where each name is."""
    seen = _anatomy(model)
    found: dict[str, Place] = {}
    for name in names:
        if place := _place(seen, name):
            found[name] = place
            continue
        known = hook_names(model)
        matches = {n: place for n in known if fnmatchcase(n, name) and (place := _place(seen, n))}
        if not matches:
            raise _lacking(model, name, known)
        found.update(matches)
    return found


def _anatomy(model: object) -> Anatomy:
    """That of a model; SublimError for what is none that runs."""
    if not isinstance(model, torch.nn.Module):
        raise SublimError(
            f"hooks need the model that runs, not a {type(model).__name__}: take x.load() of a base, or x.model "
            "of a replicate, once, and use it inside the block"
        )
    return Anatomy.of(model)


def _lacking(model: torch.nn.Module, name: str, known: Sequence[str]) -> SublimError:
    """The error about a name that a model lacks, with those that it has."""
    first = ", ".join(n for n in known if not n.startswith("blocks.") or n.startswith("blocks.0."))
    near = meant(name, known)
    lacks = f"; of the architecture {text_config(model).model_type} only what lies around the layers is known"
    return SublimError(
        f"no hook '{name}' on {type(model).__name__} of {len(decoder_layers(model))} layers (from 0); "
        f"{f'{near} ' if near.startswith('did') else ''}each has: {first}{'' if architecture_of(model) else lacks}"
    )


@contextmanager
def attached(
    model: torch.nn.Module, visits: Mapping[str, Visitor], places: Mapping[str, Place] | None = None
) -> Iterator[None]:
    """Inside the block a visitor sees the tensor of its name in every forward: what `capture` and `edit` are made of.

    visits: by hook name, a function of the tensor; what it returns, if anything, takes the tensor's place
    places: where the names are, as `places_of` found them on this model; found now where None

    What lies within attention is computed step by step, which changes the last bits of everything, so it is refused
    while the model trains. Raises SublimError for a name that the model lacks, and where `require_stream` does.
    """
    places = places_of(model, visits) if places is None else places
    if visits:
        require_stream(model)
    with ExitStack() as held:
        if any(point_of(name).eager for name in visits):
            held.enter_context(eager(model))
        for name, visit in visits.items():
            point_of(name).way(places[name], _in_own_precision(visit), held)
        yield


def places_of(model: torch.nn.Module, names: Iterable[str]) -> dict[str, Place]:
    """Where each name is on a model. Raises SublimError for one that it lacks."""
    seen, found = _anatomy(model), {}
    for name in names:
        if not (place := _place(seen, name)):
            raise _lacking(model, name, hook_names(model))
        found[name] = place
    return found


def _place(seen: Anatomy, name: str) -> Place | None:
    """Where a name is on a model; None where it is not there, or is a glob."""
    point = _known(name)
    return point.at(seen, layer_of(name) if point.each_layer else 0) if point else None


def _in_own_precision(visitor: Visitor) -> Visitor:
    """A visitor that works outside autocast, which is the model's, not that of what is done with its tensors."""

    def visit(seen: Tensor) -> Tensor | None:
        if not torch.is_autocast_enabled(seen.device.type):
            return visitor(seen)
        with torch.autocast(seen.device.type, enabled=False):
            return visitor(seen)

    return visit


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
                held.callback(_noted(layer, side, keep).remove)
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
            held.callback(_noted(module, side, partial(seen.__setitem__, name)).remove)
        cast(Any, model)(input_ids=_tried_ids(model), use_cache=False)
    same = len(seen) == 4 and torch.equal(seen["left"], seen["read"]) and torch.equal(seen["normed"], seen["given"])
    if not same:
        raise SublimError(f"{kind}: its logits are not head(final norm(stream)) alone, which a logit lens needs")
    return norm, head


def _tried_ids(model: torch.nn.Module) -> Tensor:
    """Two short rows on which a type without a row is tried out."""
    return torch.tensor([[1, 2, 3], [3, 1, 2]], device=device_of(model)) % text_config(model).vocab_size


def _noted(module: torch.nn.Module, side: str, keep: Callable[[Tensor], None]) -> RemovableHandle:
    """Notes the input or output of a module in each forward; the first of several."""

    def pre(_module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        keep(args[0] if args else kwargs["hidden_states"])

    def post(_module: torch.nn.Module, _args: tuple, output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    if side == "input":
        return module.register_forward_pre_hook(pre, with_kwargs=True)
    return module.register_forward_hook(post)


class Captured(Mapping[str, Tensor]):
    """What was seen in the latest forward, by name, and after a backward its gradients.

    Tensors are detached, and on the model's device, with the axes of their kind (points.py): [batch, position, d_model]
    for the stream.
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

    def _see(self, name: str, value: Tensor, *, gradients: bool) -> Tensor | None:
        # An edit of the middle of a layer writes into the tensor that was seen there.
        self._seen[name] = value.detach().clone() if kind_of(name) == "resid_mid" else value.detach()
        if not gradients:
            return None
        if not torch.is_grad_enabled():
            raise SublimError(f"gradients of '{name}' are asked for, but the model ran under torch.no_grad()")
        if not value.requires_grad:  # behind frozen weights
            value.requires_grad_()
        self.gradients.pop(name, None)

        def add(gradient: Tensor) -> None:
            before = self.gradients.get(name)
            self.gradients[name] = gradient.detach() if before is None else before + gradient.detach()

        value.register_hook(add)
        return value  # what is a view of the model's tensor takes its part in the graph


@contextmanager
def capture(model: torch.nn.Module, names: str | Iterable[str], *, gradients: bool = False) -> Iterator[Captured]:
    """Inside the block every forward of `model` leaves the tensors of these names in the block's value.

    names: hook names or globs, such as `blocks.*.attn.hook_z`, or one
    gradients: whether a backward inside the block leaves the tensors' gradients in `.gradients`

    Scores and patterns need eager attention. It is switched on for the block and changes the last bits of everything,
    so it is refused while the model trains. The hooks go with the block, also after an exception.

    Raises SublimError on entry for a name that the model lacks, and on leaving for one that never fired.
    """
    places = _places(model, [names] if isinstance(names, str) else names)
    caught = Captured(places)
    with attached(model, {name: partial(caught._see, name, gradients=gradients) for name in places}, places):
        yield caught
    require_fired(model, set(caught.names), set(caught))


def require_fired(model: torch.nn.Module, wanted: set[str], fired: set[str]) -> None:
    """Raises SublimError where a hook was not reached by any forward."""
    if lacking := sorted(wanted - fired):
        raise SublimError(
            f"hook '{lacking[0]}' never fired: no forward of this model reached it inside the block; "
            f"fired: {', '.join(sorted(fired)) or 'none'}; the model has: {', '.join(hook_names(model))}"
        )


@contextmanager
def edit(model: torch.nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Inside the block tensors are replaced, in every forward of `model`, by what functions make of them.

    edits: by hook name or glob, a function of the tensor that gives one of the same shape

    Blocks nest: the outer edit acts first. The hooks go with the block, also after an exception. Scores and patterns
    need eager attention, as in `capture`.

    Raises SublimError for a name that the model lacks, and for an edit that never fired.
    """
    wanted = {name: change for asked, change in edits.items() for name in expanded(model, [asked])}
    fired: set[str] = set()

    def visit(name: str, value: Tensor) -> Tensor:
        fired.add(name)
        # The new middle of a layer is written over the old, of which autograd may keep a copy only.
        new = wanted[name](value.clone() if kind_of(name) == "resid_mid" else value)
        if new.shape != value.shape:
            raise SublimError(f"edit of '{name}': returned shape {list(new.shape)}, not {list(value.shape)}")
        return new

    with attached(model, {name: partial(visit, name) for name in wanted}):
        yield
    require_fired(model, set(wanted), fired)


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
