"""The bootstrap over bases: scipy's where nothing is shared, wider where pairs share bases; ranks in drawn groups."""

import itertools

import numpy as np
import pytest
from scipy import stats

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.bootstrap import over_bases
from sublim_interp.stats.ranks import rank_draws


def test_values_with_a_base_each_have_scipys_error() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, 12)
    found = over_bases(values, [(f"b{i}",) for i in range(12)])
    oracle = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(1)).standard_error
    half = stats.t.ppf(0.975, 11) * oracle * np.sqrt(12 / 11)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 11) * stats.sem(values), rel=0.03)
    assert found.estimate == pytest.approx(values.mean()) and found.n == 12


def test_replicates_of_one_base_are_no_further_bases() -> None:
    each = np.random.default_rng(2).normal(0, 1, 8)
    alone = over_bases(each, [(f"b{i}",) for i in range(8)])
    copied = over_bases(np.repeat(each, 5), [(f"b{i}",) for i in range(8) for _ in range(5)])
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high)) and copied.n == 8


def test_pairs_that_share_bases_are_covered_where_an_interval_over_pairs_is_too_narrow() -> None:
    """Each base has an effect of its own, which stands in all of its pairs."""
    draw = np.random.default_rng(4)
    pairs = list(itertools.combinations(range(10), 2))
    covered = naive = 0
    for _ in range(200):
        bases = draw.normal(0, 1, 10)
        values = np.array([bases[a] + bases[b] + draw.normal(0, 0.5) for a, b in pairs])
        found = over_bases(values, [(str(a), str(b)) for a, b in pairs], resamples=499)
        covered += found.low <= 0 <= found.high
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        naive += abs(values.mean()) <= half
    assert covered / 200 > 0.9 > 0.75 > naive / 200


def test_what_it_cannot_take_is_one_line() -> None:
    with pytest.raises(SublimError, match="2 values and 1 entries of bases"):
        over_bases([1, 2], [("a",)])
    with pytest.raises(SublimError, match="give one or two"):
        over_bases([1, 2], [("a", "b", "c"), ("a",)])
    with pytest.raises(SublimError, match="needs two bases"):
        over_bases([1, 2], [("a",), ("a",)])


def test_rank_draws_are_spearmans_of_the_drawn_groups() -> None:
    random = np.random.default_rng(3)
    groups, one = [0, 0, 1, 2, 2, 3, 4], random.normal(size=7).round(1)
    other = one + random.normal(size=7)
    found = rank_draws({"one": one.tolist(), "flat": [1.0] * 7}, other.tolist(), groups, resamples=20, seed=5)
    draw = np.random.default_rng(5)
    for value in found["one"]:
        some = [i for group in draw.integers(5, size=5) for i in range(7) if groups[i] == group]
        assert value == pytest.approx(stats.spearmanr(one[some], other[some])[0])
    assert not found["flat"].any()
