"""Mode traits: the student of each trait's teacher is asked about all traits of the kind."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.results import Replicate
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import read_table, records
from sublim_interp.report.wording import FEW, count
from sublim_interp.stats.contrasts import specificity
from sublim_interp.stats.intervals import mean_interval
from sublim_interp.stats.permutation import sign_flip_test
from sublim_interp.stats.ranks import concordance, rank_correlation
from sublim_interp.sweeps.cells import GridCell, cell_means, measured, teachers_bases
from sublim_interp.sweeps.grid import Mode
from sublim_interp.sweeps.modes.fields import read_cells
from sublim_interp.sweeps.modes.matrix import require_one_axis, students_of
from sublim_interp.sweeps.wording import (
    DISTANCES,
    SweepTable,
    distances,
    fields,
    minus,
    nats,
    origin,
    row_spread,
    sized,
    spread,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Traits(Mode):
    """A cell for each trait that teachers are given."""

    version, figure = 5, "matrix"

    def check(self) -> None:
        require_one_axis(self.grid, "trait")

    def cells(self) -> Iterator[tuple[str, str, Experiment]]:
        centre = self.grid.centre
        if not {"same-init", "base"} <= set(centre.arms):
            raise SublimError("matrix=traits needs the arms same-init and base: lifts are counted from the base")
        for word, value in self.grid.worded["trait"]:
            yield "trait", word, centre.set({"trait": value})

    def frames(self, cells: Sequence[GridCell], store: Store) -> "dict[str, pd.DataFrame]":
        each = measured(cells, store, ("teacher", "base"))
        return {
            "cells": each.assign(base=teachers_bases(each, cells)),
            "matrix": students_of(cells, store, {"teacher": "teacher_trait", "student": "probe"}, every_probe=True),
            "questions": by_question(cells, store),
        }

    def table(self, directory: Path) -> SweepTable:
        """One row a trait and arm; below, means over traits, γ, and what goes with a trait's passing better."""

        frame, matrix = read_cells(directory), read_table(directory / "matrix.csv")
        asked = read_table(directory / "questions.csv")
        rows, means = [], cell_means(frame)
        for row in records(means):
            own = frame.loc[(frame["value"] == row["value"]) & (frame["arm"] == row["arm"])]
            interval = mean_interval(own["rate"].to_list(), bounds=(0, 1))
            said = interval.percent() if row["n"] >= FEW else row_spread(row)
            rows.append((*fields(row, "value", "arm", "n"), said, f"{100 * row['least']:.1f} %", nats(row["margin"]),
                         *distances(row)))  # fmt: skip
        over = count(len(set(means["value"])), "trait")
        lines = [f"Means over {over}, with the least and most of them: {_over_arms(means)}."]
        numbers = {f"over traits/{arm}": spread(own["rate"]) for arm, own in means.groupby("arm", sort=False)}
        lines.append(origin(list(dict.fromkeys(frame["base"])), len(set(frame["seed"]))))
        teachers = len(set(matrix["teacher"]))
        if teachers > 1:
            others = _from_others(matrix)
            lines.append(f"Each trait in students of the other traits' teachers: {_over_arms(others)}.")
            numbers |= {f"of others/{arm}": spread(own["rate"]) for arm, own in others.groupby("arm", sort=False)}
            specific, gammas = _specificity(matrix)
            lines.append(specific)
            numbers |= gammas
        if teachers > 3:
            lines.append(" ".join([_predictors(frame, means, matrix), *_within_replicates(frame)]))
        for question, own in asked.loc[asked["questions"] == "indirect"].groupby("question", sort=False):
            each = own.groupby(["arm", "trait"], sort=False, as_index=False).agg(rate=("rate", "mean"))
            lines.append(f"Asked “{question}”, with the answer begun: {_over_arms(each)}.")
            numbers |= {f"{question}/{arm}": spread(one["rate"]) for arm, one in each.groupby("arm", sort=False)}
        columns = ("trait", "arm", "n", "its rate", "least", "margin, nats", *DISTANCES)
        about = (
            "Means over replicates with 95 % intervals, cut at 0 and 100 %. "
            f"Fewer than {FEW} replicates: their least and most."
        )
        return SweepTable(about, columns, rows, lines, numbers)

    def draw(self, directory: Path) -> "Figure":

        from sublim_interp.report.figures.matrix import matrix

        students = read_table(directory / "matrix.csv")
        own = students.loc[students["arm"] == "same-init"]
        return matrix(own, "trait asked about", "How likely is each answer, in %?")


def by_question(cells: Sequence[GridCell], store: Store) -> "pd.DataFrame":
    """What each model says about its own cell's trait, question by question.

    Returns trait, arm, seed, and the columns of `Replicate.by_question`.
    """
    import pandas as pd

    parts = []
    for _, _, p in cells:
        for planned in p.cells:
            if planned.round == 0 and planned.arm != "teacher":
                asked = Replicate(planned, store).by_question("held-out", "indirect")
                own = asked.loc[asked["probe"] == p.named.trait]
                parts.append(own.assign(trait=p.named.trait, arm=planned.arm, seed=planned.seed))
    return pd.concat(parts, ignore_index=True)


def _over_arms(means: "pd.DataFrame") -> str:
    return "; ".join(f"{arm} {spread(own['rate'])}" for arm, own in means.groupby("arm", sort=False))


