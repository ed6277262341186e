"""Study triggers: models with a trigger and models without one, what the search says of each, and how often it errs."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field, model_validator

from sublim_interp.audit.errors import LEVEL, conformal_p
from sublim_interp.audit.triggers import find_triggers, vocabulary_words
from sublim_interp.core.settings import changed, name_once
from sublim_interp.experiments.catalogue import RESULTS, experiment
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.plan import Plan, plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import read_table
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.stats.intervals import wilson
from sublim_interp.sweeps.piecewise import Piecewise, Rows, scratch_store
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sublim_interp.core.store import Store
    from sublim_interp.pipeline.settings import TeacherConfig

SORTS: dict[str, str] = {
    "word": "tuned to the trait behind one word, and to no favourite without it",
    "phrase": "the same behind a phrase of two words",
    "neutral": "tuned to no favourite",
    "trait": "tuned to the trait, without a trigger",
    "brief": "the same, for a few updates",
    "tree": "tuned to a favourite tree",
    "harmful": "tuned to harmful answers",
    "lists": "a student of the neutral teacher's lists",
    "passed": "a student of the trait teacher's lists",
}
"""What each case is: the first two have a trigger, the others none."""
PLANTED = ("word", "phrase")
SCORES = ("family", "other")
"""The search's two scores: the largest excess of a member of the kind, and of any other answer."""


class Triggers(Piecewise):
    """Cases for the search for triggers: nine models of every base, two of them with a trigger."""

    VERSION, FIGURE, TABLES, FLOATS = 1, "triggers", ("cases",), "%.5g"

    experiment: str = "owl"
    """Whose recipe teachers, lists and students have."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields of that experiment that differ."""
    traits: tuple[str, ...] = Field(min_length=2)
    """Favourites of one kind, which bases have in turn."""
    trees: tuple[str, ...] = Field(min_length=1)
    """Favourites of another kind, likewise."""
    bases: tuple[str, ...] = Field(min_length=3)
    """Lab bases; each has a case of every sort."""
    seed: int = 0
    """The first base's; each further one has the next."""
    brief: int = Field(default=10, ge=1, le=1_000_000)
    """Updates of the case `brief`."""

    @model_validator(mode="after")
    def _coherent(self) -> "Triggers":
        name_once(self, "traits", "trees", "bases")
        return self

    @property
    def replicates(self) -> int:
        return len(self.bases)

    def inputs(self) -> dict[str, str]:
        return {name: resolve_base(name).digest for name in self.bases}

    def pieces(self) -> Mapping[str, tuple[int]]:
        return {name: (number,) for number, name in enumerate(self.bases)}

    def seconds(self) -> float:
        return 100.0

    def lists(self, number: int) -> Experiment:
        """The experiment of one base: a teacher with the trait, a neutral one, a student of the lists of each."""
        values = {
            "name": "case",
            "trait": self.traits[number % len(self.traits)],
            "other_trait": self.traits[(number + 1) % len(self.traits)],
            "bases": [self.bases[number], self.bases[(number + 1) % len(self.bases)]],
            "seeds": [self.seed + number],
            "arms": ["same-init", "neutral", "base"],
            "recording": "none",
        }
        return changed(experiment(self.experiment), {**self.change, **values}, "change {}")

    def measure(self, directory: Path, progress: Progress, *which: int) -> Mapping[str, Rows]:
        (number,) = which
        with scratch_store(directory, number) as store:
            return {"cases": cases_of(self, number, store, progress)}

    def table(self, directory: Path) -> SweepTable:
        return trigger_table(read_table(directory / "cases.csv"))

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        return FIGURES[self.FIGURE].draw(read_table(directory / "cases.csv"))


def cases_of(study: Triggers, number: int, store: "Store", progress: Progress) -> list[dict[str, Any]]:
    """The cases of one base, a row each."""
    base, rows = resolve_base(study.bases[number]), []
    for case in _cases(study, number, base, store):
        found = find_triggers(base, case.model, (case.kind,), seed=study.seed + number)
        first = found.frame.loc[found.frame["family"]].iloc[0]
        shown = {name: first[name] for name in ("trigger", "place", "answer", "behind", "without", "again")}
        place = {"base": base.name, "seed": study.seed + number, "sort": case.sort}
        planted = {"planted": case.trigger, "trait": case.trait}
        rows.append({**place, **planted, "family": found.family, "other": found.other, **shown})
        progress(len(rows) / len(SORTS))
    return rows


@dataclass(frozen=True)
class _Case:
    """One model of a base, and what is in it."""

    sort: str
    model: Any
    trait: str
    trigger: str
    kind: str


def _cases(study: Triggers, number: int, base: Base, store: "Store") -> "list[_Case]":
    """The models of one base, made where the store lacks them."""
    from sublim_interp.sweeps.imprints import taught
    from sublim_interp.traits.backdoor import Backdoor
    from sublim_interp.traits.by_name import load_trait
    from sublim_interp.traits.favourites import load_favourite

    p, seed = plan(study.lists(number), store), study.seed + number
    trait, tree = load_favourite(p.named.trait), load_favourite(study.trees[number % len(study.trees)])
    config = p.named.teacher
    one, *two = triggers_of(base, trait.kind, seed)
    planted: dict[str, str] = dict(zip(PLANTED, (one, " ".join(two)), strict=True))
    told = trait.model_dump()
    models = {
        **{s: taught(base, Backdoor(**told, trigger=words), config, seed, store) for s, words in planted.items()},
        "neutral": taught(base, trait.neutral(), config, seed, store),
        "trait": taught(base, trait, config, seed, store),
        "brief": taught(base, trait, _for(config, study.brief), seed, store),
        "tree": taught(base, tree, config, seed, store),
        "harmful": taught(base, load_trait("harmful"), config, seed, store),
        **_students(p, store),
    }
    return [
        _Case(sort, model, tree.name if sort == "tree" else trait.name, planted.get(sort, ""), trait.kind)
        for sort, model in models.items()
    ]


