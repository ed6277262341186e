"""Figures `patching`, `patching-teacher` and `modules`: which part of a model carries the trait into its base."""

from typing import TYPE_CHECKING

import pandas as pd

from sublim_interp.analysis.patching.cells import GridKind
from sublim_interp.analysis.patching.grid import patch
from sublim_interp.analysis.patching.picture import patch_grid
from sublim_interp.experiments.results import Run
from sublim_interp.stats.intervals import over_replicates

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def patched(run: Run, arm: str, kind: GridKind = "resid_pre") -> pd.DataFrame:
    """The frame of `PatchGrid` for patches of one arm's model into its untouched base, a row a cell and seed."""
    sources = [run[arm, seed] for seed in run.experiment.seeds]
    grids = [patch(s, s.base).grid(kind).frame.assign(seed=s.cell.seed) for s in sources]
    return pd.concat(grids, ignore_index=True)


def draw_patching(run: Run, arm: str, kind: GridKind, what: str) -> "Figure":
    means = over_replicates(patched(run, arm, kind), "recovered", ["kind", "layer", "place"])
    return patch_grid(means.rename(columns={"estimate": "recovered"}), title=f"{what}, {arm} into base")
