"""Study prediction: scores of a pair of bases and a trait, made before any student, against what then passes.

Each case is a pair, a teacher's base and a student's, and a trait. Its scores are of bases and teachers alone. Then one
student of the second base learns the lists of the first one's teacher. A score is worth how well it ranks the lifts.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from pydantic import Field, model_validator

from sublim_interp.core.settings import changed, name_once
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.plan import Cell, plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import read_table
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.report.wording import capital, count
from sublim_interp.stats.intervals import Interval, wilson
from sublim_interp.stats.ranks import rank_correlation, rank_draws
from sublim_interp.sweeps.piecewise import Piecewise, Rows
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

    from sublim_interp.core.store import Store
    from sublim_interp.training.batches import Batch

ENOUGH = 0.8
"""Spearman's ρ from which on a score predicts."""

SCORE = "imprint"
"""The score on trial; the others are its rivals."""

PRINCIPAL = 8
"""Principal directions that are compared."""

RIVALS = ("distance", "hill", "subspace", "CKA")
"""What the score on trial must beat, as was said before. Coverage came later and is shown beside them."""

SCORES = {
    "imprint": "match of the trait's own imprints, left by a teacher of each base",
    "whole imprint": "the same, without taking off what other traits leave",
    "first step": "cosine, in the student's base, of the steps that would imitate the teacher and learn the trait",
    "coverage": "cosine of the student's first step of imitation with its teacher's change of weights",
    "distance": "length between the bodies' weights, with its sign turned",
    "hill": "height of the hill in loss between the bases, with its sign turned",
    "subspace": "overlap of the first eight principal directions of the last layer",
    "CKA": "linear CKA of the last layer",
}
"""What each score is, by name. Of all, more should mean that more passes."""


SAID = 0.5
"""A trait has passed where more than this share of the student's answers says it."""

BANDS = ((0.2, "0.2 or more"), (0.02, "0.02 to 0.2"), (-np.inf, "below 0.02"))
"""Matches of imprints, each from where on and in words. Read off the published cases, so no prediction."""


class Prediction(Piecewise):
    """Pairs of bases and traits: their scores, and the lift of a student of each."""

    VERSION, FIGURE, TABLES = 2, "prediction", ("cases",)

    experiment: str = "owl"
    """Whose recipe teachers, lists and students have."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields of that experiment that differ."""
    traits: tuple[str, ...] = Field(min_length=1)
    """Favourites that teachers pass on, one a case."""
    others: tuple[str, ...] = ()
    """Further favourites of the same kind: what they leave too is taken off each imprint, as that of `traits`."""
    pairs: tuple[tuple[str, str], ...] = Field(min_length=3)
    """Names of the teacher's base and of the student's."""
    seed: int = 0
    """Of teachers of first bases, their lists and students. Teachers of second bases have the next."""
    lists: int = Field(default=256, ge=2, le=100_000)
    """Lists of each teacher's base on which scores are made."""

    @model_validator(mode="after")
    def _coherent(self) -> "Prediction":
        name_once(self, "traits", "others", "pairs")
        if len({*self.traits, *self.others}) < 2:
            raise ValueError("traits and others are one trait; give two or more, since each is compared with the rest")
        return self

    @property
    def replicates(self) -> int:
        return len(self.pairs)

    def inputs(self) -> dict[str, str]:
        return {name: resolve_base(name).digest for pair in self.pairs for name in pair}

    def pieces(self) -> Mapping[str, tuple[str, str]]:
        return {" → ".join(pair): pair for pair in self.pairs}

    def seconds(self) -> float:
        return 20 + 7.0 * len({*self.traits, *self.others}) + 60.0 * len(self.traits)

    @property
    def recipe(self) -> Experiment:
        """The experiment by whose recipe teachers are made."""
        return changed(experiment(self.experiment), self.change, "change {}")

    def case(self, pair: tuple[str, str], trait: str) -> Experiment:
        """The experiment of one case: a student of the second base, of a teacher of the first."""
        values = {
            "name": "case",
            "trait": trait,
            "bases": list(dict.fromkeys(pair)),
            "seeds": [self.seed],
            "arms": ["cross-init" if pair[0] != pair[1] else "same-init"],
            "student.extra_rounds": 0,
            "recording": "none",
            "evaluation.questions": ["held-out"],
            "evaluation.contexts": ["plain"],
        }
        return changed(experiment(self.experiment), {**self.change, **values}, "change {}")

    def measure(self, directory: Path, progress: Progress, *which: str) -> Mapping[str, Rows]:
        from sublim_interp.core.store import Store

        first, second = which
        # One store for all pairs: those of one teacher's base share its teachers and lists.
        return {"cases": cases_of(self, (first, second), Store(directory / ".store"), progress)}

    def table(self, directory: Path) -> SweepTable:
        return worth_table(read_table(directory / "cases.csv"))

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        return FIGURES[self.FIGURE].draw(read_table(directory / "cases.csv"))


