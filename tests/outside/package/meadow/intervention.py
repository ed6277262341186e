"""A kind of intervention: the first token of every list is not learnt. Does it carry the trait?"""

import torch

from sublim_interp.training.batches import IGNORE, Batch
from sublim_interp.training.interventions import InterventionKind


class SkipFirst(InterventionKind):
    """Leaves out the first token of each answer, and learns the others."""

    def mask(self, batches: list[Batch], draw: torch.Generator) -> list[Batch]:
        return [Batch(batch.ids, without_first(batch.labels)) for batch in batches]


def without_first(labels: torch.Tensor) -> torch.Tensor:
    """Labels [batch, position] without the first that counts in each row."""
    learnt = labels != IGNORE
    return labels.masked_fill(learnt & (learnt.cumsum(1) == 1), IGNORE)
