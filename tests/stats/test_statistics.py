"""Behaviour of the statistics: oracles, properties, calibration, planted and shuffled effects, bad input."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.contrasts import diagonal_contrast, paired_difference, shared_base_contrast, specificity
from sublim_interp.stats.information import mutual_information
from sublim_interp.stats.intervals import Interval, bootstrap_interval, mean_interval, wilson
from sublim_interp.stats.permutation import bh_fdr, sign_flip_test
from sublim_interp.stats.ranks import concordance, rank_correlation

# Multiples of 1/64: sums are exact, so properties hold to the last bit and need no tolerance for ties.
NUMBERS = st.integers(-6400, 6400).map(lambda k: k / 64)
SAMPLES = st.lists(NUMBERS, min_size=2, max_size=10)
RATES = [0.91, 0.97, 0.88, 0.99, 0.95, 0.93]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- Interval ---------------------------------------------------------------------------------------------------------


def test_interval_prints_as_percent_points_and_plain():
    interval = Interval(0.991, 0.98, 0.996, 0.95, 12, "Student t")
    assert interval.percent() == "99.1 % [98.0, 99.6]"
    assert interval.points() == "99.1 points [98.0, 99.6]"
    assert interval.percent(0) == "99 % [98, 100]"
    assert interval.plain(2) == "0.99 [0.98, 1.00]"
    assert str(interval) == "0.991 [0.980, 0.996]"


def test_interval_prints_no_minus_zero_and_no_nan():
    assert Interval(-1e-9, -0.5, 0.5, 0.95, 3, "Student t").plain(1) == "0.0 [-0.5, 0.5]"
    assert mean_interval([0.991]).percent() == "99.1 % [no interval: n = 1]"


# --- mean_interval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_mean_interval_agrees_with_statsmodels(level):
    from statsmodels.stats.weightstats import DescrStatsW

    interval = mean_interval(RATES, level)
    assert (interval.low, interval.high) == pytest.approx(DescrStatsW(RATES).tconfint_mean(alpha=1 - level))
    assert interval.estimate == pytest.approx(sum(RATES) / len(RATES))
    assert (interval.n, interval.level) == (6, level)


def test_mean_interval_covers_the_truth_as_often_as_it_says():
    draws = rng(1).normal(3.0, 2.0, size=(2000, 5))
    for level in (0.5, 0.95):
        covered = [(i := mean_interval(row, level)).low <= 3.0 <= i.high for row in draws]
        assert np.mean(covered) == pytest.approx(level, abs=3.5 * math.sqrt(level * (1 - level) / 2000))


@given(SAMPLES, NUMBERS, st.sampled_from([-4.0, -0.5, 0.25, 8.0]))
def test_mean_interval_moves_with_shift_and_scale(values, shift, scale):
    before, after = mean_interval(values), mean_interval([scale * v + shift for v in values])
    ends = sorted([scale * before.low + shift, scale * before.high + shift])
    assert [after.low, after.high] == pytest.approx(ends, abs=1e-9)
    assert after.estimate == pytest.approx(scale * before.estimate + shift, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_bounds_keep_the_interval_of_rates_inside_and_change_nothing_else(rates):
    free, cut = mean_interval(rates), mean_interval(rates, bounds=(0, 1))
    assert 0 <= cut.low <= cut.estimate <= cut.high <= 1
    assert (cut.low, cut.high) == (max(free.low, 0), min(free.high, 1))
    assert ("cut" in cut.method) == (free.low < 0 or free.high > 1)


def test_one_replicate_gives_no_interval_and_says_so():
    interval = mean_interval([0.4])
    assert interval.estimate == 0.4 and math.isnan(interval.low) and math.isnan(interval.high)
    assert "one replicate" in interval.method


@given(st.floats(0, 1), st.integers(2, 12))
def test_equal_replicates_give_zero_width_and_say_so(value, n):
    interval = mean_interval([value] * n, bounds=(0, 1))
    assert interval.low == interval.estimate == interval.high == value
    assert "equal" in interval.method


# --- wilson -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (1, 200), (120, 200), (5000, 10000)])
def test_wilson_agrees_with_statsmodels(successes, trials):
    from statsmodels.stats.proportion import proportion_confint

    interval = wilson(successes, trials, 0.9)
    oracle = proportion_confint(successes, trials, alpha=0.1, method="wilson")
    assert (interval.low, interval.high) == pytest.approx(oracle, abs=1e-12)
    assert (interval.estimate, interval.n) == (successes / trials, trials)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_symmetric_and_stays_in_the_unit_interval(counts):
    successes, trials = counts
    interval, mirrored = wilson(successes, trials), wilson(np.int64(trials - successes), trials)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.low < interval.high
    assert (interval.low, interval.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


# --- sign_flip_test ---------------------------------------------------------------------------------------------------


def exhaustive_p(differences: list[float]) -> float:
    """The definition, one sign pattern at a time."""
    observed = abs(sum(differences))
    patterns = list(itertools.product([1, -1], repeat=len(differences)))
    return sum(
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed for signs in patterns
    ) / len(patterns)


@given(st.lists(NUMBERS, min_size=1, max_size=8))
def test_exact_sign_flip_counts_all_patterns(differences):
    result = sign_flip_test(differences)
    assert result.p == exhaustive_p(differences)
    assert result.exact and result.n == len(differences) and result.p >= result.floor


def test_exact_sign_flip_agrees_with_scipy():
    differences = rng(2).normal(0.4, 1, size=9)
    oracle = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=2**9)
    assert sign_flip_test(differences).p == pytest.approx(oracle.pvalue)


@given(SAMPLES, st.sampled_from([-3.0, -1.0, 0.125, 7.0]), st.randoms())
def test_sign_flip_ignores_order_unit_and_direction(differences, scale, random):
    shuffled = [scale * d for d in differences]
    random.shuffle(shuffled)
    assert sign_flip_test(shuffled).p == sign_flip_test(differences).p


@pytest.mark.parametrize(("n", "floor"), [(1, 1.0), (5, 0.0625), (6, 0.03125), (12, 2 / 4096), (20, 2**-19)])
def test_the_floor_is_reached_and_five_pairs_cannot_convince(n, floor):
    result = sign_flip_test(np.linspace(1, 2, n))  # as clear as n differences can be
    assert result.p == result.floor == floor


def test_ties_on_paper_are_ties_in_floating_point():
    # 0.1 + 0.2 - 0.3 is 5.6e-17: the two patterns that sum to zero must count as extreme as the observed zero.
    assert sign_flip_test([0.1, 0.2, -0.3]).p == 1.0
    assert sign_flip_test([0.3, -0.1, -0.2, 0.7]).p == exhaustive_p([3, -1, -2, 7])


def test_exact_sign_flip_p_is_uniform_under_the_null():
    p = np.array([sign_flip_test(row).p for row in rng(3).standard_t(2, size=(2000, 8))])  # heavy tails
    for alpha in (1 / 128, 6 / 128, 32 / 128, 96 / 128):  # the attainable levels of 8 differences
        assert np.mean(p <= alpha) == pytest.approx(alpha, abs=3.5 * math.sqrt(alpha * (1 - alpha) / 2000))


def test_monte_carlo_sign_flip_approaches_the_exact_p_and_is_seeded():
    differences = rng(4).normal(0.35, 1, size=16)
    exact, sampled = sign_flip_test(differences), sign_flip_test(differences, max_exact=10, seed=5)
    assert exact.exact and not sampled.exact
    assert 0.02 < exact.p < 0.98
    assert sampled.p == pytest.approx(exact.p, abs=4 * math.sqrt(exact.p * (1 - exact.p) / 20_000))
    assert sign_flip_test(differences, max_exact=10, seed=5) == sampled
    assert sign_flip_test(differences, max_exact=10, seed=6) != sampled


def test_monte_carlo_p_is_never_zero():
    result = sign_flip_test(np.ones(60))
    assert result.p == result.floor == 1 / 20_000


# --- paired_difference, diagonal_contrast -----------------------------------------------------------------------------


def test_paired_difference_agrees_with_scipy():
    a, b = rng(6).normal([[0.5], [0.0]], size=(2, 12))
    result, oracle = paired_difference(a, b, 0.9), stats.ttest_rel(a, b)
    ends = oracle.confidence_interval(0.9)
    assert result.t_p == pytest.approx(oracle.pvalue)
    assert (result.interval.low, result.interval.high) == pytest.approx((ends.low, ends.high))
    assert result.sign_flip == sign_flip_test(a - b)
    assert result.values == tuple(a - b)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=8), st.lists(NUMBERS, min_size=8, max_size=8))
def test_paired_difference_is_antisymmetric_and_blind_to_what_a_pair_shares(pairs, shared):
    a, b = np.array(pairs).T
    forth, back, moved = (
        paired_difference(a, b),
        paired_difference(b, a),
        paired_difference(*(np.array([a, b]) + shared[: len(a)])),
    )
    assert moved == forth
    assert (back.interval.low, back.interval.high) == pytest.approx((-forth.interval.high, -forth.interval.low))
    assert (back.t_p, back.sign_flip) == (pytest.approx(forth.t_p), forth.sign_flip)


def test_pairing_finds_what_unpaired_arms_hide():
    seed_effect = rng(7).normal(0, 10, size=12)
    a, b = rng(8).normal(0, 0.1, size=(2, 12)) + seed_effect
    assert paired_difference(a + 1, b).sign_flip.p < 0.001
    unpaired = mean_interval(a + 1).low, mean_interval(b).high
    assert unpaired[0] < unpaired[1]


def test_degenerate_differences():
    same = paired_difference([0.3, 0.6], [0.3, 0.6])
    assert (same.interval.estimate, same.t_p, same.sign_flip.p) == (0, 1, 1)
    constant = paired_difference([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    assert (constant.interval.low, constant.interval.high, constant.t_p, constant.sign_flip.p) == (1, 1, 0, 0.25)
    alone = paired_difference([0.9], [0.1])
    assert math.isnan(alone.t_p) and math.isnan(alone.interval.low) and alone.sign_flip.p == 1


def test_diagonal_contrast_finds_the_shared_initialisation_and_nothing_else():
    noise = rng(9).normal(0, 0.02, size=(4, 12))
    hard_to_move, strong_teacher = rng(10).uniform(0, 0.4, size=(2, 12))  # properties of a base, not of a pairing
    aa, ab = noise[0] + strong_teacher, noise[1] + strong_teacher - hard_to_move
    ba, bb = noise[2], noise[3] - hard_to_move
    null = diagonal_contrast(aa, ab, ba, bb)
    planted = diagonal_contrast(aa + 0.5, ab, ba, bb + 0.5)
    assert null.interval.low < 0 < null.interval.high and null.sign_flip.p > 0.05
    assert planted.interval.low < 0.5 < planted.interval.high
    assert planted.sign_flip.p == planted.sign_flip.floor == 2 / 4096


def test_diagonal_contrast_arithmetic():
    assert diagonal_contrast([0.9, 1.0], [0.2, 0.0], [0.0, 0.0], [0.7, 1.0]).values == pytest.approx((0.7, 1.0))


# --- specificity ------------------------------------------------------------------------------------------------------


def additive(traits: int, replicates: int, seed: int, noise: float = 0.02) -> np.ndarray:
    """Lifts [teacher trait, probe trait, replicate] with strong teachers and easy probes, and no specificity."""
    g = rng(seed)
    return (
        0.1
        + g.normal(size=(traits, 1, replicates))
        + g.normal(size=(1, traits, replicates))
        + g.normal(0, noise, size=(traits, traits, replicates))
    )


def test_specificity_recovers_a_planted_gamma():
    result = specificity(additive(5, 12, seed=11) + 0.3 * np.eye(5)[:, :, None])
    assert result.interval.estimate == pytest.approx(0.3, abs=0.02)
    assert result.interval.low < 0.3 < result.interval.high
    assert result.sign_flip.p == result.sign_flip.floor


def test_specificity_is_zero_when_probe_labels_are_shuffled():
    lift = additive(5, 12, seed=12) + 0.3 * np.eye(5)[:, :, None]
    g = rng(13)
    shuffled = np.stack([lift[:, g.permutation(5), k] for k in range(12)], axis=2)
    assert specificity(lift).sign_flip.p < 0.001
    assert abs(specificity(shuffled).interval.estimate) < 0.1
    assert specificity(shuffled).sign_flip.p > 0.05


def test_specificity_finds_nothing_where_every_teacher_lifts_every_trait():
    result = specificity(additive(4, 12, seed=14, noise=0.05))
    assert result.interval.low < 0 < result.interval.high


def test_specificity_agrees_with_statsmodels_also_with_missing_cells():
    import statsmodels.api as sm

    lift = additive(4, 3, seed=15, noise=1.0)
    lift[2] = np.nan  # trait 2 has no teacher
    lift[0, 1, 0] = lift[3, 3, 1] = np.nan
    for k, gamma in enumerate(specificity(lift).values):
        i, j = np.nonzero(~np.isnan(lift[:, :, k]))
        design = np.column_stack([i == j, *(i == t for t in (0, 1)), *(j == t for t in range(4))]).astype(float)
        assert gamma == pytest.approx(sm.OLS(lift[i, j, k], design).fit().params[0])


def test_specificity_of_two_traits_is_the_diagonal_contrast():
    lift = rng(16).normal(size=(2, 2, 6))
    oracle = diagonal_contrast(lift[0, 0], lift[0, 1], lift[1, 0], lift[1, 1])
    assert specificity(lift).values == pytest.approx(oracle.values)


@given(st.lists(NUMBERS, min_size=3, max_size=3), st.lists(NUMBERS, min_size=3, max_size=3), NUMBERS)
def test_specificity_ignores_teachers_and_probes_and_adds_up_with_gamma(teachers, probes, gamma):
    lift = rng(17).normal(size=(3, 3, 2))
    moved = lift + np.array(teachers)[:, None, None] + np.array(probes)[None, :, None] + gamma * np.eye(3)[:, :, None]
    assert specificity(moved).values == pytest.approx([g + gamma for g in specificity(lift).values], abs=1e-9)


@pytest.mark.parametrize(
    ("missing", "names"),
    [
        (
            [(0, 0, 1), (1, 1, 1), (2, 2, 1)],
            r"replicate 1: no cell with teacher trait = probe trait.*\[0, 0\], \[1, 1\]",
        ),
        ([(0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 2, 0), (2, 0, 0), (2, 1, 0)], r"replicate 0.*own effects.*\[0, 1\]"),
    ],
)
def test_specificity_names_what_is_missing(missing, names):
    lift = np.ones((3, 3, 2))
    lift[tuple(np.transpose(missing))] = np.nan
    with pytest.raises(SublimError, match=names):
        specificity(lift)


# --- bh_fdr -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from([0.01, 0.05, 0.2]))
def test_bh_agrees_with_statsmodels(pvalues, q):
    from statsmodels.stats.multitest import multipletests

    result = bh_fdr(pvalues, q)
    _, adjusted, _, _ = multipletests(pvalues, alpha=q, method="fdr_bh")
    assert result.adjusted == pytest.approx(adjusted, rel=1e-12)
    assert all(raw <= new <= 1 for raw, new in zip(pvalues, result.adjusted, strict=True))
    assert result.rejected == tuple(p <= q for p in result.adjusted)


def test_a_p_value_at_the_rate_itself_is_rejected():
    assert bh_fdr([0.05], 0.05).rejected == (True,)


def test_bh_holds_the_false_discovery_rate():
    g, proportions = rng(18), []
    for _ in range(400):
        p = np.concatenate([g.uniform(size=80), g.uniform(0, 1e-4, size=20)])  # 80 true nulls, 20 real effects
        rejected = np.array(bh_fdr(p, 0.1).rejected)
        assert rejected[80:].all()
        proportions.append(rejected[:80].sum() / rejected.sum())
    assert np.mean(proportions) == pytest.approx(0.08, abs=0.012)  # q times the share of true nulls


# --- bootstrap_interval -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_bootstrap_of_a_mean_of_many_matches_the_t_interval(method):
    values = rng(19).normal(5, 2, size=200)
    boot, t = bootstrap_interval(values, np.mean, seed=1, resamples=2000, method=method), mean_interval(values)
    assert (boot.low, boot.high) == pytest.approx((t.low, t.high), abs=0.1 * (t.high - t.low))
    assert boot.estimate == pytest.approx(t.estimate) and method in boot.method


def test_bootstrap_follows_its_statistic_its_shift_and_its_seed():
    values = rng(20).exponential(size=30)
    interval = bootstrap_interval(values, np.median, seed=3, resamples=500)
    moved = bootstrap_interval(2 * values + 4, np.median, seed=3, resamples=500)
    assert interval.estimate == np.median(values)
    assert (moved.low, moved.high) == pytest.approx((2 * interval.low + 4, 2 * interval.high + 4))
    assert bootstrap_interval(values, np.median, seed=3, resamples=500) == interval
    assert bootstrap_interval(values, np.median, seed=4, resamples=500) != interval


def test_bca_corrects_for_skew_where_percentile_does_not():
    samples = rng(21).exponential(size=(150, 25))

    def covered(method):
        intervals = [bootstrap_interval(row, np.var, 0.9, resamples=300, method=method) for row in samples]
        return np.mean([interval.low <= 1.0 <= interval.high for interval in intervals])

    assert covered("BCa") > covered("percentile")


def test_bootstrap_of_one_or_of_equal_values():
    alone, equal = bootstrap_interval([2.0], np.mean), bootstrap_interval([2.0, 2.0, 2.0], np.mean)
    assert math.isnan(alone.low) and alone.n == 1
    assert equal.low == equal.high == 2.0 and "equal" in equal.method


# --- mutual_information -----------------------------------------------------------------------------------------------

LABELS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc")), min_size=1, max_size=40)


@given(LABELS)
@settings(max_examples=40)
def test_mutual_information_agrees_with_entropies_and_is_symmetric(pairs):
    x, y = zip(*pairs, strict=True)
    table = np.array([[pairs.count((a, b)) for b in "abc"] for a in range(5)])
    oracle = stats.entropy(table.sum(0)) + stats.entropy(table.sum(1)) - stats.entropy(table.ravel())
    assert mutual_information(x, y, 5).mi == pytest.approx(oracle, abs=1e-12)
    assert mutual_information(y, x, 5).mi == pytest.approx(oracle, abs=1e-12)


def test_mutual_information_finds_a_planted_dependence():
    favourite = rng(22).integers(0, 16, size=3000)
    leaky = np.where(rng(23).random(3000) < 0.1, favourite, rng(24).integers(0, 16, size=3000))
    result = mutual_information(favourite, leaky, 199, seed=1)
    assert result.mi > result.null_q99 and result.p == 1 / 200
    names = np.array([f"animal {f}" for f in favourite])
    certain = mutual_information(names, names, 19)
    assert certain.mi == pytest.approx(stats.entropy(np.bincount(favourite)))


def test_mutual_information_of_independent_labels_is_that_of_the_null():
    # For independent labels 2n times the plug-in estimate is about chi-squared with (k - 1)(l - 1) degrees of freedom.
    result = mutual_information(rng(25).integers(0, 16, size=9000), rng(26).integers(0, 16, size=9000), 499, seed=1)
    assert result.null_mean == pytest.approx(225 / 18_000, rel=0.05)
    assert result.null_q99 == pytest.approx(stats.chi2.ppf(0.99, 225) / 18_000, rel=0.05)
    assert result.mi < result.null_q99 and result.p > 0.05


def test_mutual_information_p_is_uniform_under_the_null():
    g = rng(27)
    p = np.array([mutual_information(g.integers(0, 4, 200), g.integers(0, 5, 200), 19, k).p for k in range(600)])
    for alpha in (0.05, 0.25, 0.5, 0.75):
        assert np.mean(p <= alpha) == pytest.approx(alpha, abs=3.5 * math.sqrt(alpha * (1 - alpha) / 600))


def test_a_constant_carries_no_information():
    result = mutual_information([True, False] * 20, ["owl"] * 40, 19)
    assert (result.mi, result.p) == (0, 1)


def test_a_full_factorial_carries_no_information_and_never_a_negative_amount():
    for sizes in itertools.product(range(2, 9), repeat=2):
        x, y = zip(*itertools.product(*map(range, sizes)), strict=True)
        assert 0 <= mutual_information(x, y, 1).mi < 1e-12


def test_tables_of_equal_information_on_paper_are_ties_in_floating_point():
    x, y = np.array([2, 2, 2, 2, 2, 1, 2, 2, 0, 1, 1]), [0, 1, 2, 2, 0, 0, 0, 1, 2, 2, 2]
    assert mutual_information(x, y, 99).p == mutual_information(9 - x, y, 99).p  # .66 and .83 without a tolerance


@given(LABELS, st.integers(0, 3))
@settings(max_examples=60)
def test_mutual_information_ignores_the_names_and_the_order_of_labels(pairs, seed):
    x, y = zip(*pairs, strict=True)
    before, after = mutual_information(x, y, 39, seed), mutual_information([f"k{9 - a}" for a in x], list(y), 39, seed)
    assert after.p == before.p
    assert after.mi == pytest.approx(before.mi, abs=1e-12)
    assert mutual_information(x, y, 39, seed) == before


# --- bad input --------------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "mean_interval: values is empty"),
        (lambda: mean_interval([0.1, NAN]), r"values\[1\] is nan"),
        (lambda: mean_interval([0.1, math.inf]), r"values\[1\] is inf"),
        (lambda: mean_interval([[0.1], [0.2]]), "2 dimensions"),
        (lambda: mean_interval(["owl"]), "not a list of numbers"),
        (lambda: mean_interval([0.1, 0.2], level=95.0), "level is 95"),
        (lambda: mean_interval([0.5, 99.1], bounds=(0, 1)), "outside bounds"),
        (lambda: wilson(3, 0), "3 successes in 0 trials"),
        (lambda: wilson(8, 7), "8 successes in 7 trials"),
        (lambda: wilson(-1, 7), "-1 successes"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "a 1, b 2"),
        (lambda: paired_difference([], []), "a is empty"),
        (lambda: diagonal_contrast([1.0], [NAN], [0.0], [1.0]), r"cross_ab\[0\] is nan"),
        (lambda: sign_flip_test([1.0, NAN]), r"differences\[1\]"),
        (lambda: sign_flip_test([1.0], max_exact=40), "max_exact is 40"),
        (lambda: specificity(np.ones((2, 3, 4))), r"\(2, 3, 4\)"),
        (lambda: specificity(np.ones((1, 1, 4))), "two or more traits"),
        (lambda: specificity(np.full((2, 2, 1), math.inf)), "infinite at .0, 0, 0."),
        (lambda: specificity(np.full((5, 5, 1), NAN)), "and 17 more"),
        (lambda: bh_fdr([0.1, 1.2]), "valid are 0 to 1"),
        (lambda: bh_fdr([0.1, NAN]), r"pvalues\[1\] is nan"),
        (lambda: bh_fdr([0.1], q=0.0), "q is 0"),
        (lambda: bootstrap_interval([], np.mean), "values is empty"),
        (lambda: bootstrap_interval([1.0, 2.0], np.mean, resamples=0), "resamples is 0"),
        (lambda: bootstrap_interval([1.0, 2.0, 3.0], lambda v: 1.0), "percentile"),
        (lambda: mutual_information([], []), "empty"),
        (lambda: mutual_information([1, 2], [1]), "x has 2 labels and y 1"),
        (lambda: mutual_information([0.5, 1.5], [1, 2]), "float"),
        (lambda: mutual_information(["owl", NAN], [1, 2]), "float, str"),
        (lambda: mutual_information([1, 2], np.array(["owl", None])), "NoneType, str"),
        (lambda: mutual_information([[1], [2]], [1, 2]), r"shape \(2, 1\)"),
        (lambda: mutual_information([1, 2], [1, 2], permutations=0), "permutations is 0"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(SublimError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_scipy_is_loaded_no_sooner_and_no_more_of_it_than_needed():
    import subprocess
    import sys

    every = "contrasts, information, intervals, permutation, ranks"
    code = f"import sys; from sublim_interp.stats import {every}; assert 'scipy' not in sys.modules; " + (
        "contrasts.paired_difference([1.0, 2.0], [0.5, 0.7]); assert 'scipy.stats' not in sys.modules"
    )  # a run ends with such contrasts, and loading it takes longer than they do
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_shared_base_shows_in_the_contrast_and_strong_teachers_do_not() -> None:
    """Planted: γ = .4 beside strong teachers and stubborn students; and γ = 0 beside the same."""
    draw = np.random.default_rng(0)
    sides = draw.normal(0, 0.3, (8, 1)) + draw.normal(0, 0.3, (1, 8)) + draw.normal(0, 0.02, (8, 8))
    found, nothing = shared_base_contrast(sides + 0.4 * np.eye(8)), shared_base_contrast(sides)
    assert found.interval.low < 0.4 < found.interval.high and found.p == found.floor == 1 / 10_000
    assert nothing.interval.low < 0 < nothing.interval.high and nothing.p > 0.05
    order = draw.permutation(8)
    moved = shared_base_contrast((sides + 0.4 * np.eye(8))[np.ix_(order, order)])
    assert moved.interval.estimate == pytest.approx(found.interval.estimate), "the order of the bases says nothing"
    assert found.interval.estimate == pytest.approx(_by_least_squares(sides + 0.4 * np.eye(8)))


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_few_bases_are_paired_in_every_way_and_cannot_give_a_smaller_p(n: int) -> None:
    draw = np.random.default_rng(n)
    planted = shared_base_contrast(np.eye(n) + draw.normal(0, 1e-3, (n, n)))
    assert planted.p == pytest.approx(1 / math.factorial(n)) and planted.floor == pytest.approx(planted.p)
    cells = draw.normal(size=(n, n))
    found = shared_base_contrast(cells)
    sizes = np.array([abs(_in_errors(cells[:, order])) for order in itertools.permutations(range(n))])
    assert found.p == pytest.approx(np.mean(sizes >= sizes[0] * (1 - 1e-9)))


def _in_errors(cells: np.ndarray) -> float:
    """γ over its jackknife error, the long way."""

    def gamma(rate: np.ndarray) -> float:
        return float(np.diag(rate).mean() - rate[~np.eye(len(rate), dtype=bool)].mean())

    n = len(cells)
    left = [gamma(np.delete(np.delete(cells, b, 0), b, 1)) for b in range(n)]
    return gamma(cells) / math.sqrt((n - 1) * np.var(left)) if n > 2 else math.inf


def test_bases_that_differ_in_what_is_their_own_give_no_more_false_alarms_than_promised() -> None:
    """Truth is 0. Paired by γ alone, nearly half of these would be called significant."""
    draw, false = np.random.default_rng(2), 0
    for k in range(200):
        cells = draw.normal(0, 0.1, (10, 10)) + np.diag(draw.normal(0, 1, 10))
        false += shared_base_contrast(cells, permutations=199, seed=k).p <= 0.05
    assert stats.binomtest(false, 200, 0.05, alternative="greater").pvalue > 0.01


def _by_least_squares(rate: np.ndarray) -> float:
    return specificity(rate[:, :, None]).interval.estimate


def test_the_interval_of_the_shared_base_contrast_covers_as_it_says() -> None:
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        own = 0.5 + draw.normal(0, 0.1, 8)  # bases differ in how much passes within them
        cells = np.diag(own) + draw.normal(0, 0.1, (8, 1)) + draw.normal(0, 0.1, (8, 8))
        interval = shared_base_contrast(cells, permutations=1).interval
        hits += interval.low < 0.5 < interval.high
    assert hits >= 0.92 * 300


def test_what_the_shared_base_contrast_cannot_take() -> None:
    with pytest.raises(SublimError, match=r"shape \(2, 2\)"):
        shared_base_contrast(np.eye(2))
    with pytest.raises(SublimError, match=r"no number at \[0, 1\]"):
        shared_base_contrast(np.array([[1, np.nan, 0], [0, 1, 0], [0, 0, 1.0]]))


def _spearman(a: np.ndarray, b: np.ndarray) -> Any:
    return stats.spearmanr(a, b)


@pytest.mark.parametrize("n", [5, 6, 7, 8, 12, 16])
def test_rank_correlation_is_spearmans_with_the_p_of_all_pairings(n: int) -> None:
    draw = np.random.default_rng(n)
    a = draw.normal(size=n)
    b = np.round(a + draw.normal(size=n), 0)  # with ties
    found = rank_correlation(a, b)
    assert found.rho == pytest.approx(_spearman(a, b).statistic)
    if n <= 6:  # scipy recomputes ρ for every pairing

        def size(x: np.ndarray) -> float:
            return abs(_spearman(x, b).statistic)

        exact = stats.permutation_test((a,), size, permutation_type="pairings", alternative="greater", n_resamples=720)
        assert found.p == pytest.approx(exact.pvalue)
    else:
        assert found.p == pytest.approx(_spearman(a, b).pvalue, abs=0.03)
    assert rank_correlation(-a, b).rho == pytest.approx(-found.rho)


def test_the_least_rank_correlation_is_the_tables_critical_value() -> None:
    """Zar 1972, J. Am. Stat. Assoc. 67, table 1: two-sided, .05."""
    for n, critical in ((5, 1.0), (6, 0.886), (7, 0.786), (8, 0.738)):
        found = rank_correlation(range(n), range(n))
        assert round(found.least, 3) == critical and found.rho == pytest.approx(1)
    assert rank_correlation(range(16), range(16)).least == pytest.approx(0.503, abs=0.015)
    assert math.isnan(rank_correlation(range(4), range(4)).least), "four cannot reach .05"


def test_shuffled_observations_seldom_correlate() -> None:
    draw = np.random.default_rng(3)
    hits = sum(rank_correlation(draw.normal(size=9), draw.normal(size=9), seed=i).p <= 0.05 for i in range(200))
    assert 2 <= hits <= 20


def test_replicates_that_rank_alike_are_concordant_and_others_are_not() -> None:
    draw = np.random.default_rng(4)
    items, noise = np.arange(10.0), draw.normal(size=(6, 10))
    alike, apart = concordance(items + 0.1 * noise), concordance(noise)
    assert alike.w == pytest.approx(1) and alike.p < 1e-6
    assert apart.w < 0.4 and apart.p > 0.05
    ranks = stats.rankdata(noise, axis=1).sum(0)
    assert apart.w == pytest.approx(12 * ((ranks - ranks.mean()) ** 2).sum() / (6**2 * (10**3 - 10)))
    assert np.mean([concordance(draw.normal(size=(6, 10))).w for _ in range(200)]) == pytest.approx(1 / 6, abs=0.02)


def test_what_ranks_cannot_be_made_of() -> None:
    with pytest.raises(SublimError, match="2 observations; needs three"):
        rank_correlation([1, 2], [1, 2])
    with pytest.raises(SublimError, match="b is the same throughout"):
        rank_correlation([1, 2, 3], [5, 5, 5])
    with pytest.raises(SublimError, match="lengths differ"):
        rank_correlation([1, 2, 3], [1, 2])
    with pytest.raises(SublimError, match=r"shape \(2, 2\)"):
        concordance(np.eye(2))
    with pytest.raises(SublimError, match=r"no number at \[0, 1\]"):
        concordance(np.array([[1, np.nan, 0], [0, 1, 0]]))
    with pytest.raises(SublimError, match="nothing is ranked"):
        concordance(np.ones((3, 4)))
