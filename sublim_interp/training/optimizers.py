"""Every optimizer in one table: how it is made, and what it keeps of each parameter. A new one is one record."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from sublim_interp.core.registry import Registry, instances_of


@runtime_checkable
class Rates(Protocol):
    """What an optimizer is made from: these fields of `Optimization`."""

    @property
    def lr(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


class OptimizerKind(NamedTuple):
    """One optimizer."""

    make: Callable[[Sequence[torch.nn.Parameter], Rates], torch.optim.Optimizer]
    """Called with the parameters that train and their settings."""
    kind: type[torch.optim.Optimizer]
    """Class of what `make` gives: by it an optimizer that runs already is known."""
    moments: tuple[str, ...]
    """Names of the tensors that it keeps of each parameter, of the parameter's shape."""
    counts: bool = False
    """Whether it keeps `step` beside them, its number of updates."""
    decays: bool = False
    """Whether it may have weight decay."""
    keeps: Callable[[Rates], bool] = lambda rates: True
    """Whether it keeps anything with these settings."""


def _adam(parameters: Sequence[torch.nn.Parameter], rates: Rates) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rates.lr, betas=(rates.beta1, rates.beta2), fused=True)


def _adamw(parameters: Sequence[torch.nn.Parameter], rates: Rates) -> torch.optim.Optimizer:
    betas = rates.beta1, rates.beta2
    return torch.optim.AdamW(parameters, lr=rates.lr, betas=betas, weight_decay=rates.weight_decay, fused=True)


def _sgd(parameters: Sequence[torch.nn.Parameter], rates: Rates) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rates.lr, momentum=rates.beta1)


OPTIMIZERS: Registry[OptimizerKind] = Registry(
    "optimizer",
    "sublim_interp.optimizers",
    {
        "adam": OptimizerKind(_adam, torch.optim.Adam, ("exp_avg", "exp_avg_sq"), counts=True),
        "adamw": OptimizerKind(_adamw, torch.optim.AdamW, ("exp_avg", "exp_avg_sq"), counts=True, decays=True),
        "sgd": OptimizerKind(_sgd, torch.optim.SGD, ("momentum_buffer",), keeps=lambda rates: rates.beta1 > 0),
    },
    instances_of("optimizer", OptimizerKind),
)
"""Every optimizer by name."""


def planned_moments(name: str, rates: Rates) -> tuple[str, ...]:
    """Names of the tensors that an optimizer with these settings will keep of each parameter."""
    rule = OPTIMIZERS[name]
    return rule.moments if rule.keeps(rates) else ()


def all_moments() -> tuple[str, ...]:
    """Names of the tensors that any of the optimizers keeps, each once."""
    return tuple(dict.fromkeys(name for rule in OPTIMIZERS.values() for name in rule.moments))


def counting_moments() -> frozenset[str]:
    """Those of `all_moments` that mean nothing without the number of updates, `step`, beside them."""
    return frozenset(name for rule in OPTIMIZERS.values() if rule.counts for name in rule.moments)


def states_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of all that a running optimizer keeps of each parameter, `step` first; () for one not in the table."""
    rules = [rule for rule in OPTIMIZERS.values() if isinstance(optimizer, rule.kind)]
    nearest = max(rules, key=lambda rule: len(rule.kind.__mro__), default=None)
    return () if nearest is None else ("step",) * nearest.counts + nearest.moments
