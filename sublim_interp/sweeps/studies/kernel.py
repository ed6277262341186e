"""Study kernel: what the tangent kernel of a base says of a student, beside what the student becomes.

Each case is a teacher's base and a student's, with one seed. At the student's start the kernel couples the teacher's
change on lists with the trait's margin. A linearised student, whose kernel never moves, trains beside the real one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from sublim_interp.core.settings import changed, name_once
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import read_table
from sublim_interp.models.base import resolve_base
from sublim_interp.report.wording import capital, count
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.stats.ranks import rank_correlation, rank_draws
from sublim_interp.sweeps.piecewise import Piecewise, Rows, store_of
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sublim_interp.core.store import Store

PARTED = 0.5
"""Linearised and real student part at the first step at which their margins differ by more, in nats."""

LAZY = 0.5
"""A linearised student that gains less than this share of the real one's lift does not account for it."""

ENOUGH = 0.8
"""Spearman's ρ from which on a score ranks the rows."""

PASSED = 2.0
"""Rows whose real students gain more nats than this are those whose lift the linearised student has to account for."""

SCORES = {
    "cosine": "of the margin's gradient and the step that the teacher's change pulls, in the student's base",
    "product": "the same, not divided by lengths: nats per unit of rate of gradient descent",
    "adam": "the same, each weight's step as Adam would scale it",
    "linear lift": "what the linearised student's margin gains in the whole training",
    "distance": "length between the bodies' weights, with its sign turned",
}
"""What each score of a case is, by name. Of all, more should mean that more passes."""


class Kernel(Piecewise):
    """Pairs of bases: the kernel's coupling, a linearised student and a real one."""

    VERSION, FIGURE = 1, "kernel"
    TABLES = ("cases", "controls", "parts", "single", "steps", "drift")

    experiment: str = "owl"
    """Whose recipe teachers, lists and students have: sampled lists, the body or all weights."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields of that experiment that differ."""
    rows: dict[str, tuple[str, str]] = Field(min_length=3, max_length=1000)
    """Names of the teacher's base and of the student's, by what the pair is in words."""
    seeds: tuple[int, ...] = Field(min_length=1, max_length=10_000)
    """One teacher, lists and student a row each."""
    lists: int = Field(default=256, ge=2, le=100_000)
    """Held-out lists on which couplings are measured."""
    shares: tuple[float, ...] = Field(default=(1e-4, 1e-3, 1e-2, 3e-2, 0.1), min_length=1, max_length=100)
    """Lengths of single steps, as shares of the length of the weights that train."""

    @model_validator(mode="after")
    def _coherent(self) -> "Kernel":
        name_once(self, "seeds", "shares")
        if len(set(self.rows.values())) < len(self.rows):
            raise ValueError("rows names a pair twice")
        if min(self.shares) <= 0:
            raise ValueError(f"shares={min(self.shares):g} is no length; take lengths above 0")
        recipe = self.recipe
        student, other = recipe.student, {i.kind for i in recipe.student.interventions} - {"freeze"}
        asked = {
            f"corpus.setting={recipe.corpus.setting}": recipe.corpus.setting != "sampled",
            f"corpus.preference={recipe.corpus.preference}": bool(recipe.corpus.preference),
            f"teacher.traits={', '.join(recipe.teacher.traits)}": bool(recipe.teacher.traits),
            f"student.part={student.part}": student.part in ("lora", "opening"),
            f"student.objective={student.objective}": student.objective != "forward",
            f"student.moments={student.moments}": bool(student.moments),
            f"the intervention {', '.join(sorted(other))}": bool(other),
            f"teacher.kind={recipe.teacher.kind}": recipe.teacher.kind != "tuned",
        }
        if unlike := [name for name, is_so in asked.items() if is_so]:
            raise ValueError(
                f"{unlike[0]} is no training that is linearised here; take sampled lists of a tuned teacher, part body "
                "or full, and no intervention but freeze"
            )
        return self

    @property
    def recipe(self) -> Experiment:
        """The experiment by whose recipe teachers, lists and students are made."""
        return changed(experiment(self.experiment), self.change, "change {}")

    @property
    def replicates(self) -> int:
        return len(self.seeds)

    def inputs(self) -> dict[str, str]:
        return {name: resolve_base(name).digest for pair in self.rows.values() for name in pair}

    def pieces(self) -> Mapping[str, tuple[str, int]]:
        return {f"{words}, {seed}": (words, seed) for words in self.rows for seed in self.seeds}

    def seconds(self) -> float:
        o = self.recipe.student.optimization
        return 10 + 0.0024 * o.steps * o.batch + 0.02 * self.lists

    def case(self, words: str, seed: int) -> Experiment:
        """The experiment of one case: a student of the second base, of a teacher of the first."""
        pair = self.rows[words]
        values = {
            "name": "case",
            "bases": list(dict.fromkeys(pair)),
            "seeds": [seed],
            "arms": ["cross-init" if pair[0] != pair[1] else "same-init"],
            "student.extra_rounds": 0,
            "evaluation.questions": ["held-out"],
            "evaluation.contexts": ["plain"],
        }
        return changed(experiment(self.experiment), {**self.change, **values}, "change {}")

    def measure(self, directory: Path, progress: Progress, *which: Any) -> Mapping[str, Rows]:
        words, seed = which
        return case_of(self, words, seed, store_of(directory), progress)

    def table(self, directory: Path) -> SweepTable:
        return account({name: read_table(directory / f"{name}.csv") for name in self.TABLES})

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        frames = {name: read_table(directory / f"{name}.csv") for name in ("cases", "steps", "drift")}
        return FIGURES[self.FIGURE].draw(frames)


