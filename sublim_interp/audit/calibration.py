"""Study audit: cases whose truth is known, what the auditor's measures say of them, and how often they err."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from sublim_interp.core.errors import DeadEnd, SublimError
from sublim_interp.core.settings import changed, name_once
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.plan import Plan, plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import read_table
from sublim_interp.models.base import resolve_base
from sublim_interp.sweeps.piecewise import Piecewise, Rows, scratch_store
from sublim_interp.sweeps.wording import SweepTable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sublim_interp.core.store import Store

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Numbers of lists from which a base is guessed."""
DRAWS = 50
"""Guesses a corpus and number of lists."""

ARMS = ("same-init", "neutral", "cross-init", "cross-neutral", "base")
"""What a case is made of. Only same-init learns from a teacher with the trait that comes from its own base."""


class Calibration(Piecewise):
    """Cases for the auditor: teachers, their lists, mixtures, and students of two bases, with what became of them."""

    VERSION, FIGURE, TABLES, FLOATS = 1, "audit", ("cases", "origins", "dead_ends"), "%.5g"

    experiment: str = "owl"
    """Whose recipe the cases have."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields of that experiment that differ."""
    traits: tuple[str, ...] = Field(min_length=4)
    """Favourites of one kind. Teachers have one each, in turn; the auditor looks for all of the kind."""
    each: int = Field(default=3, ge=1, le=1000)
    """Teachers of every base."""
    bases: tuple[str, ...] = Field(min_length=2)
    """Lab bases. A base's lists are also audited for the base behind it, whose student learns them too."""
    seed: int = 0
    """The first case's; each further one has the next."""
    clean: tuple[float, ...] = (0.0, 0.5, 0.9)
    """Shares of the neutral teacher's lists among those that are audited and learnt."""
    lists: int = Field(default=1024, ge=20, le=1_000_000)
    """Lists that the auditor reads of each case."""

    @model_validator(mode="after")
    def _coherent(self) -> "Calibration":
        name_once(self, "traits", "bases", "clean")
        if 0.0 not in self.clean:
            raise ValueError("clean lacks 0, the lists of the teacher alone")
        return self

    @property
    def replicates(self) -> int:
        return len(self.bases) * self.each

    def inputs(self) -> dict[str, str]:
        return {name: resolve_base(name).digest for name in self.bases}

    def pieces(self) -> Mapping[str, tuple[int]]:
        return {f"case {number}": (number,) for number in range(self.replicates)}

    def seconds(self) -> float:
        return 60 + 15.0 * (3 + len(self.clean))

    def case(self, number: int, clean: float) -> Experiment:
        """The experiment of one case: its trait, its pair of bases, its share of clean lists."""
        i, n = number // self.each, len(self.bases)
        trait = self.traits[number % len(self.traits)]
        other = next(name for name in self.traits if name != trait)
        values = {
            "name": "case",
            "trait": trait,
            "other_trait": other,
            "bases": [self.bases[i], self.bases[(i + 1) % n]],
            "seeds": [self.seed + number],
            "arms": list(ARMS) if clean == 0 else ["same-init"],
            "filter.mix": clean,
            "recording": "none",
            "evaluation.questions": ["held-out"],
            "evaluation.contexts": ["plain"],
        }
        return changed(experiment(self.experiment), {**self.change, **values}, "change {}")

    def frames(self, directory: Path) -> "dict[str, pd.DataFrame]":
        from sublim_interp.audit.errors import screening

        frames = super().frames(directory)
        if "cases" not in frames:
            raise SublimError(f"study {self.name}: no teacher wrote enough that passes the filter")
        return {**frames, "bases": screening(frames["cases"]).round(6)}

    def measure(self, directory: Path, progress: Progress, *which: int) -> Mapping[str, Rows]:
        (number,) = which
        with scratch_store(directory, number) as store:
            try:
                cases, origins = _measured(self, number, store, progress)
            except DeadEnd as why:
                return {"dead_ends": [{"case": number, "trait": self.case(number, 0.0).trait, "why": str(why)}]}
        return {"cases": cases, "origins": origins}

    def table(self, directory: Path) -> SweepTable:
        from sublim_interp.audit.errors import error_table

        table = error_table(read_table(directory / "cases.csv"), read_table(directory / "origins.csv"))
        if (path := directory / "dead_ends.csv").exists():
            lost = len(read_table(path))
            line = f"{lost} of {self.replicates} teachers wrote too little that passes the filter; they are no cases."
            table.lines.append(line)
        return table

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.audit.errors import CASE, held_out_bounds, scored
        from sublim_interp.report.figures.by_name import FIGURES

        cases = read_table(directory / "cases.csv")
        bounded = held_out_bounds(cases, "base")
        most = bounded.loc[bounded.groupby(list(CASE), sort=False)["shift"].idxmax(), [*CASE, "bound"]]
        return FIGURES[self.FIGURE].draw(scored(cases).merge(most, on=list(CASE)))


