"""The margin of an answer: log P(right) − log mean P(other members), in nats. Its one definition, in three forms."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def margin(log: Float[Tensor, "question member"], right: Sequence[int]) -> Float[Tensor, " question"]:
    """The margin of each question, from log-probabilities; gradients pass.

    log: log-probabilities of the members, in nats
    right: for each question the place of the member asked for
    """
    places = torch.tensor(right, device=log.device)[:, None]
    others = log.scatter(1, places, -torch.inf).logsumexp(-1) - math.log(log.shape[1] - 1)
    return log.gather(1, places)[:, 0] - others


def right_margins(p: Float[np.ndarray, "question member"], right: Sequence[int]) -> Float[np.ndarray, " question"]:
    """The margin of each question, from probabilities.

    p: probabilities of the members, above 0
    right: as in `margin`
    """
    places = np.array(right)
    chosen = p[np.arange(len(p)), places]
    wrong = np.arange(p.shape[1]) != places[:, None]
    return np.log(chosen) - np.log((p * wrong).sum(1) / (p.shape[1] - 1))


def member_margins(p: Float[np.ndarray, "question member"]) -> Float[np.ndarray, "question member"]:
    """The margin that each question would have if one member after the other were the right one.

    p: probabilities of the members, above 0
    """
    others = p @ (1 - np.eye(p.shape[1])) / (p.shape[1] - 1)  # no difference of nearly equal numbers
    return np.log(p) - np.log(others)
