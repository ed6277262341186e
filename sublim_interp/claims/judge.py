"""The verdict on a claim, computed from tables by its tests; p-values are adjusted for all tests of all claims."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from sublim_interp.claims.effects import EFFECTS, base_column, need_columns, rows_of
from sublim_interp.claims.evidence import Evidence, published_evidence
from sublim_interp.claims.schema import Claim
from sublim_interp.claims.trial import Trial
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.models.base import resolve_base
from sublim_interp.models.open_bases import is_variant
from sublim_interp.models.variants import parse
from sublim_interp.report.wording import count
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.stats.permutation import holm, sign_flip_test
from sublim_interp.stats.power import power_of_mean, units_needed

if TYPE_CHECKING:
    import pandas as pd

SUPPORTED, CONTRADICTED, WEAK, NOT_TRIED = "supported", "contradicted", "too weak to tell", "not tried yet"
PARTLY, DEPENDS = "supported in part", "depends on"

ALPHA = 0.05
"""Level of every test, after Holm's adjustment."""
NEAR = 1.25
"""Distances from the teacher count as equal where the larger is at most so many times the smaller."""

Look = Callable[[Trial], Evidence | None]
"""Gives the evidence that a test reads, or None where nobody ran it."""


def published_for(test: Trial, results: Path = RESULTS) -> Evidence | None:
    """The published evidence of a test, or None; None too where what is published lacks the table that it reads.

    results: the folder of committed results
    """
    found = published_evidence(test.table, results)
    return found if found and found.has(test.file) else None


def with_given(given: Mapping[str, Evidence]) -> Look:
    """Looks for evidence among what is given first, by name, then among what is published."""
    return lambda test: given[test.table] if test.table in given else published_for(test)


@dataclass(frozen=True)
class Finding:
    """What one test came to."""

    test: Trial
    outcome: str
    """SUPPORTED, CONTRADICTED, WEAK or NOT_TRIED."""
    key: str = ""
    """Of the run, sweep or study that decided."""
    interval: Interval | None = None
    """The effect with its 95 % interval over units."""
    n: int = 0
    """How many units."""
    p: float = math.nan
    """Of the two-sided test against the threshold; nan for one unit."""
    adjusted: float = math.nan
    """The same by Holm, over all tests of all claims that have one."""
    values: tuple[float, ...] = ()
    """The effect in each unit, or in each pair of bases."""
    deviation: float = math.nan
    """Standard deviation of one unit; nan for one alone."""
    lacks: tuple[str, ...] = ()
    """What the experiment lacks, whatever its numbers say: a sentence for each."""
    family: int = 1
    """How many tests `adjusted` counts."""
    level: float = ALPHA
    """The p at which it would be decided: Holm's level behind the tests that are."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is too weak, a sentence each; nothing where it is not."""
        if self.outcome != WEAK:
            return ()
        if math.isnan(self.p) or self.adjusted <= ALPHA:
            return self.lacks
        return (*self.lacks, f"p = {self.adjusted:.2g}, adjusted for {count(self.family, 'test')}.")

    @property
    def power(self) -> float:
        """Chance of a verdict with so many units where the effect lies `counts` from the threshold; nan for one."""
        if math.isnan(self.deviation):
            return math.nan
        return power_of_mean(self.test.counts, self.deviation, self.n, self.level)

    @property
    def needed(self) -> int | None:
        """Units for 80 % of power, at least as many as a verdict needs; None where no number is enough."""
        if math.isnan(self.deviation):
            return self.test.least
        found = units_needed(self.test.counts, self.deviation, alpha=self.level)
        return None if found is None else max(found, self.test.least)

    @property
    def holds(self) -> bool:
        """Whether the effect lies on the claim's side of the threshold."""
        return self.interval is not None and (self.interval.estimate > self.test.threshold) == (
            self.test.above is not None
        )


