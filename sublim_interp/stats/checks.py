"""Checks: what all statistics ask of their input, and what rounding may not break."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Float

from sublim_interp.core.errors import SublimError

Column = Collection[Any]
"""One entry per replicate or observation, in order: a list, tuple, numpy array or pandas Series."""


TIE = 1e-12
"""Relative difference within which two numbers count as equal: rounding makes about 1e-15 of what is none on paper."""


def named_cells(mask: np.ndarray, shown: int = 8) -> str:
    """The positions where `mask` is true, the first few of them, for an error message."""
    positions = [str(position) for position in np.argwhere(mask).tolist()]
    return ", ".join(positions[:shown]) + (f" and {len(positions) - shown} more" if len(positions) > shown else "")


def finite_numbers(values: Column, name: str, where: str) -> Float[np.ndarray, " n"]:
    """`values` as one-dimensional finite float64, or a SublimError that says why not."""
    try:
        data = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise SublimError(f"{where}: {name} is not a list of numbers; give one number per entry") from None
    if data.ndim != 1:
        raise SublimError(f"{where}: {name} has {data.ndim} dimensions; give a flat list of numbers")
    if len(data) == 0:
        raise SublimError(f"{where}: {name} is empty; give one number or more")
    bad = np.flatnonzero(~np.isfinite(data))
    if len(bad):
        raise SublimError(f"{where}: {name}[{bad[0]}] is {data[bad[0]]}; every entry must be a finite number")
    return data


def paired_columns(arms: dict[str, Column], where: str) -> list[Float[np.ndarray, " replicate"]]:
    """Each arm checked by `finite_numbers`, and all equally long."""
    arrays = {name: finite_numbers(values, name, where) for name, values in arms.items()}
    if len({len(data) for data in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(data)}" for name, data in arrays.items())
        raise SublimError(f"{where}: lengths differ ({lengths}); give the same replicates in the same order")
    return list(arrays.values())


def check_level(level: float, where: str) -> None:
    """Raises SublimError where a confidence level is not strictly between 0 and 1."""
    if not 0 < level < 1:
        raise SublimError(f"{where}: level is {level:g}; valid is a confidence strictly between 0 and 1, such as 0.95")


def mean_of(data: Float[np.ndarray, " n"]) -> float:
    """The mean, within the extremes: rounding may carry it just past them, and so past the bounds of a rate."""
    return float(np.clip(data.mean(), data.min(), data.max()))


def standard_error_of(data: Float[np.ndarray, " n"]) -> float:
    """The standard error of the mean; 0 for equal values, to which rounding gives a deviation of about 1e-17."""
    return 0.0 if data.min() == data.max() else float(data.std(ddof=1)) / math.sqrt(len(data))
