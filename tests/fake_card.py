"""A card on the CPU: the functions of torch.cuda that tell of memory, answered from the tensors that a process holds.

Sizes, peaks and limits are those of real tensors; what no operation of torch makes, such as its scratch, is not seen.
"""

import json
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sublim_interp.core.cards import Card


@dataclass(frozen=True)
class FakeCard(Card):
    """A card of so many bytes. What its processes do is written to `log`, a line each."""

    memory: int = 0
    log: Path = Path("unset")

    def open(self) -> None:
        """Answers torch.cuda's questions about memory for the rest of this process."""
        super().open()
        held = _Held(self)
        for name in _ANSWERED:
            setattr(torch.cuda, name, getattr(held, name))
        held.__enter__()


_ANSWERED = (
    "mem_get_info", "set_per_process_memory_fraction", "reset_peak_memory_stats", "max_memory_reserved", "empty_cache",
)  # fmt: skip


class _Held(TorchDispatchMode):
    """Counts the bytes of all tensors of a process, and raises where they are more than is allowed."""

    def __init__(self, card: FakeCard) -> None:
        super().__init__()
        self.card, self.now, self.peak, self.most = card, 0, 0, card.memory
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.now)
        if self.now > self.most:
            raise torch.OutOfMemoryError(f"{self.now} bytes, of {self.most}")

    def _freed(self, size: int) -> None:
        self.now -= size

    def _say(self, event: str, size: int) -> None:
        line = json.dumps([time.monotonic(), self.card.name, os.getpid(), event, size]) + "\n"
        with self.card.log.open("a") as file:
            file.write(line)

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return self.card.memory, self.card.memory

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        self.most = round(fraction * self.card.memory)

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.now
        self._say("begins", self.most)

    def max_memory_reserved(self) -> int:
        return self.peak

    def empty_cache(self) -> None:
        self._say("ended", self.peak)


FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other API call"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.93 GB, other allocations: 384.00 KB, max allowed: 9.07)"),
)
"""What PyTorch raises where a GPU has no room: its allocator, cuBLAS, CUDA's driver, Apple's."""


class Told(NamedTuple):
    """What PyTorch tells of a card: its name, GiB that are free, all that it has, and whether it has bfloat16."""

    name: str
    free: float
    total: float
    half: bool = True


def tell_of(monkeypatch: pytest.MonkeyPatch, *cards: Told) -> None:
    """Has PyTorch tell of these cards, in this process. Nothing can be put on them."""
    current = [0]

    def number(device: object) -> int:
        return int(str(device).rpartition(":")[2]) if str(device)[-1].isdigit() else current[-1]

    def sizes(device: object = None) -> tuple[int, int]:
        card = cards[number(device)]
        return int(card.free * 2**30), int(card.total * 2**30)

    @contextmanager
    def chosen(device: object) -> Iterator[None]:
        current.append(number(device))
        yield
        current.pop()

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: len(cards),
        "get_device_name": lambda device=None: cards[number(device)].name,
        "mem_get_info": sizes,
        "is_bf16_supported": lambda including_emulation: cards[current[-1]].half,
        "device": chosen,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)


class Stay(NamedTuple):
    """Work on a card, from when to when."""

    card: str
    process: int
    began: float
    ended: float
    most: int
    """Bytes that it was allowed."""
    peak: int
    """Bytes that it had."""


def stays(log: Path) -> list[Stay]:
    """All work that was done on cards, in the order of its end."""
    found, begun = [], dict[int, tuple[float, int]]()
    for at, card, process, event, size in map(json.loads, log.read_text().splitlines()):
        if event == "begins":
            begun[process] = at, size
        else:
            found.append(Stay(card, process, begun[process][0], at, begun[process][1], size))
    return found


def most_at_once(some: Iterable[Stay]) -> int:
    """The most bytes that work of one card was allowed together."""
    some = list(some)
    return max(sum(b.most for b in some if b.began <= a.began < b.ended) for a in some)


def run_full(_progress: Callable[[float], None]) -> None:
    """A task for which cuBLAS finds no room."""
    raise FULL[1]


def hold(directory: Path, size: int, own: str, others: tuple[str, ...], _progress: Callable[[float], None]) -> None:
    """A task that holds so many bytes in tensors until others, by their files, do the same."""
    held = torch.zeros(size, dtype=torch.uint8)
    (directory / own).touch()
    deadline = time.monotonic() + 120
    while not all((directory / other).exists() for other in others):
        assert time.monotonic() < deadline, f"{own} waited in vain for {others}"
        time.sleep(0.02)
    assert held.nbytes == size
