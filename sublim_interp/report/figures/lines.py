"""Arms as lines or bars over layers or steps, with intervals and nulls: what several figures are made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sublim_interp.core.drawing import INK, PALE, in_style
from sublim_interp.experiments.arms import ARMS, in_order
from sublim_interp.report.wording import FEW
from sublim_interp.stats.intervals import over_replicates

FrameRows = Sequence[Mapping[Any, Any]]
"""The rows of a frame, each as a dict by column."""


def mean_line(ax: Axes, frame: pd.DataFrame, value: str, x: str, color: str, label: str, shift: float = 1.0) -> None:
    """Means over replicates along an axis, with 95 % intervals as bars.

    frame: a row a replicate and place
    value, x: its columns
    shift: times the place, so that bars of several lines stand beside each other on a logarithmic axis
    """
    means = over_replicates(frame, value, [x]).sort_values(x)
    middle, low, high = (means[name].fillna(means["estimate"]) for name in ("estimate", "low", "high"))
    ax.errorbar(means[x] * shift, middle, yerr=[middle - low, high - middle], fmt="o-", markersize=3, linewidth=1.2,
                capsize=2, color=color, label=label)  # fmt: skip


@in_style
def arm_lines(
    frame: pd.DataFrame,
    value: str = "cosine",
    x: str = "layer",
    title: str = "",
    replicates: pd.DataFrame | None = None,
    bars: str = "95 % interval of the mean",
    columns: int = 4,
) -> Figure:
    """Lines of arms over layers or steps: one colour an arm.

    frame: one row per arm and place on the axis: estimate, low, high (NaN draws no bar), and where there is a null,
        null_low and null_high, drawn as a grey band; with a column `layer` and x = "step", each layer has a panel
    value: the word on the upright axis
    x: "layer", or "step", whose axis is logarithmic from 1 on
    title: above all panels
    replicates: one row per arm, seed and place, with the column estimate: dots, or thin lines over steps
    bars: what low and high are, in words
    columns: of panels, at most
    """
    panels = [None] if x == "layer" or "layer" not in frame else sorted(frame["layer"].unique())
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    size = (5.2, 3.4) if len(panels) == 1 else (2.4 * columns + 0.8, 2.0 * lines + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    means, each = frame.to_dict("records"), [] if replicates is None else replicates.to_dict("records")
    for i, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
        whole, single = ([r for r in rows if panel in (None, r.get("layer"))] for rows in (means, each))
        _lines(ax, whole, single, x)
        if panel is not None:
            ax.set_title(f"layer {panel}")
        mark_places(ax, sorted(map(int, frame[x].unique())), x)
        if i + columns >= len(panels):  # nothing beneath it
            ax.set_xlabel("layer" if x == "layer" else "updates")
            ax.tick_params(labelbottom=True)
        if i % columns == 0:
            ax.set_ylabel(value)
    figure.suptitle(title or f"{value.capitalize()} by {x}", x=0.01, ha="left", weight="bold", size=9.5)
    alone, whole = ("●", "├┤") if x == "layer" else ("thin:", "bands:")
    spread = bool(frame["high"].notna().any())
    marks = [f"{alone} one replicate"] * (spread and bool(each)) + [f"{whole} {bars}"] * spread
    legend(figure, axes[0], "    ".join(marks) or "one replicate", 3 if columns == 2 else 4)
    return figure


def legend(figure: Figure, ax: Axes, marks: str, columns: int = 4) -> None:
    """The arms of a panel beneath all panels, and above them what dots, strokes and bars are.

    columns: how many arms stand beside each other, fewer where the figure is too narrow
    """
    shown = figure.legend(*ax.get_legend_handles_labels(), loc="outside lower left", ncols=columns, frameon=False,
                          title=marks, title_fontsize=7.5, alignment="left")  # fmt: skip
    if columns > 1 and shown.get_window_extent().width > figure.bbox.width:
        shown.remove()
        legend(figure, ax, marks, columns - 1)


def mark_places(ax: Axes, places: Sequence[int], x: str) -> None:
    """Ticks at recorded places: every layer, or the steps 0, 1, 4, 16, … and the last."""
    if x == "layer":
        shown = [p for p in places if len(places) <= 16 or p % 4 == 0]
    else:
        last = places[-1]
        ax.set_xscale("symlog", linthresh=1, linscale=0.5)
        ax.xaxis.set_minor_locator(NullLocator())
        shown = [p for p in places if p in (0, last) or p in {4**i for i in range(16) if 3 * 4**i <= last}]
    ax.set_xticks(shown, [str(p) for p in shown])


def _lines(ax: Axes, means: FrameRows, replicates: FrameRows, x: str) -> None:
    ax.axhline(0, color=PALE, linewidth=0.8, zorder=1)
    if any("null_low" in r for r in means):
        null = pd.DataFrame(means).groupby(x).agg({"null_low": "min", "null_high": "max"})
        places, low, high = null.index.to_numpy(), *null.to_numpy().T
        style: dict[str, Any] = {"color": PALE, "alpha": 0.35, "linewidth": 0, "zorder": 0}
        style["label"] = "widest null (95 %)"  # of any replicate or arm
        if x == "layer":
            ax.use_sticky_edges = False
            ax.bar(places, high - low, width=0.8, bottom=low, **style)
        else:
            ax.fill_between(places, low, high, **style)
    named = {r["arm"] for r in means}
    arms_shown = [*in_order(named), *sorted(name for name in named if name not in ARMS)]
    for i, arm in enumerate(arms_shown):
        own = sorted((r for r in means if r["arm"] == arm), key=lambda r: r[x])
        places, middle, low, high = (np.array([r[c] for r in own]) for c in (x, "estimate", "low", "high"))
        color = ARMS[arm].color if arm in ARMS else INK
        if x == "layer":  # few places: bars beside each other rather than bands on top of each other
            shift = 0.6 / len(arms_shown) * (i - (len(arms_shown) - 1) / 2)
            dots = [(r[x] + shift, r["estimate"]) for r in replicates if r["arm"] == arm]
            if dots:
                ax.scatter(*zip(*dots, strict=True), s=9, color=color, alpha=0.5, linewidth=0, zorder=2)
            ax.errorbar(places + shift, middle, yerr=[middle - low, high - middle], fmt="none", elinewidth=1,
                        capsize=2, color=color)  # fmt: skip
            ax.plot(places + shift, middle, "_", color=color, markersize=9, markeredgewidth=2, label=arm)
        else:
            for seed in dict.fromkeys(r["seed"] for r in replicates if r["arm"] == arm):
                one = sorted((r for r in replicates if (r["arm"], r["seed"]) == (arm, seed)), key=lambda r: r[x])
                ax.plot([r[x] for r in one], [r["estimate"] for r in one], color=color, linewidth=0.6, alpha=0.3)
            ax.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
            ax.plot(places, middle, "o-", color=color, linewidth=1.4, markersize=3.5, label=arm)
    ax.grid(axis="y")


def summarised(frame: pd.DataFrame, value: str, by: list[str]) -> dict[str, Any]:
    """The arguments frame, replicates and bars of `arm_lines`.

    frame: one row per replicate and place
    value: its column that is drawn
    by: its columns that name a line and a place
    """
    each = frame.rename(columns={value: "estimate"})
    means = over_replicates(each, "estimate", by)
    few = bool(means["n"].max() < FEW)
    if few:
        ends = each.groupby(by, as_index=False).agg(low=("estimate", "min"), high=("estimate", "max"))
        means = means.drop(columns=["low", "high"]).merge(ends, on=by)
        means.loc[means["n"] == 1, ["low", "high"]] = float("nan")
    return {"frame": means, "replicates": each, "bars": "least to most" if few else "95 % interval of the mean"}


def with_null(frame: pd.DataFrame, by: list[str]) -> dict[str, Any]:
    """`summarised` cosines, with the widest null of the replicates at each place."""
    null = frame.groupby(by, as_index=False).agg(null_low=("low", "min"), null_high=("high", "max"))
    compared = summarised(frame, "cosine", by)
    return compared | {"frame": compared["frame"].merge(null, on=by)}
