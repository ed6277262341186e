"""Mode behaviours: each trait where it should show and where it should not, and how many of its bits pass."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.tables import records
from sublim_interp.report.wording import mean
from sublim_interp.sweeps.cells import GridCell, cell_means, measured
from sublim_interp.sweeps.modes.fields import Fields, read_cells
from sublim_interp.sweeps.modes.matrix import require_one_axis
from sublim_interp.sweeps.wording import SweepTable, fields, minus, row_ends, row_spread, sized
from sublim_interp.traits.behaviours import Behaviour

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ARM = "same-init"
"""The arm whose bits are told in words."""


class Behaviours(Fields):
    """A cell for each behaviour that teachers are given. The teacher is among the arms: its bits are what it takes."""

    version, figure = 1, "behaviours"

    def check(self) -> None:
        require_one_axis(self.grid, "trait")

    def check_cells(self, cells: Sequence[GridCell]) -> None:
        for _, value, p in cells:
            if not isinstance(p.cells[0].evaluation.trait, Behaviour):
                raise SublimError(
                    f"matrix=behaviours: the trait {value} is no behaviour, so nothing says where it should not show; "
                    "give a file with on and off"
                )
            if "teacher" not in {c.arm for c in p.cells}:
                raise SublimError(f"matrix=behaviours: {value} has no teacher, whose bits are what the trait takes")

    def frames(self, cells: Sequence[GridCell], store: Store) -> "dict[str, pd.DataFrame]":
        return {"cells": measured(cells, store, ())}

    def table(self, directory: Path) -> SweepTable:
        frame = read_cells(directory)
        rows = [
            (*fields(row, "value", "arm", "n"), row_spread(row), row_ends(row, "elsewhere"),
             row_ends(row, "trait_bits"), mean(row, "kl"))
            for row in records(cell_means(frame))
        ]  # fmt: skip
        lines, numbers = [], {}
        for row in sorted(records(passed(frame)), key=lambda row: row["bits"]):
            if row["arm"] == ARM:
                own = minus(f"{row['passed']:z.0f}")
                said = f"{row['bits']:.0f} bits to say; {own} passed, {_share(row)}"
                lines.append(f"Of {ARM} students: {row['value']} takes {said}.")
                numbers[f"bits/{row['value']}"] = said
        for place, own in frame.loc[frame["arm"] == ARM].groupby("value", sort=False):
            apart = sized((own["rate"] - own["elsewhere"]).to_list(), 100.0, "points")
            lines.append(f"{place}: their rate where it should show minus that where it should not is {apart}.")
            numbers[f"apart/{place}"] = apart
        about = (
            "Means over replicates, with their least and most. Bits are counted from the base, over all that is asked."
        )
        columns = ("trait", "arm", "n", "where it should show", "where it should not", "bits of the trait", "KL left")
        return SweepTable(about, columns, rows, lines, numbers)

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.behaviours import behaviours

        frame = read_cells(directory)
        return behaviours(frame, passed(frame))


def passed(frame: "pd.DataFrame") -> "pd.DataFrame":
    """How much of each trait passed, a row a trait and student's arm.

    frame: a row per value, arm and seed, as in cells.csv

    Returns value, arm, bits (means over seeds of the teacher's bits), passed (of the student's), and share with _low
    and _high: the student's bits over its own teacher's, a mean over seeds with the least and the most.
    """
    import pandas as pd

    teachers = frame.loc[frame["arm"] == "teacher"].set_index(["value", "seed"])["trait_bits"]
    rows: list[dict[str, Any]] = []
    for place, own in frame.groupby(["value", "arm"], sort=False):
        value, arm = cast(tuple[str, str], place)
        # A teacher whose lists led nowhere is not asked.
        own = own.loc[[(value, seed) in teachers.index for seed in own["seed"]]]
        if arm in ("teacher", "base") or own.empty:
            continue
        taught = [float(teachers.loc[value, seed]) for seed in own["seed"]]
        shares = [got / had for got, had in zip(own["trait_bits"], taught, strict=True) if had > 0]
        share = {"share": fmean(shares), "share_low": min(shares), "share_high": max(shares)} if shares else {}
        rows.append({"value": value, "arm": arm, "bits": fmean(taught), "passed": fmean(own["trait_bits"]), **share})
    return pd.DataFrame(rows, columns=["value", "arm", "bits", "passed", "share", "share_low", "share_high"])


def _share(row: Mapping[str, Any]) -> str:
    """A share with its ends, in words; for a teacher that holds no bit there is none."""
    if isnan(row["share"]):
        return "no share"
    middle, low, high = (minus(f"{100 * row[name]:z.0f}") for name in ("share", "share_low", "share_high"))
    return f"{middle} % ({low} to {high})"
