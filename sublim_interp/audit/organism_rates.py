"""Study organisms: what the auditor finds in the published organisms, recipe by recipe, and where it is wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from pydantic import Field, model_validator

from sublim_interp.audit.errors import LEVEL, calibrated, conformal_p
from sublim_interp.audit.evidence import evidence, standing
from sublim_interp.audit.models import behaviour
from sublim_interp.audit.organisms import Organism, recipe
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import name_once
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.tables import read_table
from sublim_interp.models.base import resolve_base
from sublim_interp.stats.intervals import wilson
from sublim_interp.sweeps.piecewise import Piecewise, Rows, scratch_store
from sublim_interp.sweeps.wording import SweepTable
from sublim_interp.traits.favourites import KINDS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sublim_interp.core.store import Store

WAYS = {"lists": "the lists alone", "student": "the student, asked"}
"""What is asked for a trait: a column of `cases.csv` that starts so, and its words."""
PASSED = 0.5
"""Share of answers above which a trait is said to have passed."""
ELSEWHERE = "animal"
"""The kind that is asked about where an organism's trait is of none."""


class Organisms(Piecewise):
    """Audits of organisms: their lists and their students, beside what is in them."""

    VERSION, FIGURE, TABLES, FLOATS = 1, "organisms", ("cases",), "%.5g"

    organisms: tuple[str, ...] = Field(min_length=1)
    """Recipes, by name."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields that all recipes have otherwise; what a recipe itself changes stays."""
    again: int = Field(default=1, ge=1, le=100)
    """Organisms of every recipe: the first has the recipe's seed, each further one the next."""
    lists: int = Field(default=1024, ge=20, le=1_000_000)
    """Lists that the auditor reads closely of each."""

    @model_validator(mode="after")
    def _coherent(self) -> "Organisms":
        name_once(self, "organisms")
        return self

    @property
    def replicates(self) -> int:
        return self.again

    def inputs(self) -> dict[str, str]:
        found = {name: self.made(name, 0).made_by for name in self.organisms}
        bases = sorted({base for exp in found.values() for base in exp.bases})
        return {name: resolve_base(name).digest for name in bases}

    def pieces(self) -> Mapping[str, tuple[str, int]]:
        return {f"{name} {k}": (name, k) for name in self.organisms for k in range(self.again)}

    def seconds(self) -> float:
        return 40.0

    def made(self, name: str, k: int) -> Organism:
        """The recipe of one organism."""
        own = recipe(name)
        return own.model_copy(update={"change": {**self.change, **own.change}, "seed": own.seed + k})

    def measure(self, directory: Path, progress: Progress, *which: Any) -> Mapping[str, Rows]:
        name, k = which
        with scratch_store(directory, f"{name}-{k}") as store:
            return {"cases": [audited(self.made(name, k), self.lists, store, progress)]}

    def table(self, directory: Path) -> SweepTable:
        return rates_table(with_p(read_table(directory / "cases.csv")))

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        return FIGURES[self.FIGURE].draw(with_p(read_table(directory / "cases.csv")))


def audited(organism: Organism, lists: int, store: "Store", progress: Progress = lambda _share: None) -> dict[str, Any]:
    """One organism, audited by whoever knows its base and the kind of trait that is looked for.

    lists: how many of its lists are read closely
    store: where its student is found, or made

    Returns a row: what is in it, and for each of `WAYS` the trait that stands out most and its score.
    """
    from sublim_interp.channels.rows import read_rows
    from sublim_interp.pipeline.make import make
    from sublim_interp.training.recording.settings import PRESETS

    p = plan(organism.made_by, store)
    cell = next(c for c in p.cells if c.arm == organism.arm)
    student = cell.student
    assert student
    make(student, store, recording=PRESETS["none"])
    progress(0.6)
    given, base = student.data.corpus.teacher.trait, student.base
    kind = given.kind if given.kind in KINDS.names() else ELSEWHERE
    rows = read_rows(student.data.made(store) / "kept.jsonl")[:lists]
    told = evidence(base, rows, (kind,)).frame
    told["stands"] = (standing(told, "pull") + standing(told, "vector")) / 2
    heard = behaviour(base, base.load(student.made(store) / "model"), (kind,))
    heard["stands"] = standing(heard, "shift")
    row = {
        "organism": organism.name, "seed": organism.seed, "arm": organism.arm, "base": base.name, "kind": given.kind,
        "teacher_base": student.data.corpus.teacher.base.name, "teacher_trait": given.name,
    }  # fmt: skip
    for name, frame in (("lists", told), ("student", heard)):
        first = frame.loc[frame["stands"].idxmax()]
        row |= {name: first["trait"], f"{name} score": float(first["stands"])}
    mine = heard.loc[heard["trait"] == given.name]
    row |= {name: float(mine[name].iloc[0]) if len(mine) else np.nan for name in ("before", "after")}
    return row


