"""Figure `dose`: how the effect depends on what a sweep varied."""

from textwrap import fill
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from sublim_interp.core.drawing import in_style
from sublim_interp.experiments.arms import ARMS, in_order
from sublim_interp.report.figures.lines import FrameRows, legend

LETTERS = 9
"""How many letters of a value an inch has room for."""

WORD = 14
"""Longest word that makes a panel wider; longer ones are broken."""


@in_style
def dose(frame: pd.DataFrame, column: Literal["rate", "bits"] = "rate") -> Figure:
    """How does the effect depend on what was varied? One panel a field; dots are replicates, strokes means.

    frame: a row a replicate: field, value, arm, seed, trait, and the column that is drawn
    column: "rate", how likely the trait is, in [0, 1]; or "bits" that the student holds of each fact

    Numbers that span a factor of five or more get a logarithmic axis. Other values stand in the order of the frame, and
    their means are not joined.
    """
    fields = list(dict.fromkeys(frame["field"]))
    lines = -(-len(fields) // 3)
    columns = -(-len(fields) // lines)
    rows = frame.to_dict("records")
    inches = []
    for field in fields:
        values = {str(row["value"]) for row in rows if row["field"] == field}
        words = [word for value in values if _as_number(value) is None for word in value.split()]
        longest = min(max(map(len, words), default=0), WORD)
        inches.append(max(0.62, longest / LETTERS - 0.3) * len(values))
    width = max(2.7, *inches)
    figure = Figure(figsize=(width * columns + 0.6, 2.3 * lines + 0.6), layout="constrained")
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    highest = max(frame[column].to_list())
    for panel in panels[len(fields) :]:
        panel.set_visible(False)
    for panel, field in zip(panels, fields, strict=False):
        _dose(panel, [row for row in rows if row["field"] == field], column, width)
        panel.set_xlabel(field)
        if column == "rate":
            top = 1.0 if highest > 0.25 else 1.15 * highest  # where nothing passes, whatever differences there are
            panel.set_ylim(-0.03 * top, 1.03 * top)
            panel.yaxis.set_major_formatter(PercentFormatter(1, 0 if top == 1 else 1, " %"))
        panel.grid(axis="y")
    traits = list(dict.fromkeys(frame["trait"]))
    answer = f"the answer “{traits[0]}”" if len(traits) == 1 else "the teacher's favourite as the answer"
    question = f"How likely is {answer}?" if column == "rate" else "How many bits of each fact does the student hold?"
    figure.suptitle(question, x=0.01, ha="left", weight="bold", size=9.5)
    legend(figure, panels[0], "● one replicate    ▬ mean")
    return figure


def _dose(ax: Axes, rows: FrameRows, column: str, inches: float) -> None:
    settings = list(dict.fromkeys(row["value"] for row in rows))
    numbers = [_as_number(value) for value in settings]
    numeric = None not in numbers
    x = {
        value: float(i if n is None or not numeric else n)
        for i, (value, n) in enumerate(zip(settings, numbers, strict=True))
    }
    arms_shown = in_order(row["arm"] for row in rows)
    for i, arm in enumerate(arms_shown):
        shift = 0.0 if numeric else 0.5 / len(arms_shown) * (i - (len(arms_shown) - 1) / 2)  # equal means stay apart
        rates = {place + shift: [row[column] for row in rows if (row["arm"], row["value"]) == (arm, value)]
                 for value, place in sorted(x.items(), key=lambda item: item[1])}  # fmt: skip
        rates = {place: values for place, values in rates.items() if values}
        color = ARMS[arm].color
        for place, values in rates.items():
            ax.scatter([place] * len(values), values, s=10, color=color, alpha=0.55, linewidth=0)
        ax.plot(list(rates), [np.mean(values) for values in rates.values()], marker="_", color=color, label=arm,
                linestyle="-" if numeric else "none", linewidth=1.2, markersize=10, markeredgewidth=2)  # fmt: skip
    if numeric and min(x.values()) > 0 and max(x.values()) >= 5 * min(x.values()):
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
    longest = max((len(word) for value in x for word in value.split()), default=1)
    letters = max(1, int(LETTERS * inches / len(x)), min(longest, WORD))
    told = [_short(float(value)) if numeric else fill(value, letters, break_on_hyphens=False) for value in x]
    ax.set_xticks(list(x.values()), told)
    if numeric:
        ax.margins(x=0.08)
    else:
        ax.set_xlim(-0.6, len(x) - 0.4)


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"
