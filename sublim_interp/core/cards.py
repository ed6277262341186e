"""GPUs that several processes share: how much of a card some work takes, and what else has room beside it."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass

from sublim_interp.core.device import open_device, visible_gpus
from sublim_interp.core.errors import OutOfMemory, SublimError, said_of

_MARGIN = 1.25
"""How many times what it was measured to take some work may take: lists of another seed may be longer."""
_LEAST = 2 << 20
"""Bytes that work may take at least: PyTorch takes no less of a card at once."""


@dataclass(frozen=True)
class Card:
    """One GPU, as whoever shares it out knows it.

    name: CUDA's name of it
    context: bytes of it that each further process takes before it has any tensor: assumed, since it differs by driver
    """

    name: str
    context: int = 1 << 30

    def open(self) -> None:
        """Makes it the only card that this process sees; afterwards CUDA may be looked at."""
        os.environ["CUDA_VISIBLE_DEVICES"] = self.name


def cards_here() -> tuple[Card, ...]:
    """The cards that workers share out, where a GPU is chosen and not named by its number; else ()."""
    return tuple(map(Card, visible_gpus()))


def free_memory() -> int:
    """Bytes of this process's card that are free, its own context taken off. Raises SublimError as `open_device`."""
    import torch

    open_device()
    return torch.cuda.mem_get_info()[0]


def measured(work: Callable[[], object], most: int | None) -> int:
    """Does some work on this process's card, and leaves nothing of it there.

    most: bytes of the card that it may take; None: all of it

    Returns the most bytes that it took at any time. Raises OutOfMemory where it wants more than there is.
    """
    import torch

    cuda, failed, peak = torch.cuda, None, 0
    cuda.set_per_process_memory_fraction(1.0 if most is None else min(1.0, most / cuda.mem_get_info()[1]))
    cuda.reset_peak_memory_stats()
    try:
        work()
    except torch.OutOfMemoryError as error:
        failed = OutOfMemory(said_of(error))
    except SublimError as error:
        failed = type(error)(*error.args)  # the error itself would keep alive what its frames hold
    peak = cuda.max_memory_reserved()
    gc.collect()
    cuda.empty_cache()
    if failed:
        raise failed
    return peak


class Filling:
    """Who is on one card, and who else has room there.

    free: bytes that one process may take, once it is there
    context: bytes that each further process takes at once
    """

    def __init__(self, free: int, context: int) -> None:
        self._free, self._context, self._processes = free, context, 1
        self._on_it: dict[str, int | None] = {}

    @staticmethod
    def granted(peak: int | None) -> int | None:
        """Bytes that work may take of which so many were measured; None: all of the card, since nobody measured."""
        return None if peak is None else max(_LEAST, int(_MARGIN * peak))

    @property
    def crowded(self) -> bool:
        """Whether more than one process holds memory of the card."""
        return self._processes > 1

    def takes(self, peak: int | None) -> bool:
        """Whether work of which so many bytes were measured may start beside what is there."""
        if peak is None:
            return not self._on_it
        shares = [share for share in self._on_it.values() if share != 0]
        if not shares:
            return True
        processes = max(self._processes, len(self._on_it) + 1)
        room = self._free - self._context * (processes - 1) - sum(share or self._free for share in shares)
        return room >= (self.granted(peak) or 0)

    def add(self, name: str, share: int | None) -> None:
        """Work begins. share: bytes that it may take; None: all of the card, 0: none."""
        self._on_it[name] = share
        self._processes = max(self._processes, len(self._on_it))

    def remove(self, name: str) -> int | None:
        """Work has ended; returns its share."""
        return self._on_it.pop(name)

    def empty(self) -> None:
        """All its processes have ended, and one begins."""
        self._processes = 1
