"""Intervals, tests and contrasts over replicates. No reading of runs, no tables, no figures, no verdicts live here.

One number per replicate goes in: the seed is the replicate, not the question asked of its student. `wilson` is the one
exception, for answers sampled inside a single replicate. scipy is imported inside the functions that need it, because
the command line imports this module at start.
"""

import itertools
import math
import operator
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from sublim_interp.errors import SublimError

Column = Collection[Any]
"""One entry per replicate or observation, in order: a list, tuple, numpy array or pandas Series."""

Bounds = tuple[float | int, float | int] | None
"""Between which values an interval can lie at all, such as (0, 1) for a rate."""

MONTE_CARLO_FLIPS = 19_999
"""Random sign patterns drawn by `sign_flip_test` where there are too many to enumerate."""

_LARGEST_EXACT = 24  # 2^23 sums of 8 bytes: 64 MiB, doubled while they are built
_TIE = 1e-12  # relative; sums that are equal on paper differ by about 1e-15 in floating point


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval. `low` and `high` are nan where one number alone gives no interval."""

    estimate: float
    low: float
    high: float
    level: float
    """Confidence level, in (0, 1)."""
    n: int
    """How many numbers went in: replicates, or for `wilson` the trials of one replicate."""
    method: str
    """How the interval was made, and what was special about it, for a table's footnote."""

    def percent(self, digits: int = 1) -> str:
        """For a rate in [0, 1]: `99.1 % [98.0, 99.6]`, or `99.1 % [no interval: n = 1]`."""
        return self._text(100.0, digits, " %")

    def points(self, digits: int = 1) -> str:
        """For a difference of rates: `93.0 points [92.1, 93.9]`."""
        return self._text(100.0, digits, " points")

    def plain(self, digits: int = 3) -> str:
        """In the values' own unit: `0.991 [0.980, 0.996]`."""
        return self._text(1.0, digits, "")

    def __str__(self) -> str:
        return self.plain()

    def _text(self, factor: float, digits: int, unit: str) -> str:
        def number(value: float) -> str:
            return f"{factor * value:z.{digits}f}"  # z: a tiny negative number prints as 0.0, not -0.0

        inside = f"no interval: n = {self.n}" if math.isnan(self.low) else f"{number(self.low)}, {number(self.high)}"
        return f"{number(self.estimate)}{unit} [{inside}]"


@dataclass(frozen=True)
class SignFlip:
    """Result of `sign_flip_test`."""

    p: float
    """Two-sided p-value."""
    floor: float
    """The smallest p-value that this many differences can give: compare with it before reading `p` as weak evidence."""
    n: int
    """Number of differences."""
    exact: bool
    """True where all 2^n sign patterns were counted, False where they were sampled."""


@dataclass(frozen=True)
class Contrast:
    """One contrast per replicate, tested against zero in two ways."""

    values: tuple[float, ...]
    """The contrast of each replicate, in the order given."""
    interval: Interval
    """Student t interval of their mean."""
    t_p: float
    """Two-sided p of the t test; nan for one replicate, 0 for equal values other than zero, 1 where all are zero."""
    sign_flip: SignFlip
    """The test that does not assume normality, and is the one to quote for few replicates."""


@dataclass(frozen=True)
class BaseContrast:
    """Result of `shared_base_contrast`."""

    interval: Interval
    """The contrast; `n` counts bases."""
    p: float
    """Two-sided permutation p-value."""
    floor: float
    """The smallest p-value that so many bases and permutations can give."""


@dataclass(frozen=True)
class RankCorrelation:
    """Result of `rank_correlation`."""

    rho: float
    """Spearman's ρ, -1 to 1."""
    p: float
    """Two-sided permutation p-value."""
    least: float
    """The smallest |ρ| whose p is .05 or less among so many observations; nan where none is."""