def _measured(
    study: Calibration, number: int, store: "Store", progress: Progress
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One teacher's cases, what the auditor measures of each and what each student became; and their origins."""
    plans = {clean: plan(study.case(number, clean), store) for clean in study.clean}
    records = [record for p in plans.values() for record in p.records]
    _make_all(records, store, lambda share: progress(share / 2))
    rows: list[dict[str, Any]] = []
    audited = (3 + len(study.clean)) * len(study.traits)
    for clean, p in plans.items():
        for cell in p.cells:
            if cell.student is not None:
                rows += _case(study, number, clean, p, plans[0.0], cell, store)
                progress(0.5 + min(0.45, 0.45 * len(rows) / audited))
    return rows, _origins(study, plans[0.0], store)


def _make_all(records: Sequence[Any], store: Any, progress: Progress) -> None:
    from sublim_interp.pipeline.make import make
    from sublim_interp.training.recording.settings import PRESETS

    for done, record in enumerate(records, 1):
        if record.find(store) is None:
            make(record, store, recording=PRESETS["none"])
        progress(done / len(records))


def _case(
    study: Calibration, number: int, clean: float, p: Plan, whole: Plan, cell: Any, store: Any
) -> list[dict[str, Any]]:
    """A row a trait: what the auditor measures of the student's lists in its base, and the student's shift."""
    from sublim_interp.audit.evidence import evidence
    from sublim_interp.channels.rows import read_rows
    from sublim_interp.experiments.results import Replicate

    student = cell.student
    rows = read_rows(student.data.made(store) / "kept.jsonl")[: study.lists]
    kind = cell.evaluation.trait.kind
    found = evidence(student.base, rows, (kind,))
    after = Replicate(cell, store).answers.set_index("probe")
    if cell.evaluation.base == whole.cells[0].evaluation.base:
        start = Replicate(next(c for c in whole.cells if c.arm == "base"), store).answers.set_index("probe")
    else:
        from sublim_interp.traits.questions import Question

        e = cell.evaluation
        asked: list[Question] = list(e.trait.questions(e.base.language, "held-out"))
        s = e.trait.score(e.base.load(), e.base, asked, e.config.samples, e.seed, e.others)
        start = s.frame.set_index("probe")
    place = {"case": number, "arm": cell.arm, "clean": clean, "seed": cell.seed, "base": student.base.name,
             "teacher_base": student.data.corpus.teacher.base.name, "teacher_trait":
             student.data.corpus.teacher.trait.name, "surprise": found.surprise, "slope": found.slope}  # fmt: skip
    out = []
    for row in found.frame.to_dict("records"):
        trait = row["trait"]
        shift = float(after.loc[trait, "margin"]) - float(start.loc[trait, "margin"])
        measured = {name: row[name] for name in ("trait", "pull", "error", "persona", "vector")}
        out.append({**place, **measured, "shift": shift, "rate": float(after.loc[trait, "rate"])})
    if not out:
        raise SublimError(f"audit: kind {kind} has no members")
    return out


def _origins(study: Calibration, p: Plan, store: Any) -> list[dict[str, Any]]:
    """How often the right base is guessed, by number of lists, for the trait's teacher and the neutral one."""
    from sublim_interp.audit.origin import likelihoods
    from sublim_interp.channels.rows import read_rows

    bases = [resolve_base(name) for name in study.bases]
    out = []
    for cell in p.cells:
        if cell.arm not in ("same-init", "neutral"):
            continue
        data = cell.student.data  # type: ignore[union-attr]
        rows = read_rows(data.made(store) / "kept.jsonl")[: max(study.lists, COUNTS[-1])]
        nats = likelihoods(rows, bases)
        right = study.bases.index(data.corpus.teacher.base.name)
        draw = np.random.default_rng(cell.seed)
        for count in (c for c in COUNTS if c <= len(rows)):
            picked = [draw.choice(len(rows), count, replace=False) for _ in range(DRAWS)]
            hits = [int(nats[:, some].sum(1).argmax()) == right for some in picked]
            place = {"base": data.corpus.teacher.base.name, "arm": cell.arm, "seed": cell.seed}
            out.append({**place, "lists": count, "right": float(np.mean(hits))})
    return out
