"""Mode defences: what each defence leaves of the trait, against what it leaves of the task."""

from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.tables import average, records
from sublim_interp.report.wording import FEW
from sublim_interp.stats.intervals import Bounds, mean_interval
from sublim_interp.sweeps.cells import GridCell
from sublim_interp.sweeps.modes.fields import Fields, read_cells
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TAUGHT, HARMLESS = ("same-init", "cross-init"), ("neutral", "cross-neutral")
"""Arms whose teacher has the trait, and arms whose teacher is harmless; a cell has one of each."""


class Defences(Fields):
    """A cell for each defence, as in the plain mode, whose files its sweeps have; the first cell has no defence."""

    figure, keyed_as = "defences", ""

    def check_cells(self, cells: Sequence[GridCell]) -> None:
        for field, value, p in cells:
            own = [[arm for arm in sides if arm in p.named.arms] for sides in (TAUGHT, HARMLESS)]
            if [len(side) for side in own] != [1, 1] or "base" not in p.named.arms:
                raise SublimError(
                    f"matrix=defences: {field} {value} has the arms {', '.join(p.named.arms)}; it needs one of "
                    f"{' and '.join(TAUGHT)}, one of {' and '.join(HARMLESS)}, and base"
                )

    def table(self, directory: Path) -> SweepTable:
        frame = read_cells(directory)
        found = records(points(frame))
        rows = [
            (row["value"], str(row["n"]), _percent(row, "rate"), _worded(row, "margin", 1.0, 2, ""),
             _percent(row, "task"), _percent(row, "own_task"))
            for row in found
        ]  # fmt: skip
        columns = ("defence", "n", "trait's rate", "margin, nats", "task kept", "task kept, trait's lists")
        about = (
            "Means over replicates, with 95 % intervals in brackets; of fewer than four, least and most in parentheses."
        )
        best = [row["value"] for row in found if row["front"]]
        untouched = f"{100 * _untouched(frame):.1f} %"
        said = (
            f"No other leaves both less trait and more of the task than {', '.join(best)}. Untouched bases say "
            f"“{frame['trait'].iloc[0]}” in {untouched}."
        )
        return SweepTable(about, columns, rows, [said], {"front": ", ".join(best), "untouched": untouched})

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.defences import defences

        frame = read_cells(directory)
        return defences(points(frame), frame["trait"].iloc[0], _untouched(frame))


def points(frame: "pd.DataFrame") -> "pd.DataFrame":
    """What each defence leaves, a row a cell in the order of the grid.

    frame: a row per field, value, arm and seed, as in cells.csv

    Returns field, value, n (replicates), front (whether no other cell is as good in both and better in one), and
    with _low and _high: rate of the trait in [0, 1] and its margin in nats, of the trait's student; task, the share of
    the distance to a harmless teacher on unread lists that its student closed, below 0 where it went further away; and
    own_task, the same of the trait's student. Ends of fewer than four replicates are the least and the most.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for place, own in frame.groupby(["field", "value"], sort=False):
        closed = own.assign(closed=1 - own["kl"] / own["kl_start"])
        taught, harmless = (closed.loc[closed["arm"].isin(arms)] for arms in (TAUGHT, HARMLESS))
        measures = {
            "rate": taught["rate"], "margin": taught["margin"], "task": harmless["closed"], "own_task": taught["closed"]
        }  # fmt: skip
        row: dict[str, Any] = dict(zip(("field", "value"), cast(tuple[str, str], place), strict=True))
        row["n"] = len(taught)
        for name, values in measures.items():
            bounds = (0, 1) if name == "rate" else None
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), _ends(values.to_list(), bounds), strict=True))
        rows.append(row)
    for row in rows:
        row["front"] = not (isnan(row["rate"]) or isnan(row["task"]) or any(_beats(other, row) for other in rows))
    return pd.DataFrame(rows)


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a defence is as good as another in both, and better in one."""
    both = one["rate"] <= other["rate"] and one["task"] >= other["task"]
    return both and (one["rate"] < other["rate"] or one["task"] > other["task"])


def _ends(values: list[float], bounds: Bounds) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval, or the least and the most of few; NaN where there is none."""
    if not values:
        return nan, nan, nan
    if len(values) < FEW:
        return average(values), min(values), max(values)
    found = mean_interval(values, bounds=bounds)
    return found.estimate, found.low, found.high


def _untouched(frame: "pd.DataFrame") -> float:
    """The rate of the trait in untouched bases."""
    return average(frame.loc[frame["arm"] == "base", "rate"].to_list())


def _percent(row: Mapping[str, Any], name: str) -> str:
    return _worded(row, name, 100.0, 1, " %")


def _worded(row: Mapping[str, Any], name: str, scale: float, digits: int, unit: str) -> str:
    """A measure with its ends; a dash where no student was measured."""
    if isnan(row[name]):
        return "–"
    middle, low, high = (f"{scale * row[end]:z.{digits}f}" for end in (name, f"{name}_low", f"{name}_high"))
    ends = "" if row["n"] < 2 else f" ({low} to {high})" if row["n"] < FEW else f" [{low}, {high}]"
    return minus(f"{middle}{unit}{ends}")