@dataclass(frozen=True)
class Concordance:
    """Result of `concordance`."""

    w: float
    """Kendall's W: 1 where all replicates rank alike, 1 / replicates on average where they have nothing in common."""
    p: float
    """Friedman's p, by the χ² approximation."""


@dataclass(frozen=True)
class FalseDiscovery:
    """Result of `bh_fdr`, in the order of the p-values given."""

    adjusted: tuple[float, ...]
    rejected: tuple[bool, ...]
    """Which hypotheses fall at false discovery rate `q`."""
    q: float


@dataclass(frozen=True)
class MutualInformation:
    """Result of `mutual_information`; all but `p` in nats."""

    mi: float
    """Plug-in estimate. It is biased upwards: compare it with the null, never with zero."""
    null_mean: float
    null_q99: float
    """99 % quantile of the estimate with the pairing destroyed."""
    p: float
    """One-sided permutation p; its floor is 1 / (permutations + 1)."""


def mean_interval(values: Column, level: float = 0.95, bounds: Bounds = None) -> Interval:
    """Student t interval of the mean of `values` [replicate].

    One value gives an interval from nan to nan, and `method` says so. Equal values give an interval of zero width: they
    agree, which is no proof that the next replicate will.

    Rates close to 0 or 1 can push a t interval past the border: `bounds=(0, 1)` cuts it there. That makes it printable;
    it does not repair its coverage, which falls below `level` where most replicates sit on the border.

    Raises SublimError for empty, non-numeric or non-finite values, values outside `bounds`, or a level outside (0, 1).
    """
    data = _numbers(values, "values", "mean_interval")
    _check_level(level, "mean_interval")
    if bounds is not None and not bounds[0] <= data.min() <= data.max() <= bounds[1]:
        raise SublimError(
            f"mean_interval: values run from {data.min():g} to {data.max():g}, outside bounds "
            f"[{bounds[0]:g}, {bounds[1]:g}]; correct the bounds, or leave them out"
        )
    estimate = _mean(data)
    if len(data) == 1:
        return Interval(estimate, math.nan, math.nan, level, 1, "no interval: one replicate")
    error = _standard_error(data)
    if error == 0:
        return Interval(estimate, estimate, estimate, level, len(data), "Student t, all replicates equal")

    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, len(data) - 1)) * error
    low, high, method = estimate - half, estimate + half, "Student t"
    if bounds is not None and (low < bounds[0] or high > bounds[1]):
        low, high = max(low, float(bounds[0])), min(high, float(bounds[1]))
        method += f", cut to [{bounds[0]:g}, {bounds[1]:g}]"
    return Interval(estimate, low, high, level, len(data), method)


