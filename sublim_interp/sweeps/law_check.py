"""The published law of the dose, held against the students of other published sweeps."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.models.base import resolve_base
from sublim_interp.models.open_bases import is_variant
from sublim_interp.sweeps import law
from sublim_interp.sweeps.cells import with_bases
from sublim_interp.sweeps.grid import grid, grid_names
from sublim_interp.sweeps.modes.behaviours import Behaviours
from sublim_interp.sweeps.modes.fields import Fields, read_cells
from sublim_interp.sweeps.modes.traits import Traits
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.published import published_sweep
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd


DOSES = ("bases", "trait", "corpus.prompts", "teacher.optimization.lr")
"""Fields whose values are doses to a law: of strength, of lists, of the base's training."""


def published_doses(results: Path = RESULTS) -> "dict[str, pd.DataFrame]":
    """The published cells of same-init students to which a law of the dose has something to say, by name of the grid.

    Each student counts once. Left out are fields that are no dose, behaviours, whose margins are of other answers,
    variants of bases, which no pre-training made, teachers of several traits, whose distance is that of all together,
    and bases that cut numbers into digits: their losses and distances are per digit.
    """
    import pandas as pd

    parts = []
    for name in grid_names():
        mode, directory = grid(name).mode, published_sweep(name, results)
        if directory is None or not isinstance(mode, Fields | Traits) or isinstance(mode, Behaviours):
            continue
        if isinstance(mode, Fields) and (mode.memorised or mode.grid.centre.teacher.traits):
            continue
        if any(is_variant(name) for pair in mode.grid.axes.get("bases", ()) for name in pair):
            continue
        cells = read_cells(directory)
        own = cells["field"].isin(DOSES) & (cells["arm"] == "same-init")
        if not bool(np.any(own)):
            continue
        cells = with_bases(cells.loc[own], plan_grid(mode.grid).cells)
        digits = {b for b in set(cells["base"]) if resolve_base(b).card["pretraining"]["tokens"] == "digits"}
        parts.append(cells.loc[~cells["base"].isin(list(digits))].assign(sweep=name))
    students = pd.concat(parts, ignore_index=True).drop_duplicates(["seed", "kl_start", "margin"])
    return {str(name): own for name, own in students.groupby("sweep", sort=False)}


def law_elsewhere(fitted: "pd.DataFrame", others: "Mapping[str, pd.DataFrame]") -> SweepTable:
    """What the law that fits the cells `fitted` predicts of other sweeps' cells, one row a sweep.

    All have the columns of `law.COLUMNS`, and margin: of other sweeps it stands for the lift.
    """
    found = law.fit(fitted)
    rows = []
    for name, cells in others.items():
        lift, predicted = cells["margin"].to_numpy(dtype=float), found.predict(cells)
        steps = " or ".join(f"{count}" for count in sorted(set(cells["steps"])))
        means = (f"{values.mean():.1f}" for values in (lift, predicted))
        error, explained = law.worth(lift, predicted)
        by_mean = np.abs(lift - lift.mean()).mean()
        share = "–" if math.isnan(explained) else minus(f"{round(100 * explained)} %")
        rows.append((name, f"{len(cells)}", steps, *means, f"{error:.1f}", f"{by_mean:.1f}", share))
    columns = ("sweep", "students", "updates", "margin, mean", "expected, mean", "mean error, nats",
               "error of their own mean", "variance explained")  # fmt: skip
    return SweepTable("What the published law expects of other sweeps' same-init students.", columns, rows, [])
