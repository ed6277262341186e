"""Takes a direction out of what a training computes, as `with` blocks: out of activations, gradients, or updates."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import attached, edit, part_along, unit_vector
from sublim_interp.models.trainable import trained_parameters


class Effect:
    """How much a block took away in its latest use: norm of what was removed over norm of what there was.

    what: the block in words, for errors: "ablate"

    Once an `update` has been opened, only what is taken inside one counts, and the share is over the whole of the last.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._norms: dict[str, tuple[Tensor, Tensor]] = {}
        self._by_update = self._inside = False

    @contextmanager
    def update(self) -> Iterator[None]:
        """A block around forward and backward of one update: all that is taken in it counts, and nothing from before.

        What runs between two updates, as a recorder's look at the model, is changed alike and does not count.
        """
        self._norms.clear()
        self._by_update = self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def take(self, place: str, value: Float[Tensor, "*axes d"], direction: Float[Tensor, " d"]) -> Tensor:
        """`value` without its part along `direction`, a unit vector; notes for `place` how much this removes."""
        part = part_along(value, direction)
        if self._inside or not self._by_update:
            removed, whole = part.detach().norm(), value.detach().norm()
            if self._inside and place in self._norms:  # another micro-batch of the same update
                before = self._norms[place]
                removed, whole = torch.hypot(before[0], removed), torch.hypot(before[1], whole)
            self._norms[place] = removed, whole
        return value - part

    @property
    def removed(self) -> dict[str, float]:
        """Share by place, 0 to 1."""
        return {place: float(part / whole.clamp_min(1e-30)) for place, (part, whole) in self._norms.items()}

    def require_passed(self, places: Iterable[str]) -> None:
        """Raises SublimError, which names the first of them, where nothing has been taken from some of these places."""
        if missed := [place for place in places if place not in self._norms]:
            raise SublimError(f"the intervention {self._what} does nothing at {missed[0]}: no weight before it trains")

    def require(self, places: Iterable[str]) -> None:
        """Raises SublimError, which names the first of them, where nothing was removed at some of these places."""
        removed = self.removed
        if idle := [place for place in places if not removed.get(place)]:
            raise SublimError(f"the intervention {self._what} does nothing at {idle[0]}: nothing was removed there")


@contextmanager
def project_activations(
    model: torch.nn.Module, directions: Mapping[str, Float[Tensor, " d_model"]]
) -> Iterator[Effect]:
    """Inside the block the part along a direction is taken out of the activations at each hook name.

    directions: by hook name; their lengths do not matter

    Gives what was removed. Raises SublimError for a direction without length, and on leaving where nothing was removed.
    """
    effect = Effect("ablate")
    units = {name: unit_vector(d, name) for name, d in directions.items()}
    with edit(model, {name: partial(_without, effect, name, unit) for name, unit in units.items()}):
        yield effect
    effect.require(units)


def _without(effect: Effect, name: str, unit: Tensor, value: Tensor) -> Tensor:
    return effect.take(name, value, unit)


@contextmanager
def project_gradients(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, directions: Mapping[str, Float[Tensor, " d_model"]]
) -> Iterator[Effect]:
    """Inside the block the part along a direction is taken out of the gradients that pass each hook name backwards.

    directions: by hook name; their lengths do not matter

    Gives what was removed. Raises SublimError as `project_activations` does, and at an update where no gradient has
    passed: behind frozen weights none does.
    """
    effect = Effect("project-gradient")
    units = {name: unit_vector(d, name) for name, d in directions.items()}

    def visit(name: str, value: Tensor) -> None:
        if value.requires_grad:
            value.register_hook(partial(effect.take, name, direction=units[name]))

    handle = optimizer.register_step_pre_hook(lambda *_: effect.require_passed(units))
    try:
        with attached(model, {name: partial(visit, name) for name in units}):
            yield effect
    finally:
        handle.remove()
    effect.require(units)


@contextmanager
def project_updates(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, directions: Mapping[str, Tensor]
) -> Iterator[Effect]:
    """Inside the block the part along a direction is taken out of each update of the weights, tensor by tensor.

    directions: by parameter, of the parameter's shape; a parameter whose direction is zero is left alone

    The optimizer's moments are left as they are. Gives what was removed. Raises SublimError where all directions are
    zero, where a name is no trained parameter of that shape, and on leaving where nothing was removed.
    """
    effect = Effect("project-update")
    named = trained_parameters(model)
    for name, d in directions.items():
        if name not in named or named[name].shape != d.shape:
            raise SublimError(f"project-update: the model trains no parameter {name} of the shape {list(d.shape)}")
    units = {name: unit_vector(d.flatten(), name) for name, d in directions.items() if d.any()}
    if not units:
        raise SublimError("project-update: the direction is zero in every parameter that trains")
    before: dict[str, Tensor] = {}

    def remember(*_: object) -> None:
        before.update({name: named[name].detach().clone() for name in units})

    @torch.no_grad()
    def project(*_: object) -> None:
        for name, unit in units.items():
            p = named[name]
            p.copy_(before[name] + effect.take(name, (p - before[name]).flatten(), unit).view_as(p))

    handles = [optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(project)]
    try:
        yield effect
    finally:
        for handle in handles:
            handle.remove()
    effect.require(units)