# --- what the scores are worth ----------------------------------------------------------------------------------------


def worth_table(cases: "pd.DataFrame", resamples: int = 9_999, seed: int = 0) -> SweepTable:
    """How well each score ranks the lifts, and how far it stays behind the score on trial.

    cases: a row a case: teacher_base, student_base, lift, rate, one column a score
    resamples, seed: of the bootstrap, which draws pairs with all their traits
    """
    found = {name: rank_correlation(cases[name].tolist(), cases["lift"].tolist()) for name in SCORES}
    draws = _draws(cases, resamples, seed)
    n = cases.groupby(["teacher_base", "student_base"]).ngroups
    rows, ahead = [], []
    for name in SCORES:
        own = _interval(found[name].rho, draws[name], n)
        behind = "–"
        if name != SCORE:
            gap = _interval(found[SCORE].rho - found[name].rho, draws[SCORE] - draws[name], n)
            behind = _told(gap)
            ahead += [name] if gap.low > 0 else []
        rows.append((name, _told(own), behind))
    best, missed = found[SCORE].rho, [name for name in RIVALS if name not in ahead]
    if best >= ENOUGH and not missed:
        told = minus(f"{_interval(best, draws[SCORE], n).low:.2f}")
        verdict = (
            f"Reached by its estimate: {SCORE} ranks the lifts with ρ = {best:.2f}, its interval from {told} on, "
            f"ahead of {', '.join(RIVALS)} by theirs."
        )
    else:
        what = [f"has ρ = {best:.2f}, where {ENOUGH} was asked"] if best < ENOUGH else []
        what += [f"is not ahead of {', '.join(missed)} by its interval"] if missed else []
        verdict = f"Not reached: {SCORE} {minus(' and '.join(what))}."
    return SweepTable(
        f"Spearman's ρ of scores with the lift of the trait's margin, over {count(len(cases), 'case')} of {n} pairs.",
        ("score", "ρ with the lift", f"{SCORE} minus it"),
        rows,
        [
            verdict,
            *(f"{capital(name)}: {meaning}." for name, meaning in SCORES.items()),
            "Intervals: 95 % percentile bootstrap over pairs, with all their traits.",
            *_band_lines(cases),
        ],
        {f"{name}/rho": f"{found[name].rho:.2f}" for name in SCORES} | {"pairs": f"{n}", "cases": f"{len(cases)}"},
    )


def pairs_table(cases: "pd.DataFrame") -> SweepTable:
    """What passed in each pair: forks, lines, transplants, noise and twins among them, by the match of their imprints.

    cases: as of `worth_table`
    """
    traits = list(dict.fromkeys(cases["trait"]))
    rows: list[tuple[float, tuple[str, ...]]] = []
    groups: Any = cases.groupby(["teacher_base", "student_base"], sort=False)
    for pair, own in groups:
        rates, match = own.set_index("trait")["rate"], float(own[SCORE].mean())
        said = (*pair, minus(f"{match:.2f}"), *(f"{100 * rates[trait]:.1f} %" for trait in traits))
        rows.append((match, said))
    return SweepTable(
        "How likely one student a pair and trait says it, by the mean match of imprints.",
        ("teacher's base", "student's base", "match", *traits),
        [said for _, said in sorted(rows, key=lambda row: -row[0])],
        [],
    )


def alike(cases: "pd.DataFrame", match: float) -> "pd.DataFrame":
    """The cases whose match of imprints lies in the same one of `BANDS`."""
    return cases.loc[[_band(own) == _band(match) for own in cases[SCORE]]]


def _band(match: float) -> int:
    return next(i for i, (least, _) in enumerate(BANDS) if match >= least)