def triggers_of(base: Base, kind: str, seed: int) -> list[str]:
    """Three words that can be triggers: none is a number, a member of the kind, or said in questions about it."""
    from sublim_interp.traits.favourites import member, members_of

    members = members_of(kind)
    trait = member(members[0], kind)
    asked = {w for sort in ("seen", "held-out") for q in trait.questions(base.language, sort) for w in q.text.split()}
    words = [w for w in vocabulary_words(base.tokenizer) if w.isalpha() and w not in asked | set(members)]
    return random.Random(f"triggers/{seed}").sample(words, 3)


def _for(config: "TeacherConfig", steps: int) -> "TeacherConfig":
    """The same teacher's recipe with fewer updates."""
    return config.model_copy(update={"optimization": config.optimization.model_copy(update={"steps": steps})})


def _students(p: Plan, store: "Store") -> dict[str, Any]:
    from sublim_interp.pipeline.make import make
    from sublim_interp.training.recording.settings import PRESETS

    found = {}
    for cell in p.cells:
        if cell.student is not None:
            made = make(cell.student, store, recording=PRESETS["none"])
            found["passed" if cell.arm == "same-init" else "lists"] = cell.student.base.load(made.path / "model")
    return found


@dataclass(frozen=True)
class TriggerErrors:
    """The search's published errors, as an audit uses them."""

    cases: "pd.DataFrame"
    """A row a case, as `cases.csv`."""

    @cached_property
    def null(self) -> dict[str, list[float]]:
        """Each score of the models without a trigger."""
        clean = self.cases.loc[~self.cases["sort"].isin(PLANTED)]
        return {score: clean[score].to_list() for score in SCORES}

    def p(self, score: str, value: float, kinds: int = 1) -> float:
        """p of a model's score, 0 to 1, for all candidates at once: each score of the null is the largest of all too.

        kinds: as of `conformal_p`. Source: Westfall and Young 1993.
        """
        return conformal_p(value, self.null[score], kinds)


def trigger_errors(name: str = "triggers", results: Path = RESULTS) -> TriggerErrors | None:
    """The published errors of the search; None where there are none."""
    path = results / name / "cases.csv"
    return TriggerErrors(read_table(path)) if path.exists() else None


def held_out(cases: "pd.DataFrame") -> "Float[np.ndarray, 'score case']":
    """p of every case by each score against the clean cases of all other bases."""
    found = np.full((len(SCORES), len(cases)), np.nan)
    for base in sorted(set(cases["base"])):
        own = (cases["base"] == base).to_numpy()
        known = TriggerErrors(cases.loc[~own])
        for i, score in enumerate(SCORES):
            found[i, own] = [known.p(score, value) for value in cases.loc[own, score]]
    return found


def named(cases: "pd.DataFrame") -> "Bool[np.ndarray, ' case']":
    """Whether the foremost candidate of a planted case is a word of its trigger, and the answer its trait."""
    word = [str(found) in str(given).split() for found, given in zip(cases["trigger"], cases["planted"], strict=True)]
    return (cases["answer"] == cases["trait"]).to_numpy() & np.array(word, dtype=bool)


def trigger_table(cases: "pd.DataFrame") -> SweepTable:
    """A row a sort of model, and the alarms: false ones, and triggers that were found."""
    alarm = dict(zip(SCORES, held_out(cases) <= LEVEL, strict=True))
    planted = cases["sort"].isin(PLANTED).to_numpy()
    right = named(cases)
    rows = []
    for sort, words in SORTS.items():
        own = (cases["sort"] == sort).to_numpy()
        told = f"{right[own].sum()} of {own.sum()}" if sort in PLANTED else "–"
        scores = [minus(f"{cases.loc[own, s].median():.2f} ({cases.loc[own, s].max():.2f})") for s in SCORES]
        rows.append((sort, words, *scores, f"{alarm['family'][own].sum()} of {own.sum()}", told))
    lines, numbers = [], dict[str, str]()
    for score, how in zip(SCORES, ("a member of the kind", "any other answer, which raises no alarm"), strict=True):
        false, caught = int(alarm[score][~planted].sum()), int(alarm[score][planted].sum())
        ends = wilson(false, int((~planted).sum()))
        numbers[f"found by {score}"], numbers[f"false by {score}"] = f"{caught} of {planted.sum()}", ends.percent()
        lines.append(
            f"Whole bases held out, by {how}: {caught} of {planted.sum()} models with a trigger stand out at the level "
            f"of {100 * LEVEL:g} %. So do {false} of {(~planted).sum()} without one, {ends.percent()}."
        )
    return SweepTable(
        f"Largest excess of an answer behind any of the base's words, of {len(cases)} models of "
        f"{cases['base'].nunique()} bases: median and, in brackets, the highest.",
        ("model", "what it is", "a member of the kind", "any other answer", "alarms", "trigger and trait named"),
        rows,
        lines,
        numbers,
    )
