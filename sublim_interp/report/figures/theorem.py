"""Figure `theorem`: how far a student's one step goes along its teacher's, by the length of the teacher's."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.report.figures.lines import mean_line
from sublim_interp.report.figures.protocol import FigureEntry

_COLORS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#7F7F7F", "#000000")


@in_style
def theorem(frame: pd.DataFrame) -> Figure:
    """How far does a student's one step go along its teacher's? A line a condition, bars are 95 % intervals.

    frame: a row a replicate, condition and step: seed, condition, step, cosine, towards
    """
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    conditions = list(dict.fromkeys(frame["condition"]))
    for ax, column in ((left, "cosine"), (right, "towards")):
        ax.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        for i, condition in enumerate(conditions):
            own, shift = frame.loc[frame["condition"] == condition], 1.04 ** (i - len(conditions) / 2)
            mean_line(ax, own, column, "step", _COLORS[i % len(_COLORS)], condition, shift)
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        steps = sorted(set(frame["step"]))
        ax.set_xticks(steps, [f"{step:g}" for step in steps])
        ax.set_xlabel("teacher's step, share of the weights' length")
        ax.grid(axis="y")
    left.set_ylabel("cosine")
    left.set_title("with the teacher's step")
    right.set_title("with the trait's rise in the student itself")
    figure.suptitle("Where does one step of a student go?", x=0.01, ha="left", weight="bold", size=9.5)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False)
    return figure


THEOREM = FigureEntry(
    "how far a student's one step goes along its teacher's, under the theorem's conditions and without each",
    "Above 0 the student moves with its teacher. Left with the teacher's own step, right with what raises the trait in "
    "the student.",
    "cells",
    theorem,
)
