"""How many bits a model comes nearer to a trait than its base: the complexity of a trait, and what of it passed."""

from collections.abc import Hashable, Sequence

import numpy as np
from einops import reduce
from jaxtyping import Float

LEAST = 1e-12
"""A probability below this counts as this, so that no logarithm is infinite."""


def bits_nearer(
    wanted: Float[np.ndarray, "question answer"],
    own: Float[np.ndarray, "question answer"],
    base: Float[np.ndarray, "question answer"],
    items: Sequence[Hashable],
) -> float:
    """Bits by which a model's answers come nearer to wanted ones than its base's: KL(wanted ‖ base) − KL(wanted ‖ own).

    wanted, own, base: probability of each answer to each question; rows sum to 1
    items: what each question asks about: several wordings of one item count once, by their mean, and items are summed

    Of a teacher that answers as wanted it is what the trait takes to say, beyond what the base says by itself: the
    length of a table of its answers. A rule may be shorter than its table. Of a student it is how much of that passed.
    It is 0 for the base, and below 0 for a model that is further from the trait than the base is.
    """
    told = np.log2(np.maximum(own, LEAST)) - np.log2(np.maximum(base, LEAST))
    each = reduce(wanted * told, "question answer -> question", "sum")
    by_item: dict[Hashable, list[float]] = {}
    for item, bits in zip(items, each, strict=True):
        by_item.setdefault(item, []).append(float(bits))
    return sum(float(np.mean(bits)) for bits in by_item.values())
