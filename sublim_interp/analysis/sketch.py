"""Count sketch: long vectors folded to a few numbers at random, their inner products kept on average."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


class CountSketch:
    """Each entry of a vector goes with a random sign into one of a few numbers. A vector no longer than that stays.

    total: entries of a vector
    size: numbers that are kept of it
    seed: decides places and signs
    like: a tensor whose device and type places and signs take; None: float32 on the CPU

    Inner products of sketches are unbiased over seeds, with a variance of at most (|a|²|b|² + ⟨a, b⟩²) / size.
    Source: Charikar, Chen & Farach-Colton 2002; the variance is that of Weinberger et al. 0902.2206, lemma 2.
    """

    def __init__(self, total: int, size: int, seed: int = 0, like: Tensor | None = None) -> None:
        self.size, exact = min(size, total), total <= size
        random = torch.Generator().manual_seed(seed)
        like = torch.zeros(1) if like is None else like
        place = torch.arange(total) if exact else torch.randint(self.size, (total,), generator=random)
        signs = torch.ones(total) if exact else torch.randint(2, (total,), generator=random) * 2.0 - 1
        self.place, self.signs = place.to(like.device), signs.to(like)

    def __call__(self, flat: Float[Tensor, "row entry"]) -> Float[Tensor, "row size"]:
        """Sketches of vectors, a row each."""
        return flat.new_zeros(len(flat), self.size).index_add_(1, self.place, flat * self.signs)

    def of(self, step: Mapping[str, Tensor]) -> Float[Tensor, " size"]:
        """Sketch of a step: its tensors behind each other, in their order."""
        return self(torch.cat([t.flatten() for t in step.values()])[None])[0]
