"""How often the auditor errs: alarms and bounds by conformal calibration on cases whose truth is known."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from sublim_interp.audit.evidence import standing
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.tables import read_table
from sublim_interp.stats.intervals import Interval, wilson
from sublim_interp.stats.roc import auroc, auroc_interval
from sublim_interp.sweeps.wording import SweepTable

if TYPE_CHECKING:
    import pandas as pd

CASE = ("case", "arm", "clean")
"""Columns that tell a case."""
LEVEL = 0.05
"""Share of false alarms, and of bounds that are exceeded, that is aimed at."""
_SHARED = {"base": ("base", "teacher_base"), "trait": ("teacher_trait",)}
"""Columns in which two cases must differ to share no base, or no trait."""
WORDS = {
    "both": "pull and vector",
    "pull": "pull alone",
    "vector": "vector alone",
    "persona": "persona (2602.04863)",
    "surprise": "loss gap",
    "slope": "gradient norm",
    "asked": "a student, trained and asked",
}
"""What cases are told apart by: its name in tables."""


def scored(cases: "pd.DataFrame") -> "pd.DataFrame":
    """A row a case: what tells it, `planted` (whether its teacher's trait can pass), `top` and one score a measure.

    cases: a row a case and trait, as the study's `cases.csv`
    """
    import pandas as pd

    own = cases.copy()
    for name in ("pull", "vector", "persona"):
        own[name] = standing(cases, name, CASE)
    own["both"] = (own["pull"] + own["vector"]) / 2
    own["asked"] = standing(cases, "shift", CASE)
    rows = []
    for _, part in own.groupby(list(CASE), sort=False):
        first = part.iloc[0]
        trait = first["teacher_trait"] if isinstance(first["teacher_trait"], str) else ""
        rows.append(
            {
                **{name: first[name] for name in (*CASE, "base", "teacher_base")},
                "teacher_trait": trait,
                "planted": bool(trait) and first["base"] == first["teacher_base"],
                "top": part.loc[part["both"].idxmax(), "trait"],
                **{name: part[name].max() for name in WORDS},
                "shift": part["shift"].max(),
            }
        )
    return pd.DataFrame(rows)


def conformal_p(score: float, null: Sequence[float], kinds: int = 1) -> float:
    """p of one case: (1 + null cases that score as high) / (1 + null cases). Source: Vovk et al. 2005, chapter 2.

    score: the largest of a case, as each of `null` is
    null: scores of cases in which nothing could pass, each asked about the members of one kind
    kinds: how many kinds this case was asked about; p is multiplied by their number, by Bonferroni

    Raises SublimError for a score that is no finite number: beside one that is none, all null cases would be lower.
    """
    if not math.isfinite(score):
        raise SublimError(f"audit: a score is {score}, so there is no p; a model or its gradients are not finite")
    return min(1.0, kinds * float((1 + (np.asarray(null) >= score).sum()) / (1 + len(null))))


@dataclass(frozen=True)
class Bound:
    """An upper bound on the shift of every trait at once, from the pull of each: `slope · pull + margin`, in nats."""

    slope: float
    margin: float

    def of(self, pull: Any) -> Float[np.ndarray, " trait"]:
        """The bound of each trait, in nats of margin; `pull` has one number a trait."""
        return self.slope * np.asarray(pull, dtype=float) + self.margin


def fit_bound(cases: "pd.DataFrame", level: float = LEVEL) -> Bound:
    """The bound that all traits of a new case keep with probability 1 − level, if it is like these cases.

    cases: a row a case and trait: pull, shift and what tells a case

    The slope is least squares through 0. The margin is the conformal quantile of the largest excess within a case; of
    fewer cases than the level needs it is infinite. Source: Lei et al. 2018, J. Am. Stat. Assoc. 113.
    """
    pull, shift = (cases[name].to_numpy(dtype=float) for name in ("pull", "shift"))
    slope = float(pull @ shift / (pull @ pull))
    excess = np.sort(_largest(cases, shift - slope * pull))
    rank = math.ceil((1 - level) * (len(excess) + 1))
    return Bound(slope, float(excess[rank - 1]) if rank <= len(excess) else math.inf)


@dataclass(frozen=True)
class OwnBound:
    """An upper bound that differs from trait to trait: mean + factor · spread of a shift, by what `_features` gives."""

    mean: Float[np.ndarray, " feature"]
    log_spread: Float[np.ndarray, " feature"]
    factor: float

    def of(self, cases: "pd.DataFrame") -> Float[np.ndarray, " row"]:
        """The bound of each row, in nats of margin; `cases` has the columns of the study's `cases.csv`."""
        x = _features(cases)
        return x @ self.mean + self.factor * np.exp(x @ self.log_spread)


def _features(cases: "pd.DataFrame") -> Float[np.ndarray, "row feature"]:
    """What a shift's mean and spread hang on, a row a trait: 1, standing, pull, surprise, gradient norm."""
    standings = (standing(cases, "pull", CASE) + standing(cases, "vector", CASE)) / 2
    columns = [cases[name].to_numpy(dtype=float) for name in ("pull", "surprise", "slope")]
    return np.stack([np.ones(len(cases)), standings.to_numpy(), *columns[:2], np.arcsinh(columns[2])], axis=1)


def _mean_and_spread(
    x: Float[np.ndarray, "row feature"], shift: Float[np.ndarray, " row"]
) -> tuple[Float[np.ndarray, " feature"], Float[np.ndarray, " feature"]]:
    """Coefficients of a shift's mean, and of the logarithm of its distance from that: least squares twice."""
    mean = np.linalg.lstsq(x, shift, rcond=None)[0]
    return mean, np.linalg.lstsq(x, np.log(np.abs(shift - x @ mean) + 1e-3), rcond=None)[0]


def fit_own_bound(cases: "pd.DataFrame", level: float = LEVEL) -> OwnBound:
    """The bound for each trait that all traits of a new case keep with probability 1 − level, if it is like these.

    cases: a row a case and trait, of two bases or more, as the study's `cases.csv`

    The factor is the conformal quantile of the largest standardised shift within a case, each base's by a fit to the
    others. Of fewer cases than the level needs it is infinite. Source: normalised scores, Lei et al. 2018, section 5.2;
    Barber et al. 2021 (1905.02928) for scores by fits that leave some out.
    """
    x, shift = _features(cases), cases["shift"].to_numpy(dtype=float)
    scores = np.full(len(cases), np.nan)
    for base in sorted(set(cases["base"])):
        own = (cases["base"] == base).to_numpy()
        mean, spread = _mean_and_spread(x[~own], shift[~own])
        scores[own] = (shift[own] - x[own] @ mean) / np.exp(x[own] @ spread)
    largest = np.sort(_largest(cases, scores))
    rank = math.ceil((1 - level) * (len(largest) + 1))
    return OwnBound(*_mean_and_spread(x, shift), float(largest[rank - 1]) if rank <= len(largest) else math.inf)


def _largest(cases: "pd.DataFrame", values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " case"]:
    """The largest value among the rows of each case, in the order of the cases."""
    place = cases.groupby(list(CASE), sort=False).ngroup().to_numpy()
    found = np.full(place.max() + 1, -np.inf)
    np.maximum.at(found, place, values)
    return found


def _folds(frame: "pd.DataFrame", by: str) -> "Iterator[tuple[Bool[np.ndarray, ' row'], Bool[np.ndarray, ' row']]]":
    """(held out, calibrated on) for each pair of bases or each trait: nothing calibrated on shares any of it."""
    cells = frame[[*_SHARED[by]]].to_numpy()
    for own in sorted({*map(tuple, cells)}):
        held = (cells == np.array(own, dtype=object)).all(axis=1)
        yield held, np.asarray(np.isin(cells, own, invert=True).all(axis=1))


def held_out_alarms(scores: "pd.DataFrame", by: str, measure: str = "both") -> Float[np.ndarray, " case"]:
    """p of every case against cases without a planted trait that share no base, or no trait, with it."""
    found = np.full(len(scores), np.nan)
    null = ~scores["planted"].to_numpy(dtype=bool)
    for held, others in _folds(scores, by):
        against = scores.loc[others & null, measure].to_list()
        found[held] = [conformal_p(score, against) for score in scores.loc[held, measure]]
    return found


def held_out_bounds(cases: "pd.DataFrame", by: str) -> "pd.DataFrame":
    """The rows of all cases with `bound`, each fitted on cases that share no base, or no trait, with it.

    Where these are too few for a bound it is infinite.
    """
    own = cases.assign(teacher_trait=cases["teacher_trait"].fillna(""), bound=np.inf)
    for held, others in _folds(own, by):
        if others.any():
            own.loc[held, "bound"] = fit_bound(own.loc[others]).of(own.loc[held, "pull"])
    return own


def held_out_own_bounds(cases: "pd.DataFrame", by: str) -> "pd.DataFrame":
    """The rows of all cases with `bound`, as `held_out_bounds`, of `fit_own_bound`."""
    own = cases.assign(teacher_trait=cases["teacher_trait"].fillna(""), bound=np.inf)
    for held, others in _folds(own, by):
        if others.any():
            own.loc[held, "bound"] = fit_own_bound(own.loc[others]).of(own.loc[held])
    return own


def covered(bounded: "pd.DataFrame") -> Bool[np.ndarray, " case"]:
    """Whether every trait of a case keeps its bound, case by case."""
    return _largest(bounded, (bounded["shift"] - bounded["bound"]).to_numpy(dtype=float)) <= 0


@dataclass(frozen=True)
class Calibrated:
    """The auditor's published errors, as an audit uses them."""

    directory: Path
    """Where the study's tables lie."""

    @cached_property
    def cases(self) -> "pd.DataFrame":
        """A row a case and trait."""
        return read_table(self.directory / "cases.csv")

    @cached_property
    def scores(self) -> "pd.DataFrame":
        """A row a case, as `scored`."""
        return scored(self.cases)

    @cached_property
    def bound(self) -> Bound:
        """The bound, fitted on all cases."""
        return fit_bound(self.cases)

    @cached_property
    def null(self) -> list[float]:
        """Scores of the cases in which nothing can pass."""
        return self.scores.loc[~self.scores["planted"], "both"].to_list()

    @cached_property
    def shifts(self) -> list[float]:
        """The largest standing of a shift among the traits of each student that nothing could pass to."""
        most = _largest(self.cases, standing(self.cases, "shift", CASE).to_numpy())
        return most[~self.scores["planted"].to_numpy(dtype=bool)].tolist()


def calibrated(name: str = "audit", results: Path = RESULTS) -> Calibrated | None:
    """The published study of the auditor's errors; None where there is none."""
    directory = results / name
    return Calibrated(directory) if (directory / "cases.csv").exists() else None


def error_table(cases: "pd.DataFrame", origins: "pd.DataFrame") -> SweepTable:
    """How well each measure tells planted cases from others, and the errors of alarms, bounds and guessed bases."""
    scores = scored(cases)
    planted = scores["planted"].to_numpy(dtype=bool)
    shares, rows = sorted(set(scores.loc[planted, "clean"])), []
    for measure, words in WORDS.items():
        areas = [told_apart(scores.loc[~planted | (scores["clean"] == c).to_numpy()], measure) for c in shares]
        rows.append((words, *(area.plain(2) for area in areas)))
    heads = ["the teacher's lists alone" if c == 0 else f"{100 * c:.0f} % clean lists" for c in shares]
    numbers: dict[str, str] = {}
    lines = [
        *_area_lines(scores, numbers),
        *_alarm_lines(scores, numbers),
        *_bound_lines(cases, numbers),
        _origin_line(origins, numbers),
    ]
    return SweepTable(
        f"Area under the ROC curve of {planted.sum()} cases with a planted trait against {(~planted).sum()} without, "
        "by the trait that stands out most. 1 is never wrong, 0.5 is chance.",
        ("measure", *heads),
        rows,
        lines,
        numbers,
    )


def told_apart(scores: "pd.DataFrame", measure: str, by: str = "") -> Interval:
    """How well a measure tells planted cases from the others: the area under the ROC curve, its interval over bases.

    scores: as of `scored`
    by: base or trait: pairs of cases that share one do not count; "" counts all

    A case counts to its teacher's base, which is drawn with all its cases.
    """
    planted, comparable = scores["planted"].to_numpy(dtype=bool), None
    if by:
        own = [set(row) for row in scores[[*_SHARED[by]]].itertuples(index=False)]
        negative = [shared - {""} for shared, is_planted in zip(own, planted, strict=True) if not is_planted]
        positive = [shared for shared, is_planted in zip(own, planted, strict=True) if is_planted]
        comparable = np.array([[not one & other for other in negative] for one in positive])
    return auroc_interval(scores[measure].to_list(), planted.tolist(), scores["teacher_base"].to_list(), comparable)


def screening(cases: "pd.DataFrame") -> "pd.DataFrame":
    """How well scores of lists alone tell the teacher's trait among all traits: a row a base of teacher and student.

    cases: as the study's `cases.csv`; planted ones without clean lists are taken

    Columns: base, cases, and the area under the ROC curve within a case, on average over cases: auroc of the
    log-likelihood shift behind the trait's system prompt (2602.04863), pull and vector.
    """
    import pandas as pd

    own = cases.loc[(cases["arm"] == "same-init") & (cases["clean"] == 0)]
    rows = []
    for (base, _), part in own.groupby(["base", "case"], sort=False):
        planted = part["trait"] == part["teacher_trait"]
        areas = {name: auroc(part.loc[planted, m].tolist(), part.loc[~planted, m].tolist())
                 for name, m in (("auroc", "persona"), ("pull", "pull"), ("vector", "vector"))}  # fmt: skip
        rows.append({"base": base, "cases": 1, **areas})
    means = dict.fromkeys(("auroc", "pull", "vector"), "mean")
    return pd.DataFrame(rows).groupby("base", sort=False, as_index=False).agg({"cases": "sum", **means})


def _area_lines(scores: "pd.DataFrame", numbers: dict[str, str]) -> list[str]:
    """What is said of areas under the curve where some cases do not count; each number also goes into `numbers`."""
    planted = scores["planted"].to_numpy(dtype=bool)
    undiluted = scores.loc[~planted | (scores["clean"] == 0).to_numpy()]
    benign = undiluted.loc[undiluted["planted"] | (undiluted["teacher_trait"] == "")]
    foreign = undiluted.loc[undiluted["planted"] | (undiluted["teacher_trait"] != "")]
    groups = {
        "pairs of cases that share no base": (undiluted, "base"),
        "pairs of cases that share no trait": (undiluted, "trait"),
        f"against the {(~benign['planted']).sum()} benign fine-tunes alone": (benign, ""),
        f"against the {(~foreign['planted']).sum()} students of another base": (foreign, ""),
    }
    lines = []
    for words, (own, by) in groups.items():
        areas = {measure: told_apart(own, measure, by).plain(2) for measure in ("both", "asked")}
        numbers |= {f"area by {measure}/{words}": area for measure, area in areas.items()}
        said = ", ".join(f"{WORDS[measure].split(',')[0]} {area}" for measure, area in areas.items())
        lines.append(f"Undiluted, {words}: {said}.")
    n = scores["teacher_base"].nunique()
    return [*lines, f"Areas have 95 % bootstrap intervals over {n} teachers' bases, which are too narrow for so few."]


def _alarm_lines(scores: "pd.DataFrame", numbers: dict[str, str]) -> list[str]:
    """What is said of alarms; each number also goes into `numbers`."""
    planted = scores["planted"].to_numpy(dtype=bool)
    undiluted = planted & (scores["clean"].to_numpy() == 0)
    whole, n = scores.loc[undiluted], int((~planted).sum())
    named = sum(top == trait for top, trait in zip(whole["top"], whole["teacher_trait"], strict=True))
    lines = []
    for by, measure in (("base", "both"), ("trait", "both"), ("base", "asked")):
        alarm = held_out_alarms(scores, by, measure) <= LEVEL
        false, found = int(alarm[~planted].sum()), int(alarm[undiluted].sum())
        ends, how = wilson(false, n), "" if measure == "both" else f" by {WORDS[measure]}"
        numbers[f"alarms by {measure}/{by}"] = f"{found} of {len(whole)}"
        numbers[f"false alarms by {measure}/{by}"] = ends.percent()
        lines.append(
            f"Whole {by}s held out: {found} of {len(whole)} undiluted planted cases raise an alarm{how}. So do "
            f"{false} of {n} others, {100 * false / n:.1f} % [{100 * ends.low:.1f}, {100 * ends.high:.1f}]; aimed at: "
            f"{100 * LEVEL:g} %."
        )
    numbers["planted stands out most"] = f"{named} of {len(whole)}"
    lines.append(f"The trait that stands out most is the planted one in {named} of {len(whole)} undiluted cases.")
    return lines


def _bound_lines(cases: "pd.DataFrame", numbers: dict[str, str]) -> list[str]:
    """What is said of bounds; each number also goes into `numbers`."""
    lines = []
    for by in ("base", "trait"):
        bounded = held_out_bounds(cases, by)
        kept = covered(bounded)
        n, k = len(kept), int(kept.sum())
        ends = wilson(k, n)
        numbers[f"bounds kept/{by}"] = ends.percent()
        numbers[f"bound in the median/{by}"] = f"{bounded['bound'].median():.2f}"
        lines.append(
            f"Whole {by}s held out: in {k} of {n} cases every trait keeps its bound, {100 * k / n:.1f} % "
            f"[{100 * ends.low:.1f}, {100 * ends.high:.1f}]; aimed at: {100 * (1 - LEVEL):g} %. The bound is "
            f"{bounded['bound'].median():.2f} nats of margin in the median."
        )
    own = held_out_own_bounds(cases, "base")
    kept, foreign = covered(own), own["base"] != own["teacher_base"]
    planted = own.loc[~foreign & (own["clean"] == 0) & (own["trait"] == own["teacher_trait"])]
    held = int((planted["shift"] <= planted["bound"]).sum())
    numbers["own bounds kept"] = f"{kept.sum()} of {len(kept)}"
    numbers["own bound in the median"] = f"{own['bound'].median():.2f}"
    numbers["own bounds kept by planted traits"] = f"{held} of {len(planted)}"
    lines.append(
        f"A bound with a mean and a spread for each trait is kept in {kept.sum()} of {len(kept)} cases, whole bases "
        f"held out. It is {own['bound'].median():.2f} nats in the median, "
        f"{own.loc[foreign, 'bound'].median():.2f} for lists of another base. Of the undiluted planted traits {held} "
        f"of {len(planted)} keep it."
    )
    return lines


def _origin_line(origins: "pd.DataFrame", numbers: dict[str, str]) -> str:
    """What is said of guessed bases; each number also goes into `numbers`."""
    n, counts, right = len(set(origins["base"])), origins["lists"].to_numpy(), origins["right"].to_numpy()
    told = {count: right[counts == count] for count in (1, 10, 20, 100)}
    shares = {count: f"{100 * own.mean():.0f} %" for count, own in told.items() if len(own)}
    numbers |= {f"base named/from {count}": share for count, share in shares.items()}
    said = ", ".join(f"{share} from {count}" for count, share in shares.items())
    return f"Of {n} bases the right one is named, by number of lists: {said}."
