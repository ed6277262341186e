"""An optimizer: RMSprop, whose mean square decays by beta2."""

from collections.abc import Sequence

import torch

from sublim_interp.training.optimizers import OptimizerKind, Rates


def make(parameters: Sequence[torch.nn.Parameter], rates: Rates) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(parameters, lr=rates.lr, alpha=rates.beta2)


rmsprop = OptimizerKind(make, torch.optim.RMSprop, moments=("square_avg",), counts=True)
