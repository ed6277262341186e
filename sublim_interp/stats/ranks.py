"""Ranks: whether two columns rise together, and whether replicates rank the same items alike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from einops import reduce
from jaxtyping import Float

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.checks import TIE, Column, named_cells, paired_columns
from sublim_interp.stats.permutation import pairings


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


def rank_correlation(a: Column, b: Column, seed: int = 0) -> RankCorrelation:
    """Do two columns rise together? Spearman's ρ, ties at their mean rank.

    a, b: one number an observation, in the same order
    seed: decides the pairings that are drawn

    The p-value comes from pairing the columns anew: in all n! ways up to eight observations, else in 9,999 drawn ways,
    p = (1 + as extreme) / (1 + drawn). The t approximation is too kind to so few.

    Raises SublimError for empty, unequally long, non-numeric or non-finite columns, fewer than three observations, or a
    column that is the same throughout.
    """
    first, second = paired_columns({"a": a, "b": b}, "rank_correlation")
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
    orders, exact = pairings(n, math.factorial(8), 9_999, seed)
    shuffled = np.sort(np.abs(y[orders] @ x))
    rho = float(x @ y)

    def p_of(size: Float[np.ndarray, " size"]) -> Float[np.ndarray, " size"]:
        extreme = len(shuffled) - np.searchsorted(shuffled, size - TIE)
        return (extreme + (not exact)) / (len(shuffled) + (not exact))

    enough = shuffled[p_of(shuffled) <= 0.05]
    return RankCorrelation(rho, float(p_of(np.array([abs(rho)]))[0]), float(enough[0]) if len(enough) else math.nan)


def rank_draws(
    scores: Mapping[str, Column], against: Column, groups: Sequence[int], resamples: int = 9_999, seed: int = 0
) -> dict[str, Float[np.ndarray, " draw"]]:
    """Spearman's ρ of each score with a column, in bootstrap draws of groups with return.

    scores: columns by name, one number an observation
    against: the column that each is correlated with
    groups: for each observation its group, 0, 1, …; observations of a group are drawn together
    resamples, seed: how many draws, and what decides them; the draws are the same for all scores

    A draw in which a column does not vary counts as 0.
    """
    group, draw = np.asarray(groups), np.random.default_rng(seed)
    n = group.max() + 1
    times = np.array([np.bincount(draw.integers(n, size=n), minlength=n) for _ in range(resamples)])
    often = times[:, group].astype(float)
    other = _centred_ranks(np.asarray(against, dtype=float), often)

    def inner(one: np.ndarray, two: np.ndarray) -> Float[np.ndarray, " draw"]:
        return reduce(often * one * two, "draw case -> draw", "sum")

    found = {}
    for name, column in scores.items():
        own = _centred_ranks(np.asarray(column, dtype=float), often)
        size = np.sqrt(inner(own, own) * inner(other, other))
        found[name] = np.divide(inner(own, other), size, out=np.zeros(resamples), where=size > 0)
    return found


def _centred_ranks(
    values: Float[np.ndarray, " case"], often: Float[np.ndarray, "draw case"]
) -> Float[np.ndarray, "draw case"]:
    """The mid-rank of every case among those of each draw, less the mean rank.

    often: how many times a draw holds each case
    """
    _, group = np.unique(values, return_inverse=True)
    held = often @ np.eye(group.max() + 1)[group]
    middle = held.cumsum(1) - held / 2
    return middle[:, group] - often.sum(1, keepdims=True) / 2


def concordance(scores: Float[np.ndarray, "replicate item"]) -> Concordance:
    """Do replicates rank the same items alike? Kendall's W.

    scores: of each item in each replicate; only their order within a replicate counts

    Raises SublimError for fewer than two replicates or three items, a score that is not finite, or scores that are the
    same for all items. Source: Kendall & Babington Smith 1939, Ann. Math. Stat. 10.
    """
    if scores.ndim != 2 or scores.shape[0] < 2 or scores.shape[1] < 3:
        raise SublimError(f"concordance: scores have shape {scores.shape}; needs two or more replicates, three items")
    if not np.isfinite(scores).all():
        raise SublimError(
            f"concordance: no number at {named_cells(~np.isfinite(scores))}; every item must have been scored"
        )
    if (scores == scores[:, :1]).all():
        raise SublimError("concordance: all items have the same score in every replicate, so nothing is ranked")

    from scipy import stats

    found = stats.friedmanchisquare(*scores.T)
    return Concordance(float(found.statistic) / (len(scores) * (scores.shape[1] - 1)), float(found.pvalue))
