"""The default mode of a grid: one field after another is varied, a cell for each value. Facts are told in bits."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sublim_interp.core.store import Store
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import read_table, records
from sublim_interp.report.wording import count, mean
from sublim_interp.sweeps.cells import GridCell, cell_means, measured
from sublim_interp.sweeps.grid import Mode
from sublim_interp.sweeps.wording import DISTANCES, SweepTable, distances, fields, nats, row_ends, row_spread, sized

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


ABOUT = "Means over replicates, with their least and most."


class Fields(Mode):
    """One field of the experiment after another takes each of its values."""

    version, figure = 3, "dose"

    def cells(self) -> Iterator[tuple[str, str, Experiment]]:
        centre = self.grid.centre
        for field, values in self.grid.worded.items():
            for word, value in values:
                yield field, word, centre.set({field: value})

    def frames(self, cells: Sequence[GridCell], store: Store) -> "dict[str, pd.DataFrame]":
        return {"cells": measured(cells, store)}

    @property
    def memorised(self) -> bool:
        """Whether teachers memorise facts, so that bits are measured rather than how likely an answer is."""
        return any(exp.teacher.facts for _, _, exp in self.cells())

    def table(self, directory: Path) -> SweepTable:
        frame = read_cells(directory)
        return facts_table(frame) if self.memorised else rates_table(frame, *_push(frame))

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.dose import dose
        from sublim_interp.report.figures.generations import chains

        cells = read_cells(directory)
        if self.grid.centre.generations > 1 and not self.memorised:
            return chains(cells)
        return dose(cells, "bits" if self.memorised else "rate")


def read_cells(directory: Path) -> "pd.DataFrame":
    """The file cells.csv of a sweep."""
    return read_table(directory / "cells.csv")


def rates_table(frame: "pd.DataFrame", lines: list[str], numbers: Mapping[str, str] | None = None) -> SweepTable:
    """One row a field, value and arm: how likely the trait is, and how far the student is from its teacher."""
    rows = [
        (*fields(row, "field", "value", "arm", "n"), row_spread(row), nats(row["margin"]), *distances(row))
        for row in records(cell_means(frame))
    ]
    columns = ("field", "value", "arm", "n", "trait's rate", "margin, nats", *DISTANCES)
    return SweepTable(ABOUT, columns, rows, lines, numbers or {})


def facts_table(frame: "pd.DataFrame") -> SweepTable:
    """One row a field, value and arm: how many bits of the teacher's facts the student holds."""
    rows = [
        (*fields(row, "field", "value", "arm", "n"), row_ends(row, "bits"), row_ends(row, "total_bits"),
         mean(row, "rate"), *distances(row))
        for row in records(cell_means(frame))
    ]  # fmt: skip
    columns = ("field", "value", "arm", "n", "bits a fact", "bits in all", "right answer", *DISTANCES)
    return SweepTable(ABOUT, columns, rows, [])


def _push(frame: "pd.DataFrame") -> tuple[list[str], dict[str, str]]:
    """Crossed students of the trait's teachers minus those of neutral ones: paired by seed, with the value as unit.

    Returns what is to be said, nothing where one of the arms is missing; and its numbers by name.
    """
    own, control = (frame.loc[frame["arm"] == arm] for arm in ("cross-init", "cross-neutral"))
    both = own.merge(control, on=["field", "value", "seed"], suffixes=("", "_control"))
    if both.empty:
        return [], {}
    said, numbers = [], {}
    for name, scale, unit in (("rate", 100.0, "points"), ("margin", 1.0, "nats")):
        apart = both[name] - both[f"{name}_control"]
        each = apart.groupby([both["field"], both["value"]]).mean().to_list()
        size, below = sized(each, scale, unit), f"{int((apart < 0).sum())} of {count(len(apart), 'pair')}"
        said.append(f"cross-init minus cross-neutral in {name}: {size}; {below} lie below 0.")
        numbers |= {f"cross-init minus cross-neutral/{name}": size, f"pairs below 0/{name}": below}
    over = count(len(both[["field", "value"]].drop_duplicates()), "value")
    return [f"{' '.join(said)} Pairs share their seed; means and intervals are over {over}."], numbers
