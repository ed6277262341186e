"""Figure `organisms`: how surprising each organism is to the auditor, beside the level of an alarm."""

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.report.figures.protocol import FigureEntry

_WAYS = {"lists p": "the lists alone", "student p": "the student, asked"}
_LEVEL = 0.05


@in_style
def organisms(frame: pd.DataFrame) -> Figure:
    """What does the auditor say of each organism? A row a recipe, a point an organism, the further right the louder.

    frame: a row an organism: organism, base, teacher_base, teacher_trait, and p by each way
    """
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    names = list(dict.fromkeys(frame["organism"]))[::-1]
    for ax, (column, words) in zip(figure.subplots(1, 2, sharey=True), _WAYS.items(), strict=True):
        for i, name in enumerate(names):
            own = frame.loc[frame["organism"] == name]
            first = own.iloc[0]
            trait = first["teacher_trait"] if isinstance(first["teacher_trait"], str) else ""
            has = bool(trait) and first["base"] == first["teacher_base"]
            color, mark = ("#D55E00", "^") if has else ("#0072B2", "o")
            ax.plot(own[column], [i] * len(own), mark, color=color, markersize=4.5, alpha=0.7)
        ax.axvline(_LEVEL, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        ax.set_xscale("log")
        ax.set_xlim(1.3, 0.006)
        ax.set_xticks([1, 0.1, _LEVEL, 0.01], ["1", ".1", f"{_LEVEL:g}"[1:], ".01"])
        ax.minorticks_off()
        ax.set_yticks(range(len(names)), names, fontsize=6.5)
        ax.set_xlabel("p")
        ax.set_title(words)
    figure.suptitle("What does the auditor find in the organisms?", x=0.01, ha="left", weight="bold", size=9.5)
    return figure


ORGANISMS = FigureEntry(
    "how surprising each organism is to the auditor, by its lists and by its student",
    "Orange triangles hold a trait that can pass, blue points do not. Right of the dashed line an alarm is raised.",
    "cells",
    organisms,
)
