"""Figure `law`: what one law expects of each student, against what was measured."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import in_style
from sublim_interp.experiments.arms import ARMS
from sublim_interp.report.figures.lines import legend


@in_style
def law(cells: pd.DataFrame) -> Figure:
    """What one law expects of each student, against what was measured: fitted, and without all cells of its base.

    cells: a row a student: base, lists; in nats lift, expected and unseen; expected is by the law that fits all
    cells, unseen by one without the cells of its base

    Colours are bases, sizes lists.
    """
    headings = {"expected": "by the law that fits all", "unseen": "by a law that did not see its base"}
    ends = [extreme(cells[["lift", *headings]].to_numpy()) for extreme in (np.nanmin, np.nanmax)]  # some have none
    area = 12 * (1 + np.log2(cells["lists"] / cells["lists"].min()))
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, (column, heading) in zip(panels, headings.items(), strict=True):
        panel.plot(ends, ends, color="#9a9aa0", linewidth=0.8, zorder=0)
        for (base, own), look in zip(cells.groupby("base", sort=False), cycle(ARMS.values()), strict=False):
            panel.scatter(own[column], own["lift"], s=area[own.index], color=look.color, alpha=0.75, linewidth=0,
                          label=base)  # fmt: skip
        panel.set_xlabel(f"expected {heading}, nats")
        panel.grid()
    panels[0].set_ylabel("lift of the trait's margin, measured, nats")
    figure.suptitle("How much passes, and how much was to be expected", x=0.01, ha="left", weight="bold", size=9.5)
    legend(figure, panels[0], "● one student, larger: more lists")
    return figure
