"""Power and Holm's adjustment, checked against statsmodels."""

import gc
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.permutation import holm
from sublim_interp.stats.power import power_of_mean, units_needed


@pytest.mark.parametrize(("size", "n"), [(0.2, 12), (0.5, 12), (0.8, 40), (1.5, 5), (3.0, 3)])
def test_power_agrees_with_statsmodels(size: float, n: int) -> None:
    from statsmodels.stats.power import TTestPower

    oracle = TTestPower().power(effect_size=size, nobs=n, alpha=0.05, alternative="two-sided")
    assert power_of_mean(2 * size, 2.0, n) == pytest.approx(oracle, abs=1e-9)
    assert power_of_mean(-2 * size, 2.0, n) == pytest.approx(oracle, abs=1e-9)


@pytest.mark.parametrize("size", [0.3, 0.5, 1.0])
def test_the_units_needed_agree_with_statsmodels(size: float) -> None:
    from statsmodels.stats.power import TTestPower

    oracle = TTestPower().solve_power(effect_size=size, alpha=0.05, power=0.8, alternative="two-sided")
    assert units_needed(size, 1.0) == math.ceil(float(oracle))


@pytest.mark.parametrize("n", [2, 3])
def test_power_of_few_units_rises_with_the_difference_and_is_what_draws_find(n: int) -> None:
    """Also where scipy's noncentral t gives no number."""
    found = [power_of_mean(size, 1.0, n) for size in np.linspace(0.1, 40, 300)]
    assert np.diff(found).min() > -1e-6
    draws = np.random.default_rng(0).normal(5.5, 1, (40_000, n))
    t = draws.mean(1) / draws.std(1, ddof=1) * math.sqrt(n)
    from scipy import stats

    assert power_of_mean(5.5, 1.0, n) == pytest.approx(np.mean(np.abs(t) > stats.t.ppf(0.975, n - 1)), abs=0.01)


@pytest.mark.parametrize("n", [12, 100, 1_000, 10_000, 100_000])
def test_power_of_many_units_is_one_far_away_also_where_scipy_gives_no_number(n: int) -> None:
    for size in (8 / math.sqrt(n), 0.1, 0.5, 3.0, 100.0):
        if size * math.sqrt(n) >= 8:
            assert power_of_mean(size, 1.0, n) > 0.999


def test_power_at_its_borders() -> None:
    assert power_of_mean(1.0, 1.0, 1) == 0.0
    assert power_of_mean(1.0, 0.0, 2) == 1.0 and power_of_mean(0.0, 0.0, 2) == 0.0
    assert power_of_mean(0.0, 1.0, 12) == pytest.approx(0.05)
    assert power_of_mean(100.0, 1.0, 12) == 1.0
    assert units_needed(1.0, 0.0) == 2 and units_needed(0.0, 1.0) is None
    with pytest.raises(SublimError, match="deviation -1"):
        power_of_mean(1.0, -1.0, 3)
    with pytest.raises(SublimError, match="strictly between 0 and 1"):
        units_needed(1.0, 1.0, power=1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_holm_agrees_with_statsmodels(pvalues: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    gc.freeze()  # it collects garbage at each call, which takes a third of a second where PyTorch is loaded
    try:
        expected = multipletests(pvalues, method="holm")[1]
    finally:
        gc.unfreeze()
    assert holm(pvalues) == pytest.approx(expected, abs=1e-12)


def test_holm_keeps_the_chance_of_any_false_rejection() -> None:
    draws = np.random.default_rng(3).random((2000, 11))
    wrong = sum(min(holm(row)) <= 0.05 for row in draws)
    assert wrong / 2000 == pytest.approx(0.05, abs=3.5 * math.sqrt(0.05 * 0.95 / 2000))
    with pytest.raises(SublimError, match=r"holm: p-values run from -0\.1"):
        holm([0.2, -0.1])
