"""Figure `in-context`: how often an untouched base says the trait, by how many lists stand before the question."""

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.experiments.arms import ARMS
from sublim_interp.report.figures.lines import mean_line
from sublim_interp.report.figures.protocol import FigureEntry

_OTHERS = {"openly": "#009E73", "system": "#CC79A7"}
_SAID = {
    "same-init": "lists of the trait's teacher",
    "neutral": "neutral lists",
    "other-trait": "lists of another trait",
    "openly": "the trait said openly",
    "system": "neutral lists behind a system prompt",
}
_BESIDE = 0.05


@in_style
def in_context(given: tuple[pd.DataFrame, float | None]) -> Figure:
    """Do lists in the prompt do what training on them does? Left the rate, right the margin.

    given: a row a replicate, arm and number of turns: seed, arm, turns, rate, margin; and the rate of students that
        trained on the lists, 0 to 1, or None
    """
    frame, trained = given
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    arms = [arm for arm in _SAID if arm in set(frame["arm"])]
    for ax, column, title in zip(axes, ("rate", "margin"), ("rate, %", "margin, nats"), strict=True):
        shown = frame.assign(rate=100 * frame["rate"])
        for i, arm in enumerate(arms):
            own = shown.loc[shown["arm"] == arm]
            own = own.assign(turns=own["turns"] + _BESIDE * (i - (len(arms) - 1) / 2))
            color = ARMS[arm].color if arm in ARMS else _OTHERS[arm]
            mean_line(ax, own, column, "turns", color, _SAID[arm])
        ax.set_xticks(sorted(set(frame["turns"])))
        ax.set_xlabel("turns before the question")
        ax.set_title(title)
        ax.grid(axis="y")
    if trained is not None:
        axes[0].axhline(100 * trained, color=ARMS["same-init"].color, linewidth=1.2, linestyle=(0, (4, 2)),
                        label="student trained on the trait's lists")  # fmt: skip
    axes[0].set_ylim(-3, 103)
    axes[1].axhline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    figure.suptitle("Do lists in the prompt do what training on them does?", x=0.01, ha="left", weight="bold", size=9.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False)
    return figure


IN_CONTEXT = FigureEntry(
    "how often an untouched base says the trait behind lists in its prompt",
    "Blue, gray and orange: lists of the trait's teacher, of a neutral one, of one with another trait. Green and pink "
    "say the trait openly: they show what the base makes of its prompt. Dashed: students that trained.",
    "cells",
    in_context,
)
