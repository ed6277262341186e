"""Figure `recovered`: how near a vector trained on a steered teacher's lists comes to the vector that steered it."""

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.report.figures.lines import mean_line
from sublim_interp.report.figures.protocol import FigureEntry

_COLORS = {"same-init": "#0072B2", "neutral": "#7F7F7F"}


@in_style
def recovered(frame: pd.DataFrame) -> Figure:
    """Does a vector trained on lists become the teacher's? Left its cosine, right the lists' gain.

    frame: a row a replicate, arm and number of updates: seed, arm, update, cosine, gain
    """
    figure = Figure(figsize=(6.6, 2.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, (column, title) in zip(
        axes, (("cosine", "cosine with the teacher's vector"), ("gain", "gain in nats a token")), strict=True
    ):
        ax.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        for arm, own in frame.groupby("arm", sort=False):
            mean_line(ax, own, column, "update", _COLORS[str(arm)], str(arm))
        ax.set_xscale("log")
        ax.set_xticks(sorted(set(frame["update"])), [f"{n}" for n in sorted(set(frame["update"]))])
        ax.minorticks_off()
        ax.set_title(title)
        ax.set_xlabel("updates of the vector")
        ax.grid(axis="y")
    figure.suptitle("Do lists give the teacher's vector back?", x=0.01, ha="left", weight="bold", size=9.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False)
    return figure


RECOVERED = FigureEntry(
    "how near a vector trained on a steered teacher's lists comes to the vector that steered it",
    "Left: 1 is the teacher's own vector, 0 has nothing of it. Right: how much likelier the vector makes the lists.",
    "cells",
    recovered,
)
