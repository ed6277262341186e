"""Figure `arms`: does the trait pass, and how near did each student come to its teacher?"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.tables import Tables, records
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.report.wording import number, text

ArmAtStage = tuple[str, str]
"""An arm, and "equal steps" or "equal KL"."""

Dots = Sequence[Mapping[Any, Any]]
"""The rows of `Tables.replicates`: each is a dot."""

Means = Mapping[str, Mapping[Any, Any]]
"""Arm → its row of `Tables.summary`."""


@in_style
def arms(replicates: pd.DataFrame, summary: pd.DataFrame, trait: str, stacked: bool = False) -> Figure:
    """Does the trait pass, and how near did each student come to its teacher? One row an arm, one dot a replicate.

    replicates, summary: as in `Tables`; students that were trained on to equal KL have a second row
    trait: the answer that is asked about
    stacked: puts the second panel beneath the first, for narrow screens
    """
    dots = replicates.to_dict("records")
    means = {row["arm"]: row for row in summary.to_dict("records")}
    rows: list[ArmAtStage] = []
    for arm in means:
        rows += [(arm, "equal steps"), (arm, "equal KL")][: 2 if means[arm]["further_round"] else 1]
    students = [row for row in rows if np.isfinite(means[row[0]]["kl"])] if stacked else rows
    heights = [0.42 * len(shown) + 0.9 for shown in (rows, students)]
    if stacked:
        figure = Figure(figsize=(4.7, sum(heights)), layout=ConstrainedLayoutEngine(hspace=0.08))
        panels = figure.subplots(2, 1, height_ratios=heights)
    else:
        figure = Figure(figsize=(8.6, heights[0] + 0.3), layout="constrained")
        panels = figure.subplots(1, 2, width_ratios=[1.5, 1])
    for panel, shown in zip(panels, (rows, students), strict=True):
        panel.set_ylim(len(shown) - 0.4, -0.7)
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
        panel.grid(axis="x")
        if stacked or panel is panels[0]:
            _name_rows(panel, shown, means)
    _rates(panels[0], rows, dots, means)
    _distances(panels[1], students, dots, means)
    panels[0].set_title(f"How likely is the answer “{trait}”?")
    panels[0].set_xlabel("probability on held-out questions\n● one replicate   ├┤ mean with 95 % interval")
    panels[1].set_title("How far is it from its teacher?")
    panels[1].set_xlabel("KL(teacher ‖ student), nats per answer token\n○ before training   ● after")
    return figure


def _rates(ax: Axes, rows: Sequence[ArmAtStage], dots: Dots, means: Means) -> None:
    if "base" in means:
        untouched = means["base"]["rate"]
        ax.axvline(untouched, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        ax.annotate("untouched base", (untouched, -0.7), (4, -1), textcoords="offset points", va="top", fontsize=7)
    for y, (arm, stage) in enumerate(rows):
        column = "rate" if stage == "equal steps" else "further_rate"
        mean, low, high = (means[arm][name] for name in (column, f"{column}_low", f"{column}_high"))
        color = ARMS[arm].color
        ax.barh(y, mean, height=0.62, color=color, alpha=0.16, zorder=1)
        _scatter(ax, y, dots, (arm, stage), "rate")
        if np.isfinite(low):
            ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], color=INK, linewidth=1.3, capsize=2.5, zorder=4)
            ax.plot([mean, mean], [y - 0.31, y + 0.31], color=color, linewidth=1.6, zorder=2)
        _value(ax, y, f"{100 * mean:.1f} %")
    ax.set_xlim(0, 1.02)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])


def _distances(ax: Axes, rows: Sequence[ArmAtStage], dots: Dots, means: Means) -> None:
    for y, (arm, stage) in enumerate(rows):
        before, after = means[arm]["kl_start"], means[arm]["kl" if stage == "equal steps" else "further_kl"]
        if not np.isfinite(after):
            continue
        color = ARMS[arm].color
        ax.plot([before, after], [y, y], color=color, linewidth=1.2, zorder=1)
        ax.plot(before, y, "o", color=color, markerfacecolor="white", markersize=5, zorder=2)
        if means[arm]["n"] > 1:
            ax.plot([after, after], [y - 0.25, y + 0.25], color=color, linewidth=1.6, zorder=2)
        _scatter(ax, y, dots, (arm, stage), "kl")
        _value(ax, y, f"{after:.3f}")
    ax.margins(x=0.08)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _name_rows(ax: Axes, rows: Sequence[ArmAtStage], means: Means) -> None:
    beside: dict[str, Any] = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
    for y, (arm, stage) in enumerate(rows):
        further = ("… trained on", f"to equal KL: {means[arm]['equal_kl']}")
        name, label = (arm, ARMS[arm].label) if stage == "equal steps" else further
        ax.annotate(name, (0, y), (-8, 0), va="bottom", weight="bold", **beside)
        ax.annotate(label, (0, y), (-8, -1), va="top", fontsize=7, **beside)


def _value(ax: Axes, y: int, text: str) -> None:
    place = ax.get_yaxis_transform()  # x as a fraction of the panel, y in rows
    ax.annotate(text, (1, y), (6, 0), place, "offset points", va="center_baseline", weight="bold")


def _scatter(ax: Axes, y: int, dots: Dots, row: ArmAtStage, column: str) -> None:
    """Each replicate as a dot, spread in the order of the seeds so that equal ones stay apart."""
    values = [dot[column] for dot in sorted(dots, key=lambda dot: dot["seed"]) if (dot["arm"], dot["stage"]) == row]
    alone = len(values) == 1
    spread = [0.0] if alone else np.linspace(-0.2, 0.2, len(values))
    style = {"color": ARMS[row[0]].color, "alpha": 0.7, "linewidth": 0, "clip_on": False, "zorder": 3}
    ax.scatter(values, y + np.asarray(spread), s=40 if alone else 13, **style)


def _draw(tables: Tables, stacked: bool = False) -> Figure:
    return arms(tables.replicates, tables.summary, tables.trait, stacked)


def _says(tables: Tables) -> str:
    """The numbers that the drawing has beside its rows."""
    rows = records(tables.summary)
    return " ".join(f"{row['arm']}: {text(row, 'rate')}, KL left {number('kl', row['kl'])}." for row in rows)


ARMS_FIGURE = FigureEntry(
    shows="how likely each arm gives the trait as its answer, and how near it came to its teacher",
    caption="First panel: the trait passed where dots lie right of the dashed line, the untouched base. Second panel: "
    "arms compare fairly where they came about equally near to their teacher.",
    input="tables",
    draw=_draw,
    page=True,
    narrow=partial(_draw, stacked=True),
    says=_says,
)