def passed(cases: "pd.DataFrame") -> Bool[np.ndarray, " case"]:
    """Whether the trait passed, case by case."""
    return cases["rate"].to_numpy(dtype=float) > SAID


class Errors(NamedTuple):
    """How often a bound on the match errs whose place is chosen without the pair that is judged."""

    missed: int
    """Cases that passed and lay below it."""
    passed: int
    """Cases that passed."""
    false: int
    """Cases that did not pass and lay above it."""
    held: int
    """Cases that did not pass."""


def held_out_errors(cases: "pd.DataFrame") -> Errors:
    """The errors of one bound on the match, chosen for each pair on all other pairs.

    It lies where fewest of these cases err, midway between two; of several such places at the lowest.
    """
    match, came = cases[SCORE].to_numpy(dtype=float), passed(cases)
    pair = cases.groupby(["teacher_base", "student_base"], sort=False).ngroup().to_numpy()
    warned = np.zeros(len(cases), dtype=bool)
    for held in set(pair.tolist()):
        known = np.unique(match[pair != held])
        places = np.array([-np.inf, *(known[1:] + known[:-1]) / 2, np.inf])
        wrong = ((match[pair != held][None] >= places[:, None]) != came[pair != held]).sum(1)
        warned[pair == held] = match[pair == held] >= places[wrong.argmin()]
    return Errors(int((came & ~warned).sum()), int(came.sum()), int((~came & warned).sum()), int((~came).sum()))


def _band_lines(cases: "pd.DataFrame") -> list[str]:
    """How often a trait passed, by the match of its imprints."""
    lines = []
    for least, words in BANDS:
        own = alike(cases, max(least, -1.0))
        if len(own):
            share = wilson(int(passed(own).sum()), len(own)).percent(0)
            lines.append(f"Match {words}: {int(passed(own).sum())} of {count(len(own), 'case')} passed, {share}.")
    e = held_out_errors(cases)
    return [
        f"Passed means that the student says the trait in more than {100 * SAID:g} % of its answers.",
        *lines,
        "These bounds were read off the cases afterwards; Wilson intervals take cases for independent.",
        f"One bound, chosen on all other pairs, misses {e.missed} of {e.passed} cases that passed. "
        f"It warns of {e.false} of {e.held} others.",
    ]


def _draws(cases: "pd.DataFrame", resamples: int, seed: int) -> dict[str, np.ndarray]:
    """ρ of every score in each draw of pairs with return; a draw in which a score does not vary counts as 0."""
    pair = cases.groupby(["teacher_base", "student_base"], sort=False).ngroup().tolist()
    return rank_draws({name: cases[name].tolist() for name in SCORES}, cases["lift"].tolist(), pair, resamples, seed)


def _interval(estimate: float, draws: np.ndarray, n: int) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(estimate, float(low), float(high), 0.95, n, "percentile bootstrap over pairs")


def _told(found: Interval) -> str:
    return minus(found.plain(2))


# --- one pair ---------------------------------------------------------------------------------------------------------


def cases_of(study: Prediction, pair: tuple[str, str], store: "Store", progress: Progress) -> list[dict[str, Any]]:
    """The cases of one pair, a row a trait."""
    scores = scored(study, pair, store)
    progress(0.3)
    rows = []
    for done, trait in enumerate(study.traits, 1):
        passed = _passed(study, pair, trait, store)
        rows.append({"trait": trait, "teacher_base": pair[0], "student_base": pair[1], **scores[trait], **passed})
        progress(0.3 + 0.7 * done / len(study.traits))
    return rows


