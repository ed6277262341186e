"""Contrasts that a grid asks for beside its table: some cells minus others, paired by seed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

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

    The seed is the unit: cells of one seed share teachers, so each side is averaged within it. Where no seed has all
    cells of a contrast, as cells may lead nowhere, it cannot be told.
    """
    lines, numbers = [], {}
    for asked in contrasts:
        rate, margin = (_by_seed(asked, cells, measure) for measure in ("rate", "margin"))
        if not rate or not margin:
            lines.append(f"{capital(asked.name)}: cannot be told, as no seed has all of its cells.")
            continue
        points, nats = minus(mean_interval(rate).points()), minus(mean_interval(margin).nats())
        over = "paired by" if asked.minus else "over"
        lines.append(f"{capital(asked.name)}: {points}, by margin {nats}, {over} {count(len(rate), 'seed')}.")
        numbers |= {f"contrast/{asked.name}/rate": points, f"contrast/{asked.name}/margin": nats}
    return lines, numbers


def _by_seed(asked: Contrast, cells: "pd.DataFrame", measure: str) -> list[float]:
    """The contrast in each seed that has all of its cells."""
    import pandas as pd

    def side(of: Sequence[Cell]) -> Any:
        own = [cells.loc[(cells["value"] == value) & (cells["arm"] == arm)] for value, arm in of]
        return pd.concat([one.set_index("seed")[measure] for one in own], axis=1).dropna().mean(axis=1)

    found = side(asked.plus) - side(asked.minus) if asked.minus else side(asked.plus)
    return found.dropna().to_list()
