"""A run's tables for a terminal."""

from typing import Any

import pandas as pd
from rich import box
from rich.bar import Bar
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sublim_interp.experiments.tables import records
from sublim_interp.report.notes import limits
from sublim_interp.report.verdict import at_equal_kl
from sublim_interp.report.wording import count as words_count
from sublim_interp.report.wording import number, p_value, points, text


def terminal(summary: pd.DataFrame, contrasts: pd.DataFrame, title: str = "") -> Group:
    """Arms and contrasts for a terminal of 80 columns or more: rates in percent, 95 % intervals in brackets.

    summary, contrasts: as `Tables` has them
    title: above the first table
    """
    return Group(_arms(summary, title), *map(Text, at_equal_kl(summary)), *_differences(contrasts))


_SHAPE: dict[str, Any] = {"box": box.SIMPLE, "pad_edge": False, "collapse_padding": True}


def _arms(summary: pd.DataFrame, title: str) -> Table:
    table = Table(title=title or None, title_justify="left", **_SHAPE)
    measure, unit, digits = ("bits", "bits a fact", 3) if "bits" in summary else ("margin", "margin, nats", 1)
    for heading in ("arm", "n", "rate, %", "", unit, "KL", "kept"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for row in records(summary):
        rate, bar = text(row, "rate").replace(" %", ""), Bar(1, 0, row["rate"], width=4)
        distances = number("kl", row["kl"]), number("kept", row["kept"], 0)
        table.add_row(row["arm"], str(row["n"]), rate, bar, text(row, measure, digits), *distances)
    return table


def _differences(contrasts: pd.DataFrame) -> list[Table | Text]:
    """The table of contrasts, and below it what its marks mean and what limits it; nothing without contrasts."""
    if contrasts.empty:
        return []
    table = Table(**_SHAPE)
    for heading in ("contrast, at equal steps", "points", "p", "counted"):
        table.add_column(heading, justify="left" if "contrast" in heading else "right", no_wrap=True)
    for row in records(contrasts):
        name = row["contrast"] + ", equal KL" * (row["stage"] == "equal KL")
        floor = "*" if row["n"] > 1 and row["p"] <= row["p_floor"] else " "
        table.add_row(name, points(row), p_value(row) + floor, words_count(row["n"], row["unit"]))
    pairs = words_count(max(contrasts["base_pairs"].to_list()), "pair of bases", "pairs of bases")
    marks = f"Differences are paired by seed, over {pairs}."
    if max(contrasts["n"].to_list()) > 1:
        marks += " * is the smallest p that so few allow."
    return [table, Text(marks), *map(Text, limits(contrasts))]
