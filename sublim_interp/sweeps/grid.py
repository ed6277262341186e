"""A grid: one experiment varied along one field after another, or along several together; and what its mode is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry
from sublim_interp.core.settings import Config, read_text, validate
from sublim_interp.core.shelf import Shelf, is_path, mapping_of
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.schema import Experiment
from sublim_interp.sweeps.cells import GridCell
from sublim_interp.sweeps.contrasts import Contrast
from sublim_interp.sweeps.wording import SweepTable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Grid(Config):
    """One experiment, varied along one field after another, or along several together."""

    LATER = frozenset({"matrix", "contrasts"})

    name: str
    """Name in the catalogue."""
    about: str = ""
    """The question it asks, in one sentence."""
    experiment: str = "owl"
    """The experiment at the centre."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields that every cell has otherwise than the experiment."""
    axes: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(min_length=1)
    """Field → the values it takes; a value is read as YAML."""
    words: dict[str, tuple[int | float | str, ...]] = Field(default_factory=dict)
    """Field → what tables and figures call its values, where not the values themselves."""
    contrasts: tuple[Contrast, ...] = ()
    """Differences that are told below the table, such as {name: A minus B, plus: [[a, same-init]], minus: [[b,
    same-init]]}."""
    matrix: str = ""
    """Its mode. Empty: one field after another is varied. bases: a student of every base in axes.bases learns from a
    teacher of every one. pairs: one base with each of several others, told by how far apart these lie. traits: each
    student of a teacher with a trait of axes.trait is asked about all traits of the kind. law: a cell for every
    combination of the axes' values, and a law of the dose that is fitted to all of them. defences: a defence
    for each value of one field after another, the first of all none: the trait that it leaves against the task.
    behaviours: each trait of axes.trait where it should show and where it should not, and how many of its bits pass."""

    @model_validator(mode="after")
    def _each_value_has_its_word(self) -> "Grid":
        for field, words in self.words.items():
            if len(words) != len(self.axes.get(field, ())):
                raise ValueError(
                    f"words.{field} has {len(words)} entries, axes.{field} {len(self.axes.get(field, ()))}"
                )
        for field, values in self.worded.items():
            said = [word for word, _ in values]
            if twice := sorted({word for word in said if said.count(word) > 1}):
                raise ValueError(f"axes.{field} has two values called '{twice[0]}'; give each a word of its own")
        for field, axis in product(self.change, self.axes):
            values = self.axes[axis]
            part = field.removeprefix(f"{axis}.").partition(".")[0]
            if field.startswith(f"{axis}.") and any(not isinstance(v, dict) or part in v for v in values):
                raise ValueError(f"change.{field} would be lost: axes.{axis} sets it; put it into its values")
        return self

    @model_validator(mode="after")
    def _has_what_its_mode_needs(self) -> "Grid":
        if self.matrix not in MODES:
            raise ValueError(f"unknown matrix '{self.matrix}'; valid: {', '.join(filter(None, MODES))}, or none")
        self.mode.check()
        return self

    @property
    def mode(self) -> "Mode":
        """Its mode, which knows its cells, its sweep's files, its table and its figure."""
        return MODES[self.matrix](self)

    @property
    def centre(self) -> Experiment:
        """The experiment at the centre, with what every cell has otherwise."""
        return experiment(self.experiment).set(self.change)

    @property
    def worded(self) -> dict[str, list[tuple[str, Any]]]:
        """Field → (its name, value) of each value."""
        return {
            field: list(zip(map(str, self.words.get(field, values)), values, strict=True))
            for field, values in self.axes.items()
        }

    def cells(self) -> Iterator[tuple[str, str, Experiment]]:
        """(field, value in words, experiment) of each cell; SublimError for what the experiment refuses."""
        return self.mode.cells()


