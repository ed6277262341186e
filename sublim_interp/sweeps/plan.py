"""All cells of a grid with their plans, and the key of its sweep."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sublim_interp.core.keys import stage_key
from sublim_interp.core.store import Artifact, Store
from sublim_interp.experiments.plan import plan
from sublim_interp.pipeline.records import Record
from sublim_interp.sweeps.cells import GridCell
from sublim_interp.sweeps.grid import Grid
from sublim_interp.training.recording.settings import Recording

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SweepPlan:
    """All cells of a grid with their plans, known before anything runs."""

    grid: Grid
    cells: tuple[GridCell, ...]

    @property
    def recording(self) -> Recording:
        """What is recorded of the trainings: as the experiment at the centre says."""
        return self.cells[0][2].recording

    @property
    def dtype(self) -> str:
        """The precision of its cells, or where they differ each of them once."""
        return ", ".join(sorted({cell.plan.experiment.dtype for cell in self.cells}))

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Every record of every cell once."""
        return tuple({r.key: r for _, _, p in self.cells for r in p.records}.values())

    def missing(self, store: Store) -> list[Record]:
        """The records that the store does not hold."""
        return [r for r in self.records if r.find(store) is None]

    def without(self, lost: Mapping[str, Exception]) -> "SweepPlan":
        """What is left of it where these evaluations, by key, cannot be had; raises the first error if nothing is."""
        kept = [
            GridCell(field, value, replace(p, cells=tuple(c for c in p.cells if c.evaluation.key not in lost)))
            for field, value, p in self.cells
        ]
        cells = tuple(cell for cell in kept if any(c.arm in cell.plan.experiment.arms for c in cell.plan.cells))
        if not cells:
            raise next(iter(lost.values()))
        return replace(self, cells=cells)

    def dead_ends(self, lost: Mapping[str, Exception]) -> "pd.DataFrame":
        """One row per field, value, seed and arm whose evaluation is among those that cannot be had, and why."""
        import pandas as pd

        columns = ["field", "value", "seed", "arm", "why"]
        rows = [
            (field, value, c.seed, c.arm, str(lost[c.evaluation.key]))
            for field, value, p in self.cells
            for c in p.cells
            if c.evaluation.key in lost and c.round == 0
        ]
        return pd.DataFrame(rows, columns=columns)


def plan_grid(g: Grid, store: Store | None = None) -> SweepPlan:
    """Lays out every cell; raises SublimError for a cell that cannot run, or cells that the mode cannot take.

    store: as of `experiments.plan.plan`
    """
    cells = tuple(GridCell(field, value, plan(exp, store)) for field, value, exp in g.cells())
    g.mode.check_cells(cells)
    return SweepPlan(g, cells)


def identity(p: SweepPlan) -> tuple[dict[str, Any], dict[str, str]]:
    """What decides a sweep: of its grid axes, words and mode; the keys of all evaluations."""
    grid = p.grid if p.grid.mode.keyed_as is None else p.grid.model_copy(update={"matrix": p.grid.mode.keyed_as})
    config = grid.model_dump(mode="json", include={"axes", "words", "matrix"})
    inputs = {
        f"{field}={value}/{c.arm}/{c.seed}/{c.round}": c.evaluation.key
        for field, value, cell in p.cells
        for c in cell.cells
    }
    return config, inputs


def sweep_key(p: SweepPlan) -> str:
    """The key that the sweep of a plan has in any store."""
    return stage_key("sweep", p.grid.mode.version, *identity(p))


def find_sweep(p: SweepPlan, store: Store) -> Artifact | None:
    """The finished sweep, if the store holds it."""
    return store.get("sweep", sweep_key(p))