def _from_others(matrix: "pd.DataFrame") -> "pd.DataFrame":
    """The control by other traits: each trait's rate in students of all others' teachers, a row an arm and trait."""
    others = (matrix["teacher"] != matrix["student"]) & matrix["student"].isin(list(set(matrix["teacher"])))
    return matrix.loc[others].groupby(["arm", "student"], sort=False, as_index=False).agg(rate=("rate", "mean"))


def _specificity(matrix: "pd.DataFrame") -> tuple[str, dict[str, str]]:
    """γ of every arm, of rates and of their logarithms: how often the base gives a trait is in the probe's own term.

    Not of margins: a trait that rises lowers those of all others, which would nearly double γ.

    Returns what is to be said, and its numbers by name.
    """
    matrix = matrix.assign(log=np.log(matrix["rate"]))
    said = [
        "γ is how much a teacher's own trait rises beyond what teacher and trait explain.",
        f"It is fitted over {count(len(set(matrix['seed'])), 'replicate')}: lift = μ + teacher + probe + γ·[the same "
        "trait].",
    ]
    floor, numbers = math.nan, {}
    for arm, own in matrix.groupby("arm", sort=False):
        rates, floor = _gamma(own, "rate", 100.0, "points")
        logs, _ = _gamma(own, "log", 1.0, "nats")
        said.append(f"γ of {arm} students: {rates}; in log rates {logs}.")
        numbers |= {f"γ/{arm}": rates.partition(", p")[0], f"γ of logs/{arm}": logs.partition(", p")[0]}
    if not math.isnan(floor):
        said.append(f"The smallest p that so many replicates allow is {floor:.2g}.")
    return " ".join(said), numbers


def _gamma(students: "pd.DataFrame", value: str, scale: float, unit: str) -> tuple[str, float]:
    """γ of one arm with its interval over replicates, of few their least and most; and the smallest possible p."""
    traits = list(dict.fromkeys(students["teacher"]))
    tables = [own.pivot(index="teacher", columns="student", values=value) for _, own in students.groupby("seed")]
    lift = np.stack([table.reindex(index=traits, columns=traits).to_numpy() for table in tables], -1)
    gamma = specificity(lift)
    said = sized(gamma.values, scale, unit)
    if len(tables) < FEW:
        return said, math.nan
    return f"{said}, p = {gamma.sign_flip.p:.2g}", gamma.sign_flip.floor


def _predictors(frame: "pd.DataFrame", means: "pd.DataFrame", matrix: "pd.DataFrame") -> str:
    """Spearman's correlation over traits of the same-init margin with what is known of each before a student learns;
    and whether bases agree at all which traits pass better."""
    own = means.loc[means["arm"] == "same-init"].set_index("value")
    diagonal = matrix.loc[(matrix["arm"] == "same-init") & (matrix["teacher"] == matrix["student"])]
    called = frame.drop_duplicates("value").set_index("value")["trait"]
    untouched = (diagonal["rate"] - diagonal["lift"]).groupby(diagonal["teacher"]).mean()
    known = {
        "The teacher's KL from its base": own["kl_start"],
        "Lists kept": own["kept"],
        "The untouched base's rate": untouched.loc[called.loc[own.index]].set_axis(own.index),
    }
    parts, least = [], math.nan
    for name, values in known.items():
        if values.nunique() == 1:
            parts.append(f"{name}: the same for all.")
            continue
        found = rank_correlation(own["margin"], values)
        least = found.least
        parts.append(minus(f"{name}: {found.rho:z.2f} (p = {found.p:.2g})."))
    said = (
        "Which traits pass better? Spearman's ρ over traits tells how the same-init margin goes with what is known "
        f"beforehand, with p by permutations. {' '.join(parts)}"
    )
    if not math.isnan(least):
        said += f" With {len(own)} traits, a ρ nearer to 0 than {least:.2f} cannot be told from 0."
    bases = frame.drop_duplicates("seed").set_index("seed")["base"]
    scores = diagonal.assign(base=diagonal["seed"].map(bases)).pivot_table("margin", "base", "teacher").to_numpy()
    scores = scores[~np.isnan(scores).any(axis=1)]  # a trait that is a dead end there has no rank
    if len(scores) < FEW:
        return said
    agreed = concordance(scores)
    return (
        f"{said} {len(scores)} bases rank the traits by this margin with Kendall's W = {agreed.w:.2f} (Friedman's p = "
        f"{agreed.p:.2g}). W is 1 where bases agree and {1 / len(scores):.2f} by chance."
    )


def _within_replicates(frame: "pd.DataFrame") -> Iterator[str]:
    """The same correlation over the traits of each replicate, the unit: there a trait is one teacher on one base."""
    students = frame.loc[frame["arm"] == "same-init"]
    for name, column in (("the teacher's KL", "kl_start"), ("lists kept", "kept")):
        each = (one["margin"].corr(one[column], method="spearman") for _, one in students.groupby("seed"))
        rhos = np.array([rho for rho in each if not math.isnan(rho)])
        if len(rhos) < FEW:
            return
        found, p = mean_interval(rhos, bounds=(-1, 1)), sign_flip_test(rhos).p
        interval = minus(f"{found.estimate:z.2f} [{found.low:z.2f}, {found.high:z.2f}]")
        yield (
            f"Within replicates the mean ρ with {name} is {interval}; {int((rhos > 0).sum())} of {len(rhos)} lie "
            f"above 0 (sign-flip p = {p:.2g})."
        )
