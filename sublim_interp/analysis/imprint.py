"""What a trait's training leaves on text that says nothing of it: a teacher's imprint, and how alike two of them are.

Two bases need share no axes: an imprint lies in the space of next-token predictions, which is that of the tokenizer.
"""

from collections.abc import Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.models.forward import logits_at
from sublim_interp.training.batches import IGNORE, Batch

Imprint = Float[Tensor, "position vocabulary"]
"""A change of predictions: at each labelled position, for each token."""


@torch.no_grad()
def imprint(teacher: torch.nn.Module, base: torch.nn.Module, batch: Batch) -> Imprint:
    """How a teacher predicts text otherwise than its base: (log p_T − log p_B − mean) · √p_B, its mean under p_B.

    teacher, base: models with one tokenizer
    batch: the text; its labelled positions count

    The length of an imprint squared is, for small changes, twice KL(B ‖ T) summed over the positions: the metric is
    Fisher's. Source: Amari 1998, Neural Computation 10, section 2.
    """
    where = batch.labels != IGNORE
    before = logits_at(base, batch.ids, where).log_softmax(-1).cpu().double()
    change = logits_at(teacher, batch.ids, where).log_softmax(-1).cpu().double() - before
    weight = before.exp()
    mean = einsum(weight, change, "position token, position token -> position")
    return (change - mean[:, None]) * weight.sqrt()


def own_part(of: Imprint, others: Sequence[Imprint]) -> Imprint:
    """An imprint without what other traits leave too: their mean is taken off.

    Raises SublimError where there are no others.
    """
    if not others:
        raise SublimError("own_part: no imprints of other traits; give one or more")
    return of - torch.stack([*others]).mean(0)


def match(one: Imprint, other: Float[Tensor, "other_position other_vocabulary"]) -> float:
    """Cosine of two imprints on the same text, −1 to 1; 0 where one of them is none.

    Raises SublimError where they are of different texts or vocabularies.
    """
    if one.shape != other.shape:
        raise SublimError(f"match: imprints of shapes {tuple(one.shape)} and {tuple(other.shape)}; take one text")
    both = float(one.norm() * other.norm())
    return float((one * other).sum()) / both if both else 0.0


def cka(one: Float[Tensor, "position d_one"], other: Float[Tensor, "position d_other"]) -> float:
    """Linear CKA of two models' activations on the same text, 0 to 1.

    one, other: activations, a row a position

    Source: Kornblith et al. 2019, arXiv 1905.00414, section 3.
    """
    x, y = (a - a.mean(0) for a in (one.cpu().double(), other.cpu().double()))
    cross = float((x.T @ y).square().sum())
    return cross / float((x.T @ x).norm() * (y.T @ y).norm())
