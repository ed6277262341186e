"""Changes to every update of a student: what each does, what it needs, and how it is checked."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.models.hooks import attached, edit, unit_vector
from sublim_interp.training.settings import Selection


class Intervention(Config):
    """A change to every update of a student, to ask what carries the trait."""

    LATER = frozenset({"selection"})

    kind: Literal["ablate", "project-gradient", "project-update", "mask-tokens", "freeze"]
    """ablate: take a direction out of activations; project-gradient: out of their gradients; project-update: out of the
    change of the weights; mask-tokens: learn from fewer tokens; freeze: leave some parameters as they are."""
    direction: str = ""
    """A trait's name (the own base's direction of it, in activations), teacher-shift (teacher minus its base, in
    activations or weights), or random (the control)."""
    at: str = "blocks.*.hook_resid_post"
    """Names of hooks, as a glob, where activations or their gradients are changed."""
    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tokens to learn that are masked, drawn anew for each update."""
    selection: Selection | None = None
    """Which tokens are learnt, in place of share: {by: divergence, share: .1} learns the tenth of all tokens whose
    scores are the furthest from 0, with keep: rest all others; by: random is the control, as many tokens. They are the
    same in every update, and what decides is the teacher, whatever base the student starts from."""
    parameters: str = ""
    """Names of parameters, as a glob, that are frozen."""

    @property
    def traits(self) -> list[str]:
        """Names of the traits that it goes by."""
        named = (self.selection.trait if self.selection else "", self.direction)
        return [name for name in named if name not in ("", "teacher-shift", "random")]

    @model_validator(mode="after")
    def _says_all_that_its_kind_needs_and_no_more(self) -> "Intervention":
        uses = {
            "ablate": {"direction", "at"}, "project-gradient": {"direction", "at"}, "project-update": {"direction"},
            "mask-tokens": {"selection"} if self.selection else {"share"}, "freeze": {"parameters"},
        }[self.kind]  # fmt: skip
        for name in ("direction", "at", "share", "selection", "parameters"):
            default = type(self).model_fields[name].default
            if name not in uses and getattr(self, name) != default:
                beside = " and a selection" if name == "share" and self.selection else ""
                raise ValueError(f"{name} has no effect with kind={self.kind}{beside}")
            if name in uses and not getattr(self, name):
                raise ValueError(f"kind={self.kind} needs {name}{' or selection' * (name == 'share')}")
        if self.kind == "project-update" and self.direction not in ("teacher-shift", "random"):
            raise ValueError(f"kind=project-update needs direction=teacher-shift or random, not {self.direction!r}")
        return self


class Effect:
    """How much an intervention took away in its latest use: norm of what was removed over norm of what there was."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shares: dict[str, Tensor] = {}

    def _take(self, place: str, value: Tensor, direction: Tensor) -> Tensor:
        """`value` without its part along `direction`, a unit vector of its last axis."""
        part = (value @ direction)[..., None] * direction
        self._shares[place] = part.detach().norm() / value.detach().norm().clamp_min(1e-30)
        return value - part

    @property
    def removed(self) -> dict[str, float]:
        """Share by place, 0 to 1."""
        return {place: float(share) for place, share in self._shares.items()}

    def _require(self, places: Iterable[str]) -> None:
        removed = self.removed
        if idle := [place for place in places if not removed.get(place)]:
            raise SublimError(f"the intervention {self._what} does nothing at {idle[0]}: nothing was removed there")


@contextmanager
def ablate(model: torch.nn.Module, directions: Mapping[str, Float[Tensor, " d_model"]]) -> Iterator[Effect]:
    """Inside the block the part along a direction is taken out of the activations at each hook name.

    Raises SublimError for a direction without length, and on leaving where nothing was removed.
    """
    effect = Effect("ablate")
    units = {name: unit_vector(d, name) for name, d in directions.items()}
    with edit(model, {name: partial(_ablated, effect, name, unit) for name, unit in units.items()}):
        yield effect
    effect._require(units)


def _ablated(effect: Effect, name: str, unit: Tensor, value: Tensor) -> Tensor:
    return effect._take(name, value, unit)


@contextmanager
def project_gradients(model: torch.nn.Module, directions: Mapping[str, Float[Tensor, " d_model"]]) -> Iterator[Effect]:
    """Inside the block the part along a direction is taken out of the gradients that pass each hook name backwards.

    Raises SublimError as `ablate` does; behind frozen weights no gradient passes.
    """
    effect = Effect("project-gradient")
    units = {name: unit_vector(d, name) for name, d in directions.items()}

    def visit(name: str, value: Tensor) -> None:
        if value.requires_grad:
            value.register_hook(partial(effect._take, name, direction=units[name]))

    with attached(model, {name: partial(visit, name) for name in units}):
        yield effect
    effect._require(units)


@contextmanager
def project_updates(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, directions: Mapping[str, Tensor]
) -> Iterator[Effect]:
    """Inside the block the part along a direction is taken out of each update of the weights, tensor by tensor.

    The optimiser's moments are left as they are. Parameters whose direction is zero are left alone; SublimError where
    that holds for all, where a name is no trained parameter of that shape, and on leaving where nothing was removed.
    """
    effect = Effect("project-update")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
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
            p.copy_(before[name] + effect._take(name, (p - before[name]).flatten(), unit).view_as(p))

    handles = [optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(project)]
    try:
        yield effect
    finally:
        for handle in handles:
            handle.remove()
    effect._require(units)
