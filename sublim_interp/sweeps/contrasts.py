"""Contrasts that a grid asks for beside its table: some cells minus others, paired by seed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.report.wording import capital, count
from sublim_interp.stats.intervals import mean_interval
from sublim_interp.sweeps.wording import minus

if TYPE_CHECKING:
    import pandas as pd

Cell = tuple[str, str]
"""A value in the grid's words, and an arm."""


class Contrast(Config):
    """One difference: what is said of it, and the cells that it is of. Several on a side are averaged in each seed."""

    name: str
    """What it is, in words."""
    plus: tuple[Cell, ...] = Field(min_length=1)
    """Value and arm of the cells that count."""
    minus: tuple[Cell, ...] = ()
    """Those of the cells that are subtracted; none: the mean of `plus` itself is told."""


def contrast_lines(contrasts: Sequence[Contrast], cells: "pd.DataFrame") -> tuple[list[str], dict[str, str]]:
    """What is said below a table, a sentence a contrast, and its numbers by name.

    contrasts: as a grid has them
    cells: its cells.csv: value, arm, seed, rate, margin

    The seed is the unit: cells of one seed share teachers, so each side is averaged within it. Raises SublimError for
    a value or an arm that the sweep lacks.
    """
    lines, numbers = [], {}
    for asked in contrasts:
        said = []
        for measure, scale, digits, unit in (("rate", 100.0, 1, "points"), ("margin", 1.0, 2, "nats")):
            each = _by_seed(asked.plus, cells, measure)
            if asked.minus:
                each = (each - _by_seed(asked.minus, cells, measure)).dropna()
            found = mean_interval(each.to_list())
            ends = (minus(f"{scale * x:z.{digits}f}") for x in (found.estimate, found.low, found.high))
            size = "{} {unit} [{}, {}]".format(*ends, unit=unit)
            said.append(size)
            numbers[f"contrast/{asked.name}/{measure}"] = size
        over = "paired by" if asked.minus else "over"
        lines.append(f"{capital(asked.name)}: {said[0]}, by margin {said[1]}, {over} {count(len(each), 'seed')}.")
    return lines, numbers


def _by_seed(side: Sequence[Cell], cells: "pd.DataFrame", measure: str) -> Any:
    """The mean over some cells in each seed that has all of them."""
    import pandas as pd

    columns = []
    for value, arm in side:
        own = cells.loc[(cells["value"] == value) & (cells["arm"] == arm)]
        if own.empty:
            known = sorted({f"{v}, {a}" for v, a in zip(cells["value"], cells["arm"], strict=True)})
            raise SublimError(f"contrast: no cell '{value}, {arm}'; {meant(f'{value}, {arm}', known)}")
        columns.append(own.set_index("seed")[measure])
    return pd.concat(columns, axis=1).dropna().mean(axis=1)
