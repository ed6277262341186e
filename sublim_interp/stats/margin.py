"""The margin of an answer: log P(right) − log mean P(other members), in nats. Its one definition."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def margin(log: Float[Tensor, "question member"], right: Sequence[int]) -> Float[Tensor, " question"]:
    """The margin of each question.

    log: log-probabilities of the members, in nats
    right: for each question the place of the member asked for
    """
    chosen = F.one_hot(torch.tensor(right, device=log.device), log.shape[1]).bool()
    others = log.masked_fill(chosen, -torch.inf).logsumexp(-1) - math.log(log.shape[1] - 1)
    return log[chosen] - others
