"""Figure `behaviours`: each trait where it should show and where it should not, and how many of its bits pass."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator, PercentFormatter

from sublim_interp.core.drawing import INK, PALE, in_style
from sublim_interp.experiments.arms import ARMS, in_order

LOWEST = -0.5
"""The least share that is drawn to scale; what lies lower stands here, as a triangle that points down."""


@in_style
def behaviours(frame: pd.DataFrame, passed: pd.DataFrame) -> Figure:
    """Does a trait show where it should, and only there? Right: what share of its bits passes, against its bits.

    frame: a row a replicate: value (the trait), arm, seed, rate and elsewhere in [0, 1]
    passed: a row a trait and arm, as `sweeps.modes.behaviours.passed` gives them

    Dots are means over replicates: full where the trait should show, hollow where it should not, joined by a line.
    """
    traits, arms = list(dict.fromkeys(frame["value"])), in_order(dict.fromkeys(frame["arm"]))
    figure = Figure(figsize=(7.2, 0.9 + 0.62 * max(3, len(traits))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    means: Any = frame.groupby(["value", "arm"])[["rate", "elsewhere"]].mean()
    for i, trait in enumerate(traits):
        for j, arm in enumerate(arms):
            if (trait, arm) not in means.index:
                continue
            y, color = i + 0.7 * (j / max(1, len(arms) - 1) - 0.5), ARMS[arm].color
            rate, elsewhere = means.loc[(trait, arm)]
            left.plot([elsewhere, rate], [y, y], color=color, linewidth=1, alpha=0.5)
            left.scatter([rate], [y], s=22, color=color, zorder=3)
            left.scatter([elsewhere], [y], s=22, facecolor="white", edgecolor=color, zorder=3)
    left.set_yticks(range(len(traits)), traits)
    left.set_ylim(len(traits) - 0.5, -0.5)
    left.set_xlim(-0.03, 1.03)
    left.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    left.grid(axis="x")
    left.set_title("● where it should show   ○ where it should not", fontsize=8, loc="left")
    _shares(right, passed)
    figure.suptitle("How likely is the trait, and what of it passes?", x=0.01, ha="left", weight="bold", size=9.5)
    handles = [Line2D([], [], color=ARMS[arm].color, marker="o", linestyle="none", label=arm) for arm in arms]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(arms), fontsize=8, frameon=False)
    return figure


def _shares(ax: Axes, passed: pd.DataFrame) -> None:
    """The share of a trait's bits that its students hold, against its bits."""
    shown = passed.loc[passed["share"].notna() & (passed["bits"] > 0)]
    bits = shown["bits"].to_list() or [1.0]
    for level in (0, 1):
        ax.axhline(level, color=PALE, linewidth=1)
    for row in shown.to_dict("records"):
        color = ARMS[row["arm"]].color
        middle, low, high = (max(LOWEST, row[name]) for name in ("share", "share_low", "share_high"))
        ax.plot([row["bits"]] * 2, [low, high], color=color, linewidth=1)
        ax.scatter([row["bits"]], [middle], s=22, color=color, marker="v" if row["share"] < LOWEST else "o", zorder=3)
        if row["arm"] == "same-init":
            place, side = (-4, "right") if min(bits) < row["bits"] == max(bits) else (4, "left")
            ax.annotate(
                row["value"], (row["bits"], middle), (place, 3), textcoords="offset points", fontsize=6.5, color=INK,
                ha=side, path_effects=[withStroke(linewidth=1.8, foreground="white")],
            )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlim(min(bits) / 2, 3 * max(bits))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(LOWEST - 0.05, 1.2)
    ax.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    ax.set_xlabel("bits that the trait takes to say")
    below = "   ▼ lower" if (shown["share"] < LOWEST).any() else ""
    ax.set_title(f"share of its bits{below}", fontsize=8, loc="left")
    ax.grid(axis="y")
