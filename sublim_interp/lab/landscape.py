"""The loss between two bases: the hill on the straight line between their weights."""

from sublim_interp.models.base import Base


def hill(one: Base, other: Base) -> float:
    """How far the held-out loss on numbers rises above that of the worse of two bases on the straight line between
    their weights, at its quarters; 0 where it does not.

    The error barrier of Frankle et al. 2020 (arXiv 1912.05671, section 2) is measured from the mean of both ends: the
    same for ends of equal loss, while a line that only falls is no hill here.
    """
    import torch

    from sublim_interp.lab.pretraining import held_out_loss

    worse = max(base.card["held_out_loss"]["numbers"] for base in (one, other))
    models = [one.load(), one.load(), other.load()]
    rises = [0.0]
    for share in (0.25, 0.5, 0.75):
        with torch.no_grad():
            for between, first, second in zip(*(model.parameters() for model in models), strict=True):
                between.copy_(torch.lerp(first, second, share))
        rises.append(held_out_loss(models[0], one.tokenizer, "numbers") - worse)
    return max(rises)
