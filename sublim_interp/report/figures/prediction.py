"""Figure `prediction`: what passes, against a score made before and against the distance between the bases."""

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.stats.ranks import rank_correlation

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = ("o", "^", "s", "D", "v", "P")


@in_style
def prediction(frame: pd.DataFrame) -> Figure:
    """What passes, against what was known before. Left, the imprint's match; right, the distance of the weights.

    frame: a row a case: trait, imprint, distance with its sign turned, lift in nats
    """
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    traits = list(dict.fromkeys(frame["trait"]))
    shown = ((left, frame["imprint"], "match of the trait's imprints"), (right, -frame["distance"], "weights apart"))
    for ax, x, words in shown:
        for i, trait in enumerate(traits):
            own = frame["trait"] == trait
            ax.plot(x[own], frame.loc[own, "lift"], _MARKS[i % len(_MARKS)], color=_COLORS[i % len(_COLORS)],
                    markersize=4.5, alpha=0.8, label=trait)  # fmt: skip
        rho = rank_correlation(x.tolist(), frame["lift"].tolist()).rho
        ax.set_title(f"Spearman's ρ = {rho:.2f}".replace("-", "−"))
        ax.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        ax.set_xlabel(words)
        ax.grid(axis="y")
    left.set_ylabel("lift of the student's margin, nats")
    figure.suptitle("Known before: how much will pass?", x=0.01, ha="left", weight="bold", size=9.5)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=6, frameon=False)
    return figure


PREDICTION = FigureEntry(
    "how much of a trait passes between two bases, against what was known before any student was trained",
    "A point is a pair of bases and a trait. The better a score, the more its points rise from left to right, or fall.",
    "cells",
    prediction,
)
