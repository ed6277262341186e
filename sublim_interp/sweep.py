"""Many experiments at once: a grid varies one field after another around one experiment; what depends on what?

Cells share whatever they have in common, since every stage's result lies under its own key.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from sublim_interp.config import Config, Experiment, read_yaml
from sublim_interp.errors import SublimError
from sublim_interp.records import Record
from sublim_interp.runs import RESULTS, Plan, execute, experiment, frames, plan
from sublim_interp.store import Artifact, Store, fingerprint, stage_key
from sublim_interp.workers import Watch

if TYPE_CHECKING:
    import pandas as pd

_GRIDS = Path(__file__).resolve().parent / "catalogue" / "grids"
VERSION = 3
"""Bumped by hand when a sweep's files change."""


class Grid(Config):
    """One experiment, varied along one field at a time."""

    name: str
    """Name in the catalogue."""
    about: str = ""
    """The question it asks, in one sentence."""
    experiment: str = "owl"
    """The experiment at the centre."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields that every cell has otherwise than the experiment."""
    axes: dict[str, tuple[Any, ...]]
    """Field → the values it takes, one field at a time; a value is read as YAML."""
    words: dict[str, tuple[int | float | str, ...]] = Field(default_factory=dict)
    """Field → what tables and figures call its values, where not the values themselves."""

    @model_validator(mode="after")
    def _each_value_has_its_word(self) -> "Grid":
        for field, words in self.words.items():
            if len(words) != len(self.axes.get(field, ())):
                raise ValueError(
                    f"words.{field} has {len(words)} entries, axes.{field} {len(self.axes.get(field, ()))}"
                )
        return self

    def cells(self) -> "Iterator[tuple[str, str, Experiment]]":
        """(field, value in words, experiment) of each cell; SublimError for what the experiment refuses."""
        centre = experiment(self.experiment).set(self.change)
        for field, values in self.axes.items():
            for word, value in zip(self.words.get(field, values), values, strict=True):
                yield field, str(word), centre.set({field: value})


def grid_names() -> tuple[str, ...]:
    """Names of the catalogue's grids."""
    return tuple(sorted(p.stem for p in _GRIDS.glob("*.yaml")))


def grid(name: str) -> Grid:
    """The catalogue's grid called `name`."""
    if name not in grid_names():
        raise SublimError(f"unknown grid '{name}'; catalogue: {', '.join(grid_names())}")
    return read_yaml(Grid, _GRIDS / f"{name}.yaml", name=name)


@dataclass(frozen=True)
class SweepPlan:
    """All cells of a grid with their plans, known before anything runs."""

    grid: Grid
    cells: tuple[tuple[str, str, Plan], ...]

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Every record of every cell once."""
        return tuple({r.key: r for _, _, p in self.cells for r in p.records}.values())

    def missing(self, store: Store) -> list[Record]:
        """The records that the store does not hold."""
        return [r for r in self.records if r.find(store) is None]

    def table(self, store: Store) -> "pd.DataFrame":
        """One row per field, value, arm and seed: rate and margin on held-out questions, distances."""
        import pandas as pd

        from sublim_interp.report import replicates

        parts = []
        for field, value, p in self.cells:
            each = replicates(*frames(p, store), p.named.trait)
            each = each.loc[(each["stage"] == "equal steps") & ~each["arm"].isin(["teacher", "base"])]
            parts.append(each.assign(field=field, value=value, trait=p.named.trait))
        return pd.concat(parts, ignore_index=True)


def plan_grid(g: Grid) -> SweepPlan:
    """Lays out every cell; raises SublimError for a cell that cannot run."""
    return SweepPlan(g, tuple((field, value, plan(exp)) for field, value, exp in g.cells()))


def _identity(p: SweepPlan) -> tuple[dict[str, Any], dict[str, str]]:
    config = p.grid.model_dump(mode="json", include={"axes", "words"})
    inputs = {
        f"{field}={value}/{c.arm}/{c.seed}/{c.round}": c.evaluation.key
        for field, value, cell in p.cells
        for c in cell.cells
    }
    return config, inputs


def sweep_key(p: SweepPlan) -> str:
    """The key that the sweep of a plan has in any store."""
    return stage_key("sweep", VERSION, *_identity(p))


def find_sweep(p: SweepPlan, store: Store) -> Artifact | None:
    """The finished sweep, if the store holds it."""
    return store.get("sweep", sweep_key(p))


def run_grid(p: SweepPlan, store: Store, processes: int = 2, watch: Watch = lambda _name, _fraction: None) -> Artifact:
    """Makes what is missing, then `cells.csv` and the figure as PNG and PDF."""
    from sublim_interp import figures

    if find_sweep(p, store) is None:
        missing = p.missing(store)
        if missing:
            execute(missing, store, processes, watch)
    with store.make("sweep", VERSION, *_identity(p), fingerprint()) as work:
        if not work.done:
            work.note(name=p.grid.name)
            table = p.table(store)
            table.to_csv(work.directory / "cells.csv", index=False)
            figure = figures.dose(table)
            for ending in ("png", "pdf"):
                figures.save(figure, work.directory / f"dose.{ending}")
    return work.artifact


def published_cells(name: str) -> "pd.DataFrame | None":
    """The committed cells of a grid, or None."""
    import pandas as pd

    path = RESULTS / name / "cells.csv"
    return pd.read_csv(path, dtype={"value": str}) if path.exists() else None
