"""Two bases of one shape, compared by weights and by loss. This loads models and runs them: seconds a pair."""

import math

from sublim_interp.models.base import Base
from sublim_interp.models.trainable import body_parameters


def distance(one: Base, other: Base) -> float:
    """How far the body's weights of `other` lie from those of `one`: ‖θ_other − θ_one‖ / ‖θ_one‖."""
    first, second = (body_parameters(base.load()) for base in (one, other))
    pairs = [(p.detach().cpu().double(), second[name].detach().cpu().double()) for name, p in first.items()]
    apart = sum(float(((b - a) ** 2).sum()) for a, b in pairs)
    return math.sqrt(apart / sum(float((a**2).sum()) for a, _ in pairs))


def hill(one: Base, other: Base) -> float:
    """The hill on the straight line between the weights of two bases, all weights included.

    Returns how far the held-out loss on numbers rises above that of the worse of both, at the line's quarters; nats a
    token. It is 0 where the loss does not rise.

    The error barrier of Frankle et al. 2020 (arXiv 1912.05671, section 2) is measured from the mean of both ends. That
    is the same for ends of equal loss, while a line that only falls is no hill here.
    """
    import torch

    from sublim_interp.lab.pretraining import held_out_loss

    models = [one.load(), one.load(), other.load()]
    told = [base.card.get("held_out_loss", {}).get("numbers") for base in (one, other)]
    worse = max(  # the card of a variant tells no loss
        held_out_loss(model, one.tokenizer, "numbers") if loss is None else loss
        for loss, model in zip(told, models[1:], strict=True)
    )
    rises = [0.0]
    for share in (0.25, 0.5, 0.75):
        with torch.no_grad():
            for between, first, second in zip(*(model.parameters() for model in models), strict=True):
                between.copy_(torch.lerp(first, second, share))
        rises.append(held_out_loss(models[0], one.tokenizer, "numbers") - worse)
    return max(rises)
