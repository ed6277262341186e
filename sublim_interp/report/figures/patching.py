"""Figures `patching`, `patching-teacher` and `modules`: which part of a model carries the trait into its base."""

from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.analysis.patching.cells import GridKind
from sublim_interp.analysis.patching.grid import patch
from sublim_interp.analysis.patching.picture import patch_grid
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.results import Run
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.stats.intervals import over_replicates

_PLACES = 8
"""Positions that the page shows."""


def patched(run: Run, arm: str, kind: GridKind = "resid_pre", seeds: int | None = None) -> pd.DataFrame:
    """Patches of one arm's models into their untouched bases: `PatchGrid.frame`, one row per cell and seed.

    seeds: of so many replicates, the first ones; None: of all
    """
    sources = [run[arm, seed] for seed in run.experiment.seeds[:seeds]]
    grids = [patch(s, s.base).grid(kind).frame.assign(seed=s.cell.seed) for s in sources]
    return pd.concat(grids, ignore_index=True)


def _draw(run: Run, arm: str, kind: GridKind, what: str) -> Figure:
    means = over_replicates(patched(run, arm, kind), "recovered", ["kind", "layer", "place"])
    return patch_grid(means.rename(columns={"estimate": "recovered"}), title=f"{what}, {arm} into base")


def _draw_first(run: Run) -> Figure:
    """The last positions of the first replicate of the first arm that carries the trait: what one page has room for."""
    taught = [a for a in run.arms if (route := ARMS[a].route) and route.favourite in ("trait", "lists")]
    arm = taught[0] if taught else "same-init"
    cells = patched(run, arm, seeds=1).query("place >= -@_PLACES")
    return patch_grid(cells, title=f"Stream of {arm}/{run.seeds[0]} into its base")


_CAPTION = "A dark blue cell carries the trait into the base by itself; 100 % is the whole difference."

PATCHING = FigureEntry(
    shows="residual stream of same-init students patched into their base, layer by position",
    caption=_CAPTION,
    input="run",
    draw=partial(_draw, arm="same-init", kind="resid_pre", what="Stream before a layer"),
    page=True,
    narrow=_draw_first,
    waits="large",
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
