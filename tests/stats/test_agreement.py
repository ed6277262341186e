"""Tests of Cohen's κ: statsmodels as oracle, bounds and symmetry, an interval that covers, refusals."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa, to_table

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.agreement import cohen_kappa

oracle: Any = cohens_kappa
PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40)


@given(PAIRS)
def test_it_is_that_of_statsmodels_and_symmetric(pairs: list[tuple[str, str]]) -> None:
    one, other = map(list, zip(*pairs, strict=True))
    assume(len({*one, *other}) > 1)
    found = cohen_kappa(one, other, resamples=50)
    table, _ = to_table(np.array([["abc".index(x) for x in pair] for pair in pairs]), bins=np.arange(4) - 0.5)
    assert found.estimate == pytest.approx(oracle(table).kappa, abs=1e-12)
    assert -1 <= found.estimate <= 1 and found.n == len(pairs)
    assert cohen_kappa(other, one, resamples=50).estimate == pytest.approx(found.estimate)


def test_perfect_agreement_is_one_and_chance_is_nought() -> None:
    assert cohen_kappa(list("aabb"), list("aabb")).estimate == 1
    assert cohen_kappa(list("aabb"), list("abab")).estimate == 0


def test_the_interval_is_near_that_of_the_large_sample_formula() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 400)
    one, other = (np.where(draw.random(400) < 0.85, truth, 1 - truth) for _ in range(2))
    found = cohen_kappa([str(x) for x in one], [str(x) for x in other])
    told = oracle(to_table(np.stack([one, other], 1), bins=2)[0])
    assert (found.low, found.high) == pytest.approx((told.kappa_low, told.kappa_upp), abs=0.01)


def test_what_says_nothing_is_refused() -> None:
    for one, other, why in (
        ([], [], "0 and 0 labels"), (["a"], ["a", "b"], "1 and 2 labels"), (["a", "a"], ["a", "a"], "'a' throughout"),
    ):  # fmt: skip
        with pytest.raises(SublimError, match=why):
            cohen_kappa(one, other)
    with pytest.raises(SublimError, match="level"):
        cohen_kappa(["a", "b"], ["a", "b"], level=1.0)


def test_draws_without_a_kappa_are_left_out_and_named() -> None:
    found = cohen_kappa(["a", "a", "b"], ["a", "a", "b"])
    assert found.estimate == found.low == found.high == 1 and "draws without κ" in found.method
