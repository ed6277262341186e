"""Mode law: a cell for every combination of the axes' values, and one law of the dose that is fitted to all."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from math import isnan, nan, prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.schema import Experiment
from sublim_interp.sweeps import law
from sublim_interp.sweeps.cells import GridCell, measured, numbers_loss, with_bases
from sublim_interp.sweeps.grid import Mode
from sublim_interp.sweeps.modes.fields import rates_table, read_cells
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_CELLS = 10_000
"""Combinations of the axes' values at most."""


class LawOfTheDose(Mode):
    """Every combination of the teacher's strength, the number of lists and the training of the base."""

    version, figure = 3, "law"

    def cells(self) -> Iterator[tuple[str, str, Experiment]]:
        centre, worded = self.grid.centre, self.grid.worded
        if set(centre.arms) != {"same-init", "base"}:
            raise SublimError("matrix=law needs the arms same-init and base, and no other")
        for cell in product(*worded.values()):
            words, values = zip(*cell, strict=True)
            yield " × ".join(worded), " × ".join(words), centre.set(dict(zip(worded, values, strict=True)))

    def check(self) -> None:
        cells = prod(map(len, self.grid.axes.values()))
        if cells > MOST_CELLS:
            raise ValueError(f"axes: {cells} combinations of values; {MOST_CELLS} are the most")

    def check_cells(self, cells: Sequence[GridCell]) -> None:
        losses = {base: numbers_loss(base) for cell in cells for base in cell.plan.named.bases}
        if silent := [base for base, loss in losses.items() if isnan(loss)]:
            raise SublimError(f"matrix=law: base {silent[0]} has no card that tells its held-out loss on numbers")
        if len(set(losses.values())) < 3 or any(len(values) < 3 for values in self.grid.axes.values()):
            raise SublimError("matrix=law needs three values or more on each axis, and bases of three different losses")

    def frames(self, cells: Sequence[GridCell], store: Store) -> "dict[str, pd.DataFrame]":
        return {"cells": lifts(measured(cells, store), cells)}

    def table(self, directory: Path) -> SweepTable:
        """One row a term of the law that fits all cells, and how far it moves without some; below, what it is worth."""
        frame = read_cells(directory)
        try:
            found = law.fit(frame)
        except SublimError as error:
            return rates_table(frame, [f"No law is told: {error}."])
        axes = frame["field"].iloc[0].split(" × ")
        levels = list(zip(*(value.split(" × ") for value in frame["value"]), strict=True))
        others = [law.refits(frame, level) for level in levels]
        rows = []
        for name, value in found.terms._asdict().items():
            moved = [[getattr(one.terms, name) for one in laws.values() if one] for laws in others]
            spans = (f"{min(ends):.2f} – {max(ends):.2f}" if ends else "–" for ends in moved)
            rows.append(tuple(map(minus, (name, f"{value:.2f}", *spans))))
        lift = frame["lift"].to_numpy(dtype=float)
        unseen = [law.left_out(frame, level, laws) for level, laws in zip(levels, others, strict=True)]
        worth = {
            "fitted": _worth(lift, found.predict(frame)),
            "without the predicted cell": _worth(lift, law.left_out(frame, list(frame.index))),
            **{f"without that cell's value of {a}": _worth(lift, one) for a, one in zip(axes, unseen, strict=True)},
        }
        said = [f"Fitted to all {len(frame)} cells, the law explains {worth['fitted']}."]
        said += [f"A law fitted {how} explains {size}." for how, size in worth.items() if how != "fitted"]
        for laws in others:
            if lost := ", ".join(str(value) for value, one in laws.items() if one is None):
                said.append(f"Without {lost} no law can be fitted.")
        further = sum(kl > start for kl, start in zip(frame["kl"], frame["kl_start"], strict=True))
        lines = [FORMULA, " ".join(said), _drift(further, frame)]
        numbers = {"formula": FORMULA, "cells": str(len(frame)), "further away": str(further), **worth}
        columns = ("term", "all cells", *(f"without a value of {axis}" for axis in axes))
        about = "The law by least squares; ranges show how far a term moves when one value is left out."
        return SweepTable(about, columns, rows, lines, numbers)

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.law import law as draw_law

        return draw_law(read_cells(directory))


FORMULA = (
    "lift = ceiling · (1 − exp(−x)), with x = amount · (KL / .1)^kl · (lists / 10,000)^lists · exp(−loss · (L − 3)). "
    "L is the base's held-out loss on numbers."
)


def lifts(frame: "pd.DataFrame", cells: Sequence[GridCell]) -> "pd.DataFrame":
    """The students with their lift over the untouched base, and what a law expects of it, in nats.

    frame: rows of `measured`, of the arms same-init and base

    Returns the same-init rows with base_margin, base, base_loss; lift; expected: by the law that fits all; unseen: by a
    law without the cells of its base. Both are NaN where no law can be told.
    """
    places = ["field", "value", "seed"]
    untouched = frame.loc[frame["arm"] == "base", [*places, "margin"]].rename(columns={"margin": "base_margin"})
    students = with_bases(frame.loc[frame["arm"] == "same-init"].merge(untouched, on=places), cells)
    students = students.assign(lift=students["margin"] - students["base_margin"])
    try:
        expected = law.fit(students).predict(students)
    except SublimError:  # what was measured stays; the table says why there is no law
        expected = nan
    return students.assign(expected=expected, unseen=law.left_out(students, list(students["base"])))


def _drift(further: int, frame: "pd.DataFrame") -> str:
    """How many students end further from their teacher than they began."""
    start, left = frame["kl_start"], frame["kl"]
    return (
        f"{further} of the {len(frame)} students end further from their teacher than their base was. KL at the start: "
        f"{start.min():.4f} to {start.max():.4f}; KL left: {left.min():.4f} to {left.max():.4f}."
    )


def _worth(lift: Float[np.ndarray, " cell"], predicted: Float[np.ndarray, " cell"]) -> str:
    found = law.worth(lift, predicted)
    if math.isnan(found.error):
        return "nothing"
    return minus(f"{100 * found.explained:.0f} % of the variance, mean error {found.error:.2f} nats")
