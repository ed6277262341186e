"""Figure `games`: can two sets of lists be told apart, from how many lists?"""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from sublim_interp.core.drawing import PALE, in_style
from sublim_interp.experiments.arms import ARMS
from sublim_interp.report.figures.protocol import FigureEntry


@in_style
def games(frame: pd.DataFrame) -> Figure:
    """Which of two sets does a packet come from? Share of games won, by the size of the packet.

    frame: as `analysis.telling.tell_apart` gives it
    """
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0.5, color=PALE, linewidth=0.8)
    ax.fill_between(frame["size"], frame["null_low"], frame["null_high"], color=PALE, alpha=0.35, linewidth=0,
                    label="one set against itself")  # fmt: skip
    ax.plot(frame["size"], frame["won"], "o-", color=ARMS["same-init"].color, linewidth=1.4, markersize=3.5,
            label="one set against the other")  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(frame["size"], [str(n) for n in frame["size"]])
    ax.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    ax.set_xlabel("lists in a packet")
    ax.set_ylabel("games won")
    ax.grid(axis="y")
    ax.set_title("Which teacher wrote these lists?")
    ax.legend(frameon=False)
    return figure


GAMES = FigureEntry(
    shows="how often a packet of lists is given to the right teacher, by its size",
    caption="A line above the grey band tells the two teachers apart. 50 % is a coin.",
    input="frame",
    draw=games,
)
