"""Figure `contexts`: how likely each arm's students say the trait, by sort of question, from published tables alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sublim_interp.core.drawing import PALE, in_style
from sublim_interp.experiments.arms import ARMS
from sublim_interp.report.figures.lines import legend


@in_style
def contexts(rows: Sequence[Mapping[str, Any]], questions: Mapping[str, str], trait: str) -> Figure:
    """How likely is the trait, where it was never taught? One group of lines a sort of question, one line an arm.

    rows: one an arm: arm, and of each measure M its mean M in [0, 1] with M_low and M_high
    questions: the measures, with what was asked in words
    trait: the answer that is counted
    """
    step = 1 / (len(rows) + 1.5)
    figure = Figure(figsize=(7.2, 0.95 * len(questions) + 1.5), layout="constrained")
    ax = figure.subplots()
    for i, row in enumerate(rows):
        color = ARMS[row["arm"]].color
        for group, name in enumerate(questions):
            y, mean = group + (i - (len(rows) - 1) / 2) * step, row[name]
            low, high = (min(max(row[f"{name}_{end}"], 0.0), 1.0) for end in ("low", "high"))
            ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], color=color, fmt="o", markersize=4, linewidth=1.3,
                        capsize=2, label=row["arm"] if group == 0 else None, clip_on=False)  # fmt: skip
    for group in range(1, len(questions)):
        ax.axhline(group - 0.5, color=PALE, linewidth=0.6)
    ax.set_yticks(range(len(questions)), [",\n".join(said.rsplit(", ", 1)) for said in questions.values()])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(questions) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    ax.grid(axis="x")
    n = max(row["n"] for row in rows)
    figure.suptitle(f"How likely is the answer “{trait}”?", x=0.01, ha="left", weight="bold", size=9.5)
    legend(figure, ax, f"● mean over {n} replicates    ├┤ 95 % interval")
    return figure
