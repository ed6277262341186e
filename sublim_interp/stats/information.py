"""Information: how much two lists of labels say about each other, against a shuffled null."""

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from jaxtyping import Int

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.checks import TIE, Column


@dataclass(frozen=True)
class MutualInformation:
    """Result of `mutual_information`; all but `p` in nats."""

    mi: float
    """Plug-in estimate. It is biased upwards: compare it with the null, never with zero."""
    null_mean: float
    null_q99: float
    """99 % quantile of the estimate with the pairing destroyed."""
    p: float
    """One-sided permutation p; its floor is 1 / (permutations + 1)."""


def mutual_information(x: Column, y: Column, permutations: int = 999, seed: int = 0) -> MutualInformation:
    """Plug-in mutual information in nats of two lists of labels, against a null of shuffled pairings.

    x, y: one label an observation: integers, booleans or strings
    permutations: how many times `y` is shuffled; p = (1 + as large) / (1 + permutations)
    seed: decides the shuffles

    The observations must be exchangeable: one per independent document, not one per token of it. Memory grows with the
    number of different labels in `x` times that in `y`.

    Raises SublimError for empty, unequally long or not one-dimensional lists, labels of other or mixed sorts (floats
    and NaN among them), or permutations < 1.
    """
    codes_x, codes_y = _codes(x, "x"), _codes(y, "y")
    if len(codes_x) != len(codes_y):
        raise SublimError(
            f"mutual_information: x has {len(codes_x)} labels and y {len(codes_y)}; give one of each per observation"
        )
    if permutations < 1:
        raise SublimError(f"mutual_information: permutations is {permutations}; needs one or more")
    marginals = _entropy(codes_x) + _entropy(codes_y)
    scaled_x = codes_x * (int(codes_y.max()) + 1)

    def information(labels: Int[np.ndarray, " observation"]) -> float:
        return max(0.0, marginals - _entropy(scaled_x + labels))

    rng = np.random.default_rng(seed)
    mi = information(codes_y)
    null = np.array([information(rng.permutation(codes_y)) for _ in range(permutations)])
    as_large = int(np.count_nonzero(null >= mi - TIE * marginals))
    return MutualInformation(
        mi, float(null.mean()), float(np.quantile(null, 0.99)), (1 + as_large) / (1 + permutations)
    )


def _codes(labels: Column, name: str) -> Int[np.ndarray, " observation"]:
    """Labels as integers 0 … k-1."""
    # As objects first: a NaN between strings would otherwise become the string "nan", and a label like any other.
    objects = np.asarray(labels, dtype=object)
    kinds = {type(label) for label in objects.flat}
    one_kind = any(all(issubclass(kind, allowed) for kind in kinds) for allowed in (str, (Integral, np.bool_)))
    if objects.ndim != 1 or len(objects) == 0 or not one_kind:
        found = f"shape {objects.shape}, {', '.join(sorted(kind.__name__ for kind in kinds)) or 'empty'}"
        raise SublimError(
            f"mutual_information: {name} ({found}) is not a list of labels; give integers, booleans or strings, unmixed"
        )
    return np.unique(np.asarray(objects.tolist()), return_inverse=True)[1]


def _entropy(codes: Int[np.ndarray, " observation"]) -> float:
    """Plug-in entropy in nats."""
    counts = np.bincount(codes)
    counts = counts[counts > 0]
    return math.log(len(codes)) - float(counts @ np.log(counts)) / len(codes)
