"""Hooks: the names of what a model computes, and `with` blocks that capture or edit it. Plain Hugging Face models.

Names are TransformerLens's, such as `blocks.{layer}.hook_resid_post`; globs mean all that match. What each is on a
model is a row of points.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import architecture_of, decoder_layers, text_config
from sublim_interp.models.points import POINTS, STREAM, HookPoint, Stream, Visitor, eager

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
    block, _, rest = name.partition(".")
    layer, _, within = rest.partition(".")
    template = f"blocks.{{}}.{within}" if block == "blocks" and layer.isdigit() else name
    if template not in _BY_NAME:
        raise SublimError(f"no hook '{name}'; {meant(name, _BY_NAME)}")
    return _BY_NAME[template]


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
    and mostly `z`, `result` and the final norm.
    """
    wanted, depth = set(kinds), len(decoder_layers(model))
    known = [point for point in POINTS.values() if point.kind in wanted and point.at(model)]
    names: list[str] = []
    for each_layer, group in groupby(known, lambda point: point.each_layer):
        some = [*group]
        names += [point.name.format(layer) for layer in range(depth if each_layer else 1) for point in some]
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
    return names


def matching(model: torch.nn.Module, pattern: str, kinds: Iterable[str] = STREAM) -> list[str]:
    """The names of some kinds that match a glob, such as `blocks.*.hook_resid_post`; SublimError if none does."""
    names = hook_names(model, kinds)
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise SublimError(f"no hook matches '{pattern}'; {meant(pattern, names)}")
    return found


def expanded(model: torch.nn.Module, names: Iterable[str]) -> list[str]:
    """Names, and for each glob all that match it, none twice. Raises SublimError for what the model lacks."""
    known, found = _known(model), []
    for name in names:
        matches = [n for n in known if fnmatchcase(n, name)]
        if not matches:
            raise _lacking(model, name, known)
        found += matches
    return list(dict.fromkeys(found))


def _known(model: object) -> list[str]:
    """The names of a model; SublimError for what is none."""
    if not isinstance(model, torch.nn.Module):
        raise SublimError(
            f"hooks need the model that runs, not a {type(model).__name__}: take x.load() of a base, or x.model "
            "of a replicate, once, and use it inside the block"
        )
    return hook_names(model)


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
def attached(model: torch.nn.Module, visits: Mapping[str, Visitor]) -> Iterator[None]:
    """Inside the block a visitor sees the tensor of its name in every forward: what `capture` and `edit` are made of.

    visits: by hook name, a function of the tensor; what it returns, if anything, takes the tensor's place

    What lies within attention is computed step by step, which changes the last bits of everything, so it is refused
    while the model trains. Raises SublimError for a name that the model lacks.
    """
    known = _known(model)
    if lacking := [name for name in visits if name not in known]:
        raise _lacking(model, lacking[0], known)
    with ExitStack() as held:
        if any(point_of(name).eager for name in visits):
            held.enter_context(eager(model))
        for name, visit in visits.items():
            point = point_of(name)
            place = point.at(model, layer_of(name) if point.each_layer else 0)
            assert place, "its names are known"
            point.way(place, _in_own_precision(visit), held)
        yield


def _in_own_precision(visitor: Visitor) -> Visitor:
    """A visitor that works outside autocast, which is the model's, not that of what is done with its tensors."""

    def visit(seen: Tensor) -> Tensor | None:
        if not torch.is_autocast_enabled(seen.device.type):
            return visitor(seen)
        with torch.autocast(seen.device.type, enabled=False):
            return visitor(seen)

    return visit


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
    caught = Captured(expanded(model, [names] if isinstance(names, str) else names))
    with attached(model, {name: partial(caught._see, name, gradients=gradients) for name in caught.names}):
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
    _require_all(model, set(wanted), fired)


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
