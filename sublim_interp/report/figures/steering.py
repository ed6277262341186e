"""Figure of a steering curve: answers as a direction is added at growing strength. Not the figure `dose` of sweeps."""

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sublim_interp.core.drawing import PALE, in_style
from sublim_interp.experiments.arms import ARMS
from sublim_interp.report.figures.protocol import FigureEntry


@in_style
def steering(frame: pd.DataFrame, trait: str = "") -> Figure:
    """What does a dose of a direction do to the answers? One panel a metric, one line a layer or arm.

    frame: as `analysis.directions.effects.steering` gives it, its random controls in grey; frames with a column `layer`
        or `arm` may be stacked
    trait: named in the title
    """
    metrics = [c for c in frame.columns if c not in ("direction", "at", "layer", "scale", "arm", "seed")]
    by = next(name for name in ("arm", "layer", "direction") if name in frame)
    figure = Figure(figsize=(3.1 * len(metrics) + 0.6, 2.9), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    groups = list(dict.fromkeys(frame[by]))
    shades = style.library["tableau-colorblind10"]["axes.prop_cycle"].by_key()["color"]
    for ax, metric in zip(panels, metrics, strict=True):
        ax.axvline(0, color=PALE, linewidth=0.8)
        for i, group in enumerate(groups):
            means = (
                frame.query(f"{by} == @group").groupby("scale", as_index=False).agg({metric: "mean"}).to_dict("list")
            )
            drawn = by == "direction" and str(group).startswith("random ")
            color = PALE if drawn else ARMS[group].color if group in ARMS else shades[i % len(shades)]
            label = f"layer {group}" if by == "layer" else group
            label = ("random" if group == "random 1" else None) if drawn else label
            ax.plot(means["scale"], means[metric], "o-", color=color, linewidth=1.4, markersize=3.5, label=label)
        ax.set_xlabel("dose s (the vector is added s times)")
        ax.set_ylabel({"margin": "margin, nats"}.get(metric, metric))
        if metric == "rate":
            ax.set_ylim(-0.03, 1.03)
            ax.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
        ax.grid(axis="y")
    about = f": “{trait}”" if trait else ""
    figure.suptitle(f"What a dose of the direction does{about}", x=0.01, ha="left", weight="bold", size=9.5)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3 * len(metrics), frameon=False
    )
    return figure


STEERING = FigureEntry(
    shows="what the answers are as a direction is added at growing strength, beside its controls",
    caption="A direction counts where its line leaves those of the controls.",
    input="frame",
    draw=steering,
)