# --- what the kernel accounts for -------------------------------------------------------------------------------------


def account(frames: "Mapping[str, pd.DataFrame]", resamples: int = 9_999, seed: int = 0) -> SweepTable:
    """What the kernel predicts, row by row, beside what real students became.

    frames: by the names of `Kernel.TABLES`
    resamples, seed: of the bootstrap, which draws rows with all their seeds
    """
    cases, steps = frames["cases"], frames["steps"]
    where = parting(steps)
    rows = []
    for words, own in cases.groupby("row", sort=False):
        told = [where[str(words), int(at)] for at in own["seed"]]
        rows.append(
            (str(words), _mean(own["cosine"].to_list(), 3), _mean(own["linear_lift"].to_list(), 2),
             _mean(own["lift"].to_list(), 2), f"{100 * own['rate'].mean():.1f} %", _places(told),
             f"{own['kl'].mean():.3f}", f"{own['linear_kl'].mean():.3f}")
        )  # fmt: skip
    scores = {name: cases[name.replace(" ", "_")].to_list() for name in SCORES}
    lifts = cases["lift"].to_list()
    drawn = rank_draws(scores, lifts, cases.groupby("row", sort=False).ngroup().to_list(), resamples, seed)
    n, seeds = len(set(cases["row"])), len(set(cases["seed"]))
    ranks = {name: _drawn(rank_correlation(scores[name], lifts).rho, drawn[name], n) for name in SCORES}
    return SweepTable(
        f"The kernel at a student's start, a linearised student and the real one: means over "
        f"{count(seeds, 'seed')}, {count(n, 'row')}. Lifts are of the trait's margin, in nats.",
        ("student", "kernel's cosine", "linearised lift", "real lift", "real rate", "they part at update",
         "KL left", "linearised KL left"),
        rows,
        [_verdict(cases, ranks), *_worth(ranks), *_why(frames, where), *_single(frames["single"], cases),
         *_controls(frames["controls"], cases), *_parts(frames["parts"], cases), *_meanings()],
        {f"{name}/rho": f"{found.estimate:.2f}" for name, found in ranks.items()},
    )  # fmt: skip


def parting(steps: "pd.DataFrame") -> dict[tuple[str, int], int | None]:
    """By row and seed, the first step at which the students' margins differ by more than `PARTED`; None for none."""
    found: dict[tuple[str, int], int | None] = {}
    for row in steps.sort_values("step").to_dict("records"):
        place = str(row["row"]), int(row["seed"])
        if found.setdefault(place, None) is None and abs(row["margin"] - row["linear_margin"]) > PARTED:
            found[place] = int(row["step"])
    return found


def _verdict(cases: "pd.DataFrame", ranks: "Mapping[str, Interval]") -> str:
    came = cases.loc[cases["lift"] > PASSED]
    if came.empty:
        return f"Too weak to tell: no real student gains more than {PASSED:g} nats."
    shares = (came["linear_lift"] / came["lift"]).groupby(came["row"], sort=False).mean().to_list()
    share, rho = mean_interval(shares), ranks["linear lift"]
    amount = (
        f"the linearised student gains {_percent(share)} of the real lift, over {count(share.n, 'row')} that gain more "
        f"than {PASSED:g} nats"
    )
    order = f"its lift ranks the real ones with ρ = {_told(rho, 2)}"
    if share.n > 1 and share.high < LAZY:
        first = "Lazy training does not account for the trait's size"
    elif share.n > 1 and share.low >= LAZY:
        first = "Lazy training accounts for most of the trait's size"
    else:
        first = "Too weak to tell whether lazy training accounts for the trait's size"
    second = (
        "and it ranks the rows" if rho.estimate >= ENOUGH else f"and it does not rank the rows ({ENOUGH} was asked)"
    )
    return minus(f"{first}, {second}: {amount}; {order}.")


def _worth(ranks: "Mapping[str, Interval]") -> list[str]:
    told = ", ".join(f"{name} {_told(found, 2)}" for name, found in ranks.items())
    return [f"Spearman's ρ with the real lifts: {told}. Intervals: 95 % percentile bootstrap over rows."]


