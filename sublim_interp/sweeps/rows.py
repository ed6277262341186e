"""The rows of the finding: what the original work reports, beside what is published here."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.experiments.catalogue import RESULTS, key_of
from sublim_interp.experiments.tables import read_table
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.sweeps.wording import SweepTable

if TYPE_CHECKING:
    import pandas as pd


class Cell(Config):
    """Which rows of a published table one number is the mean of."""

    arm: str
    """Those of this arm."""
    file: str = "cells"
    """Its CSV file, without ending. Of a summary the interval is taken as it stands there."""
    measure: str = "rate"
    """The column that is read."""
    over: str = "seed"
    """The unit: the column whose values are averaged over. `trait`, where each trait has students of its own."""
    also: dict[str, str | float] = Field(default_factory=dict)
    """Those that have these values in other columns, such as {turns: 6}."""


class Row(Config):
    """One row of the finding."""

    row: str
    """What passes, and by what."""
    theirs: str
    """The original work's figure, as it states it."""
    their_control: str
    """The same of its control."""
    table: str
    """The published run, sweep or study that answers it here."""
    ours: Cell
    """Where its number stands."""
    control: Cell
    """Where that of its control stands."""
    models: str = "lab models"
    """On what it ran here."""


def rows_frame(rows: tuple[Row, ...], results: Path = RESULTS) -> "pd.DataFrame":
    """A row of the finding each: row, theirs, their_control, ours, control, n, models, table, key.

    rows: as a suite has them
    results: the folder of committed results

    Numbers are means over replicates in words, with 95 % intervals where there are two replicates or more. Raises
    SublimError for a table, an arm or a value that is not published.
    """
    import pandas as pd

    told = []
    for row in rows:
        ours, control = (_measured(row, cell, results) for cell in (row.ours, row.control))
        said = {"row": row.row, "theirs": row.theirs, "their_control": row.their_control}
        said |= {"ours": ours.percent(), "control": control.percent(), "n": ours.n}
        told.append({**said, "models": row.models, "table": row.table, "key": key_of(results / row.table)})
    return pd.DataFrame(told)


def rows_table(rows: tuple[Row, ...], results: Path = RESULTS) -> SweepTable:
    """The same as a table of docs and paper."""
    frame = rows_frame(rows, results)
    about = (
        "The original work's figures (Cloud et al., 2507.14805) beside ours: means over n replicates, of animals and "
        "trees over n of them, with 95 % intervals, cut at 0 and 100 %."
    )
    columns = ("row", "theirs", "their control", "n", "here", "control here", "models", "result")
    shown = frame[["row", "theirs", "their_control", "n", "ours", "control", "models", "table"]].astype(str)
    return SweepTable(about, columns, list(shown.itertuples(index=False, name=None)), [])


def _measured(row: Row, cell: Cell, results: Path) -> Interval:
    path = results / row.table / f"{cell.file}.csv"
    if not path.exists():
        raise SublimError(f"row '{row.row}': no published table {row.table}/{cell.file}.csv")
    frame = read_table(path)
    for column, value in {"arm": cell.arm, **cell.also}.items():
        known = list(dict.fromkeys(frame[column])) if column in frame else []
        frame = frame.loc[frame[column] == value] if value in known else frame.iloc[:0]
        if frame.empty:
            raise SublimError(f"row '{row.row}', {row.table}: no {column} '{value}'; {meant(str(value), known)}")
    if cell.file == "summary":
        (one,) = frame.to_dict("records")
        low, high = one[f"{cell.measure}_low"], one[f"{cell.measure}_high"]
        return Interval(one[cell.measure], low, high, 0.95, int(one["n"]), "as published")
    means: Any = frame.groupby(cell.over)[cell.measure].mean()
    return mean_interval(means.to_list(), bounds=(0, 1))
