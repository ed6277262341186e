"""Contrasts between arms, traits and bases, each with its interval and its test."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.checks import TIE, Column, check_level, named_cells, paired_columns, standard_error_of
from sublim_interp.stats.intervals import Bounds, Interval, mean_interval
from sublim_interp.stats.permutation import SignFlip, pairings, sign_flip_test


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
    error: float
    """Its standard error, by the jackknife."""
    p: float
    """Two-sided permutation p-value."""
    floor: float
    """The smallest p-value that so many bases and permutations can give."""


def paired_difference(a: Column, b: Column, level: float = 0.95, bounds: Bounds = None) -> Contrast:
    """Mean of a − b for two arms paired by seed, with its paired t interval and tests.

    a, b: one number a replicate, in the same order
    level: confidence
    bounds: those of `mean_interval`, (-1, 1) for rates

    Raises SublimError for empty, unequally long, non-numeric or non-finite arms, or a level outside (0, 1).
    """
    first, second = paired_columns({"a": a, "b": b}, "paired_difference")
    return _contrast(first - second, level, bounds)


def diagonal_contrast(
    same_aa: Column,
    cross_ab: Column,
    cross_ba: Column,
    same_bb: Column,
    level: float = 0.95,
    bounds: Bounds = None,
) -> Contrast:
    """The 2 × 2 test of initialisation: ((AA + BB) − (AB + BA)) / 2 for each base pair, over base pairs.

    same_aa, cross_ab, cross_ba, same_bb: the effect in one cell, one number a base pair; teacher's base first, then
        student's
    level: confidence
    bounds: those of `mean_interval`, (-1, 1) for rates

    A base that is merely hard to move, or a teacher that is merely strong, lowers or raises one cell of each sort and
    cancels. The unit is the base pair, so average over the seeds of a pair beforehand. Pairs must be disjoint: two
    pairs that share a base are not independent, and both the interval and the p-values would be too good.

    Raises SublimError for empty, unequally long, non-numeric or non-finite cells, or a level outside (0, 1).
    """
    cells = {"same_aa": same_aa, "cross_ab": cross_ab, "cross_ba": cross_ba, "same_bb": same_bb}
    aa, ab, ba, bb = paired_columns(cells, "diagonal_contrast")
    return _contrast(((aa + bb) - (ab + ba)) / 2, level, bounds)


def specificity(lift: Float[np.ndarray, "teacher_trait probe_trait replicate"], level: float = 0.95) -> Contrast:
    """Is the lift for this trait, or for traits in general? γ of lift_ijk = μ + α_i + β_j + γ·[i = j], per replicate.

    lift: [i, j, k] is the rise of probe trait j in the student of a teacher with trait i, in replicate k. Both trait
        axes have one order. NaN marks a missing cell, a row of NaN a trait that has no teacher
    level: confidence

    γ is fitted by least squares in each replicate alone: the teachers' and probes' effects are taken out of the
    diagonal indicator (Frisch-Waugh-Lovell). For two traits it is the diagonal contrast.

    Raises SublimError for an array that is not square in its traits, has fewer than two of them or an infinite cell,
    or a replicate whose cells do not identify γ.
    """
    if lift.ndim != 3 or lift.shape[0] != lift.shape[1] or lift.shape[0] < 2 or lift.shape[2] < 1:
        raise SublimError(
            f"specificity: lift has shape {lift.shape}; needs [teacher trait, probe trait, replicate] with the same "
            "two or more traits on both trait axes (NaN where a cell was not run)"
        )
    if np.isinf(lift).any():
        raise SublimError(
            f"specificity: lift is infinite at {named_cells(np.isinf(lift))}; mark missing cells with NaN"
        )
    return _contrast(np.array([_gamma(lift[:, :, k], k) for k in range(lift.shape[2])]), level)


def shared_base_contrast(
    rate: Float[np.ndarray, "teacher_base student_base"], level: float = 0.95, permutations: int = 9_999, seed: int = 0
) -> BaseContrast:
    """Does a trait pass because teacher and student share a base? Mean of the diagonal minus mean of all other cells.

    rate: [i, j] is the effect in the student of base j taught by a teacher of base i, who writes one corpus for all
    level: confidence
    permutations: how many pairings of the students' bases with the teachers' are drawn where n! are more
    seed: decides the draws

    This is γ of rate_ij = μ + α_i + β_j + γ·[i = j] by least squares: a base that is hard to move and a teacher that is
    strong cancel. The unit is the base: cells share teachers and students, so their number says nothing. The interval
    is Student's t with the jackknife's standard error, each base left out in turn with its row and column. The p-value
    is two-sided, from pairing the bases anew. What is compared is γ in such errors: γ alone would take bases that
    differ in what is their own for a γ that is not 0.

    Raises SublimError for an array that is not square, has fewer than three bases or a cell that is not finite.
    Sources: Efron & Tibshirani 1993, chapter 11 (jackknife); Mantel 1967, Cancer Research 27 (pairings); Janssen 1997,
    Stat. Probab. Lett. 36 (studentised permutation).
    """
    if rate.ndim != 2 or rate.shape[0] != rate.shape[1] or len(rate) < 3:
        raise SublimError(f"shared_base_contrast: rate has shape {rate.shape}; needs three or more bases, twice")
    if not np.isfinite(rate).all():
        raise SublimError(
            f"shared_base_contrast: no number at {named_cells(~np.isfinite(rate))}; every pair must have run"
        )
    check_level(level, "shared_base_contrast")

    from scipy import special

    n = len(rate)
    ((estimate, error),) = _gammas(rate[None])
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * error
    interval = Interval(estimate, estimate - half, estimate + half, level, n, "Student t, jackknife over bases")
    orders, exact = pairings(n, permutations, permutations, seed)
    shuffled = _in_errors(*_gammas(rearrange(rate[:, np.asarray(orders)], "teacher n student -> n teacher student")).T)
    extreme = int((shuffled >= _in_errors(estimate, error) * (1 - TIE)).sum()) + (not exact)
    count = len(shuffled) + (not exact)
    return BaseContrast(interval, float(error), extreme / count, 1 / count)


def _gammas(rates: Float[np.ndarray, "n teacher student"]) -> Float[np.ndarray, "n 2"]:
    """γ of each table and its standard error by the jackknife over bases."""
    bases = rates.shape[-1]
    own = np.diagonal(rates, axis1=-2, axis2=-1)
    trace, total = own.sum(-1), rates.sum((-2, -1))

    def gamma(trace: np.ndarray, total: np.ndarray, size: int) -> np.ndarray:
        return trace / size - (total - trace) / (size * (size - 1))

    rest = total[:, None] - rates.sum(-1) - rates.sum(-2) + own
    left = gamma(trace[:, None] - own, rest, bases - 1)
    error = np.sqrt((bases - 1) / bases * ((left - left.mean(-1, keepdims=True)) ** 2).sum(-1))
    return np.stack([gamma(trace, total, bases), error], -1)


def _in_errors(estimate: Any, error: Any) -> Any:
    """|estimate / error|; without any error infinite, unless the estimate is 0 too."""
    size, error = np.abs(estimate), np.asarray(error)
    flat = error <= TIE * size
    return np.where(flat, np.where(size > 0, np.inf, 0.0), size / np.where(flat, 1.0, error))


def _contrast(values: Float[np.ndarray, " replicate"], level: float, bounds: Bounds = None) -> Contrast:
    """The interval of the mean of `values` and both tests that it is zero."""
    from scipy import special

    interval = mean_interval(values, level, bounds)
    if len(values) == 1:
        t_p = math.nan
    elif (error := standard_error_of(values)) == 0:
        t_p = 1.0 if interval.estimate == 0 else 0.0  # the limit of t as the variance goes to zero
    else:
        t_p = float(2 * special.stdtr(len(values) - 1, -abs(interval.estimate) / error))
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
            f"missing [teacher, probe]: {named_cells(~observed)}"
        )
    return float(own @ lift[observed]) / weight
