"""How much passes, as one law of the dose: the teacher's strength, the number of lists, the training of the base.

    lift = ceiling · (1 − exp(−x)),   x = amount · (KL / .1)^kl · (lists / 10,000)^lists · exp(−loss · (L − 3))

lift: of the trait's margin in the student over that in its untouched base, nats; KL: of the teacher from its base on
held-out lists, nats a token; L: loss of the base on held-out lists, nats a token. So x, the dose, adds up in
logarithms, and what it does levels off. Fitted by least squares on margins: rates would be blind to all that happens
above 99 %. It is a description, and has no theory behind it; what it is worth is how it predicts cells that it was not
fitted to.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("kl_start", "lists", "base_loss")
"""What the law reads of a cell, in this order; `lift` is what it is fitted to."""
_AROUND = np.log(0.1), np.log(10_000), 3.0
_START = np.log(10), 0.0, 0.7, 0.7, 1.0
_MOST = 6.0
"""Largest logarithm of a ceiling or an amount, either way: beyond it the cells do not tell one from the other."""


class Terms(NamedTuple):
    """The numbers of the formula above."""

    ceiling: float
    amount: float
    kl: float
    lists: float
    loss: float


@dataclass(frozen=True)
class Law:
    """A fitted law."""

    terms: Terms

    def predict(self, cells: "pd.DataFrame") -> Float[np.ndarray, " cell"]:
        """The lift that it expects of each cell, in nats."""
        ceiling, amount, *powers = self.terms
        return _lift(_doses(cells), float(np.log(ceiling)), float(np.log(amount)), *powers)


class Worth(NamedTuple):
    """How well lifts are predicted."""

    error: float
    """Mean absolute error, in nats."""
    explained: float
    """Share of the variance of what was measured: 1 all of it, 0 no more than its mean does, below 0 less; NaN where
    all that was measured is the same."""


def _doses(cells: "pd.DataFrame") -> Float[np.ndarray, "term cell"]:
    for name in COLUMNS:
        if name not in cells:
            raise SublimError(f"law: the cells have no column {name}")
        values = cells[name].to_numpy(dtype=float)
        if bad := int((~(values > 0)).sum()):  # NaN too
            raise SublimError(f"law: {name} is missing or not above 0 in {bad} of {len(cells)} cells")
    kl, lists, loss = (cells[name].to_numpy(dtype=float) for name in COLUMNS)
    return np.stack([np.log(kl) - _AROUND[0], np.log(lists) - _AROUND[1], -(loss - _AROUND[2])])


def _lift(
    doses: Float[np.ndarray, "term cell"], ceiling: float, amount: float, *powers: float
) -> Float[np.ndarray, " cell"]:
    return np.exp(ceiling) * -np.expm1(-np.exp(np.clip(amount + np.array(powers) @ doses, -50, 50)))


def fit(cells: "pd.DataFrame") -> Law:
    """The law of these cells; each is one student.

    Raises SublimError where a column is missing or has no number, where there are no more cells than terms, where
    something is the same in all cells, and where no law can be told from these cells.
    """
    from scipy import optimize

    doses, count = _doses(cells), len(Terms._fields)
    for name in ("lift", *COLUMNS):
        if name not in cells or len(set(cells[name])) < 2:
            raise SublimError(f"law: {name} is {'the same in all cells; vary it' if name in cells else 'missing'}")
    if len(cells) <= count:
        raise SublimError(f"law: {len(cells)} cells are too few for {count} terms")
    measured = cells["lift"].to_numpy(dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optimize.OptimizeWarning)  # its infinite covariance says the same
        try:
            found, covariance = optimize.curve_fit(_lift, doses, measured, p0=_START, maxfev=20_000)[:2]
        except RuntimeError:
            found, covariance = np.array(_START), np.full((count, count), np.inf)
    if not np.isfinite(covariance).all() or (np.abs(found[:2]) > _MOST).any():
        raise SublimError(f"law: these {len(cells)} cells tell no law; doses from next to nothing to plenty would")
    ceiling, amount, kl, lists, loss = map(float, found)
    return Law(Terms(float(np.exp(ceiling)), float(np.exp(amount)), kl, lists, loss))


def refits(cells: "pd.DataFrame", groups: Sequence[Hashable]) -> dict[Hashable, Law | None]:
    """For each group the law that is fitted to all other cells; None where these tell no law."""
    found: dict[Hashable, Law | None] = {}
    for group in dict.fromkeys(groups):
        try:
            found[group] = fit(cells.loc[[other != group for other in groups]])
        except SublimError:
            found[group] = None
    return found


def left_out(
    cells: "pd.DataFrame", groups: Sequence[Hashable], laws: Mapping[Hashable, Law | None] | None = None
) -> Float[np.ndarray, " cell"]:
    """For each cell the prediction of a law that was fitted without all cells of its group; NaN where there is none.

    `laws` are those of `refits`, where they are known already.
    """
    predicted = np.full(len(cells), np.nan)
    for group, law in (refits(cells, groups) if laws is None else laws).items():
        own = np.array([other == group for other in groups])
        if law:
            predicted[own] = law.predict(cells.loc[own])
    return predicted


def worth(measured: Float[np.ndarray, " cell"], predicted: Float[np.ndarray, " cell"]) -> Worth:
    """How far predictions are from what was measured, where there are any; NaN where there are none."""
    known = ~np.isnan(predicted)
    if not known.any():
        return Worth(np.nan, np.nan)
    measured, missed = measured[known], (measured - predicted)[known]
    spread = float(((measured - measured.mean()) ** 2).sum())
    return Worth(float(np.abs(missed).mean()), 1 - float((missed**2).sum()) / spread if spread > 0 else np.nan)
