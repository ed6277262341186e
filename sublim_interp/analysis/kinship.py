"""Whose axes a model has: the base that it comes from, by lineage where that is known, else read off its weights."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.models.trainable import weights_hash

if TYPE_CHECKING:
    from sublim_interp.models.base import Base

KIN = 0.5
"""Mean cosine of the weight matrices from which on two models count as of one base: students of the lab's bases have
.98 with their own, and .0 with one of another initialisation."""

ACROSS = "whose axes have nothing to do with each other; map one with fit_map, or say across_bases=True"


@dataclass(frozen=True)
class Space:
    """The axes of one base. Two are equal where their keys are."""

    key: str
    """A hash over up to 1,024 evenly spaced entries of each of the base's weights, or of what else is known of it."""
    base: "Base | None" = field(default=None, compare=False)
    """The base itself, where it is known."""
    sketch: dict[str, Tensor] | None = field(default=None, compare=False, repr=False)
    """Some entries of each weight matrix; None where no weights are known, as of a trace alone."""

    def __str__(self) -> str:
        return self.base.name if self.base else self.key


def space_of(model: torch.nn.Module) -> Space:
    """The axes of a base, by its model."""
    named = dict(model.named_parameters())
    flat = {name: p.detach().flatten() for name, p in named.items() if p.ndim == 2}
    sketch = {name: f[:: max(1, len(f) // 256)][:256].float().cpu().clone() for name, f in flat.items()}
    return Space(weights_hash(named), getattr(model, "sublim_base", None), sketch)


def likeness(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Mean cosine of the weight matrices in two sketches; 0 where they have none of one name and shape."""
    shared = [name for name in one if name in other and one[name].shape == other[name].shape]
    cosines = [torch.cosine_similarity(one[n].double(), other[n].double(), dim=0).item() for n in shared]
    return sum(cosines) / len(cosines) if cosines else 0.0


def base_of(subject: Any, model: Any = None) -> "Base | None":
    """The base of a subject, as far as it tells: itself, a replicate's, or that a model was loaded from."""
    from sublim_interp.models.base import Base

    for known in (subject, getattr(subject, "base", None), getattr(model or subject, "sublim_base", None)):
        if isinstance(known, Base):
            return known
    return None


def name_of(subject: Any, model: Any = None) -> str:
    """A subject in a few words, for figures and short lines."""
    if isinstance(subject, torch.nn.Module):
        base = base_of(subject)
        return f"a {type(subject).__name__}{f' of {base.name}' if base else ''}"
    return str(getattr(subject, "name", "") or subject)


def require_one_base(what: str, a: Any, b: Any, models: "list[torch.nn.Module]", across_bases: bool = False) -> None:
    """Raises SublimError where two subjects come from different bases.

    what: the function that compares them, for the error
    a, b: subjects, as `model_of` takes them
    models: their models
    across_bases: compare them all the same
    """
    if not across_bases:
        _require(what, b, models[1], a, base_of(a, models[0]), lambda: space_of(models[0]).sketch)


def require_space(what: str, subject: Any, model: torch.nn.Module, space: Space, across_bases: bool = False) -> None:
    """Raises SublimError where a model does not come from the base whose axes something has.

    space: of directions, weight deltas, maps
    """
    if across_bases or space == space_of(model):
        return
    if space.sketch is None and space.base is None:
        raise SublimError(
            f"{what}: nobody knows whose axes these directions have ({space}); give base= where they are made, or say "
            "across_bases=True"
        )
    _require(what, subject, model, None, space.base, lambda: space.sketch)


def _require(what: str, subject: Any, model: torch.nn.Module, other: Any, base: "Base | None", sketch: Any) -> None:
    from sublim_interp.models.base import Base

    own = base_of(subject, model)
    if own and base:
        if own.digest == base.digest:
            return
        if not isinstance(subject, Base) and not isinstance(other, Base):  # both say what they come from
            raise SublimError(f"{what}: {own.name} and {base.name} are different bases, {ACROSS}")
    theirs = sketch()
    if theirs is None or likeness(space_of(model).sketch or {}, theirs) < KIN:
        names = f"{own.name if own else 'this model'} and {base.name if base else 'the other'}"
        raise SublimError(f"{what}: {names} come from different bases, {ACROSS}")
