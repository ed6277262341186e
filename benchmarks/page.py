"""The page that holds the results: Markdown tables, and for each benchmark a section that is replaced when it runs."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.timing import Spent, mean, ratio
from sublim_interp.stats.intervals import Interval

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def comparison(
    what: str, ours: Sequence[Spent], other: str, theirs: Sequence[Spent], target: float | None = None
) -> tuple[str, ...]:
    """A row of `comparisons`: this package's means and another's, and how many times longer the other takes."""
    faster = ratio([s.cpu for s in theirs], [s.cpu for s in ours])
    by_wall = ratio([s.wall for s in theirs], [s.wall for s in ours])
    said = at_least(faster.estimate, target)
    return what, seconds(mean(ours).cpu), other, seconds(mean(theirs).cpu), times(faster), times(by_wall), said


def comparisons(rows: Iterable[Sequence[str]]) -> str:
    """The table of all comparisons."""
    return table(("what", "this package", "with", "takes", "times as long, CPU", "times as long, wall", "target"), rows)


def seconds(value: float) -> str:
    """A time in a fitting unit, to three digits."""
    unit, size = next((u for u in (("min", 60.0), ("s", 1.0)) if value >= u[1]), ("ms", 1e-3))
    return f"{digits(value / size)} {unit}"


def times(ratio: Interval) -> str:
    """A ratio with its interval."""
    return f"{digits(ratio.estimate)} [{digits(ratio.low)}, {digits(ratio.high)}]"


def digits(value: float) -> str:
    """Three digits, more before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def limit(value: float, most: float) -> str:
    """A target that is met from below."""
    return f"≤ {most:g}: {'met' if value <= most else '**missed**'}"


def at_least(value: float, least: float | None) -> str:
    """A target that is met from above; nothing where there is none."""
    return "" if least is None else f"≥ {least:g}: {'met' if value >= least else '**missed**'}"


def machine() -> str:
    """Processor, cores, memory and versions: what sort of machine it is, not which one."""
    import psutil

    names = ("torch", "transformers", "trl", "transformer-lens")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}; Python "
        f"{platform.python_version()}, {versions}"
    )


def conditions() -> str:
    """How busy the machine is just now."""
    load = os.getloadavg()[0]
    return f"When this began, {load:.1f} processes wanted a core."


def _processor() -> str:
    try:
        said = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        said = None
    return said[1] if said else platform.processor() or platform.machine()


def replace_section(page: str, name: str, text: str) -> str:
    """The page with `text` as the section of the benchmark `name`, whatever stood there before.

    Raises ValueError where the page has no such section.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no section between {begin} and {end}")
    return f"{before}{begin}\n{text.strip()}\n{end}{after}"