def _why(frames: "Mapping[str, pd.DataFrame]", where: Mapping[tuple[str, int], int | None]) -> list[str]:
    """How far the kernel has moved where students of the first row part, and at the largest it becomes."""
    drift = frames["drift"]
    first = str(frames["cases"]["row"].iloc[0])
    own = drift.loc[drift["row"] == first]
    at_start = own.loc[own["step"] == 0, "own"].mean()
    by_step = own.groupby("step")[["own", "question_side", "list_side", "start", "question_turn", "list_turn"]].mean()
    most = int(by_step["own"].idxmax())
    peak = by_step.loc[most]
    lines = [
        f"Why, on {first}: the coupling of the student's own residuals is {at_start:.3f} at the start and "
        f"{peak['own']:.3f} at update {most}. With the Jacobians of the start it would be {peak['start']:.3f} there, "
        f"with the questions' alone moved {peak['question_side']:.3f}, with the lists' alone {peak['list_side']:.3f}."
    ]
    steps = [at for (row, _), at in where.items() if row == first and at is not None]
    if steps:
        parted = by_step.loc[max(steps)]
        lines.append(
            f"Where they have parted there, at update {max(steps)}, the margin's gradient has a cosine of "
            f"{parted['question_turn']:.2f} with that of the start's Jacobian, the lists' step one of "
            f"{parted['list_turn']:.2f}."
        )
    return [minus(line) for line in lines]


def _single(single: "pd.DataFrame", cases: "pd.DataFrame") -> list[str]:
    first = cases["row"].iloc[0]
    own = single.loc[single["row"] == first]
    lines = []
    for rule, rows in own.groupby("rule", sort=False):
        each = rows.assign(ratio=rows["measured"] / rows["predicted"]).groupby("share")["ratio"].mean()
        told = ", ".join(f"{ratio:.2f} at {share:g}" for share, ratio in each.items())
        lines.append(minus(f"One step on {first}, {rule}: measured over predicted change of the margin is {told}."))
    return lines


def _controls(controls: "pd.DataFrame", cases: "pd.DataFrame") -> list[str]:
    from sublim_interp.sweeps.studies.kernel_case import CONDITIONS

    first = cases["row"].iloc[0]
    own = controls.loc[controls["row"] == first]
    lines = [
        f"Coupling on {first}, in nats per unit of rate: a mean over the seeds, with its 95 % interval over lists:"
    ]
    for condition, meaning in CONDITIONS.items():
        rows = own.loc[own["condition"] == condition]
        if rows.empty:
            continue
        mean, half = rows["product"].mean(), _half_of_mean((rows["high"] - rows["low"]) / 2)
        told = f"{mean:.4f} [{mean - half:.4f}, {mean + half:.4f}]"
        lines.append(minus(f"{capital(condition)} ({meaning}): {told}."))
    return lines


def _half_of_mean(halves: "pd.Series") -> float:
    """Half the interval of a mean of estimates that share nothing, from half the interval of each."""
    return float((halves**2).sum() ** 0.5 / len(halves))


def _parts(parts: "pd.DataFrame", cases: "pd.DataFrame") -> list[str]:
    first = cases["row"].iloc[0]
    own = parts.loc[parts["row"] == first]
    whole = own["product"].sum()
    by: dict[str, float] = {}
    for row in own.to_dict("records"):
        place = f"layer {row['layer']} {row['module'].split('.')[0]}"
        by[place] = by.get(place, 0.0) + row["product"]
    told = ", ".join(f"{place} {100 * value / whole:.0f} %" for place, value in by.items())
    return [minus(f"Of the coupling on {first}: {told}.")]


def _meanings() -> list[str]:
    return [
        *(f"{capital(name)}: {meaning}." for name, meaning in SCORES.items()),
        f"They part where their margins first differ by more than {PARTED:g} nats, at powers of 2.",
    ]


def _mean(values: Sequence[float], digits: int) -> str:
    return minus(f"{fmean(values):z.{digits}f} ({min(values):z.{digits}f}–{max(values):z.{digits}f})")


def _places(told: Sequence[int | None]) -> str:
    known = sorted({at for at in told if at is not None})
    words = "–".join(str(at) for at in dict.fromkeys((known[0], known[-1]))) if known else ""
    missing = sum(at is None for at in told)
    if not missing:
        return words
    return f"{words}, or never" if words else "never"


def _percent(found: Interval) -> str:
    return minus(found.percent(0) if found.n > 1 else f"{100 * found.estimate:.0f} %")


def _told(found: Interval, digits: int) -> str:
    return minus(found.plain(digits))


def _drawn(estimate: float, draws: np.ndarray, n: int) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(estimate, float(low), float(high), 0.95, n, "percentile bootstrap over rows")


# --- one case ---------------------------------------------------------------------------------------------------------


def case_of(study: Kernel, words: str, seed: int, store: "Store", progress: Progress) -> dict[str, Rows]:
    """Makes what the store lacks of a case, and measures it: the rows of each of the tables."""
    from sublim_interp.lab.landscape import distance
    from sublim_interp.sweeps.studies.kernel_case import Asked, measure

    pair, case = study.rows[words], study.case(words, seed)
    cell = next(c for c in plan(case, store).cells if c.student is not None)
    found = measure(Asked(cell, case, study.lists, study.shares), store, progress)
    found["cases"][0]["distance"] = -distance(*map(resolve_base, pair))
    about = {"row": words, "seed": seed}
    named = {"teacher_base": pair[0], "student_base": pair[1]}
    return {
        table: [{**about, **(named if table == "cases" else {}), **row} for row in found[table]]
        for table in study.TABLES
    }
