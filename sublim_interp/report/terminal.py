"""A run's tables for a terminal."""

from typing import Any

import pandas as pd
from rich import box
from rich.bar import Bar
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sublim_interp.experiments.tables import records
from sublim_interp.report.verdict import at_equal_kl
from sublim_interp.report.wording import count as words_count
from sublim_interp.report.wording import number, p_value, points, text


def terminal(summary: pd.DataFrame, contrasts: pd.DataFrame, title: str = "") -> Group:
    """Both tables for a terminal of 80 columns or more: rates in percent, 95 % intervals in brackets."""
    shape: dict[str, Any] = {"box": box.SIMPLE, "pad_edge": False, "collapse_padding": True}
    arms = Table(title=title or None, title_justify="left", **shape)
    measure, unit, digits = ("bits", "bits a fact", 3) if "bits" in summary else ("margin", "margin, nats", 1)
    for heading in ("arm", "n", "rate, %", "", unit, "KL", "kept"):
        arms.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    rows = records(summary)
    for row in rows:
        rate, bar = text(row, "rate").replace(" %", ""), Bar(1, 0, row["rate"], width=4)
        distances = number("kl", row["kl"]), number("kept", row["kept"], 0)
        arms.add_row(row["arm"], str(row["n"]), rate, bar, text(row, measure, digits), *distances)
    lines = [f"{row['arm']} at equal KL: {at_equal_kl(row, summary)}" for row in rows if row["equal_kl"]]
    differences = Table(**shape)
    for heading in ("contrast, at equal steps", "points", "p", "counted"):
        differences.add_column(heading, justify="left" if "contrast" in heading else "right", no_wrap=True)
    notes: dict[str, dict[str, None]] = {}
    for row in records(contrasts):
        name = row["contrast"] + ", equal KL" * (row["stage"] == "equal KL")
        floor = "*" if row["n"] > 1 and row["p"] <= row["p_floor"] else " "
        differences.add_row(name, points(row), p_value(row) + floor, words_count(row["n"], row["unit"]))
        for note in filter(None, row["note"].split("; ")):
            notes.setdefault(note, {})[name] = None
    parts: list[Table | Text] = [arms, *map(Text, lines)]
    if len(contrasts):
        count = f"paired by seed; n base pairs = {contrasts['base_pairs'].max()}; * the smallest p that so few allow"
        parts += [differences, Text(count), *(Text(f"{note}: {'; '.join(names)}") for note, names in notes.items())]
    return Group(*parts)
