"""Figure `kernel`: real students beside linearised ones, and how the kernel of a real one moves."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.report.figures.lines import mark_places
from sublim_interp.report.figures.protocol import FigureEntry

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#7F7F7F")
_DRIFT = {
    "own": ("both moved, as the student's", "#0072B2", "-"),
    "question_side": ("the questions' moved alone", "#E69F00", "-"),
    "list_side": ("the lists' moved alone", "#CC79A7", "-"),
    "start": ("both as at the start", "#7F7F7F", "--"),
}


def shown_rows(cases: pd.DataFrame) -> list[str]:
    """Rows whose students are drawn: the first, and those of the highest, the middle and the lowest lift."""
    lifts = {str(words): own["lift"].mean() for words, own in cases.groupby("row", sort=False)}
    by = sorted(lifts, key=lambda words: -lifts[words])
    return [*dict.fromkeys([next(iter(lifts)), by[0], by[len(by) // 2], by[-1]])]


@in_style
def kernel(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Does a student whose kernel never moves become what a real one does?

    frames: cases, a row a pair and seed: row, seed, lift, linear_lift; steps, one a step too: step, margin,
        linear_margin; drift, as steps: own, question_side, list_side, start
    """
    cases, steps, drift = frames["cases"], frames["steps"], frames["drift"]
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    rows = shown_rows(cases)
    colors = dict(zip(rows, _COLORS, strict=False))
    places = sorted(map(int, set(steps["step"])))
    for words in rows:
        by = steps.loc[steps["row"] == words].groupby("step")
        left.plot(by["margin"].mean(), "o-", color=colors[words], markersize=3, linewidth=1.4, label=words)
        left.plot(by["linear_margin"].mean(), "--", color=colors[words], linewidth=1.2)
    left.set_title("margin; dashed: linearised")
    left.set_ylabel("nats")
    for words, own in cases.groupby("row", sort=False):
        middle.plot(own["linear_lift"], own["lift"], "o", color=colors.get(str(words), "#BBBBBB"), markersize=4)
    middle.axline((0, 0), slope=1, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
    middle.set_title("lift of every student")
    middle.set_xlabel("linearised, nats")
    middle.set_ylabel("real, nats")
    first = drift.loc[drift["row"] == rows[0]].groupby("step")
    for name, (words, color, style) in _DRIFT.items():
        right.plot(first[name].mean(), style, color=color, linewidth=1.4, label=words)
    right.set_title(f"coupling, {rows[0]}")
    right.set_ylabel("nats per unit of rate")
    right.legend(title="Jacobians", frameon=False, fontsize=6.5, title_fontsize=6.5)
    for ax in (left, right):
        mark_places(ax, places, "step")
        ax.set_xlabel("updates")
    for ax in (left, middle, right):
        ax.axhline(0, color=INK, linewidth=0.8, zorder=1)
        ax.grid(axis="y")
    figure.suptitle("Does a student whose kernel stays become what a real one does?", x=0.01, ha="left", weight="bold",
                    size=9.5)  # fmt: skip
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False)
    return figure


KERNEL = FigureEntry(
    "real students beside linearised ones, whose kernel never moves, and how the real kernel moves",
    "Left, solid lines are real students, dashed ones linearised. Middle, points above the dotted diagonal gain more "
    "than their kernel at the start says. Right, how far lists and trait are coupled where the student stands.",
    "cells",
    kernel,
)
