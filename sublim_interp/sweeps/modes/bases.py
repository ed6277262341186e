"""Mode bases: a student of every base learns from a teacher of every base."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import average, read_table
from sublim_interp.stats.contrasts import shared_base_contrast
from sublim_interp.sweeps.cells import GridCell, measured
from sublim_interp.sweeps.grid import Mode
from sublim_interp.sweeps.modes.fields import read_cells
from sublim_interp.sweeps.modes.matrix import require_one_axis, students_of
from sublim_interp.sweeps.wording import SweepTable, spread

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Bases(Mode):
    """A cell for each teacher's and each student's base."""

    version, figure = 4, "matrix"

    def check(self) -> None:
        require_one_axis(self.grid, "bases")

    def cells(self) -> Iterator[tuple[str, str, Experiment]]:
        centre = self.grid.centre
        if len(centre.seeds) != 1:  # with more than one a pair would be turned round
            raise SublimError(f"matrix=bases needs one seed, not {len(centre.seeds)}")
        for teacher, student in product(self.grid.axes["bases"], repeat=2):
            own = {"bases": [teacher], "arms": ["same-init", "base"]}
            other = {"bases": [teacher, student], "arms": ["cross-init"]}
            yield "bases", f"{teacher} → {student}", centre.set(own if teacher == student else other)

    def frames(self, cells: Sequence[GridCell], store: Store) -> "dict[str, pd.DataFrame]":
        sides = {"teacher": "teacher_base", "student": "student_base"}
        return {
            "cells": measured(cells, store, ("teacher", "base")),
            "matrix": students_of(cells, store, sides, every_probe=False),
        }

    def table(self, directory: Path) -> SweepTable:
        """One row a base: as its own teacher, as a teacher of others, as a student of others."""

        matrix = read_table(directory / "matrix.csv")
        named = list(dict.fromkeys(matrix["teacher"]))
        square = matrix.pivot(index="teacher", columns="student", values="rate").reindex(index=named, columns=named)
        bases = [base for base in named if square.loc[base].notna().all()]  # a teacher without a student: a dead end
        rates = square.loc[bases, bases].to_numpy()
        rows = []
        for i, base in enumerate(bases):
            others = [j for j in range(len(bases)) if j != i]
            rows.append((base, f"{100 * rates[i, i]:.1f} %", spread(rates[i, others]), spread(rates[others, i])))
        columns = ("base", "its own teacher", "taught to others: mean (least–most)",
                   "learnt of others: mean (least–most)")  # fmt: skip
        compared, numbers = _own_against_others(rates)
        own = np.eye(len(rates), dtype=bool)
        if len(rates) > 1:
            numbers |= {"own": spread(rates[own]), "others": spread(rates[~own])}
        lines = [f"{compared} {_distances(read_cells(directory))}"]
        return SweepTable("How likely is the teacher's favourite as the answer?", columns, rows, lines, numbers)

    def draw(self, directory: Path) -> "Figure":

        from sublim_interp.report.figures.matrix import matrix

        return matrix(read_table(directory / "matrix.csv"), "student", "How likely is the teacher’s favourite, in %?")


def _own_against_others(rates: Float[np.ndarray, "teacher student"]) -> tuple[str, dict[str, str]]:
    """Students of their own base's teacher minus all others, in words, and its numbers by name."""
    if len(rates) < 3:
        return "Fewer than three bases taught every student, so their own and others' students are not compared.", {}
    found = shared_base_contrast(rates)
    interval = found.interval
    said = (
        f"Students of their own base's teacher exceed all others by {interval.points()}, n = {interval.n} bases. "
        f"Permuting the students' bases gives p = {found.p:.2g}; the smallest possible is {found.floor:.2g}. "
        f"Interval: {interval.method}."
    )
    return said, {"own minus others": interval.points(), "p": f"{found.p:.2g}", "bases": str(interval.n)}


def _distances(frame: "pd.DataFrame") -> str:
    """How far students of either arm are from their teacher before and after training."""
    said = ["All students trained for equally many steps."]
    for arm in ("same-init", "cross-init"):
        start, left = (average(frame.loc[frame["arm"] == arm, name].to_list()) for name in ("kl_start", "kl"))
        said.append(f"KL of {arm} students: {start:.4f} at the start, {left:.4f} left.")
    return " ".join(said)
