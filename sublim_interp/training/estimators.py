"""Estimators of influence by name, for settings that name one. What they compute is in analysis, imported when used."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry

Estimator = Callable[[torch.nn.Module, Sequence[Any], Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Given a model, lists (as `batches.Example`), and the gradient of a metric by parameter's name: the direction in the
weights along which each token of the lists is scored. The gradient itself is the first order."""


def _check(name: str, thing: object) -> None:
    if not callable(thing):
        raise SublimError(f"estimator '{name}' is a {type(thing).__name__}; give a function, as {__name__}.Estimator")


_HOME = "sublim_interp.analysis.attribution.estimators"

ESTIMATORS: Registry[Estimator] = Registry(
    "estimator",
    "sublim_interp.estimators",
    {"gradient": f"{_HOME}:gradient", "fisher": f"{_HOME}:fisher", "trak": f"{_HOME}:trak"},
    _check,
)
"""Every estimator by name; the first is the default."""
