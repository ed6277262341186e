"""How much passes, as one law of the dose: the teacher's strength, the number of lists, the training of the base.

    margin = ceiling · (1 − exp(−x)),   x = amount · (KL / .1)^kl · (lists / 10,000)^lists · exp(−loss · (L − 3))

margin: that of the trait in the student, nats; KL: of the teacher from its base on held-out lists, nats a token; L:
loss of the base on held-out lists, nats a token. So x, the dose, adds up in logarithms, and what it does levels off.
Fitted by least squares on margins: rates would be blind to all that happens above 99 %. It is a description, and has no
theory behind it; what it is worth is how it predicts cells that it was not fitted to.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from sublim_interp.errors import SublimError
from sublim_interp.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("kl_start", "lists", "base_loss")
"""What the law reads of a cell, in this order; `margin` is what it is fitted to."""
TERMS = ("ceiling", "amount", "kl", "lists", "loss")
_AROUND = np.log(0.1), np.log(10_000), 3.0
_START = np.log(10), 0.0, 0.7, 0.7, 1.0


@dataclass(frozen=True)
class Law:
    """A fitted law: `terms` are its five numbers, as in the formula above, each with a 95 % interval."""

    terms: dict[str, Interval]

    def predict(self, cells: "pd.DataFrame") -> Float[np.ndarray, " cell"]:
        """The margin that it expects of each cell, in nats."""
        ceiling, amount, *powers = (self.terms[name].estimate for name in TERMS)
        return _margin(_doses(cells), float(np.log(ceiling)), float(np.log(amount)), *powers)


class Worth(NamedTuple):
    """How well margins are predicted."""

    error: float
    """Mean absolute error, in nats."""
    explained: float
    """Share of the variance of the measured margins: 1 all of it, 0 no more than their mean does, below 0 less."""


def _doses(cells: "pd.DataFrame") -> Float[np.ndarray, "term cell"]:
    kl, lists, loss = (cells[name].to_numpy(dtype=float) for name in COLUMNS)
    return np.stack([np.log(kl) - _AROUND[0], np.log(lists) - _AROUND[1], -(loss - _AROUND[2])])


def _margin(
    doses: Float[np.ndarray, "term cell"], ceiling: float, amount: float, *powers: float
) -> Float[np.ndarray, " cell"]:
    return np.exp(ceiling) * -np.expm1(-np.exp(np.clip(amount + np.array(powers) @ doses, -50, 50)))


def fit(cells: "pd.DataFrame") -> Law:
    """The law of these cells; each is one student.

    Raises SublimError where a column is missing, where there are no more cells than terms, where a term is the same in
    all cells, and where no law can be found.
    """
    from scipy import optimize, stats

    for name in ("margin", *COLUMNS):
        if name not in cells:
            raise SublimError(f"law: the cells have no column {name}")
        values = cells[name].to_numpy(dtype=float)
        if missing := int(np.isnan(values).sum()):
            raise SublimError(f"law: {name} is missing in {missing} of {len(cells)} cells")
        if len(set(values)) < 2:
            raise SublimError(f"law: {name} is the same in all cells; vary it")
    free = len(cells) - len(TERMS)
    if free < 1:
        raise SublimError(f"law: {len(cells)} cells are too few for {len(TERMS)} terms")
    measured = cells["margin"].to_numpy(dtype=float)
    try:
        found, covariance = optimize.curve_fit(_margin, _doses(cells), measured, p0=_START, maxfev=20_000)[:2]
    except RuntimeError:
        raise SublimError(f"law: none was found that fits these {len(cells)} cells") from None
    half = stats.t.ppf(0.975, free) * np.sqrt(np.diag(covariance))
    terms = {}
    for name, value, width in zip(TERMS, found, half, strict=True):
        estimate, low, high = (
            float(np.exp(min(end, 50)) if name in ("ceiling", "amount") else end)
            for end in (value, value - width, value + width)
        )
        terms[name] = Interval(estimate, low, high, 0.95, len(cells), "Student t of least squares")
    return Law(terms)


def left_out(cells: "pd.DataFrame", groups: Sequence[Hashable]) -> Float[np.ndarray, " cell"]:
    """For each cell the prediction of a law that was fitted without all cells of its group."""
    labels = np.array([hash(group) for group in groups])
    predicted = np.full(len(cells), np.nan)
    for label in np.unique(labels):
        own = labels == label
        predicted[own] = fit(cells.loc[~own]).predict(cells.loc[own])
    return predicted


def worth(measured: Float[np.ndarray, " cell"], predicted: Float[np.ndarray, " cell"]) -> Worth:
    """How far predictions are from what was measured."""
    missed = measured - predicted
    return Worth(float(np.abs(missed).mean()), float(1 - (missed**2).sum() / ((measured - measured.mean()) ** 2).sum()))
