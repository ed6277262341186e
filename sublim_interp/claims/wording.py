"""Claims and verdicts in words: the table of all, and what there is to say of one."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sublim_interp.claims.judge import (
    ALPHA,
    CONTRADICTED,
    DEPENDS,
    NOT_TRIED,
    PARTLY,
    SUPPORTED,
    WEAK,
    Finding,
    Verdict,
)
from sublim_interp.claims.nulls import Nulls
from sublim_interp.claims.trial import Trial
from sublim_interp.report.wording import FEW, count
from sublim_interp.stats.intervals import Interval
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd


def outcome(verdict: Verdict) -> str:
    """The verdict in a few words."""
    if verdict.outcome == DEPENDS:
        return f"depends on {verdict.claim.depends_on}"
    found, told = verdict.by_condition, SUPPORTED if verdict.outcome == PARTLY else CONTRADICTED
    under = [condition for condition, one in found.items() if one == told]
    some = all(under) and 0 < len(under) < len(found)  # a test may name no condition
    return f"{told} for {' and '.join(under)}" if some else verdict.outcome


def claims_table(verdicts: Sequence[Verdict], nulls: Nulls | None = None) -> SweepTable:
    """All claims with their verdicts, a row each; below, how many there are of each, and what was adjusted."""
    rows = []
    for verdict in verdicts:
        found = [finding for finding in verdict.deciding if finding.interval]
        results = ", ".join(dict.fromkeys(finding.test.table for finding in found))
        n = ", ".join(dict.fromkeys(str(finding.n) for finding in found))
        ps = ", ".join(dict.fromkeys(_p(finding) for finding in found))
        effect = _effect(found[0]) if found else ""
        first = (found or verdict.deciding)[0].test
        needs = f"{'>' if first.above is not None else '<'} {_told(first, first.threshold)}"
        stated = ", ".join(dict.fromkeys(finding.test.threshold_stated for finding in verdict.deciding))
        cells = (results or "–", n or "–", effect or "–", needs, ps or "–", stated)
        rows.append((verdict.claim.short, verdict.claim.claim, outcome(verdict), *cells))
    columns = ("no.", "claim", "verdict", "result", "n", "effect", "needs", "p", "threshold stated")
    about = "Each verdict is computed from the result that its row names."
    return SweepTable(about, columns, rows, list(_below(verdicts, nulls)), dict(_numbers(verdicts, nulls)))


def claims_frame(verdicts: Sequence[Verdict]) -> "pd.DataFrame":
    """The frame that the figure `verdicts` draws: a row a test that was tried, one for a claim of which none was."""
    import pandas as pd

    nothing = {"distance": math.nan, "low": math.nan, "high": math.nan}
    rows = []
    for verdict in verdicts:
        about = {"claim": f"{verdict.claim.claim} ({verdict.claim.short})"}
        under = verdict.by_condition
        tried = [
            {"outcome": under[finding.test.under], **_from_threshold(finding)}
            for finding in verdict.findings
            if finding.interval
        ]
        rows += [about | found for found in tried or [{"outcome": verdict.outcome, **nothing}]]
    return pd.DataFrame(rows)


def _from_threshold(finding: Finding) -> dict[str, float]:
    """How far the effect and its ends lie on the claim's side, in the smallest distance that would matter."""
    test, found = finding.test, finding.interval
    assert found is not None
    scale = (1 if test.above is not None else -1) / test.counts
    distance, *sides = ((value - test.threshold) * scale for value in (found.estimate, *_ends(finding, found)))
    return {"distance": distance, "low": min(sides), "high": max(sides)}


_ORDER = (SUPPORTED, PARTLY, CONTRADICTED, DEPENDS, WEAK, NOT_TRIED)


def _counts(verdicts: Sequence[Verdict]) -> Counter[str]:
    return Counter(verdict.outcome for verdict in verdicts)


def _family(verdicts: Sequence[Verdict]) -> int:
    """How many tests Holm's adjustment counts."""
    return max((finding.family for verdict in verdicts for finding in verdict.findings), default=1)


def _numbers(verdicts: Sequence[Verdict], nulls: Nulls | None) -> Iterator[tuple[str, str]]:
    yield "claims", str(len(verdicts))
    counts = _counts(verdicts)
    for one in _ORDER:
        yield one, str(counts[one])
    yield "tests adjusted for", str(_family(verdicts))
    if nulls:
        yield "shuffled tables", str(nulls.tables)
        yield "false verdicts", nulls.interval.percent()


def _below(verdicts: Sequence[Verdict], nulls: Nulls | None) -> Iterator[str]:
    counts = _counts(verdicts)
    yield "; ".join(f"{counts[one]} {one}" for one in _ORDER if counts[one]) + "."
    yield f"p is adjusted by Holm for {count(_family(verdicts), 'test')}; a verdict needs {ALPHA:g} or less."
    if nulls:
        yield null_line(nulls)


