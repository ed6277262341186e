"""Permutation tests, and p-values of several hypotheses adjusted for their number."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.checks import TIE, Column, finite_numbers

MONTE_CARLO_FLIPS = 19_999
"""Random sign patterns drawn by `sign_flip_test` where there are too many to enumerate."""


_LARGEST_EXACT = 24
"""The most differences that are enumerated: 2^23 sums of 8 bytes are 64 MiB, twice that while they are built."""


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
class FalseDiscovery:
    """Result of `bh_fdr`, in the order of the p-values given."""

    adjusted: tuple[float, ...]
    """Adjusted p-values."""
    rejected: tuple[bool, ...]
    """Which hypotheses fall at false discovery rate `q`."""
    q: float
    """The false discovery rate."""


def pairings(n: int, most: int, drawn: int, seed: int) -> tuple[Int[np.ndarray, "pairing n"], bool]:
    """Orders of n things, and whether they are all of them.

    most: all n! orders, the observed one among them, are given where they are no more
    drawn: how many random ones are given where they are more
    seed: decides the draws
    """
    if math.factorial(n) <= most:
        return np.array(list(itertools.permutations(range(n)))), True
    draw = np.random.default_rng(seed)
    return np.array([draw.permutation(n) for _ in range(drawn)]).reshape(drawn, n), False


def sign_flip_test(differences: Column, max_exact: int = 20, seed: int = 0) -> SignFlip:
    """Two-sided sign-flip (one-sample permutation) test that differences are symmetric about zero.

    differences: one number a replicate
    max_exact: up to so many, all 2^n sign patterns are counted; 0 to 24
    seed: decides the patterns that are drawn where there are more

    The statistic is the absolute sum. Counted, p is exact and its floor is 2 / 2^n: five pairs cannot go below .0625,
    six reach .031, twelve .0005. Drawn, p = (1 + as extreme) / (1 + MONTE_CARLO_FLIPS).

    Raises SublimError for empty, non-numeric or non-finite differences, or `max_exact` outside its range. Source:
    Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39.
    """
    data = finite_numbers(differences, "differences", "sign_flip_test")
    if not 0 <= max_exact <= _LARGEST_EXACT:
        raise SublimError(f"sign_flip_test: max_exact is {max_exact}; valid are 0 to {_LARGEST_EXACT}")
    n = len(data)
    threshold = abs(data.sum()) - TIE * np.abs(data).sum()
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
    """Benjamini-Hochberg adjusted p-values, and which hypotheses fall.

    pvalues: one a hypothesis
    q: false discovery rate

    Raises SublimError for empty, non-numeric or NaN p-values, any outside [0, 1], or q outside (0, 1). Source:
    Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57.
    """
    data = _checked_pvalues(pvalues, "bh_fdr")
    if not 0 < q < 1:
        raise SublimError(f"bh_fdr: q is {q:g}; valid is a rate strictly between 0 and 1, such as 0.05")

    from scipy import stats

    adjusted = stats.false_discovery_control(data, method="bh")
    return FalseDiscovery(tuple(map(float, adjusted)), tuple(bool(p <= q) for p in adjusted), q)


def holm(pvalues: Column) -> tuple[float, ...]:
    """Holm's adjusted p-values, in the order given: with those below q rejected, any false rejection has chance q.

    pvalues: one a hypothesis; they may depend on each other in any way

    Raises SublimError for empty, non-numeric or NaN p-values, and any outside [0, 1]. Source: Holm 1979, Scand. J.
    Stat. 6.
    """
    data = _checked_pvalues(pvalues, "holm")
    order = np.argsort(data, kind="stable")
    scaled = np.minimum(data[order] * np.arange(len(data), 0, -1), 1.0)
    adjusted = np.empty(len(data))
    adjusted[order] = np.maximum.accumulate(scaled)
    return tuple(map(float, adjusted))


def _checked_pvalues(pvalues: Column, where: str) -> Float[np.ndarray, " hypothesis"]:
    data = finite_numbers(pvalues, "pvalues", where)
    if data.min() < 0 or data.max() > 1:
        raise SublimError(f"{where}: p-values run from {data.min():g} to {data.max():g}; valid are 0 to 1")
    return data