def wilson(successes: SupportsIndex, trials: SupportsIndex, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22), for sampled answers.

    It holds for independent answers of one student. Answers of several students are not independent: take each
    student's rate as one value and give them to `mean_interval`.

    Raises SublimError unless 0 <= successes <= trials, trials >= 1 and level is in (0, 1).
    """
    try:
        k, n = operator.index(successes), operator.index(trials)
    except TypeError:
        raise SublimError(f"wilson: {successes!r} successes in {trials!r} trials; give whole counts") from None
    _check_level(level, "wilson")
    if n < 1 or not 0 <= k <= n:
        raise SublimError(f"wilson: {k} successes in {n} trials; needs trials >= 1 and 0 <= successes <= trials")

    from scipy import stats

    interval = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    return Interval(k / n, float(interval.low), float(interval.high), level, n, "Wilson score")


def paired_difference(a: Column, b: Column, level: float = 0.95, bounds: Bounds = None) -> Contrast:
    """Mean of `a - b` for two arms [replicate] paired by seed, with its paired t interval and tests.

    `bounds` are those of `mean_interval`, (-1, 1) for rates. Raises SublimError for empty, unequally long, non-numeric
    or non-finite arms, or a level outside (0, 1).
    """
    first, second = _paired({"a": a, "b": b}, "paired_difference")
    return _contrast(first - second, level, bounds)


def diagonal_contrast(
    same_aa: Column,
    cross_ab: Column,
    cross_ba: Column,
    same_bb: Column,
    level: float = 0.95,
    bounds: Bounds = None,
) -> Contrast:
    """The 2 x 2 test of initialisation: ((AA + BB) - (AB + BA)) / 2 for each base pair, over base pairs.

    Each argument [base pair] holds the effect of one cell, teacher's base first, then student's. A base that is merely
    hard to move, or a teacher that is merely strong, lowers or raises one cell of each kind and cancels.

    The unit is the base pair, so average over the seeds of a pair beforehand. Pairs must be disjoint: two pairs that
    share a base are not independent, and both the interval and the p-values would be too good.

    `bounds` are those of `mean_interval`, (-1, 1) for rates. Raises SublimError for empty, unequally long, non-numeric
    or non-finite cells, or a level outside (0, 1).
    """
    cells = {"same_aa": same_aa, "cross_ab": cross_ab, "cross_ba": cross_ba, "same_bb": same_bb}
    aa, ab, ba, bb = _paired(cells, "diagonal_contrast")
    return _contrast(((aa + bb) - (ab + ba)) / 2, level, bounds)


def specificity(lift: Float[np.ndarray, "teacher_trait probe_trait replicate"], level: float = 0.95) -> Contrast:
    """Is the lift for this trait, or for traits in general? γ of lift_ijk = μ + α_i + β_j + γ·[i = j], per replicate.

    `lift[i, j, k]` is the rise of probe trait j in the student of a teacher with trait i, in replicate k; both trait
    axes have the same order. γ is fitted by least squares in each replicate alone, by taking the teachers' and probes'
    effects out of the diagonal indicator (Frisch-Waugh-Lovell). For two traits it is the diagonal contrast.

    NaN marks a missing cell, a row of NaN a trait that has no teacher. Raises SublimError for an array that is not
    square in its traits, has fewer than two of them or an infinite cell, or a replicate whose cells do not identify γ.
    """
    if lift.ndim != 3 or lift.shape[0] != lift.shape[1] or lift.shape[0] < 2 or lift.shape[2] < 1:
        raise SublimError(
            f"specificity: lift has shape {lift.shape}; needs [teacher trait, probe trait, replicate] with the same "
            "two or more traits on both trait axes (NaN where a cell was not run)"
        )
    if np.isinf(lift).any():
        raise SublimError(f"specificity: lift is infinite at {_cells(np.isinf(lift))}; mark missing cells with NaN")
    return _contrast(np.array([_gamma(lift[:, :, k], k) for k in range(lift.shape[2])]), level)


def shared_base_contrast(
    rate: Float[np.ndarray, "teacher_base student_base"], level: float = 0.95, permutations: int = 9_999, seed: int = 0
) -> BaseContrast:
    """Does it pass because teacher and student share a base? Mean of the diagonal minus mean of all other cells.

    `rate[i, j]` is the effect in the student of base j taught by a teacher of base i, over the same bases on both axes;
    each teacher writes one corpus for all its students. This is γ of rate_ij = μ + α_i + β_j + γ·[i = j] by least
    squares: a base that is hard to move and a teacher that is strong cancel. The unit is the base: cells share
    teachers and students, so their number says nothing. The interval is Student's t with the jackknife's standard
    error, each base left out in turn with its row and column (Efron & Tibshirani 1993, chapter 11); the p-value is that
    of pairing the students' bases with the teachers' anew (Mantel 1967, Cancer Research 27), two-sided: in all n! ways
    where these are no more than `permutations`, else in as many drawn from `seed`.

    Raises SublimError for an array that is not square, has fewer than three bases or a cell that is not finite.
    """
    if rate.ndim != 2 or rate.shape[0] != rate.shape[1] or len(rate) < 3:
        raise SublimError(f"shared_base_contrast: rate has shape {rate.shape}; needs three or more bases, twice")
    if not np.isfinite(rate).all():
        raise SublimError(f"shared_base_contrast: no number at {_cells(~np.isfinite(rate))}; every pair must have run")
    _check_level(level, "shared_base_contrast")

    from scipy import stats

    n = len(rate)

    def gamma(cells: np.ndarray) -> float:
        own = np.trace(cells) / len(cells)
        return float(own - (cells.sum() - np.trace(cells)) / (len(cells) * (len(cells) - 1)))

    estimate = gamma(rate)
    left = np.array([gamma(np.delete(np.delete(rate, b, 0), b, 1)) for b in range(n)])
    error = math.sqrt((n - 1) / n * float(((left - left.mean()) ** 2).sum()))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    interval = Interval(estimate, estimate - half, estimate + half, level, n, "Student t, jackknife over bases")
    orders, exact = _pairings(n, permutations, permutations, seed)
    shuffled = np.array([gamma(rate[:, order]) for order in orders])
    extreme = int((np.abs(shuffled) >= abs(estimate) * (1 - _TIE)).sum()) + (not exact)
    count = len(shuffled) + (not exact)
    return BaseContrast(interval, extreme / count, 1 / count)


def rank_correlation(a: Column, b: Column, seed: int = 0) -> RankCorrelation:
    """Do two columns [observation] rise together? Spearman's ρ, ties at their mean rank.

    The p-value is that of pairing the columns anew: in all n! ways up to eight observations, beyond in 9,999 drawn from
    `seed`, which count as (1 + as extreme) / (1 + drawn). The t approximation is too kind to so few.

    Raises SublimError for empty, unequally long, non-numeric or non-finite columns, fewer than three observations, or a
    column that is the same throughout.
    """
    first, second = _paired({"a": a, "b": b}, "rank_correlation")
    n = len(first)
    if n < 3:
        raise SublimError(f"rank_correlation: {n} observations; needs three or more")

    from scipy import stats

    sides = []
    for name, column in (("a", first), ("b", second)):
        ranks = stats.rankdata(column) - (n + 1) / 2
        if not ranks.any():
            raise SublimError(f"rank_correlation: {name} is the same throughout, so nothing can rise with it")
        sides.append(ranks / np.linalg.norm(ranks))
    x, y = sides
    orders, exact = _pairings(n, math.factorial(8), 9_999, seed)
    shuffled = np.sort(np.abs(y[orders] @ x))
    rho = float(x @ y)

    def p_of(size: Float[np.ndarray, " size"]) -> Float[np.ndarray, " size"]:
        extreme = len(shuffled) - np.searchsorted(shuffled, size - _TIE)
        return (extreme + (not exact)) / (len(shuffled) + (not exact))

    enough = shuffled[p_of(shuffled) <= 0.05]
    return RankCorrelation(rho, float(p_of(np.array([abs(rho)]))[0]), float(enough[0]) if len(enough) else math.nan)


def concordance(scores: Float[np.ndarray, "replicate item"]) -> Concordance:
    """Do replicates rank the same items alike? Kendall's W (Kendall & Babington Smith 1939, Ann. Math. Stat. 10).

    Raises SublimError for fewer than two replicates or three items, a score that is not finite, or scores that are the
    same for all items.
    """
    if scores.ndim != 2 or scores.shape[0] < 2 or scores.shape[1] < 3:
        raise SublimError(f"concordance: scores have shape {scores.shape}; needs two or more replicates, three items")
    if not np.isfinite(scores).all():
        raise SublimError(f"concordance: no number at {_cells(~np.isfinite(scores))}; every item must have been scored")
    if (scores == scores[:, :1]).all():
        raise SublimError("concordance: all items have the same score in every replicate, so nothing is ranked")

    from scipy import stats

    found = stats.friedmanchisquare(*scores.T)
    return Concordance(float(found.statistic) / (len(scores) * (scores.shape[1] - 1)), float(found.pvalue))


def _pairings(n: int, most: int, drawn: int, seed: int) -> tuple[Int[np.ndarray, "pairing n"], bool]:
    """All n! orders of n things, the observed one among them, where these are no more than `most`, and True; else as
    many random ones as `drawn` says, and False."""
    if math.factorial(n) <= most:
        return np.array(list(itertools.permutations(range(n)))), True
    draw = np.random.default_rng(seed)
    return np.array([draw.permutation(n) for _ in range(drawn)]).reshape(drawn, n), False


def sign_flip_test(differences: Column, max_exact: int = 20, seed: int = 0) -> SignFlip:
    """Two-sided sign-flip (one-sample permutation) test that `differences` [replicate] are symmetric about zero.

    The statistic is the absolute sum. Up to `max_exact` differences all 2^n sign patterns are counted, so p is exact
    and its floor is 2 / 2^n: five pairs cannot go below .0625, six reach .031, twelve .0005. Beyond, MONTE_CARLO_FLIPS
    patterns are drawn from `seed`, and p = (1 + as extreme) / (1 + drawn), with the floor 1 / (1 + drawn)
    (Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39).

    Raises SublimError for empty, non-numeric or non-finite differences, or `max_exact` outside 0 to 24.
    """
    data = _numbers(differences, "differences", "sign_flip_test")
    if not 0 <= max_exact <= _LARGEST_EXACT:
        raise SublimError(f"sign_flip_test: max_exact is {max_exact}; valid are 0 to {_LARGEST_EXACT}")
    n = len(data)
    threshold = abs(data.sum()) - _TIE * np.abs(data).sum()
    if n <= max_exact:
        sums = data[:1]  # the first sign stays: the other half of the patterns mirrors this one
        for value in data[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return SignFlip(float(np.mean(np.abs(sums) >= threshold)), 2.0 / 2**n, n, exact=True)
    signs = 2 * np.random.default_rng(seed).integers(0, 2, size=(MONTE_CARLO_FLIPS, n), dtype=np.int8) - 1
    as_extreme = int(np.count_nonzero(np.abs(signs @ data) >= threshold))
    floor = 1 / (1 + MONTE_CARLO_FLIPS)
    return SignFlip((1 + as_extreme) * floor, floor, n, exact=False)


def bh_fdr(pvalues: Column, q: float = 0.05) -> FalseDiscovery:
    """Benjamini-Hochberg adjusted p-values [hypothesis] (1995, J. R. Stat. Soc. B 57), and which are at most `q`.

    Raises SublimError for empty, non-numeric or NaN p-values, any outside [0, 1], or q outside (0, 1).
    """
    data = _numbers(pvalues, "pvalues", "bh_fdr")
    if data.min() < 0 or data.max() > 1:
        raise SublimError(f"bh_fdr: p-values run from {data.min():g} to {data.max():g}; valid are 0 to 1")
    if not 0 < q < 1:
        raise SublimError(f"bh_fdr: q is {q:g}; valid is a rate strictly between 0 and 1, such as 0.05")

    from scipy import stats

    adjusted = stats.false_discovery_control(data, method="bh")
    return FalseDiscovery(tuple(map(float, adjusted)), tuple(bool(p <= q) for p in adjusted), q)


def bootstrap_interval(
    values: Column,
    statistic: Callable[[np.ndarray], float],
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 9_999,
    method: Literal["BCa", "percentile"] = "BCa",
) -> Interval:
    """Bootstrap interval of `statistic(values)`, for statistics other than the mean; replicates are drawn with return.

    `statistic` takes one resample [replicate] and gives one number. BCa is Efron's bias-corrected and accelerated
    interval (1987, J. Am. Stat. Assoc. 82). With fewer than about ten replicates either kind is too narrow.
    One value, or equal values, are treated as in `mean_interval`.

    Raises SublimError for empty, non-numeric or non-finite values, a level outside (0, 1), resamples < 1, an unknown
    method, or where the statistic gives no finite interval.
    """
    data = _numbers(values, "values", "bootstrap_interval")
    _check_level(level, "bootstrap_interval")
    if resamples < 1:
        raise SublimError(f"bootstrap_interval: resamples is {resamples}; needs one or more")
    if method not in ("BCa", "percentile"):
        raise SublimError(f"bootstrap_interval: unknown method {method!r}; valid are BCa, percentile")
    estimate = float(statistic(data))
    if len(data) == 1:
        return Interval(estimate, math.nan, math.nan, level, 1, "no interval: one replicate")
    if data.min() == data.max():
        return Interval(estimate, estimate, estimate, level, len(data), f"{method} bootstrap, all replicates equal")

    from scipy import stats

    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # it becomes the error below
        interval = stats.bootstrap(
            (data,),
            statistic,
            n_resamples=resamples,
            vectorized=False,
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    if not (math.isfinite(estimate) and math.isfinite(low) and math.isfinite(high)):
        raise SublimError(
            f"bootstrap_interval: the {method} interval is not finite (estimate {estimate:g}); the statistic must be "
            "finite on every resample, and BCa needs one that varies smoothly: try method='percentile'"
        )
    return Interval(estimate, low, high, level, len(data), f"{method} bootstrap")


def mutual_information(x: Column, y: Column, permutations: int = 999, seed: int = 0) -> MutualInformation:
    """Plug-in mutual information in nats of two label arrays [observation], against a null of shuffled pairings.

    Labels are integers, booleans or strings. The null shuffles `y`, so the observations must be exchangeable: one
    observation per independent document, not one per token of it. p = (1 + as large) / (1 + permutations).
    Memory grows with the number of different labels in `x` times that in `y`.

    Raises SublimError for empty, unequally long or not one-dimensional arrays, labels of other or mixed kinds (floats
    and NaN among them), or permutations < 1.
    """
    codes_x, codes_y = _codes(x, "x"), _codes(y, "y")
    if len(codes_x) != len(codes_y):
        raise SublimError(
            f"mutual_information: x has {len(codes_x)} labels and y {len(codes_y)}; give one of each per observation"
        )
    if permutations < 1:
        raise SublimError(f"mutual_information: permutations is {permutations}; needs one or more")
    marginals = _entropy(codes_x) + _entropy(codes_y)
    scaled_x = codes_x * (int(codes_y.max()) + 1)

    def information(labels: Int[np.ndarray, " observation"]) -> float:
        return max(0.0, marginals - _entropy(scaled_x + labels))

    rng = np.random.default_rng(seed)
    mi = information(codes_y)
    null = np.array([information(rng.permutation(codes_y)) for _ in range(permutations)])
    as_large = int(np.count_nonzero(null >= mi - _TIE * marginals))
    return MutualInformation(
        mi, float(null.mean()), float(np.quantile(null, 0.99)), (1 + as_large) / (1 + permutations)
    )


def _contrast(values: Float[np.ndarray, " replicate"], level: float, bounds: Bounds = None) -> Contrast:
    """The interval of the mean of `values` and both tests that it is zero."""
    from scipy import stats

    interval = mean_interval(values, level, bounds)
    if len(values) == 1:
        t_p = math.nan
    elif (error := _standard_error(values)) == 0:
        t_p = 1.0 if interval.estimate == 0 else 0.0  # the limit of t as the variance goes to zero
    else:
        t_p = float(2 * stats.t.sf(abs(interval.estimate) / error, len(values) - 1))
    return Contrast(tuple(map(float, values)), interval, t_p, sign_flip_test(values))


def _gamma(lift: Float[np.ndarray, "trait trait"], replicate: int) -> float:
    """Least-squares γ of one replicate's trait matrix; see `specificity`."""
    observed = ~np.isnan(lift)
    teacher, probe = np.nonzero(observed)
    traits = np.arange(len(lift))
    effects = np.hstack([teacher[:, None] == traits, probe[:, None] == traits]).astype(float)  # μ lies in their span
    diagonal = (teacher == probe).astype(float)
    own = diagonal - effects @ np.linalg.lstsq(effects, diagonal, rcond=None)[0]
    weight = float(own @ own)
    if weight < 1e-9:
        problem = "the observed cells do not tell γ from the teachers' and probes' own effects"
        if not diagonal.any():
            problem = "no cell with teacher trait = probe trait was observed"
        raise SublimError(
            f"specificity: γ cannot be identified in replicate {replicate}: {problem}; "
            f"missing [teacher, probe]: {_cells(~observed)}"
        )
    return float(own @ lift[observed]) / weight


