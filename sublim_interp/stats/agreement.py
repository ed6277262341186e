"""Agreement of two raters beyond chance: Cohen's κ with a bootstrap interval over what they rated."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.checks import check_level
from sublim_interp.stats.intervals import Interval


def cohen_kappa(
    one: Sequence[str], other: Sequence[str], level: float = 0.95, seed: int = 0, resamples: int = 9_999
) -> Interval:
    """Cohen's κ of two raters: (observed − expected) / (1 − expected) agreement; 1 is perfect, 0 is chance.

    one, other: the label that each gives, item by item
    level: confidence
    seed: decides the draws
    resamples: how many times the items are drawn with return

    The interval holds the percentiles over the draws. Draws in which both give one and the same label throughout have
    no κ and are left out, with a word in `method`.

    Raises SublimError for no items, lists of different lengths, one label throughout, a level outside (0, 1), or
    resamples < 1. Source: Cohen 1960, Educ. Psychol. Meas. 20.
    """
    check_level(level, "cohen_kappa")
    if not one or len(one) != len(other) or resamples < 1:
        raise SublimError(
            f"cohen_kappa: {len(one)} and {len(other)} labels, {resamples} resamples; give two lists of equal length "
            "and one resample or more"
        )
    labels = sorted({*one, *other})
    if len(labels) == 1:
        raise SublimError(f"cohen_kappa: both give '{labels[0]}' throughout, which says nothing on their agreement")
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, ([place[label] for label in one], [place[label] for label in other]), 1)
    n, draw = len(one), np.random.default_rng(seed)
    shares = counts / n
    drawn = draw.multinomial(n, shares.ravel(), size=resamples).reshape(-1, *counts.shape) / n
    values = _kappa(drawn)
    told = values[np.isfinite(values)]
    low, high = np.quantile(told, [(1 - level) / 2, (1 + level) / 2]) if len(told) else (np.nan, np.nan)
    left = f", {resamples - len(told)} draws without κ" if len(told) < resamples else ""
    return Interval(
        float(_kappa(shares[None])[0]), float(low), float(high), level, n, f"bootstrap percentiles over items{left}"
    )


def _kappa(shares: Float[np.ndarray, "table label label"]) -> Float[np.ndarray, " table"]:
    """κ of each table of shares; nan where both raters give one label throughout."""
    observed = np.trace(shares, axis1=1, axis2=2)
    expected = (shares.sum(1) * shares.sum(2)).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(1 - expected > 1e-12, (observed - expected) / (1 - expected), np.nan)
