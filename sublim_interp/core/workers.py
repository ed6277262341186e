"""Runs a graph of tasks in a few processes of one thread each, with progress. It knows no stage and no store.

Where there are cards, each has workers of its own, and as many tasks as its memory holds by what was measured.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sublim_interp.core.cards import Card, Filling, does_not_fit, free_memory, measured
from sublim_interp.core.device import is_out_of_memory
from sublim_interp.core.errors import OutOfMemory, SublimError
from sublim_interp.core.journal import Journal
from sublim_interp.core.memory import keep_freed


@dataclass(frozen=True)
class Task:
    """One piece of work: called in a worker as `function(*arguments, progress)`, once all it needs is done.

    shape: of a task that takes memory of a card; tasks of equal shape take about equal memory
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    shape: str = ""


Watch = Callable[[str, float], None]
"""Called in the parent with a task's name and the fraction done; 1.0 once, when it has ended."""

_PATIENCE = 0.2
"""Seconds between two looks at the progress, and between two reports of one task."""
_LEAVE = 5
"""Seconds for which idle workers may take leave before they are ended."""
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
_FIRST = ("torch", "transformers.modeling_utils", "transformers.models.llama.modeling_llama")
"""What the process imports that workers are forks of: it takes seconds, once for all workers of this process."""
_events: Any = None


def prepare_process(threads: int = 1) -> None:
    """One thread, and freed memory is kept."""
    import torch

    torch.set_num_threads(threads)
    keep_freed()


def _start_worker(events: Any, card: Card | None, environment: dict[str, str]) -> None:
    global _events  # one per worker process, set once: a queue cannot travel with a task
    _events = events
    os.environ.clear()  # what was forked has that of an earlier time
    os.environ.update(environment)
    if card:
        card.open()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    prepare_process()


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever; what it has is safe in the store."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _main_left_out() -> Iterator[None]:
    """Inside the block new processes do not run the caller's script again: no task is defined there.

    So a script needs no guard around its own work.
    """
    main = sys.modules["__main__"]
    kept = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    vars(main).update(__spec__=None, __file__=None)
    try:
        yield
    finally:
        del main.__spec__, main.__file__
        vars(main).update(kept)


