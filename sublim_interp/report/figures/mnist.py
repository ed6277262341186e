"""Figure `mnist`: how many digits each arm of the MNIST experiment reads right."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.lab.mnist.arms import ARMS
from sublim_interp.lab.mnist.images import CLASSES
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.stats.intervals import mean_interval


@in_style
def mnist(frame: pd.DataFrame) -> Figure:
    """How many digits are read right, arm by arm? Dots are replicates, strokes means with their 95 % intervals.

    frame: a row a replicate: arm, seed, accuracy in [0, 1]
    """
    arms = [arm for arm in ARMS if arm in set(frame["arm"])]
    figure = Figure(figsize=(6.4, 0.3 * len(arms) + 1.0), layout="constrained")
    ax = figure.subplots()
    ax.axvline(1 / CLASSES, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.annotate("chance", (1 / CLASSES, 1), (3, 2), fontsize=7.5, va="bottom", xycoords=ax.get_xaxis_transform(),
                textcoords="offset points")  # fmt: skip
    for y, arm in enumerate(arms):
        values, color = frame.loc[frame["arm"] == arm, "accuracy"].to_list(), ARMS[arm].color
        ax.scatter(values, [y] * len(values), s=10, color=color, alpha=0.45, linewidth=0, zorder=2)
        found = mean_interval(values)
        if found.n > 1:
            ax.plot([found.low, found.high], [y, y], color=color, linewidth=1.4, zorder=3)
        ax.plot([found.estimate], [y], marker="|", markersize=10, markeredgewidth=2.2, color=color, zorder=3)
    ax.set_yticks(range(len(arms)), arms)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    ax.grid(axis="x")
    figure.suptitle("How many digits are read right?", x=0.01, ha="left", weight="bold", size=9.5)
    return figure


MNIST = FigureEntry(
    "how many digits each arm of the MNIST experiment reads right",
    "Dots are replicates, strokes means. Students that share their teacher's start lie right of chance; others on it.",
    "cells",
    mnist,
)
