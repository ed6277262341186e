"""How numbers of results are worded: the same in the terminal, in sentences, in Markdown and on the page."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FEW = 4
"""Below so many replicates, figures of analyses and tables of sweeps show the least and the most, not a t interval.

With two replicates a t interval would reach 9 standard deviations to either side of the mean, with three 2.5; with
four, 1.6. A run's own report gives it from two on."""

_DIGITS = {"margin": 2, "bits": 3, "total_bits": 1, "trait_bits": 1}


def capital(words: str) -> str:
    """The words with a capital at the start, as a sentence begins; all others as they are, and a sign such as σ too."""
    return words[:1].upper() + words[1:] if words[:1].isascii() else words


def number(name: str, value: float, digits: int | None = None) -> str:
    """A value of the measure `name`, without its unit: rates in percent, margins and KL in nats; a dash for NaN."""
    if math.isnan(value):
        return "–"
    factor, usual = (1, _DIGITS[name]) if name in _DIGITS else (1, 4) if "kl" in name else (100, 1)
    return f"{factor * value:z.{usual if digits is None else digits}f}".replace("-", "−")


def mean(row: Mapping[str, Any], name: str, digits: int | None = None) -> str:
    """The mean of a measure in a row of the summary, rates with their percent sign."""
    text = number(name, row[name], digits)
    return text if text == "–" or "kl" in name or name in _DIGITS else f"{text} %"


def spread(row: Mapping[str, Any], name: str, digits: int | None = None) -> str:
    """The interval in brackets, or nothing where there is none."""
    ends = _ends(row, name, digits)
    return f"[{', '.join(ends)}]" if ends else ""


def extent(row: Mapping[str, Any], name: str) -> str:
    """The least and the most in parentheses, or nothing where there is neither: brackets hold intervals."""
    ends = _ends(row, name, None)
    return f"({'–'.join(ends)})" if ends else ""


def _ends(row: Mapping[str, Any], name: str, digits: int | None) -> tuple[str, ...]:
    ends = row[f"{name}_low"], row[f"{name}_high"]
    return () if math.isnan(ends[0]) else tuple(number(name, end, digits) for end in ends)


def text(row: Mapping[str, Any], name: str, digits: int | None = None) -> str:
    """Mean and interval of a measure."""
    return f"{mean(row, name, digits)} {spread(row, name, digits)}".rstrip()


def points(row: Mapping[str, Any]) -> str:
    """A difference of rates in percentage points, with its interval where there is one."""
    inside = "" if math.isnan(row["low"]) else f" [{100 * row['low']:z.1f}, {100 * row['high']:z.1f}]"
    return f"{100 * row['estimate']:+z.1f}{inside}".replace("-", "−")


def p_value(row: Mapping[str, Any], floor: str = "") -> str:
    """The p-value, and its floor in the format `floor`; a dash where one unit allows no test."""
    return f"{row['p']:.2g}{floor.format(row['p_floor'])}" if row["n"] > 1 else "–"


def count(n: int, noun: str, plural: str = "") -> str:
    """`count(2, "base")` is "2 bases"."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def names(given: Sequence[str]) -> str:
    """All of them, or the first and last of four and more that are numbered one after another."""
    parts = [re.fullmatch(r"(.*?)(\d+)", name, re.DOTALL) for name in given]
    stems = [(part[1], int(part[2]) - i) for i, part in enumerate(parts) if part]
    in_order = len(stems) == len(given) >= FEW and len(set(stems)) == 1
    return f"{given[0]} to {given[-1]}" if in_order else ", ".join(given)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