class Mode(ABC):
    """One mode of grids, of one grid. A mode of your own derives from this; an entry point names its class."""

    version: ClassVar[int]
    """In the key of every sweep of this mode; raised by hand when the files of such sweeps change."""
    figure: ClassVar[str]
    """Name of the figure's files, without ending."""
    keyed_as: ClassVar[str | None] = None
    """The mode, and so the version too, that keys name where it is another whose sweeps hold the same files."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def check(self) -> None:
        """ValueError for axes that the mode cannot take."""
        return

    @abstractmethod
    def cells(self) -> Iterator[tuple[str, str, Experiment]]:
        """(field, value in words, experiment) of each cell. Raises SublimError for experiments it cannot take."""

    def check_cells(self, cells: Sequence[GridCell]) -> None:
        """SublimError for planned cells that could not be told together."""
        return

    @abstractmethod
    def frames(self, cells: Sequence[GridCell], store: Store) -> "dict[str, pd.DataFrame]":
        """What the sweep's CSV files hold, by name without ending.

        cells: planned cells, all of which the store holds

        `cells` is one of the names, with a row per field, value, arm and seed; `dead_ends` is none.
        """

    @abstractmethod
    def table(self, directory: Path) -> SweepTable:
        """The table of a sweep whose CSV files lie in `directory`, and its sentences."""

    @abstractmethod
    def draw(self, directory: Path) -> "Figure":
        """The figure of the same sweep."""


def _is_mode(name: str, thing: type[Mode]) -> None:
    if not (isinstance(thing, type) and issubclass(thing, Mode)):
        raise SublimError(f"grid mode '{name}' is no class that derives from sublim_interp.sweeps.grid.Mode")


_HERE = "sublim_interp.sweeps.modes"
MODES: Registry[type[Mode]] = Registry(
    "grid mode",
    "sublim_interp.grid_modes",
    {
        "": f"{_HERE}.fields:Fields",
        "bases": f"{_HERE}.bases:Bases",
        "pairs": f"{_HERE}.pairs:Pairs",
        "traits": f"{_HERE}.traits:Traits",
        "law": f"{_HERE}.law:LawOfTheDose",
        "defences": f"{_HERE}.defences:Defences",
        "behaviours": f"{_HERE}.behaviours:Behaviours",
    },
    _is_mode,
)
"""Every mode by what `Grid.matrix` says."""

GRIDS = Shelf("grid", "grids", Grid, marked_by="axes")
"""Every grid by name."""


def grid_names() -> tuple[str, ...]:
    """Names of all grids at hand."""
    return GRIDS.names()


def grid(name: str) -> Grid:
    """The grid called `name`, or the one in a YAML file of one's own.

    A file may say `extends: owl` and give fields of the experiment as they stand in one, in place of `experiment` and
    `change`. Names of YAML files in it are looked for beside it first.
    """
    path = GRIDS.find(name)
    if not is_path(name) and "extends" not in read_text(path):
        return GRIDS.load(name)
    data = mapping_of(path)
    if "extends" in data:
        if twice := [field for field in ("experiment", "change") if field in data]:
            raise SublimError(f"{path}: extends says what {twice[0]} says too; give one of them")
        own = {field: value for field, value in data.items() if field not in ("extends", *Grid.model_fields)}
        data = {field: value for field, value in data.items() if field not in own}
        data |= {"experiment": data.pop("extends"), "change": own}
    found = validate(Grid, {"name": path.stem, **data}, str(path))
    _check_contrasts(found, path)
    return found


def _check_contrasts(asked: Grid, path: Path) -> None:
    """Raises SublimError for a contrast of a value that no axis has, with the valid ones."""
    if asked.matrix not in ("", "pairs"):  # elsewhere a cell may be of several values
        return
    words = sorted({word for values in asked.worded.values() for word, _ in values})
    for value in (value for one in asked.contrasts for value, _ in (*one.plus, *one.minus)):
        if value not in words:
            raise SublimError(f"{path}: contrasts: '{value}' is no value of the axes; valid: {', '.join(words)}")
