"""Tests of the auditor's error rates: conformal guarantees on simulated cases, and that nothing held out leaks in."""

import numpy as np
import pandas as pd
import pytest

from sublim_interp.audit.errors import (
    conformal_p,
    covered,
    fit_bound,
    fit_own_bound,
    held_out_alarms,
    held_out_bounds,
    held_out_own_bounds,
    scored,
    screening,
    told_apart,
)
from sublim_interp.audit.evidence import standing
from sublim_interp.claims.judge import judge
from sublim_interp.claims.schema import all_claims
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.tables import read_table
from sublim_interp.stats.roc import auroc

BASES = tuple("ABCDEF")


def cases(seed: int, each: int = 12, traits: int = 8, lift: float = 6.0) -> pd.DataFrame:
    """Cases of as many bases: half of them with a planted trait, whose pull and shift are raised."""
    draw, rows = np.random.default_rng(seed), []
    for number in range(len(BASES) * each):
        base, planted = BASES[number // each], number % 2 == 0
        own = f"t{number % traits}"
        for i in range(traits):
            raised = lift * (planted and own == f"t{i}")
            pull = draw.normal() + raised
            rows.append(
                {
                    "case": number, "arm": "same-init" if planted else "neutral", "clean": 0.0, "base": base,
                    "teacher_base": base, "teacher_trait": own if planted else "", "trait": f"t{i}", "kind": "k",
                    "surprise": draw.normal(), "slope": draw.normal(), "pull": pull, "persona": draw.normal(),
                    "vector": draw.normal() + raised, "shift": 0.5 * pull + draw.normal(),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_a_standing_is_the_distance_from_the_others_in_their_deviations() -> None:
    frame = cases(0).loc[lambda f: f["case"] == 3].reset_index(drop=True)
    found = standing(frame, "pull")
    values = frame["pull"].to_numpy()
    others = [np.delete(values, i) for i in range(len(values))]
    expected = [(value - own.mean()) / own.std(ddof=1) for value, own in zip(values, others, strict=True)]
    assert found.to_list() == pytest.approx(expected)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_has_no_p(score: float) -> None:
    with pytest.raises(SublimError, match="so there is no p"):
        conformal_p(score, [0.0] * 99)
    assert conformal_p(1.0, [0.0] * 99) == 0.01


def test_planted_cases_are_told_apart_and_shuffled_ones_are_not() -> None:
    found = scored(cases(1))
    planted, null = (found.loc[found["planted"] == is_planted] for is_planted in (True, False))
    assert auroc(planted["both"].to_list(), null["both"].to_list()) > 0.95
    named = [top == trait for top, trait in zip(planted["top"], planted["teacher_trait"], strict=True)]
    assert np.mean(named) > 0.95
    nothing = scored(cases(2, lift=0.0))
    planted, null = (nothing.loc[nothing["planted"] == is_planted, "both"].to_list() for is_planted in (True, False))
    assert 0.3 < auroc(planted, null) < 0.7


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    draw = np.random.default_rng(3)
    a, b = draw.integers(0, 9, 40) * 1.0, draw.integers(2, 11, 30) * 1.0  # with ties
    pairs = b[:, None] - a[None]
    assert auroc(b.tolist(), a.tolist()) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_a_p_of_several_kinds_is_for_all_of_them() -> None:
    draw = np.random.default_rng(5)
    nulls = [draw.normal(size=99).tolist() for _ in range(2000)]
    largest = [draw.normal(size=3).max() for _ in nulls]  # of three kinds
    alone, together = (
        np.mean([conformal_p(score, null, kinds) <= 0.05 for score, null in zip(largest, nulls, strict=True)])
        for kinds in (1, 3)
    )
    assert alone > 0.1 and together < 0.06
    assert conformal_p(0.0, [1.0, 2.0], 5) == 1.0


def test_a_conformal_p_is_no_smaller_than_promised() -> None:
    draw = np.random.default_rng(4)
    found = np.array([conformal_p(draw.normal(), draw.normal(size=59).tolist()) for _ in range(3000)])
    for level in (0.05, 0.2, 0.5):
        assert (found <= level).mean() < level + 0.02
    assert found.min() >= 1 / 60


def test_bounds_hold_as_often_as_promised_on_new_cases() -> None:
    kept = []
    for seed in range(20):
        new = cases(100 + seed)
        bound = fit_bound(cases(seed))
        kept.append(covered(new.assign(bound=bound.of(new["pull"]))).mean())
    assert np.mean(kept) > 0.94 and bound.slope == pytest.approx(0.5, abs=0.1)
    assert fit_bound(cases(0).loc[lambda f: f["case"] < 10]).margin == np.inf, "ten cases allow no bound of 95 %"


def test_bounds_of_their_own_hold_as_often_and_are_narrow_where_shifts_are_small() -> None:
    def uneven(seed: int) -> pd.DataFrame:
        frame = cases(seed, lift=0.0)
        noise = np.random.default_rng(1000 + seed).normal(size=len(frame))
        return frame.assign(shift=np.exp(frame["surprise"]) * noise)

    kept, wide, narrow = [], [], []
    for seed in range(20):
        new, bound = uneven(100 + seed), fit_own_bound(uneven(seed))
        bounded = new.assign(bound=bound.of(new))
        kept.append(covered(bounded).mean())
        low = (new["surprise"] < -1).to_numpy()
        wide.append(fit_bound(uneven(seed)).of(new["pull"])[low].mean())
        narrow.append(bounded.loc[low, "bound"].mean())
    assert np.mean(kept) > 0.92 and np.mean(narrow) < 0.3 * np.mean(wide)
    assert fit_own_bound(cases(0).loc[lambda f: f["case"] < 15]).factor == np.inf


def test_no_bound_of_its_own_is_fitted_to_what_is_held_out() -> None:
    own = cases(5)
    hit = (own["base"] == "A").to_numpy()
    spoilt = own.assign(shift=own["shift"] + 1e3 * hit)
    same = (held_out_own_bounds(own, "base")["bound"] == held_out_own_bounds(spoilt, "base")["bound"]).to_numpy()
    assert same[hit].all() and not same[~hit].any()


@pytest.mark.parametrize("by", ["base", "trait"])
def test_nothing_of_what_is_held_out_calibrates_it(by: str) -> None:
    """Scores of a held-out base, or trait, that are changed beyond all measure change nothing of the others' errors."""
    own = cases(5)
    before, p = held_out_bounds(own, by), held_out_alarms(scored(own), by)
    column, value = ("base", "A") if by == "base" else ("teacher_trait", "t0")
    if by == "base":  # students of another base than their teacher's belong to both
        own.loc[own["case"] % 5 == 0, "base"] = "F"
        own.loc[own["case"] % 5 == 1, "base"] = "A"
        before, p = held_out_bounds(own, by), held_out_alarms(scored(own), by)
    spoilt = own.copy()
    hit = spoilt[column] == value
    spoilt.loc[hit, "shift"] += 1e3
    after = held_out_bounds(spoilt, by)
    touched = hit | (spoilt["teacher_base"] == "A") if by == "base" else hit
    same, held = (before["bound"] == after["bound"]).to_numpy(), touched.to_numpy()
    assert same[held].all(), "what shares it is not calibrated on it"
    assert not same[~held].any(), "but it calibrates the others"
    assert ((p > 0) & (p <= 1)).all()


def test_areas_hold_out_what_is_shared() -> None:
    """A planted case is compared with none that shares its base, or its trait."""
    scores = scored(cases(6))
    for by, columns in (("base", ["base", "teacher_base"]), ("trait", ["teacher_trait"])):
        pairs = [
            (one["both"] > other["both"]) + 0.5 * (one["both"] == other["both"])
            for one in scores.loc[scores["planted"]].to_dict("records")
            for other in scores.loc[~scores["planted"]].to_dict("records")
            if not {one[c] for c in columns} & ({other[c] for c in columns} - {""})
        ]
        assert told_apart(scores, "both", by).estimate == pytest.approx(np.mean(pairs))


def test_screening_ranks_the_planted_trait_within_its_case() -> None:
    frame = cases(7, each=4)
    own = frame["trait"] == frame["teacher_trait"]
    found = screening(frame.assign(persona=np.where(own, 99.0, frame["persona"])))
    assert list(found["base"]) == list(BASES) and set(found["cases"]) == {2}
    assert set(found["auroc"]) == {1.0} and found["pull"].to_numpy().min() > 0.5
    turned = screening(frame.assign(persona=np.where(own, -99.0, frame["persona"])))
    assert set(turned["auroc"]) == {0.0}


def test_the_published_screening_is_that_of_the_published_cases() -> None:
    """Its claim is judged by this file, so it holds what the committed cases give."""
    directory = RESULTS / "audit"
    kept, made = read_table(directory / "bases.csv"), screening(read_table(directory / "cases.csv")).round(6)
    pd.testing.assert_frame_equal(kept, made)
    verdict = next(v for v in judge(all_claims()) if v.claim.number == 19)
    assert verdict.findings[0].n == len(kept) == 12
    assert verdict.findings[0].interval is not None
    assert verdict.findings[0].interval.estimate == pytest.approx(kept["auroc"].mean())
