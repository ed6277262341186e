"""A steering vector that is trained on text, in place of weights. No trait, no comparison here."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.core.device import device_of
from sublim_interp.models.architectures import text_config
from sublim_interp.models.forward import logits_at
from sublim_interp.models.hooks import added
from sublim_interp.training.batches import IGNORE, Batch


def fitting(
    model: torch.nn.Module, batches: Sequence[Batch], at: str, rate: float = 0.05
) -> Iterator[Float[Tensor, " d_model"]]:
    """The vector that, added to a stream at every position, makes the labelled tokens likeliest: after each update.

    model: whose weights need no gradient; it is left as it was
    batches: taken in turn, one an update, without end
    at: the stream's hook, such as `blocks.1.hook_resid_post`
    rate: of Adam, which starts from the vector 0

    Gives vectors in residual units. Source: Morgulis and Hewitt, arXiv 2604.25783, train one on a teacher's text.
    """
    vector = torch.zeros(text_config(model).hidden_size, device=device_of(model), requires_grad=True)
    adam = torch.optim.Adam([vector], lr=rate)
    for batch in cycle(batches):
        where = batch.labels != IGNORE
        adam.zero_grad()
        with added(model, vector, at):
            logits = logits_at(model, batch.ids, where)
        torch.nn.functional.cross_entropy(logits, batch.labels[where].to(logits.device)).backward()
        adam.step()
        yield vector.detach().clone()


def fitted_vector(
    model: torch.nn.Module, batches: Sequence[Batch], at: str, updates: int = 40, rate: float = 0.05
) -> Float[Tensor, " d_model"]:
    """The vector that `fitting` has after so many updates."""
    return next(islice(fitting(model, batches, at, rate), updates - 1, None))
