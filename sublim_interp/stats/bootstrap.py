"""Bootstrap over what values share: bases that stand in several pairs, replicates of one base."""

import math
from collections.abc import Sequence

import numpy as np

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.checks import Column, check_level, finite_numbers
from sublim_interp.stats.intervals import Interval


def over_bases(
    values: Column, bases: Sequence[tuple[str, ...]], level: float = 0.95, seed: int = 0, resamples: int = 9_999
) -> Interval:
    """Interval of a mean whose values share bases: its standard error comes from drawing bases with return, not values.

    values: one number a pair of bases, or a replicate
    bases: the bases of each value, one or two; replicates of one base name the same
    level: confidence
    seed: decides the draws
    resamples: how many

    A value counts as often as its bases are drawn, multiplied where they are two. So pairs that share a base rise and
    fall together, which an interval over pairs leaves out. `n` counts bases. The interval is Student's t for as many:
    the percentiles of so few bases' draws would be too narrow. Where every value has one base of its own this is the
    ordinary bootstrap of the mean.

    Raises SublimError for empty, non-numeric or non-finite values, bases that are not one or two a value, fewer than
    two bases in all, a level outside (0, 1), or resamples < 1. Source: Owen 2007, Ann. Appl. Stat. 1 (pigeonhole).
    """
    data = finite_numbers(values, "values", "over_bases")
    check_level(level, "over_bases")
    if len(bases) != len(data):
        raise SublimError(f"over_bases: {len(data)} values and {len(bases)} entries of bases; give one of each")
    if bad := next((pair for pair in bases if not 1 <= len(set(pair)) <= 2), None):
        raise SublimError(f"over_bases: a value has the bases {bad}; give one or two")
    names = sorted({name for pair in bases for name in pair})
    if len(names) < 2 or resamples < 1:
        raise SublimError(f"over_bases: {len(names)} bases, {resamples} resamples; needs two bases, one resample")
    place = {name: i for i, name in enumerate(names)}
    first = np.array([place[pair[0]] for pair in bases])
    second = np.array([place[pair[-1]] for pair in bases])
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    weights = np.where(first == second, counts[:, first], counts[:, first] * counts[:, second])
    total = weights.sum(1)
    means = (weights @ data)[total > 0] / total[total > 0]  # a draw may hold no pair at all

    from scipy import stats

    n, estimate = len(names), float(data.mean())
    error = float(means.std(ddof=1)) * math.sqrt(n / (n - 1))  # draws of n bases vary as if there were n - 1
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return Interval(estimate, estimate - half, estimate + half, level, n, "Student t, bootstrap over bases")
