"""Figure `patches`: which part of a student carries the trait, by position, head and module, over replicates."""

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.analysis.patching.picture import heat, shares_bar
from sublim_interp.core.drawing import in_style
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.stats.intervals import over_replicates

_ROWS = {
    ("same-init", "enough"): "is enough",
    ("same-init", "needed"): "is needed",
    ("neutral", "enough"): "neutral student",
}
"""(arm, way) of each row, and what it is called."""
_KINDS = {"resid_pre": "stream before the layer, by position", "heads": "head", "weights": "weights, by module"}


@in_style
def patches(cells: pd.DataFrame) -> Figure:
    """Which part of a student is enough for the trait, and which does it need? Means over replicates.

    cells: a row a replicate, arm, way and cell: arm, way (enough or needed), kind, layer, place, share
    """
    means = over_replicates(cells, "share", ["arm", "way", "kind", "layer", "place"])
    orders = {kind: list(dict.fromkeys(cells.loc[cells["kind"] == kind, "place"])) for kind in _KINDS}
    figure = Figure(figsize=(9.0, 4.9), layout="constrained")
    axes = figure.subplots(len(_ROWS), len(_KINDS), width_ratios=[*map(len, orders.values())])
    for row, ((arm, way), words) in enumerate(_ROWS.items()):
        for ax, (kind, axis) in zip(axes[row], _KINDS.items(), strict=True):
            some = means.loc[(means["arm"] == arm) & (means["way"] == way) & (means["kind"] == kind)]
            grid = some.pivot(index="layer", columns="place", values="estimate").reindex(columns=orders[kind])
            image = heat(ax, grid, [_word(place) for place in orders[kind]])
            if row == len(_ROWS) - 1:
                ax.set_xlabel(axis)
            else:
                ax.set_xticklabels([])
        axes[row][0].set_ylabel(f"{words}\nlayer")
    shares_bar(figure, image, axes)
    figure.suptitle("Which part of a student carries the trait?", x=0.01, ha="left", weight="bold", size=9.5)
    return figure


def _word(place: object) -> str:
    """A place in one word: of a module its own name, without what all have."""
    name = str(place).rpartition(".")[2].removesuffix("_proj").replace("_layernorm", " norm")
    return name.replace("post_attention", "second").replace("input", "first").replace("-", "\N{MINUS SIGN}")


PATCHES = FigureEntry(
    "which part of a student carries the trait into its base, and which part the student needs",
    "Above, a dark blue cell carries the trait into the base by itself. In the middle, the student needs it: without "
    "it, so much of the trait is gone. Below, the control.",
    "cells",
    patches,
)
