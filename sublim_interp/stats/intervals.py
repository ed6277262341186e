"""Intervals of means and proportions over replicates."""

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, SupportsIndex, cast

import numpy as np

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.checks import Column, check_level, finite_numbers, mean_of, standard_error_of

if TYPE_CHECKING:
    import pandas as pd

Bounds = tuple[float | int, float | int] | None
"""Between which values an interval can lie at all, such as (0, 1) for a rate; None for anywhere."""


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval."""

    estimate: float
    """The mean, proportion or statistic itself."""
    low: float
    """Lower end; nan where one number alone gives no interval."""
    high: float
    """Upper end; nan as `low`."""
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

    def nats(self, digits: int = 2) -> str:
        """For a margin: `9.56 nats [8.39, 10.73]`."""
        return self._text(1.0, digits, " nats")

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


def mean_interval(values: Column, level: float = 0.95, bounds: Bounds = None) -> Interval:
    """Student t interval of the mean over replicates.

    values: one number a replicate
    level: confidence
    bounds: where the interval is cut, as (0, 1) for rates. That makes it printable and does not repair its coverage,
        which falls below `level` where most replicates sit on the border

    One value gives an interval from nan to nan, and `method` says so. Equal values give an interval of zero width: they
    agree, which is no proof that the next replicate will.

    Raises SublimError for empty, non-numeric or non-finite values, values outside the bounds, or a level that is not
    between 0 and 1.
    """
    data = finite_numbers(values, "values", "mean_interval")
    check_level(level, "mean_interval")
    if bounds is not None and not bounds[0] <= data.min() <= data.max() <= bounds[1]:
        raise SublimError(
            f"mean_interval: values run from {data.min():g} to {data.max():g}, outside bounds "
            f"[{bounds[0]:g}, {bounds[1]:g}]; correct the bounds, or leave them out"
        )
    estimate = mean_of(data)
    if len(data) == 1:
        return Interval(estimate, math.nan, math.nan, level, 1, "no interval: one replicate")
    error = standard_error_of(data)
    if error == 0:
        return Interval(estimate, estimate, estimate, level, len(data), "Student t, all replicates equal")

    from scipy import special  # its Student t is that of scipy.stats, which takes half a second to load

    half = float(special.stdtrit(len(data) - 1, (1 + level) / 2)) * error
    low, high, method = estimate - half, estimate + half, "Student t"
    if bounds is not None and (low < bounds[0] or high > bounds[1]):
        low, high = max(low, float(bounds[0])), min(high, float(bounds[1]))
        method += f", cut to [{bounds[0]:g}, {bounds[1]:g}]"
    return Interval(estimate, low, high, level, len(data), method)


def wilson(successes: SupportsIndex, trials: SupportsIndex, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion, for sampled answers of one student.

    successes, trials: whole counts of independent answers
    level: confidence

    Answers of several students are not independent: take each student's rate as one value for `mean_interval`. Raises
    SublimError unless 0 <= successes <= trials, trials >= 1 and level is in (0, 1). Source: Wilson 1927, J. Am. Stat.
    Assoc. 22.
    """
    try:
        k, n = operator.index(successes), operator.index(trials)
    except TypeError:
        raise SublimError(f"wilson: {successes!r} successes in {trials!r} trials; give whole counts") from None
    check_level(level, "wilson")
    if n < 1 or not 0 <= k <= n:
        raise SublimError(f"wilson: {k} successes in {n} trials; needs trials >= 1 and 0 <= successes <= trials")

    from scipy import stats

    interval = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    return Interval(k / n, float(interval.low), float(interval.high), level, n, "Wilson score")


def bootstrap_interval(
    values: Column,
    statistic: Callable[[np.ndarray], float],
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 9_999,
    method: Literal["BCa", "percentile"] = "BCa",
) -> Interval:
    """Bootstrap interval of a statistic other than the mean; replicates are drawn with return.

    values: one number a replicate
    statistic: gives one number for one resample [replicate]
    level: confidence
    seed: decides the resamples
    resamples: how many
    method: BCa is Efron's bias-corrected and accelerated interval

    With fewer than about ten replicates either method is too narrow. One value, or equal values, are treated as in
    `mean_interval`. Raises SublimError for empty, non-numeric or non-finite values, a level outside (0, 1), resamples
    < 1, an unknown method, or a statistic that gives no finite interval. Source: Efron 1987, J. Am. Stat. Assoc. 82.
    """
    data = finite_numbers(values, "values", "bootstrap_interval")
    check_level(level, "bootstrap_interval")
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


def over_replicates(frame: "pd.DataFrame", value: str, by: Sequence[str]) -> "pd.DataFrame":
    """Mean over replicates with its 95 % interval, for the rows of a table that agree.

    frame: a row a replicate
    value: the column that is averaged
    by: the columns in which rows must agree

    Returns a row for each combination: the columns of `by`, estimate, low, high, n.
    """
    import pandas as pd

    rows = []
    for place, group in frame.groupby(list(by), sort=False):
        found = mean_interval(group[value].to_list())
        rows.append(
            {**dict(zip(by, cast(tuple, place), strict=True)), "estimate": found.estimate, "low": found.low,
             "high": found.high, "n": found.n}
        )  # fmt: skip
    return pd.DataFrame(rows)
