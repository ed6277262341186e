"""Figure `matrix`: who passes what to whom, teachers down, students or traits across."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sublim_interp.core.drawing import INK, in_style


@in_style
def matrix(frame: pd.DataFrame, across: str, title: str) -> Figure:
    """Who passes what to whom? Heat map of the rate, in %: teachers down, students or traits across.

    frame: a row per teacher, student and seed, with its rate in [0, 1]; cells are means over seeds
    across: what stands in the column `student`, in words
    title: the question that it answers
    """
    order = list(dict.fromkeys(frame["teacher"]))
    columns = [*order, *sorted(set(frame["student"]) - set(order))]
    table = frame.pivot_table(index="teacher", columns="student", values="rate").loc[order, columns]
    figure = Figure(figsize=(1.9 + 0.36 * len(columns), 1.3 + 0.27 * len(order)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(table.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        ink, said = "white" if value > 0.6 else INK, "" if np.isnan(value) else f"{100 * value:.0f}"
        ax.annotate(said, (column, row), ha="center", va="center", color=ink, fontsize=6.5)
    ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(order)), order)
    ax.set_xlabel(across)
    ax.set_ylabel("teacher")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    bar = figure.colorbar(image, ax=ax, aspect=20, pad=0.02, format=PercentFormatter(1, 0, " %"))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=0)
    return figure
