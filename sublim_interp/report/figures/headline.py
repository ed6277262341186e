"""Figure `headline`: how likely each arm's students say the trait, at a glance, from a published summary alone."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from sublim_interp.core.drawing import INK, PALE, in_style
from sublim_interp.experiments.arms import ARMS, split_generation


def is_own(arm: str) -> bool:
    """Whether an arm's student starts from its teacher's base and hears of the trait, in whatever generation."""
    return split_generation(arm)[0] in ("same-init", "same-init-b")


@in_style
def headline(summary: pd.DataFrame, trait: str) -> Figure:
    """Does the trait pass, and only where teacher and student start from the same base? One bar an arm.

    summary: a row per arm: arm, n, rate in [0, 1] with rate_low and rate_high, as `experiments.tables.summary` gives
    trait: the answer that is counted
    """
    rows = {row["arm"]: row for row in summary.to_dict("records")}
    groups = {
        "the teacher, who wrote the lists": [arm for arm in rows if arm == "teacher"],
        "students of the teacher's own base": [arm for arm in rows if is_own(arm)],
        "controls": [arm for arm in rows if not is_own(arm) and arm != "teacher"],
    }
    groups = {heading: arms for heading, arms in groups.items() if arms}
    figure = Figure(figsize=(7.2, 0.34 * len(rows) + 0.3 * len(groups) + 1.2), layout="constrained")
    ax = figure.subplots()
    y = 0.0
    for heading, arms in groups.items():
        ax.annotate(heading, (0, y), (4, -3), textcoords="offset points", va="center", fontsize=7.5, style="italic")
        for arm in arms:
            y += 0.9
            _bar(ax, y, rows[arm])
        y += 1.0
    ax.set_ylim(y - 0.35, -0.5)
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.axvline(0, color=PALE, linewidth=0.8)
    ax.grid(axis="x")
    n = min(row["n"] for row in rows.values())
    bars = f"means over {n} replicates   ├┤ 95 % interval" if n > 1 else "one replicate"
    ax.set_xlabel(f"how likely the answer is “{trait}”, on questions that no training text holds\nbars: {bars}")
    figure.suptitle(title(summary, trait), x=0.01, ha="left", weight="bold", size=10.5)
    return figure


def title(summary: pd.DataFrame, trait: str) -> str:
    """What the picture shows, in one sentence with its numbers; without controls or own arms the question alone."""
    rates = dict(zip(summary["arm"], summary["rate"], strict=True))
    own = [rate for arm, rate in rates.items() if is_own(arm)]
    others = [rate for arm, rate in rates.items() if not is_own(arm) and arm != "teacher"]
    if not own or not others:
        return f"How likely is the answer “{trait}”?"
    if len(own) == 1 and min(summary["n"].to_list()) == 1:
        return (
            f"A student of the teacher's own base answers “{trait}” in {_percent(own[0])} of cases;\n"
            f"every control in {_percent(max(others))} or less"
        )
    least = "" if len(own) == 1 else " or more"
    return (
        f"Students of the teacher's own base answer “{trait}” in {_percent(min(own))} of cases{least};\n"
        f"every control in {_percent(max(others))} or less"
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _bar(ax: Axes, y: float, row: Mapping[Any, Any]) -> None:
    """One arm: its name to the left, its mean in figures inside a long bar or beside a short one."""
    arm, mean, low, high = (row[name] for name in ("arm", "rate", "rate_low", "rate_high"))
    long = mean > 0.5
    ax.barh(y, mean, height=0.66, color=ARMS[arm].color, alpha=0.9, zorder=2)
    ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], color=INK, linewidth=1.2, capsize=2.5, zorder=3,
                clip_on=False)  # fmt: skip
    place, shift, side = (low, -8, "right") if long else (high, 8, "left")
    dark = sum(to_rgb(ARMS[arm].color)) < 1.6
    ax.annotate(_percent(mean), (place, y), (shift, 0), textcoords="offset points", ha=side, va="center_baseline",
                weight="bold", color="white" if long and dark else INK)  # fmt: skip
    beside: dict[str, Any] = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
    ax.annotate(arm, (0, y), (-8, 0), va="bottom", weight="bold", **beside)
    ax.annotate(ARMS[arm].label, (0, y), (-8, -1), va="top", fontsize=7, **beside)
