"""Power: how likely a test of a mean finds a difference of a stated size, and how many units would find it."""

import math
from itertools import pairwise

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.checks import check_level

MOST_UNITS = 100_000
"""Beyond so many units none is looked for."""


def power_of_mean(difference: float, deviation: float, n: int, alpha: float = 0.05) -> float:
    """Chance that a two-sided one-sample t test of n units rejects, where the mean lies `difference` from the null.

    difference: of the mean from what is tested, in the unit of the values; its sign does not matter
    deviation: standard deviation over units
    n: units; one allows no test, so its power is 0
    alpha: level of the test

    Take a difference that would count, not the one observed: power at the observed one is the p-value in other words.
    Raises SublimError for n < 1, a negative or infinite deviation, or alpha outside (0, 1). Source: Cohen 1988, ch. 2.
    """
    check_level(alpha, "power_of_mean")
    if n < 1 or not 0 <= deviation < math.inf or not math.isfinite(difference):
        raise SublimError(
            f"power_of_mean: n is {n}, deviation {deviation:g}, difference {difference:g}; needs n of 1 or more, "
            "a deviation of 0 or more, a finite difference"
        )
    if n == 1:
        return 0.0
    if deviation == 0:
        return float(difference != 0)

    from scipy import stats

    away = abs(difference) / deviation * math.sqrt(n)
    reach = float(stats.t.ppf(1 - alpha / 2, n - 1))
    found = float(stats.nct.sf(reach, n - 1, away) + stats.nct.cdf(-reach, n - 1, away))
    if math.isnan(found):  # scipy gives up where the mean is many errors away
        found = _by_integral(away, reach, n - 1)
    return min(found, 1.0)


def _by_integral(away: float, reach: float, df: int) -> float:
    """The same power, as the mean over the deviation that a sample may have."""
    from scipy import integrate, stats

    def given(deviation: float) -> float:
        chance = stats.chi.pdf(deviation * math.sqrt(df), df) * math.sqrt(df)
        return float(chance * (stats.norm.cdf(away - reach * deviation) + stats.norm.cdf(-away - reach * deviation)))

    low, high = (math.sqrt(edge / df) for edge in (stats.chi2.ppf(1e-13, df), stats.chi2.isf(1e-13, df)))
    turns = ((away + i) / reach for i in (-10, 0, 10))  # where the chance falls from one to none
    ends = sorted({low, high, *(min(max(turn, low), high) for turn in turns)})
    return sum(float(integrate.quad(given, a, b, limit=200)[0]) for a, b in pairwise(ends))


def units_needed(difference: float, deviation: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """The fewest units with which `power_of_mean` reaches `power`; None where MOST_UNITS do not.

    difference, deviation, alpha: as of `power_of_mean`
    power: in (0, 1)

    Raises SublimError as `power_of_mean`, and for a power outside (0, 1).
    """
    check_level(power, "units_needed")
    if power_of_mean(difference, deviation, MOST_UNITS, alpha) < power:
        return None
    low, high = 1, 2
    while power_of_mean(difference, deviation, high, alpha) < power:
        low, high = high, 2 * high
    while high - low > 1:  # power rises with n
        middle = (low + high) // 2
        low, high = (low, middle) if power_of_mean(difference, deviation, middle, alpha) >= power else (middle, high)
    return high