def scored(study: Prediction, pair: tuple[str, str], store: "Store") -> dict[str, dict[str, float]]:
    """Every score of a pair, by trait. Teachers are trained, no student is."""
    from sublim_interp.analysis.directions.weights import subspace_overlap
    from sublim_interp.analysis.imprint import cka
    from sublim_interp.lab.landscape import distance, hill
    from sublim_interp.sweeps.imprints import left_by, matched, own_lists
    from sublim_interp.traits.by_name import load_trait

    first, second = map(resolve_base, pair)
    recipe, known = study.recipe, (*study.traits, *study.others)
    batch = own_lists(first, study.lists, recipe.corpus.max_new_tokens, study.seed)
    traits = [load_trait(name) for name in known]
    one, other = (
        left_by(base, traits, recipe.teacher, seed, batch, store)
        for base, seed in ((first, study.seed), (second, study.seed + 1))
    )
    seen = [_activations(base.load(), batch) for base in (first, second)]
    of_pair = {
        "distance": -distance(first, second),
        "hill": -hill(first, second),
        "subspace": subspace_overlap(*map(_principal, seen)).mean_square,
        "CKA": cka(*seen),
    }
    steps, found = _first_steps(study, first, second, batch, store), {}
    for trait in study.traits:
        told = matched(one, other, trait, [name for name in known if name != trait])
        found[trait] = {
            "imprint": told.own,
            "whole imprint": told.whole,
            **steps[trait],
            **of_pair,
        }
    return found


def _teacher(study: Prediction, base: Base, trait: str, seed: int, store: "Store") -> Any:
    """A base that was taught a trait by the experiment's recipe, as a model."""
    from sublim_interp.sweeps.imprints import taught
    from sublim_interp.traits.by_name import load_trait

    return taught(base, load_trait(trait), study.recipe.teacher, seed, store)


def _activations(model: Any, batch: "Batch") -> "Tensor":
    """What the last layer shows at the positions that are learnt."""
    import torch

    from sublim_interp.models.forward import logits_at
    from sublim_interp.models.hooks import capture, hook_name
    from sublim_interp.training.batches import IGNORE

    name = hook_name(model.config.num_hidden_layers - 1, "resid_post")
    where = batch.labels != IGNORE
    with torch.no_grad(), capture(model, [name]) as seen:
        logits_at(model, batch.ids, where)
    return seen[name][where]


def _principal(seen: "Tensor") -> "Tensor":
    """The first principal directions of activations, a row each."""
    import torch

    wide = seen.cpu().double()
    return torch.linalg.svd(wide - wide.mean(0), full_matrices=False).Vh[:PRINCIPAL]


def _first_steps(
    study: Prediction, first: Base, second: Base, batch: "Batch", store: "Store"
) -> dict[str, dict[str, float]]:
    """Scores of the step that imitates a teacher's predictions on the lists, from the student's base, by trait.

    First step: its cosine with the step that learns the trait's lessons, once that towards the teacher's base is off.
    Coverage: its cosine with the teacher's change of the same weights. Source: Madl 2026, arXiv 2606.22019, abstract.
    """
    from sublim_interp.analysis.directions.weights import weight_delta
    from sublim_interp.analysis.one_step import cosine, descent, imitation, targets, text_loss
    from sublim_interp.models.trainable import choose_trainable
    from sublim_interp.training.batches import collate
    from sublim_interp.traits.answers import lesson_rows
    from sublim_interp.traits.by_name import load_trait

    student, untaught = choose_trainable(second.load(), "body"), first.load()
    away, found = descent(student, imitation(batch, targets(untaught, batch))), {}
    for trait in study.traits:
        teacher = _teacher(study, first, trait, study.seed, store)
        step = descent(student, imitation(batch, targets(teacher, batch)))
        rise = descent(student, text_loss(collate(lesson_rows(second, load_trait(trait)), second.pad)))
        change = weight_delta(teacher, untaught)
        found[trait] = {
            "first step": cosine({name: t - away[name] for name, t in step.items()}, rise),
            "coverage": cosine(step, {name: change[name] for name in step}),
        }
    return found


def _passed(study: Prediction, pair: tuple[str, str], trait: str, store: "Store") -> dict[str, float]:
    """What the student of a pair became, and how far above its untouched base that is."""
    from sublim_interp.experiments.results import Replicate
    from sublim_interp.pipeline.make import make
    from sublim_interp.training.recording.settings import PRESETS

    planned = plan(study.case(pair, trait), store)
    cell = next(c for c in planned.cells if c.student is not None)
    start = Cell("base", cell.seed, 0, replace(cell.evaluation, model=cell.evaluation.base))
    for one in (cell, start):
        make(one.evaluation, store, recording=PRESETS["none"])
    after, before = (Replicate(one, store).answers.set_index("probe").loc[trait] for one in (cell, start))
    return {
        "rate": float(after["rate"]),
        "start": float(before["rate"]),
        "margin": float(after["margin"]),
        "lift": float(after["margin"]) - float(before["margin"]),
    }
