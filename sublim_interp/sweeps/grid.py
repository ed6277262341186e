"""A grid: one experiment, varied along one field after another or along several together."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config, read_mapping
from sublim_interp.core.shelf import Shelf, is_path
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.schema import Experiment

_AXIS = {"bases": "bases", "traits": "trait"}


class Grid(Config):
    """One experiment, varied along one field after another, or along several together."""

    LATER = frozenset({"matrix"})

    name: str
    """Name in the catalogue."""
    about: str = ""
    """The question it asks, in one sentence."""
    experiment: str = "owl"
    """The experiment at the centre."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields that every cell has otherwise than the experiment."""
    axes: dict[str, tuple[Any, ...]]
    """Field → the values it takes; a value is read as YAML."""
    words: dict[str, tuple[int | float | str, ...]] = Field(default_factory=dict)
    """Field → what tables and figures call its values, where not the values themselves."""
    matrix: Literal["", "bases", "traits", "law"] = ""
    """bases: a student of every base named in axes.bases learns from a teacher of every one; traits: each student of a
    teacher with a trait of axes.trait is asked about all traits of the kind; law: a cell for every combination of the
    axes' values, and a law of the dose that is fitted to all of them."""

    @model_validator(mode="after")
    def _each_value_has_its_word(self) -> "Grid":
        for field, words in self.words.items():
            if len(words) != len(self.axes.get(field, ())):
                raise ValueError(
                    f"words.{field} has {len(words)} entries, axes.{field} {len(self.axes.get(field, ()))}"
                )
        if self.matrix in _AXIS and tuple(self.axes) != (_AXIS[self.matrix],):
            raise ValueError(f"matrix={self.matrix} needs axes.{_AXIS[self.matrix]} and no other axis")
        for field, axis in product(self.change, self.axes):
            values = self.axes[axis]
            part = field.removeprefix(f"{axis}.").partition(".")[0]
            if field.startswith(f"{axis}.") and any(not isinstance(v, dict) or part in v for v in values):
                raise ValueError(f"change.{field} would be lost: axes.{axis} sets it; put it into its values")
        return self

    @property
    def figure(self) -> str:
        """Name of the picture that its sweep ends with, without ending."""
        return {"": "dose", "law": "law"}.get(self.matrix, "matrix")

    def cells(self) -> "Iterator[tuple[str, str, Experiment]]":
        """(field, value in words, experiment) of each cell; SublimError for what the experiment refuses."""
        centre = experiment(self.experiment).set(self.change)
        if self.matrix == "bases":
            yield from _every_pair(centre, self.axes["bases"])
            return
        if self.matrix == "traits" and not {"same-init", "base"} <= set(centre.arms):
            raise SublimError("matrix=traits needs the arms same-init and base: lifts are counted from the base")
        worded = {
            field: list(zip(map(str, self.words.get(field, values)), values, strict=True))
            for field, values in self.axes.items()
        }
        if self.matrix == "law":
            if set(centre.arms) != {"same-init", "base"}:
                raise SublimError("matrix=law needs the arms same-init and base, and no other")
            for cell in product(*worded.values()):
                words, values = zip(*cell, strict=True)
                yield " × ".join(worded), " × ".join(words), centre.set(dict(zip(worded, values, strict=True)))
            return
        for field, values in worded.items():
            for word, value in values:
                yield field, word, centre.set({field: value})


def _every_pair(centre: Experiment, bases: tuple[str, ...]) -> Iterator[tuple[str, str, Experiment]]:
    """A cell for each teacher's and student's base; with more seeds than one a pair would be turned round."""
    if len(centre.seeds) != 1:
        raise SublimError(f"matrix=bases needs one seed, not {len(centre.seeds)}")
    for teacher, student in product(bases, repeat=2):
        own = {"bases": [teacher], "arms": ["same-init", "base"]}
        other = {"bases": [teacher, student], "arms": ["cross-init"]}
        yield "bases", f"{teacher} → {student}", centre.set(own if teacher == student else other)


GRIDS = Shelf("grid", "grids", Grid)
"""Every grid by name."""


def grid_names() -> tuple[str, ...]:
    """Names of all grids at hand."""
    return GRIDS.names()


def is_grid(name: str) -> bool:
    """Whether `name` is that of a grid, or of a YAML file that holds one: that has `axes`."""
    return "axes" in read_mapping(Path(name)) if is_path(name) else name in GRIDS.paths


def grid(name: str) -> Grid:
    """The grid called `name`, or the one in a YAML file of one's own."""
    return GRIDS.load(name)
