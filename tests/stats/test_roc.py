"""Tests of the area under the ROC curve: against Mann and Whitney, its interval, and what may not be asked."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.roc import auroc, auroc_interval, roc


def groups(seed: int, gap: float, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return np.round(draw.normal(gap, 1, n), 1), np.round(draw.normal(0, 1, n + 20), 1)  # with ties


def test_it_is_the_statistic_of_mann_and_whitney() -> None:
    up, down = groups(0, 0.7)
    assert auroc(up.tolist(), down.tolist()) == pytest.approx(mannwhitneyu(up, down).statistic / (len(up) * len(down)))
    assert auroc([1.0], [0.0]) == 1 and auroc([0.0], [0.0]) == 0.5


def test_the_curve_encloses_that_area() -> None:
    up, down = np.random.default_rng(1).normal(1, 1, 30), np.random.default_rng(2).normal(0, 1, 50)
    x, y = roc(up, down)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(auroc(up.tolist(), down.tolist()))


def test_an_interval_of_clusters_holds_the_truth_about_as_often_as_promised() -> None:
    """Cases of one cluster rise and fall together. An interval that takes each case for its own is too narrow."""
    truth, kept, alone = 0.7602, 0, 0  # Φ(1 / √2): both groups have deviation 1, and lie 1 apart
    for seed in range(120):
        draw = np.random.default_rng(seed)
        shift = np.repeat(draw.normal(0, 0.9, 25), 4)
        up = np.tile([True, False, False, True], 25)
        scores = shift + draw.normal(0, (1 - 0.9**2) ** 0.5, 100) + up
        names = [f"c{i // 4}" for i in range(100)]
        found = auroc_interval(scores, up.tolist(), names, seed=seed, resamples=400)
        single = auroc_interval(scores, up.tolist(), [str(i) for i in range(100)], seed=seed, resamples=400)
        kept += found.low <= truth <= found.high
        alone += single.low <= truth <= single.high
    assert kept >= 104, "95 % of 120 are 114; percentiles of 25 clusters are a little narrow"
    assert found.n == 25 and alone != kept


def test_pairs_that_do_not_count_are_left_out() -> None:
    scores, up = [3.0, 1.0, 2.0, 0.0], [True, True, False, False]
    every = np.ones((2, 2), dtype=bool)
    assert auroc_interval(scores, up, ["a", "b", "a", "b"], every).estimate == pytest.approx(0.75)
    own = np.array([[True, False], [False, True]])  # 3 against 2, 1 against 0
    assert auroc_interval(scores, up, ["a", "b", "a", "b"], own).estimate == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positive": [True] * 4}, "4 positive of 4 cases"),
        ({"clusters": ["a"] * 4}, "in 1 clusters"),
        ({"clusters": ["a", "b"]}, "4 cases and 2 clusters"),
        ({"comparable": np.zeros((2, 2), dtype=bool)}, "no pair of a positive and a negative counts"),
        ({"scores": [1.0, 2.0, float("nan"), 0.0]}, "scores"),
    ],
)
def test_what_may_not_be_asked(change: dict, said: str) -> None:
    given = {"scores": [3.0, 1.0, 2.0, 0.0], "positive": [True, True, False, False], "clusters": ["a", "b", "a", "b"]}
    with pytest.raises(SublimError, match=said):
        auroc_interval(**{**given, **change})
    with pytest.raises(SublimError, match="one of the groups has no case"):
        auroc([], [1.0])
