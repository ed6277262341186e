"""How sweeps and published runs are worded: a table with its sentences, and the numbers within them."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

from sublim_interp.report.wording import FEW, extent, markdown, mean, names
from sublim_interp.report.wording import count as counted
from sublim_interp.stats.intervals import mean_interval


class SweepTable(NamedTuple):
    """The table of a sweep and the sentences around it, for the terminal, Markdown and the paper alike."""

    about: str
    """One sentence above the table: what its numbers are."""
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    lines: list[str]
    """Paragraphs below the table."""
    numbers: Mapping[str, str] = MappingProxyType({})
    """What was worked out of the cells and stands in no row, by name: the paper quotes it."""


def as_markdown(table: SweepTable, made: str) -> str:
    """The table as Markdown, with its sentences; `made` says by which command, under which key."""
    lines = [f"{table.about} {made}", "", *markdown(table.columns, table.rows)]
    return "\n".join([*lines, *(line for below in table.lines for line in ("", below)), ""])


def bare(table: SweepTable) -> str:
    """The rows alone as Markdown."""
    return "\n".join([*markdown(table.columns, table.rows), ""])


DISTANCES = ("KL at the start", "KL left", "lists kept")
"""Headings of what `distances` words."""


def fields(row: Mapping[str, Any], *columns: str) -> tuple[str, ...]:
    """The values of these columns as they are."""
    return tuple(str(row[name]) for name in columns)


def distances(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """KL from the teacher before and after training (nats a token), and the share of the lists that the filter kept."""
    return f"{row['kl_start']:.4f}", f"{row['kl']:.4f}", f"{100 * row['kept']:.0f} %"


def spread(rates: Iterable[float]) -> str:
    """Mean of rates in [0, 1] with their least and most, where there are several: `98.1 % (92.8–99.7)`."""
    given = list(rates)
    return _spread(len(given), fmean(given), min(given), max(given))


def row_spread(row: Mapping[str, Any]) -> str:
    """The same of a row of `cell_means`."""
    return _spread(row["n"], row["rate"], row["least"], row["most"])


def _spread(n: int, *rates: float) -> str:
    rate, least, most = (f"{100 * value:.1f}" for value in rates)
    return f"{rate} %" if n == 1 else f"{rate} % ({least}–{most})"


def row_ends(row: Mapping[str, Any], name: str) -> str:
    """A mean of a row of `cell_means` with its least and most, in parentheses."""
    return f"{mean(row, name)} {extent(row, name)}".rstrip()


def minus(words: str) -> str:
    """Text whose hyphens are minus signs."""
    return words.replace("-", "−")


def nats(value: float) -> str:
    """A number of nats, to the hundredth."""
    return minus(f"{value:z.2f}")


def sized(each: Sequence[float], scale: float, unit: str) -> str:
    """The mean over units with its 95 % interval in brackets; of few units with their least and most in parentheses.

    each: one value a unit
    scale: what they are multiplied by, 100 for points
    """
    found, few = mean_interval(each), len(each) < FEW
    ends = (min(each), max(each)) if few else (found.low, found.high)
    estimate, low, high = (minus(f"{scale * x:z.1f}") for x in (found.estimate, *ends))
    return f"{estimate} {unit} ({low}–{high})" if few else f"{estimate} {unit} [{low}, {high}]"


def origin(bases: Sequence[str], replicates: int) -> str:
    """From which bases the replicates' teachers come: replicates of one base are much alike."""
    named = f"{counted(len(bases), 'base')}, {names(bases)}"
    if len(bases) < replicates:
        return f"The replicates come from {named}. Intervals and p hold for these."
    if replicates == 1:
        return f"It comes from {named}."
    return f"Each replicate has a base of its own: {named}."
