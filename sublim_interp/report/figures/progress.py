"""The picture of a run while it is made."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sublim_interp.core.drawing import in_style
from sublim_interp.experiments.arms import ARMS, in_order
from sublim_interp.report.figures.lines import mark_places


@in_style
def progress(states: pd.DataFrame, losses: pd.DataFrame, trait: str, updates: int, heading: str = "") -> Figure:
    """How do the students come along? The loss of every update, and the trait on the probe; one line a student.

    states: arm, seed, step, rate in [0, 1]; may be empty
    losses: arm, seed, step, loss in nats per token; may be empty
    trait: the answer that is asked about
    updates: how many are planned; the axes reach so far
    heading: above both panels
    """
    figure = Figure(figsize=(8.2, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax, frame, column in ((left, losses, "loss"), (right, states, "rate")):
        for arm in in_order(frame["arm"]):
            for number, (_, one) in enumerate(frame.query("arm == @arm").groupby("seed")):
                mark = {"marker": "o", "markersize": 3.5} if column == "rate" else {}
                label = "_" if number else arm
                ax.plot(one["step"], one[column], color=ARMS[arm].color, linewidth=1.2, label=label, **mark)
        ax.set_xlabel("updates")
        ax.grid(axis="y")
    if losses.empty:
        left.set_yticks([])
        left.text(0.5, 0.5, "not written yet", transform=left.transAxes, ha="center", va="center")
    left.set_title("Loss on their lists, mean of 20 updates")
    left.set_ylabel("nats per token")
    left.set_xlim(0, updates)
    right.set_title(f"How likely is “{trait}” on the probe?")
    right.set_ylim(-0.03, 1.03)
    right.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    mark_places(right, [0, *(2**i for i in range(updates.bit_length()) if 2**i < updates), updates], "step")
    right.set_xlim(-0.2, 1.3 * updates)
    figure.suptitle(heading, x=0.01, ha="left", size=8.5)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower left", ncols=7, frameon=False)
    return figure