def _work(task: Task, on_card: bool, most: int | None) -> int:
    """Does a task; returns the bytes of its card that it took, 0 where nobody measures."""
    last = 0.0

    def progress(fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _PATIENCE:
            last = now
            _events.put((task.name, min(fraction, 0.999)))

    work = partial(task.function, *task.arguments, progress)
    if on_card:
        return measured(work, most)
    try:
        work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{does_not_fit(task.name)}; try --processes 1, or --device cpu") from None
    return 0


class _Place:
    """Workers that share a card, or all workers where there is none.

    events: the queue that they report to
    processes: how many they may be
    """

    def __init__(self, card: Card | None, events: Any, processes: int) -> None:
        self.card, self.running = card, dict[Future, Task]()
        self.filling: Filling | None = None
        self._events, self._processes = events, processes
        self._pool = self._begun()

    def _begun(self) -> ProcessPoolExecutor:
        given = (self._events, self.card, dict(os.environ))
        context = multiprocessing.get_context(_METHOD)
        return ProcessPoolExecutor(self._processes, mp_context=context, initializer=_start_worker, initargs=given)

    def ask_free(self) -> Future:
        """Has a worker look how much of the card is free."""
        with _main_left_out():
            return self._pool.submit(free_memory)

    def start(self, task: Task, peak: int | None) -> None:
        """Has a worker do a task. peak: bytes that its like took of the card; None where nobody knows."""
        share = Filling.granted(peak) if task.shape else 0
        if self.filling and share is None and self.filling.crowded:
            self.end()
            self._pool = self._begun()  # workers that idle hold memory too
            self.filling.empty()
        with _main_left_out():
            future = self._pool.submit(_work, task, bool(self.filling and task.shape), share)
        self.running[future] = task
        if self.filling:
            self.filling.add(task.name, share)

    def ended(self, future: Future) -> tuple[Task, bool]:
        """The task whose work is over, and whether it had less than the whole card."""
        task = self.running.pop(future)
        return task, bool(self.filling and self.filling.remove(task.name))

    def end(self) -> None:
        """Stops the workers, whatever they do."""
        own = list((self._pool._processes or {}).values())  # its caller may have other children, or another pool
        manager: threading.Thread | None = getattr(self._pool, "_executor_manager_thread", None)
        self._pool.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + (0 if self.running else _LEAVE)
        for child in own:
            child.join(max(0, until - time.monotonic()))  # by itself it gives back what it holds, tqdm's lock for one
            child.terminate()
        for child in own:
            child.join()
        if manager:  # else Python may wake it at exit, just as it closes what it would be woken by
            manager.join(10)


def run_tasks(
    tasks: Sequence[Task],
    processes: int,
    watch: Watch,
    skip: tuple[type[Exception], ...] = (),
    cards: Sequence[Card] = (),
    peaks: Journal | None = None,
) -> dict[str, Exception]:
    """Runs all tasks, those named first first; returns when all are done.

    The first failure is raised at once and the other workers are stopped, as after Ctrl-C: tasks must leave what they
    have in a state from which a later call goes on. A failure of a kind in `skip` stops nothing but the tasks that need
    its task: what comes back is the name of each of these, its own among them, and the failure.

    cards: GPUs that the workers share; each worker sees one
    peaks: bytes of a card that tasks of each shape took, read and extended; None: nobody measures, and all share

    A task whose shape was never measured has its card to itself. Others share a card while their measured memory fits.
    One that runs out of memory beside others is done again with a card to itself; a second failure is one as any other.
    """
    multiprocessing.get_context(_METHOD).set_forkserver_preload([*_FIRST])
    events = multiprocessing.get_context(_METHOD).Queue()
    waiting = {task.name: task for task in tasks}
    done: set[str] = set()
    skipped: dict[str, Exception] = {}
    alone: set[str] = set()
    places = [_Place(card, events, processes) for card in cards or (None,)]
    try:
        if cards and peaks is not None and any(task.shape for task in tasks):
            for place, free in [(place, place.ask_free()) for place in places]:
                place.filling = Filling(free.result(), place.card.context if place.card else 0)
        while waiting or any(place.running for place in places):
            _start_ready(waiting, places, processes, alone, peaks)
            running = [future for place in places for future in place.running]
            finished, _ = wait(running, timeout=_PATIENCE, return_when=FIRST_COMPLETED)
            _drain(events, done, watch)
            for place, future in [(p, future) for p in places for future in finished if future in p.running]:
                task, shared = place.ended(future)
                ended = [task.name]
                try:
                    peak = future.result()
                    if place.filling and peaks is not None and task.shape and peak > peaks.get(task.shape, -1):
                        peaks.add(task.shape, peak)
                except (OutOfMemory, *skip) as failure:
                    if shared and isinstance(failure, OutOfMemory):
                        alone.add(task.name)
                        waiting = {task.name: task, **waiting}
                        continue
                    if not isinstance(failure, skip):
                        raise
                    ended += _take_dependents(waiting, task.name)
                    skipped |= dict.fromkeys(ended, failure)
                done.update(ended)
                for name in ended:
                    watch(name, 1.0)
    except BrokenProcessPool:
        raise SublimError(
            "a worker process died, most likely for lack of memory: run again, or use --processes 1"
        ) from None
    finally:
        for place in places:
            place.end()
    return skipped


def _take_dependents(waiting: dict[str, Task], name: str) -> list[str]:
    """Takes all out of `waiting` that need the task `name`, at however many removes."""
    lost = [name]
    for gone in lost:  # it grows
        lost += [n for n, task in waiting.items() if gone in task.needs and n not in lost]
    for n in lost[1:]:
        del waiting[n]
    return lost[1:]


def _start_ready(
    waiting: dict[str, Task], places: Sequence[_Place], processes: int, alone: set[str], peaks: Journal | None
) -> None:
    """Starts what may start, those named first first; whoever finds no room has a card kept for it meanwhile."""
    busy = {task.name for place in places for task in place.running.values()}
    open_ = list(places)
    for name, task in list(waiting.items()):
        if len(busy) >= processes or not open_:
            break
        if any(need in waiting or need in busy for need in task.needs):
            continue
        open_.sort(key=lambda place: len(place.running))
        known = None if name in alone or peaks is None else peaks.get(task.shape)
        place = next((p for p in open_ if not p.filling or not task.shape or p.filling.takes(known)), None)
        if place is None:
            open_.pop(0)
            continue
        place.start(waiting.pop(name), known)
        busy.add(name)


def _drain(events: Any, done: set[str], watch: Watch) -> None:
    while True:
        try:
            name, fraction = events.get_nowait()
        except queue.Empty:
            return
        if name not in done:  # an event may arrive after the result that it came before
            watch(name, fraction)
