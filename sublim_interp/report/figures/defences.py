"""Figure `defences`: what each defence leaves of the trait, against what it leaves of the task."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import MultipleLocator, PercentFormatter
from matplotlib.transforms import Bbox

from sublim_interp.core.drawing import INK, PALE, in_style
from sublim_interp.report.wording import FEW

FAMILIES = {
    "none": ("undefended", "#000000", "*"),
    "filter": ("other lists", "#0072B2", "o"),
    "arms": ("another start", "#E69F00", "^"),
    "student": ("another training", "#D55E00", "s"),
}
"""Field's first part → its name, colour and mark. Okabe & Ito's colours, and a mark of its own each."""

_SIGNS = {"filter": "●", "arms": "▲", "student": "■"}

WORST = -0.5
"""The least share of the task that is drawn to scale; what lies further left stands here, with an arrow."""


@in_style
def defences(points: pd.DataFrame, trait: str, untouched: float) -> Figure:
    """How much trait is left, and how much of the task? A number a defence, with bars; the key is beneath.

    points: a row a defence, the first without any, as `sweeps.modes.defences.points` gives them
    trait: the answer that is counted
    untouched: its rate in bases that were not trained, as a dashed line
    """
    rows = points.to_dict("records")
    lines = -(-len(rows) // 2) + 2
    figure = Figure(figsize=(3.5, _PANEL + _LINE * lines))
    FigureCanvasAgg(figure)  # numbers are placed by the room there is
    height = _PANEL / figure.get_figheight()
    ax = figure.add_axes((0.15, 1 - 0.82 * height, 0.79, 0.72 * height))
    ax.axhline(untouched, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    low = min([0.0, *(row["task_low"] for row in rows), *(row["task"] for row in rows)])
    ax.set_xlim(max(WORST, low) - 0.06, 1.03)
    ax.set_ylim(-0.04, 1.06)
    for row in rows:
        _point(ax, row, _family(row, rows))
    front = sorted((row for row in rows if row["front"]), key=lambda row: row["task"])
    ax.plot([max(WORST, row["task"]) for row in front], [row["rate"] for row in front], color=PALE, linewidth=1.4,
            drawstyle="steps-pre", zorder=1)  # fmt: skip
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MultipleLocator(0.25))
        axis.set_major_formatter(PercentFormatter(1, 0, " %"))
    ax.tick_params(labelsize=7.5)
    ax.grid()
    ax.set_xlabel("task kept: distance closed to a harmless teacher", fontsize=8)
    label = ax.annotate("untouched base", (1, untouched), (0, -2), xycoords=ax.get_yaxis_transform(), fontsize=6.5,
                        ha="right", va="top", textcoords="offset points")  # fmt: skip
    figure.suptitle(f"Trait left: how likely is “{trait}”?", x=0.02, y=0.985, ha="left", weight="bold", size=9)
    _number(ax, rows, label)
    _key(figure, rows, 1 - height, _LINE / figure.get_figheight())
    return figure


_PANEL, _LINE = 3.3, 0.145
"""Inches of the panel with title and axis, and of a line of the key."""


def _family(row: dict[Any, Any], rows: Sequence[dict[Any, Any]]) -> str:
    first = str(row["field"]).partition(".")[0]
    return "none" if row is rows[0] else first if first in FAMILIES else "student"


def _point(ax: Axes, row: dict[Any, Any], family: str) -> None:
    """Mark and bars of one defence."""
    _, color, mark = FAMILIES[family]
    x, y = max(WORST, row["task"]), row["rate"]
    if np.isfinite([row["task_low"], row["task_high"], row["rate_low"], row["rate_high"]]).all():
        across = [[x - max(WORST, row["task_low"])], [max(WORST, row["task_high"]) - x]]
        ax.errorbar(x, y, xerr=across, yerr=[[y - row["rate_low"]], [row["rate_high"] - y]], color=color, alpha=0.55,
                    linewidth=0.8, zorder=2)  # fmt: skip
    ax.plot([x], [y], mark, color=color, markersize=9 if family == "none" else 4.5, markeredgewidth=0, zorder=3)
    if row["task"] < WORST:
        arrow = {"arrowstyle": "<-", "color": color, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 2}
        ax.annotate("", (x, y), (-11, 0), textcoords="offset points", arrowprops=arrow)


_REACHES = (7, 10, 14, 19, 25, 32, 40, 50, 62)
"""How far a number may stand from its point, in points of print, the nearest first."""


def _number(ax: Axes, rows: Sequence[dict[Any, Any]], label: Annotation) -> None:
    """Every number at the nearest place where it covers no mark, label or other number; a line leads there from afar.

    Bars are covered where nothing else is left.
    """
    dots = [ax.transData.transform((max(WORST, row["task"]), row["rate"])) for row in rows]
    pixel = ax.figure.dpi / 72
    marks = [Bbox.from_extents(*(dot - 3.5 * pixel), *(dot + 3.5 * pixel)) for dot in dots]
    marks.append(label.get_window_extent())
    bars = [bar for row in rows for bar in _bars(ax, row)]
    inside = ax.get_window_extent()
    for number, dot in enumerate(dots, 1):
        half = pixel * np.array([2.6 * len(str(number)), 4.0])
        found = []
        for reach, turn in product(_REACHES, range(16)):
            angle = np.pi * (turn / 8 + 1 / 4)
            middle = dot + pixel * reach * np.array([np.cos(angle), np.sin(angle)])
            box = Bbox.from_extents(*(middle - half), *(middle + half))
            if inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1:
                covered = sum(map(box.overlaps, marks))
                found.append((covered, reach + 8 * sum(map(box.overlaps, bars)), reach, middle, box))
        _, _, reach, middle, box = min(found, key=lambda place: place[:3])
        marks.append(box)
        line = {"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0.5, 0.5)}
        x, y = ax.transData.inverted().transform(dot)
        ax.annotate(str(number), (x, y), (middle - dot) / pixel, textcoords="offset points", ha="center", va="center",
                    fontsize=7, weight="bold", zorder=4, path_effects=[withStroke(linewidth=1.8, foreground="white")],
                    arrowprops=line if reach > 12 else None)  # fmt: skip


def _bars(ax: Axes, row: dict[Any, Any]) -> Iterator[Bbox]:
    """The room that the bars of a defence take, across and upright."""
    x, y = max(WORST, row["task"]), row["rate"]
    yield Bbox(ax.transData.transform([(max(WORST, row["task_low"]), y), (max(WORST, row["task_high"]), y)]))
    yield Bbox(ax.transData.transform([(x, row["rate_low"]), (x, row["rate_high"])]))


def _key(figure: Figure, rows: Sequence[dict[Any, Any]], top: float, line: float) -> None:
    """What the numbers mean, in two columns beneath the panel."""
    half = -(-len(rows) // 2)
    for i, row in enumerate(rows):
        column, place = divmod(i, half)
        y = top - 0.25 * line - place * line
        _, color, mark = FAMILIES[_family(row, rows)]
        x = 0.03 + 0.5 * column
        figure.add_artist(_mark(figure, x, y, color, mark))
        figure.text(x + 0.055, y, f"{i + 1}", fontsize=7, weight="bold", ha="right", va="center")
        figure.text(x + 0.07, y, str(row["value"]), fontsize=7, va="center")
    shown = {_family(row, rows): None for row in rows[1:]}
    n = min(row["n"] for row in rows)
    bars = "one replicate" if n < 2 else "bars: 95 % interval" if n >= FEW else "bars: least and most"
    for i, note in enumerate(("  ".join(f"{_SIGNS[name]} {FAMILIES[name][0]}" for name in shown),
                              f"{bars}   grey: no other is below and to the right")):  # fmt: skip
        figure.text(0.03, top - (half + 0.6 + i) * line, note, fontsize=6.5, va="center")


def _mark(figure: Figure, x: float, y: float, color: str, mark: str) -> Line2D:
    size = 7 if mark == "*" else 4.5
    return Line2D([x], [y], marker=mark, color=color, linestyle="none", markersize=size, markeredgewidth=0,
                  transform=figure.transFigure)  # fmt: skip
