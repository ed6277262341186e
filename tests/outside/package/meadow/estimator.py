"""An estimator: first order, in matrices alone."""

from collections.abc import Mapping, Sequence

import torch

from sublim_interp.training.batches import Example


def matrices(
    model: torch.nn.Module, rows: Sequence[Example], slope: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """The metric's gradient, by parameter, without what scales and shifts."""
    return {name: value for name, value in slope.items() if value.dim() == 2}
