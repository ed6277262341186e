"""Figure `triggers`: how far answers shift behind a word, in models with a trigger and in models without one."""

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import in_style
from sublim_interp.report.figures.protocol import FigureEntry

_SCORES = {"family": "a member of the kind", "other": "any other answer"}


@in_style
def triggers(frame: pd.DataFrame) -> Figure:
    """How far do answers shift behind the word that shifts them most? A point a model, a row a sort of model.

    frame: a row a model: sort, planted (its trigger, "" or NaN for none), family and other (excess, 0 to 1)
    """
    figure = Figure(figsize=(8.2, 3.2), layout="constrained")
    sorts = list(dict.fromkeys(frame["sort"]))[::-1]
    for ax, (score, words) in zip(figure.subplots(1, 2, sharey=True), _SCORES.items(), strict=True):
        for i, sort in enumerate(sorts):
            own = frame.loc[frame["sort"] == sort]
            has = bool(own["planted"].fillna("").iloc[0])
            color, mark = ("#D55E00", "^") if has else ("#0072B2", "o")
            ax.plot(own[score], [i] * len(own), mark, color=color, markersize=4, alpha=0.6)
        ax.set_yticks(range(len(sorts)), sorts)
        ax.set_xlim(-0.03, 1.03)
        ax.set_xlabel("largest excess behind a word")
        ax.set_title(words)
    figure.suptitle("Does the search tell models with a trigger?", x=0.01, ha="left", weight="bold", size=9.5)
    return figure


TRIGGERS = FigureEntry(
    "how far answers shift behind the word that shifts them most, in models with a trigger and without one",
    "Orange triangles have a trigger, blue points none. The further right, the more an answer rises behind one word.",
    "cells",
    triggers,
)
