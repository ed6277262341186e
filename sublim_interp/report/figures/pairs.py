"""Figure `pairs`: what passes between two bases, by how far their weights lie from each other."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sublim_interp.core.drawing import INK, PALE, in_style
from sublim_interp.experiments.arms import ARMS, in_order
from sublim_interp.report.figures.lines import legend


@in_style
def pairs(frame: pd.DataFrame, untouched: float | None = None) -> Figure:
    """How likely is the trait, pair by pair of bases? One line a pair, the nearest on top; dots are replicates.

    frame: a row a replicate: value (the pair in words), distance (of its weights), arm, trait, rate in [0, 1]
    untouched: the rate of a base that was not trained, as a dashed line; None draws none
    """
    places = frame.drop_duplicates("value").sort_values("distance", kind="stable").to_dict("records")
    figure = Figure(figsize=(7.2, 0.34 * len(places) + 1.6), layout="constrained")
    ax = figure.subplots()
    if untouched is not None:
        ax.axvline(untouched, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.annotate(f"untouched base {100 * untouched:.1f} %", (untouched, 1), (4, 2), fontsize=7.5, va="bottom",
                    xycoords=ax.get_xaxis_transform(), textcoords="offset points")  # fmt: skip
    arms = in_order(frame["arm"])
    for i, arm in enumerate(arms):
        shift = 0.3 * (i - (len(arms) - 1) / 2)  # equal rates stay apart
        for y, place in enumerate(places):
            rates = frame.loc[(frame["arm"] == arm) & (frame["value"] == place["value"]), "rate"]
            ax.scatter(rates, [y + shift] * len(rates), s=12, color=ARMS[arm].color, alpha=0.55, linewidth=0, zorder=2)
            ax.plot([rates.mean()], [y + shift], marker="|", linestyle="none", markersize=9, markeredgewidth=2.2,
                    color=ARMS[arm].color, label=arm if y == 0 else None, zorder=3)  # fmt: skip
    ax.set_yticks(range(len(places)), [f"{place['value']}    {place['distance']:.2f}" for place in places])
    ax.tick_params(axis="y", length=0)
    for y in range(len(places) - 1):
        ax.axhline(y + 0.5, color=PALE, linewidth=0.4, zorder=0)
    ax.set_ylim(len(places) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    ax.grid(axis="x")
    ax.annotate("the other base    weights apart", (0, 1), (-4, 2), xycoords="axes fraction", ha="right", va="bottom",
                textcoords="offset points", fontsize=7.5, style="italic")  # fmt: skip
    trait = frame["trait"].iloc[0]
    figure.suptitle(f"How likely is the answer “{trait}”?", x=0.01, ha="left", weight="bold", size=9.5)
    legend(figure, ax, "● one replicate    ▮ mean")
    return figure
