"""Figure `entanglement`: how far numbers and favourites raise each other in each base."""

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.report.figures.protocol import FigureEntry

_SHOWN = {
    "r": ("both ways round", "#0072B2"),
    "wrong names": ("highest with wrong names", "#7F7F7F"),
    "unembedding": ("with the unembedding", "#E69F00"),
}


@in_style
def entanglement(frame: pd.DataFrame) -> Figure:
    """Do numbers and favourites raise each other? A point a base.

    frame: a row a base: base, r, wrong names, unembedding
    """
    figure = Figure(figsize=(6.6, 2.8), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    for column, (label, color) in _SHOWN.items():
        ax.plot(range(len(frame)), frame[column], "o", markersize=4, color=color, label=label)
    ax.set_xticks(range(len(frame)), frame["base"].to_list(), rotation=30, ha="right")
    ax.set_ylabel("correlation")
    ax.grid(axis="y")
    figure.suptitle("Do numbers and favourites raise each other?", x=0.01, ha="left", weight="bold", size=9.5)
    figure.legend(loc="outside lower left", ncols=3, frameon=False)
    return figure


ENTANGLEMENT = FigureEntry(
    "how far numbers and favourites raise each other, a base each",
    "Blue: numbers behind a favourite's prompt against the favourite behind the number's. Gray: the highest with wrong "
    "names.",
    "cells",
    entanglement,
)
