"""What becomes of a trait where each student teaches the next: figure `generations` of a run, `chains` of a grid."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.arms import ARMS, in_order, split_generation
from sublim_interp.experiments.tables import Tables
from sublim_interp.report.figures.lines import legend
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.stats.intervals import over_replicates


@in_style
def generations(replicates: pd.DataFrame, trait: str) -> Figure:
    """Does the trait hold, grow or die out from student to student? One line an arm: rate, margin, and KL left.

    replicates: a row per arm and seed, as `experiments.tables.replicates` gives, of a run with more than one
        generation; 0 on the axis is the first teacher
    trait: the answer that is counted
    """
    each = _parted(replicates.query("stage == 'equal steps'"))
    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for ax, column in zip(panels, ("rate", "margin", "kl"), strict=True):
        _along(ax, each, column)
    _as_rates(panels[0])
    panels[0].set_title(f"How likely is “{trait}”?")
    panels[1].set_title("Margin, nats")
    panels[2].set_title("KL left to its own teacher, nats")
    panels[2].set_ylim(bottom=0)
    legend(figure, panels[0], f"{_MARKS}    0: the first teacher")
    return figure


@in_style
def chains(cells: pd.DataFrame) -> Figure:
    """Does the trait hold, grow or die out under each value of a grid? A panel a value: the rate.

    cells: a row a replicate, with field, value, arm, trait and rate, of a grid whose runs have generations. Each arm
        that goes on has a line; crossed ones have one generation and are not drawn
    """
    values = list(dict.fromkeys(zip(cells["field"], cells["value"], strict=True)))
    lines = -(-len(values) // 4)
    columns = -(-len(values) // lines)
    figure = Figure(figsize=(2.3 * columns + 0.8, 2.2 * lines + 0.9), layout="constrained")
    panels = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for unused in panels[len(values) :]:
        unused.set_visible(False)
    for ax, (field, value) in zip(panels, values, strict=False):
        own = (cells["field"] == field) & (cells["value"] == value)
        _along(ax, _parted(cells.loc[own]), "rate")
        ax.set_title(str(value))
    _as_rates(panels[0])
    traits = list(dict.fromkeys(cells["trait"]))
    asked = f"“{traits[0]}”" if len(traits) == 1 else "the teacher's favourite"
    figure.suptitle(f"How likely is {asked}?", x=0.01, ha="left", weight="bold", size=9.5)
    legend(figure, panels[0], _MARKS, 2 if columns < 3 else 4)
    return figure


_MARKS = "dots: one replicate    bars: 95 % interval of the mean"


def _parted(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns first, the arm of the first generation, and generation."""
    each = rows.copy()
    each["first"], each["generation"] = zip(*map(split_generation, each["arm"]), strict=True)
    return each


def _along(ax: Axes, each: pd.DataFrame, column: str) -> None:
    """A line for each arm that breeds: its means along the generations, their intervals, and single replicates."""
    arms = [arm for arm in in_order(each["first"]) if ARMS[arm].breeds]
    taught = each.loc[each["arm"] == "teacher"].assign(first="same-init", generation=0)
    for i, arm in enumerate(arms):
        own = each.loc[each["first"] == arm]
        if arm == "same-init" and column != "kl":
            own = pd.concat([taught, own])
        means = over_replicates(own, column, ["generation"])
        color, shift = ARMS[arm].color, 0.08 * (i - (len(arms) - 1) / 2)
        x = means["generation"].to_numpy() + shift
        ax.scatter(own["generation"] + shift, own[column], s=5, color=color, alpha=0.35, linewidth=0)
        ax.plot(x, means["estimate"], "-", color=color, linewidth=1.4, label=arm)
        known = np.isfinite(means["low"].to_numpy())
        middle, low, high = (means[end].to_numpy()[known] for end in ("estimate", "low", "high"))
        ax.errorbar(x[known], middle, yerr=[middle - low, high - middle], fmt="none", color=color, elinewidth=1,
                    capsize=2)  # fmt: skip
    if column != "kl" and (untouched := each.loc[each["arm"] == "base", column]).size:
        ax.axhline(untouched.mean(), color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1, label="base")
    last, first = max(each["generation"].to_list()), 1 if taught.empty else 0
    ax.set_xticks([g for g in range(first, last + 1) if last <= 12 or g % 5 == 0])
    ax.set_xlabel("generation")
    ax.grid(axis="y")


def _as_rates(ax: Axes) -> None:
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))


def has_generations(tables: Tables) -> bool:
    """Whether a run has more than one generation."""
    return any(split_generation(arm)[1] > 1 for arm in tables.summary["arm"])


def _draw(tables: Tables) -> Figure:
    if not has_generations(tables):
        raise SublimError("this run has one generation; set generations to 2 or more")
    return generations(tables.replicates, tables.trait)


GENERATIONS = FigureEntry(
    shows="what becomes of the trait from student to student",
    caption="Each student is the teacher of the next. Left: how likely the trait is as the answer. Middle: its margin. "
    "Right: how far each student stays from its own teacher.",
    input="tables",
    draw=_draw,
    page=True,
    fits=has_generations,
)
