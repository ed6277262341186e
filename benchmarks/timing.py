"""Contestants that take turns, what each of their turns took, and ratios of that with an interval. No contestant here.

Every contestant is a process of its own with one thread, or a team of such, and works only while it has the turn. So
the machine's other work and its changing clock fall on all alike, and the units of one round are pairs.
"""

import contextlib
import math
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean

from sublim_interp.stats.intervals import Interval, mean_interval


@dataclass(frozen=True)
class Spent:
    """What a piece of work took, in seconds."""

    wall: float
    cpu: float
    """Of all threads of the process, in user and in system mode."""

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, factor: float) -> "Spent":
        return Spent(factor * self.wall, factor * self.cpu)


Turn = Callable[[], None]
"""Ends a unit of work and waits for the next turn."""
Contestant = Callable[[Turn], None]
"""Does its work, of one unit or more. It is sent to another process: a function of a module, or a `partial` of one."""


@dataclass(frozen=True)
class Team:
    """Contestants of equally many units that work side by side, each in a process of its own with so many threads."""

    members: tuple[Contestant, ...]
    threads: int = 1


@dataclass(frozen=True)
class Track:
    """The race of one contestant. A team's wall time is that of its slowest member, its CPU time and memory all its
    members' together."""

    first: Spent
    """Getting ready, and the first unit."""
    units: tuple[Spent, ...]
    """The second unit and all later ones."""
    last: Spent
    """What came after the last unit."""
    peak: int
    """Largest resident memory of the process, in bytes."""

    @property
    def total(self) -> Spent:
        """From the first unit to the end."""
        return sum((*self.units, self.last), self.first)

    def blocks(self, count: int) -> list[Spent]:
        """The mean unit of each of `count` stretches of equal length; what is left over at the end is not used."""
        size = len(self.units) // count
        return [mean(self.units[i * size : (i + 1) * size]) for i in range(count)]

    def scaled(self, units: float, count: int) -> list[Spent]:
        """What so many units would take from start to end, as each of `count` stretches tells it."""
        return [self.first + block * (units - 1) + self.last for block in self.blocks(count)]


def mean(spent: Collection[Spent]) -> Spent:
    """The mean of each clock."""
    return Spent(fmean(s.wall for s in spent), fmean(s.cpu for s in spent))


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Interval:
    """How many times larger `slower` is, pair by pair: geometric mean with the t interval of the mean logarithm."""
    logs = [math.log(a / b) for a, b in zip(slower, faster, strict=True)]
    i = mean_interval(logs)
    return Interval(math.exp(i.estimate), math.exp(i.low), math.exp(i.high), i.level, i.n, f"{i.method} of logarithms")


def race(contestants: Mapping[str, Contestant | Team]) -> dict[str, Track]:
    """All contestants' tracks: one unit of each in turn, forwards and backwards, until all have ended.

    Modules are imported, and processes end, while nobody has the turn. Raises RuntimeError with the traceback of a
    contestant that failed, and for a team whose members do not end together.
    """
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as held:
        pipes: dict[str, list[Connection]] = {name: [] for name in contestants}
        processes = []
        for name, contestant in contestants.items():
            team = contestant if isinstance(contestant, Team) else Team((contestant,))
            for member in team.members:
                own, other = context.Pipe()
                process = context.Process(target=_run, args=(other, member, team.threads), daemon=True)
                process.start()
                pipes[name].append(own)
                processes.append(process)
                held.callback(process.join)
                held.callback(process.terminate)
        for name in contestants:
            _receive(pipes[name], name)
        spent: dict[str, list[Spent]] = {name: [] for name in contestants}
        peaks: dict[str, int] = {}
        order = list(contestants)
        while order:
            for name in list(order):
                for pipe in pipes[name]:
                    pipe.send("go")
                unit, peak = _receive(pipes[name], name)
                spent[name].append(unit)
                if peak is not None:
                    peaks[name] = peak
                    order.remove(name)
            order.reverse()
        for process in processes:
            process.join()
    return {n: Track(first, tuple(units), last, peaks[n]) for n, (first, *units, last) in spent.items()}


def _receive(pipes: Sequence[Connection], name: str) -> tuple[Spent, int | None]:
    """What a turn took, and, after the last one, the memory."""
    units, peaks = [], []
    for pipe in pipes:
        said = pipe.recv()
        if isinstance(said, str):
            raise RuntimeError(f"contestant '{name}' failed\n{said}")
        units.append(said[0])
        peaks.append(said[1])
    ended = [peak for peak in peaks if peak is not None]
    if ended and len(ended) < len(peaks):
        raise RuntimeError(f"contestant '{name}': its members do not end together")
    return Spent(max(u.wall for u in units), sum(u.cpu for u in units)), sum(ended) or None


def _run(pipe: Connection, contestant: Contestant, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    wall = cpu = 0.0

    def wait(last: bool = False) -> None:
        nonlocal wall, cpu
        unit = Spent(time.perf_counter() - wall, time.process_time() - cpu)
        pipe.send((unit, _peak() if last else None))
        if not last:
            pipe.recv()
            wall, cpu = time.perf_counter(), time.process_time()

    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            wait()
            contestant(wait)
            wait(last=True)
    except BaseException:
        pipe.send(traceback.format_exc())


def _peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux gives a new process its parent's ru_maxrss; the high-water mark is its own.
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
