"""Figures `patching`, `patching-teacher` and `modules`: which part of a model carries the trait into its base."""

from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.analysis.patching.cells import GridKind
from sublim_interp.analysis.patching.grid import patch
from sublim_interp.analysis.patching.picture import patch_grid
from sublim_interp.experiments.results import Run
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.stats.intervals import over_replicates


def patched(run: Run, arm: str, kind: GridKind = "resid_pre") -> pd.DataFrame:
    """Patches of one arm's models into their untouched bases: `PatchGrid.frame`, one row per cell and seed."""
    sources = [run[arm, seed] for seed in run.experiment.seeds]
    grids = [patch(s, s.base).grid(kind).frame.assign(seed=s.cell.seed) for s in sources]
    return pd.concat(grids, ignore_index=True)


def _draw(run: Run, arm: str, kind: GridKind, what: str) -> Figure:
    means = over_replicates(patched(run, arm, kind), "recovered", ["kind", "layer", "place"])
    return patch_grid(means.rename(columns={"estimate": "recovered"}), title=f"{what}, {arm} into base")


_CAPTION = "A dark blue cell carries the trait into the base by itself; 100 % is the whole difference."

PATCHING = FigureEntry(
    shows="residual stream of same-init students patched into their base, layer by position",
    caption=_CAPTION,
    input="run",
    draw=partial(_draw, arm="same-init", kind="resid_pre", what="Stream before a layer"),
)

PATCHING_TEACHER = FigureEntry(
    shows="residual stream of the teachers patched into their base, layer by position",
    caption=_CAPTION,
    input="run",
    draw=partial(_draw, arm="teacher", kind="resid_pre", what="Stream before a layer"),
)

MODULES = FigureEntry(
    shows="weights of same-init students patched into their base, layer by module",
    caption=_CAPTION,
    input="run",
    draw=partial(_draw, arm="same-init", kind="weights", what="Weights"),
)
