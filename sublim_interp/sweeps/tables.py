"""What a sweep comes to: the table of its mode, what could not be had, and both as Markdown."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from sublim_interp.experiments.catalogue import key_of
from sublim_interp.experiments.tables import read_table
from sublim_interp.report.wording import capital
from sublim_interp.sweeps.contrasts import contrast_lines
from sublim_interp.sweeps.grid import Grid, grid
from sublim_interp.sweeps.study import study
from sublim_interp.sweeps.wording import SweepTable, as_markdown


def table_of(g: Grid, directory: Path) -> SweepTable:
    """The table of a sweep of `g` whose CSV files lie in `directory`."""
    found, path = g.mode.table(directory), directory / "dead_ends.csv"
    if g.contrasts:
        lines, numbers = contrast_lines(g.contrasts, read_table(directory / "cells.csv"))
        found = found._replace(lines=[*found.lines, *lines], numbers={**found.numbers, **numbers})
    return found._replace(lines=[*found.lines, *_dead_ends(path)]) if path.exists() else found


def _dead_ends(path: Path) -> Iterator[str]:
    """What cannot be had, and why: a line for each thing that went wrong."""
    ends = read_table(path)
    for place, own in ends.groupby(["seed", "why"], sort=False):
        seed, why = cast(tuple[int, str], place)
        values, arms = (", ".join(own[column].unique()) for column in ("value", "arm"))
        yield f"No result for {values} with seed {seed} ({arms}). {capital(why)}."


def published_table(directory: Path) -> str:
    """The published sweep in `directory` (its grid's name, its CSV files, key.txt) as Markdown."""
    made = f"Made by `sublim run {directory.name}`, sweep `{key_of(directory)[:16]}`."
    return as_markdown(table_of(grid(directory.name), directory), made)


def published_study_table(directory: Path) -> str:
    """The published study in `directory` (its name, its CSV files, key.txt) as Markdown."""
    made = f"Made by `sublim run {directory.name}`, study `{key_of(directory)[:16]}`."
    return as_markdown(study(directory.name).table(directory), made)