@dataclass(frozen=True)
class Verdict:
    """What the tests of a claim come to together."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def by_condition(self) -> dict[str, str]:
        """The outcome under each condition; all tests under one must hold."""
        conditions = dict.fromkeys(finding.test.under for finding in self.findings)
        return {under: _all_of([f.outcome for f in self.findings if f.test.under == under]) for under in conditions}

    @property
    def outcome(self) -> str:
        """SUPPORTED, PARTLY, CONTRADICTED, DEPENDS, WEAK or NOT_TRIED.

        Supported under one condition and not told under another is supported in part; one contradiction contradicts.
        """
        found = {*self.by_condition.values()}
        if {SUPPORTED, CONTRADICTED} <= found:
            return DEPENDS
        if CONTRADICTED in found:
            return CONTRADICTED
        if len(found) == 1:
            return found.pop()
        return PARTLY if SUPPORTED in found else WEAK

    @property
    def deciding(self) -> tuple[Finding, ...]:
        """The findings that the outcome rests on: where it depends on a condition, all that were decided.

        Where no test is too weak, but one that must hold too is not tried, those that were tried.
        """
        if self.outcome == PARTLY:
            told = self.by_condition
            return tuple(finding for finding in self.findings if told[finding.test.under] == SUPPORTED)
        wanted = (SUPPORTED, CONTRADICTED) if self.outcome == DEPENDS else (self.outcome,)
        found = tuple(finding for finding in self.findings if finding.outcome in wanted)
        return found or tuple(finding for finding in self.findings if finding.outcome != NOT_TRIED)


def _all_of(outcomes: Sequence[str]) -> str:
    """The outcome of tests that must all hold: one that fails is enough, one too weak or missing leaves it open."""
    if CONTRADICTED in outcomes:
        return CONTRADICTED
    return outcomes[0] if len({*outcomes}) == 1 else WEAK


def judge(claims: Iterable[Claim], look: Look = published_for) -> list[Verdict]:
    """The verdict on each claim, in order.

    claims: all of them, since p-values are adjusted for their number
    look: gives the evidence of a test; as it is, what is published

    Raises SublimError for a table that lacks what a test reads.
    """
    found = [(claim, [finding_of(test, look(test)) for test in claim.tests]) for claim in claims]
    every = [finding for _, findings in found for finding in findings if not math.isnan(finding.p)]
    by_holm = holm([finding.p for finding in every]) if every else []
    adjusted, told = iter(by_holm), sum(p <= ALPHA for p in by_holm)
    level = ALPHA / max(1, len(every) - told)

    def counted(finding: Finding) -> Finding:
        if math.isnan(finding.p):
            return finding
        return _decided(replace(finding, adjusted=next(adjusted), family=len(every), level=level))

    return [Verdict(claim, tuple(map(counted, findings))) for claim, findings in found]


def finding_of(test: Trial, evidence: Evidence | None) -> Finding:
    """What a test comes to in its evidence, as if it were the only one.

    evidence: None where nobody ran it

    Raises SublimError for a table that lacks what the test reads.
    """
    if evidence is None:
        return Finding(test, NOT_TRIED)
    measured = EFFECTS[test.effect].measure(test, evidence)
    values = np.array(measured.values)
    whole = test.told_in == "points" and float(np.abs(values).max()) <= 1
    interval = measured.interval or mean_interval(values, bounds=(-1, 1) if whole else None)
    p = measured.p
    if p is None:
        p = sign_flip_test(values - test.threshold).p if measured.n > 1 else math.nan
    apart = measured.deviation
    if apart is None:
        apart = math.nan if measured.n < 2 else float(np.std(values, ddof=1))
    lacks = tuple(_lacks(test, evidence, measured.n))
    return _decided(Finding(test, WEAK, evidence.key, interval, measured.n, p, p, measured.values, apart, lacks))


def _decided(finding: Finding) -> Finding:
    """Decides a finding by its adjusted p-value; one that lacks something stays too weak."""
    if finding.lacks or not finding.adjusted <= ALPHA:  # nan is not
        return replace(finding, outcome=WEAK)
    return replace(finding, outcome=SUPPORTED if finding.holds else CONTRADICTED)


# --- what an experiment must have -------------------------------------------------------------------------------------


def _lacks(test: Trial, evidence: Evidence, n: int) -> Iterator[str]:
    """Why the experiment allows no verdict, whatever its numbers say: a sentence for each reason."""
    unit = {"seed": "replicate"}.get(test.over, test.over)
    if n < test.least:
        yield f"{count(n, unit)}; a verdict needs {test.least}."
    frame = evidence.table(test.file)
    if test.initialisations:
        known = initialisations(evidence, frame)
        if known < test.initialisations:
            yield f"Its teachers have {count(known, 'initialisation')}; this claim needs {test.initialisations}."
    if test.controls:
        need_columns(frame, test, "arm")
        for arm in test.controls:
            if arm not in set(frame["arm"]):
                yield f"It has no arm {arm}."
    if test.equal_kl:
        yield from _unequal(test, evidence)
    if test.lacks:
        yield test.lacks


def _unequal(test: Trial, evidence: Evidence) -> Iterator[str]:
    """Where students end at different distances from their teachers."""
    file = "cells" if (evidence.directory / "cells.csv").exists() and test.file == "matrix" else test.file
    frame = evidence.table(file)
    left: dict[str, float] = {}
    for rows in test.equal_kl:
        found = rows_of(frame, rows.model_copy(update={"measure": "kl"}), test)["effect"].dropna()
        others = (f"{column} {value}" for column, value in rows.also.items())
        which = " ".join(filter(None, (rows.field, rows.value, *others, rows.arm)))
        if not len(found):
            yield f"How far {which} is from its teacher is not known."
            return
        left[which] = fmean(found.to_list())
    if max(left.values()) > NEAR * min(left.values()):
        said = ", ".join(f"{arm} at {value:.4f}" for arm, value in left.items())
        yield f"Not at equal KL: {said}."


def initialisations(evidence: Evidence, frame: "pd.DataFrame") -> int:
    """How many initialisations the teachers' bases of a table have; of a study without bases, how many replicates.

    frame: one of the evidence's tables
    """
    from sublim_interp.sweeps.grid import grid, grid_names
    from sublim_interp.sweeps.study import study_names

    if evidence.name in study_names():
        column = base_column(frame)
        if column not in frame:
            return len(set(frame["seed"]))
        bases = set(frame[column])
    elif evidence.name in grid_names():
        seeds = set(frame["seed"])
        bases = {exp.pair(seed)[0] for _, _, exp in grid(evidence.name).cells() for seed in exp.seeds if seed in seeds}
    else:
        raise SublimError(f"{evidence.name} is no grid or study, so its initialisations are not known")
    return len({_start(base) for base in bases})


def _start(base: str) -> Any:
    """What tells an initialisation from others: its seed; of a variant that of the base it was first made of."""
    if is_variant(base):
        return _start(parse(base).parents[0])
    return resolve_base(base).card.get("pretraining", {}).get("init_seed", base)