def _cells(mask: np.ndarray, shown: int = 8) -> str:
    """The positions where `mask` is true, the first few of them, for an error message."""
    positions = [str(position) for position in np.argwhere(mask).tolist()]
    return ", ".join(positions[:shown]) + (f" and {len(positions) - shown} more" if len(positions) > shown else "")


def _numbers(values: Column, name: str, where: str) -> Float[np.ndarray, " n"]:
    """`values` as one-dimensional finite float64, or a SublimError that says why not."""
    try:
        data = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise SublimError(f"{where}: {name} is not a list of numbers; give one number per entry") from None
    if data.ndim != 1:
        raise SublimError(f"{where}: {name} has {data.ndim} dimensions; give a flat list of numbers")
    if len(data) == 0:
        raise SublimError(f"{where}: {name} is empty; give one number or more")
    bad = np.flatnonzero(~np.isfinite(data))
    if len(bad):
        raise SublimError(f"{where}: {name}[{bad[0]}] is {data[bad[0]]}; every entry must be a finite number")
    return data


def _paired(arms: dict[str, Column], where: str) -> list[Float[np.ndarray, " replicate"]]:
    """Each arm checked by `_numbers`, and all equally long."""
    arrays = {name: _numbers(values, name, where) for name, values in arms.items()}
    if len({len(data) for data in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(data)}" for name, data in arrays.items())
        raise SublimError(f"{where}: lengths differ ({lengths}); give the same replicates in the same order")
    return list(arrays.values())


def _check_level(level: float, where: str) -> None:
    if not 0 < level < 1:
        raise SublimError(f"{where}: level is {level:g}; valid is a confidence strictly between 0 and 1, such as 0.95")


def _mean(data: Float[np.ndarray, " n"]) -> float:
    # Rounding may carry a mean just past the extremes, and so past the bounds of a rate.
    return float(np.clip(data.mean(), data.min(), data.max()))


def _standard_error(data: Float[np.ndarray, " n"]) -> float:
    # Rounding of the mean gives equal values such as [.1, .1, .1] a standard deviation of 1e-17.
    return 0.0 if data.min() == data.max() else float(data.std(ddof=1)) / math.sqrt(len(data))


def _codes(labels: Column, name: str) -> Int[np.ndarray, " observation"]:
    """Labels as integers 0 … k-1."""
    # As objects first: a NaN between strings would otherwise become the string "nan", and a label like any other.
    objects = np.asarray(labels, dtype=object)
    kinds = {type(label) for label in objects.flat}
    one_kind = any(all(issubclass(kind, allowed) for kind in kinds) for allowed in (str, (Integral, np.bool_)))
    if objects.ndim != 1 or len(objects) == 0 or not one_kind:
        found = f"shape {objects.shape}, {', '.join(sorted(kind.__name__ for kind in kinds)) or 'empty'}"
        raise SublimError(
            f"mutual_information: {name} ({found}) is not a list of labels; give integers, booleans or strings, unmixed"
        )
    return np.unique(np.asarray(objects.tolist()), return_inverse=True)[1]


def _entropy(codes: Int[np.ndarray, " observation"]) -> float:
    """Plug-in entropy in nats."""
    counts = np.bincount(codes)
    counts = counts[counts > 0]
    return math.log(len(codes)) - float(counts @ np.log(counts)) / len(codes)
