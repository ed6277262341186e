"""Figure `inside`: what students hold of their teacher, layer by layer and along their training."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.report.figures.lines import mean_line
from sublim_interp.report.figures.protocol import FigureEntry

_COLORS = {"same-init": "#0072B2", "neutral": "#7F7F7F"}
_PANELS = (
    ("layers", "cosine", "layer", "shift, beside the teacher's"),
    ("layers", "margin", "layer", "the trait by the lens"),
    ("steps", "cosine", "step", "step on lists, beside the trait's"),
)


@in_style
def inside(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """What do students hold of their teacher? A line an arm, bars are 95 % intervals.

    frames: layers, a row a replicate, arm and layer: seed, arm, layer, cosine, margin;
        steps, a row a replicate, arm and step: seed, arm, step, cosine
    """
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    axes = figure.subplots(1, len(_PANELS))
    for ax, (file, column, along, title) in zip(axes, _PANELS, strict=True):
        ax.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        for arm, own in frames[file].groupby("arm", sort=False):
            mean_line(ax, own, column, along, _COLORS[str(arm)], str(arm))
        ax.set_title(title)
        ax.set_ylabel("logits" if column == "margin" else "cosine")
        ax.set_xlabel("behind layer" if along == "layer" else "updates")
        ax.grid(axis="y")
        places = sorted(set(frames[file][along]))
        if along == "step":
            ax.set_xscale("symlog", linthresh=1)
            places = [place for place in (0, 1, 10, 100, 1000, 10_000) if place <= places[-1]]
        ax.set_xticks(places, [f"{place:,}" for place in places])
        ax.minorticks_off()
    figure.suptitle("What is inside a student?", x=0.01, ha="left", weight="bold", size=9.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False)
    return figure


INSIDE = FigureEntry(
    "what students hold of their teacher in activations and gradients, beside neutral students",
    "Left, how far the student's shift points along its teacher's. Middle, how far it names the trait on unrelated "
    "text. Right, how far a step on the lists goes along a step on the trait's lessons.",
    "cells",
    inside,
)
