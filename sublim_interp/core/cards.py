"""GPUs that several processes share: how much of a card some work takes, and what else has room beside it."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass

from sublim_interp.core.device import compute_device, is_out_of_memory, open_device, visible_gpus
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


def room_of(device: str | None = None) -> tuple[int, int] | None:
    """Bytes of a GPU that are free, and all that it has; None where it does not tell, as after a driver's error.

    device: torch's name of it; None for what `compute_device` chooses
    """
    import torch

    place = device or compute_device()
    try:
        if place == "mps":
            most = torch.mps.recommended_max_memory()
            return max(0, most - torch.mps.driver_allocated_memory()), most
        return torch.cuda.mem_get_info(place if place.startswith("cuda") else None)
    except (AssertionError, RuntimeError):  # PyTorch without CUDA raises the one, drivers the other
        return None


def does_not_fit(what: str, needed: float | None = None) -> str:
    """How a line begins that tells of a GPU without room: what has none, what it needs, and how large the GPU is.

    needed: GiB by the estimate; None where there is none
    """
    told = []
    if room := room_of():
        free, total = (size / 2**30 for size in room)
        told.append(f"{total:.1f} GiB, {free:.1f} free now")
    if needed is not None:
        told.append(f"about {needed:.1f} GiB needed")
    return f"{what} does not fit the GPU" + (f" ({'; '.join(told)})" if told else "")


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
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
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