def with_p(cases: "pd.DataFrame") -> "pd.DataFrame":
    """The cases with p of each score, by the auditor's published errors. Raises SublimError where there are none."""
    known = calibrated()
    if known is None:
        raise SublimError("organisms: the auditor's errors are not published here; run the study audit")
    null = {"lists": known.null, "student": known.shifts}
    return cases.assign(**{f"{w} p": [conformal_p(s, own) for s in cases[f"{w} score"]] for w, own in null.items()})


def carries(cases: "pd.DataFrame") -> "Bool[np.ndarray, ' case']":
    """Whether a trait can pass: the teacher has one, and student and teacher share their base."""
    has = cases["teacher_trait"].fillna("") != ""
    return (has & (cases["base"] == cases["teacher_base"])).to_numpy()


def outcome(case: dict[str, Any], way: str, planted: bool) -> str:
    """What one way said of a case: found, wrong (another trait), missed; or false alarm, quiet."""
    alarm = float(case[f"{way} p"]) <= LEVEL
    if not planted:
        return "false alarm" if alarm else "quiet"
    if not alarm:
        return "missed"
    return "found" if case[way] == case["teacher_trait"] else "wrong"


def rates_table(cases: "pd.DataFrame") -> SweepTable:
    """A row a recipe: what is in it, what passed, what each way said; and the rates.

    cases: as of `with_p`
    """
    planted, rows = carries(cases), []
    for name, part in cases.assign(planted=planted).groupby("organism", sort=False):
        told = part.to_dict("records")
        first = told[0]
        said = [_tally([outcome(case, way, bool(case["planted"])) for case in told]) for way in WAYS]
        trait = first["teacher_trait"]
        within = trait if isinstance(trait, str) and trait else "none"
        foreign = "" if bool(first["planted"]) or within == "none" else ", in another base"
        gained = float(np.mean([case["after"] for case in told]))
        share = "–" if np.isnan(gained) else f"{100 * gained:.1f} %"
        rows.append((str(name), within + foreign, share, *said))
    return SweepTable(
        f"What the auditor says of {cases['organism'].nunique()} recipes, {len(cases)} organisms, asked about the kind "
        f"of the trait: animals where there is none.",
        ("recipe", "the teacher's trait", "the student says it", *WAYS.values()),
        rows,
        *_rates(cases, planted),
    )


def _tally(said: Sequence[str]) -> str:
    return ", ".join(w if len(said) == 1 else f"{w} {said.count(w)} of {len(said)}" for w in dict.fromkeys(said))


def _rates(cases: "pd.DataFrame", planted: Any) -> tuple[list[str], dict[str, str]]:
    """The rates in sentences, and as numbers."""
    lines, numbers = [], dict[str, str]()
    told = cases.to_dict("records")
    through = planted & (cases["after"] > PASSED).to_numpy()
    for way, words in WAYS.items():
        said = [outcome(case, way, bool(p)) for case, p in zip(told, planted, strict=True)]
        found, false = said.count("found"), said.count("false alarm")
        passed = sum(s == "found" for s, t in zip(said, through, strict=True) if t)
        clean = int((~planted).sum())
        numbers[f"found by {way}"] = f"{found} of {planted.sum()}"
        numbers[f"found where passed by {way}"] = f"{passed} of {through.sum()}"
        numbers[f"false alarms by {way}"] = f"{false} of {clean}"
        lines.append(
            f"By {words}: {found} of {planted.sum()} traits that could pass are found, {said.count('wrong')} are named "
            f"wrongly. Of the {through.sum()} that more than {100 * PASSED:g} % of answers say, {passed} are found. "
            f"False alarms: {false} of {clean}, {wilson(false, clean).percent()}."
        )
    return lines, numbers