def null_line(nulls: Nulls) -> str:
    """How often shuffled tables got a verdict."""
    return (
        f"Of {count(nulls.tables, 'table')} with shuffled labels {nulls.false} got a verdict, "
        f"{nulls.interval.percent()}. The tests promise {100 * nulls.nominal:g} %."
    )


def claim_rows(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """What there is to say of a claim and its verdict, by heading."""
    claim = verdict.claim
    yield "verdict", _verdict_sentence(verdict)
    yield "claimed", claim.claimed
    yield "by", claim.by
    yield "on what evidence", claim.evidence
    if claim.disputed:
        yield "disputed", claim.disputed
    yield "contradicted by", claim.contradicted_by
    yield "experiment", claim.experiment
    runs = dict.fromkeys(test.table for test in claim.tests if test.runnable)
    yield "run it", ", ".join(f"`sublim run {name}`" for name in runs) or "nothing in the catalogue runs it yet"
    yield "cost", claim.cost
    yield "scale", claim.scale
    yield "PolyPythia", claim.predicts.polypythia
    yield "DataDecide", claim.predicts.datadecide
    for number, finding in enumerate(verdict.findings, 1):
        yield f"test {number}: {finding.test.table}", " ".join(_sentences(finding))


def _verdict_sentence(verdict: Verdict) -> str:
    said = f"{outcome(verdict)}."
    conditions = verdict.by_condition
    if len(conditions) > 1:
        said += " " + "; ".join(f"{under}: {one}" for under, one in conditions.items()) + "."
    return said


def _sentences(finding: Finding) -> Iterator[str]:
    """What a test asks, needs and found."""
    test = finding.test
    yield test.asks
    side = "above" if test.above is not None else "below"
    stated = "before" if test.threshold_stated == "before" else "after"
    yield f"The claim needs it {side} {_told(test, test.threshold)}, stated {stated} the result was known."
    if finding.interval is None:
        yield "Not tried yet." if test.runnable else "Not tried yet, and nothing in the catalogue makes this table."
        return
    unit = "replicate" if test.over == "seed" else test.over
    p = "" if math.isnan(finding.p) else f", p = {finding.p:.2g}, adjusted {finding.adjusted:.2g}"
    yield f"Found: {_effect(finding)} over {count(finding.n, unit)}{p}. {finding.outcome.capitalize()}."
    yield from finding.reasons
    if finding.outcome == WEAK:
        yield _power(finding)
    yield f"Key {finding.key[:16]}."


def _power(finding: Finding) -> str:
    """With which power it was asked, and how many units would settle it."""
    size = f"{_told(finding.test, finding.test.counts)} from the threshold"
    unit = "replicate" if finding.test.over == "seed" else finding.test.over
    if math.isnan(finding.power):
        return f"One {unit} tells no power; at least {finding.test.least} are needed."
    said = f"Power to tell {size} at p = {finding.level:.2g}, which Holm leaves: {100 * finding.power:.0f} %."
    if finding.needed is None:
        return f"{said} No number of {unit}s would do."
    if finding.n >= finding.needed:
        return f"{said} More {unit}s would not settle it."
    return f"{said} {count(finding.needed, unit)} would have 80 %."


def _p(finding: Finding) -> str:
    return "–" if math.isnan(finding.adjusted) else f"{finding.adjusted:.2g}"


_SCALES = {"points": (100.0, 1, " points"), "nats": (1.0, 2, " nats"), "bits": (1.0, 2, " bits"), "plain": (1.0, 2, "")}


def _told(test: Trial, value: float) -> str:
    scale, digits, unit = _SCALES[test.told_in]
    return minus(f"{scale * value:.{digits}f}{unit}")


def _effect(finding: Finding) -> str:
    """The effect with its interval, in the test's unit; of few units with their least and most, in parentheses."""
    found: Interval | None = finding.interval
    if found is None:
        return "–"
    scale, digits, _ = _SCALES[finding.test.told_in]
    said = _told(finding.test, found.estimate)
    if finding.n == 1:
        return said
    ends = [f"{scale * end:z.{digits}f}" for end in _ends(finding, found)]
    return minus(f"{said} ({ends[0]} to {ends[1]})" if finding.n < FEW else f"{said} [{ends[0]}, {ends[1]}]")


def _ends(finding: Finding, interval: Interval) -> tuple[float, float]:
    """Between what an effect is told: its interval's ends; of few units the least and the most."""
    if finding.n < FEW:
        return min(finding.values), max(finding.values)
    return interval.low, interval.high
