"""Figure of the field's claims: how far each test's effect lies from its threshold, and the verdict."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sublim_interp.core.drawing import INK, PALE, in_style

_LOOKS = {
    "supported": ("#0072B2", "o"),
    "contradicted": ("#D55E00", "X"),
    "depends on": ("#CC79A7", "D"),
    "too weak to tell": ("#7F7F7F", "s"),
    "not tried yet": (PALE, "_"),
}
"""Verdict → colour and mark: Okabe & Ito's colours, and a mark of its own each."""

_FURTHEST = 30.0
"""What lies further from the threshold stands here, as an arrow."""


@in_style
def verdicts(tests: pd.DataFrame) -> Figure:
    """What of the field's claims holds? A row a claim, a mark a test; right of the line is the claim's side.

    tests: a row a test: claim (its number and words), outcome (that under its condition), and distance, low, high: how
        far the effect and the ends of its interval lie on the claim's side of the threshold, in the smallest step that
        would matter; NaN where a claim was not tried, and ends where one replicate has none
    """
    claims = list(dict.fromkeys(tests["claim"]))[::-1]
    figure = Figure(figsize=(7.6, 0.21 * len(claims) + 1.1), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    for place, claim in enumerate(claims):
        own = tests.loc[tests["claim"] == claim]
        for i, test in enumerate(own.to_dict("records")):
            color, mark = _LOOKS[test["outcome"]]
            y = place + 0.22 * ((len(own) - 1) / 2 - i)
            middle, low, high = np.clip([test["distance"], test["low"], test["high"]], -_FURTHEST, _FURTHEST)
            ax.plot([low, high], [y, y], color=color, linewidth=1.1)
            beyond = {-_FURTHEST: "<", _FURTHEST: ">"}.get(middle)
            fill = "white" if test["outcome"] == "too weak to tell" else color
            ax.plot([middle], [y], marker=beyond or mark, color=color, markersize=4.2, markerfacecolor=fill)
    ax.set_xscale("symlog", linthresh=1, linscale=0.8)
    ax.set_xlim(-_FURTHEST * 1.15, _FURTHEST * 1.15)
    places = (-30, -10, -3, -1, 0, 1, 3, 10, 30)
    ax.set_xticks(places, [f"{place}".replace("-", "\N{MINUS SIGN}") for place in places])
    ax.minorticks_off()
    ax.set_yticks(range(len(claims)), claims, fontsize=6.5)
    for words, claim in zip(ax.get_yticklabels(), claims, strict=True):
        if tests.loc[tests["claim"] == claim, "distance"].isna().all():
            words.set_color("#8A8A8A")
    ax.set_ylim(-0.7, len(claims) - 0.3)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_xlabel("steps that would matter, from the threshold to the claim's side")
    figure.suptitle("What of the field's claims holds?", x=0.01, ha="left", weight="bold", size=9.5)
    seen = [name for name in _LOOKS if name in set(tests["outcome"])]
    marks = [
        Line2D([], [], color=_LOOKS[n][0], marker=_LOOKS[n][1], linestyle="", markersize=5, label=n,
               markerfacecolor="white" if n == "too weak to tell" else _LOOKS[n][0])
        for n in seen
    ]  # fmt: skip
    figure.legend(handles=marks, loc="outside lower left", ncols=len(marks), frameon=False)
    return figure
