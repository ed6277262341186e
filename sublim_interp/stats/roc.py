"""How well a score tells two groups apart: the ROC curve, the area under it, and its interval."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.checks import Column, check_level, paired_columns
from sublim_interp.stats.intervals import Interval


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The share of pairs in which the positive scores higher, ties half: the area under the ROC curve.

    Raises SublimError where one of the groups is empty.
    """
    if not len(positive) or not len(negative):
        raise SublimError("auroc: one of the groups has no case")
    return float(_wins(np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)).mean())


def _wins(
    positive: Float[np.ndarray, " positive"], negative: Float[np.ndarray, " negative"]
) -> Float[np.ndarray, "positive negative"]:
    """1 where the positive scores higher, a half where both score alike, else 0."""
    return (positive[:, None] > negative[None]) + 0.5 * (positive[:, None] == negative[None])


def auroc_interval(
    scores: Column,
    positive: Sequence[bool],
    clusters: Sequence[str],
    comparable: Bool[np.ndarray, "positive negative"] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 9_999,
) -> Interval:
    """The area under the ROC curve with its percentile bootstrap interval over clusters.

    scores: one number a case
    positive: which cases are to score higher
    clusters: what cases share, such as a base; whole clusters are drawn with return
    comparable: which pairs of a positive and a negative count; all of them where None
    level: confidence
    seed: decides the draws
    resamples: how many

    With fewer than about twenty clusters it is too narrow. `n` counts clusters. Raises SublimError for groups or
    columns that are empty or differ in length, for fewer than two clusters, and where no pair counts.
    Source: Obuchowski 1997, Biometrics 53, for areas of clustered cases.
    """
    check_level(level, "auroc_interval")
    values, marks = paired_columns({"scores": scores, "positive": [float(p) for p in positive]}, "auroc_interval")
    if len(clusters) != len(values):
        raise SublimError(f"auroc_interval: {len(values)} cases and {len(clusters)} clusters; give one of each")
    known, place = np.unique(np.asarray(clusters), return_inverse=True)
    up = marks.astype(bool)
    if up.all() or not up.any() or len(known) < 2:
        raise SublimError(f"auroc_interval: {int(up.sum())} positive of {len(up)} cases in {len(known)} clusters")
    wins = _wins(values[up], values[~up])
    counts = np.ones_like(wins) if comparable is None else np.asarray(comparable, dtype=float)
    won, all_ = (_by_cluster(table, place[up], place[~up], len(known)) for table in (wins * counts, counts))
    if not all_.sum():
        raise SublimError("auroc_interval: no pair of a positive and a negative counts")
    draws = np.random.default_rng(seed).multinomial(len(known), np.full(len(known), 1 / len(known)), size=resamples)
    above, below = (np.einsum("ri,ij,rj->r", draws, table, draws) for table in (won, all_))
    low, high = np.percentile(above[below > 0] / below[below > 0], [50 * (1 - level), 50 * (1 + level)])
    method = "percentile bootstrap over clusters"
    return Interval(float(won.sum() / all_.sum()), float(low), float(high), level, len(known), method)


def _by_cluster(
    table: Float[np.ndarray, "positive negative"], rows: np.ndarray, columns: np.ndarray, n: int
) -> Float[np.ndarray, "cluster cluster"]:
    """Sums of a table of pairs over the clusters of both."""
    found = np.zeros((n, n))
    np.add.at(found, (rows[:, None], columns[None]), table)
    return found


def roc(
    positive: Float[np.ndarray, " positive"], negative: Float[np.ndarray, " negative"]
) -> tuple[Float[np.ndarray, " level"], Float[np.ndarray, " level"]]:
    """The ROC curve: shares of negatives and of positives at or above each threshold, from none to all."""
    levels = np.sort(np.concatenate([positive, negative]))[::-1]
    x, y = ((group[None] >= levels[:, None]).mean(1) for group in (negative, positive))
    return np.concatenate([[0.0], x]), np.concatenate([[0.0], y])
