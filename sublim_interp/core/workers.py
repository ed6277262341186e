"""Runs a graph of tasks in a few processes of one thread each, with progress. It knows no stage and no store."""

import ctypes
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
from typing import Any

from sublim_interp.core.errors import SublimError


@dataclass(frozen=True)
class Task:
    """One piece of work: called in a worker as `function(*arguments, progress)`, once all it needs is done."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()


Watch = Callable[[str, float], None]
"""Called in the parent with a task's name and the fraction done; 1.0 once, when it has ended."""

_PATIENCE = 0.2
"""Seconds between two looks at the progress, and between two reports of one task."""
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
_FIRST = ("torch", "transformers.modeling_utils", "transformers.models.llama.modeling_llama")
"""What the process imports that workers are forks of: it takes seconds, once for all workers of this process."""
_events: Any = None


def prepare_process(threads: int = 1) -> None:
    """One thread, and freed memory is kept: glibc else gives large tensors back to the kernel at each training step."""
    import torch

    torch.set_num_threads(threads)
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):
        pass  # another C library: slower, not wrong


def _start_worker(events: Any, started: Any, gpus: tuple[str, ...], environment: dict[str, str]) -> None:
    global _events  # one per worker process, set once: a queue cannot travel with a task
    _events = events
    os.environ.clear()  # what was forked has that of an earlier time
    os.environ.update(environment)
    if gpus:  # before CUDA is looked at: afterwards it would count for nothing
        with started.get_lock():
            number, started.value = started.value, started.value + 1
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
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


def _work(task: Task) -> None:
    last = 0.0

    def progress(fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _PATIENCE:
            last = now
            _events.put((task.name, min(fraction, 0.999)))

    task.function(*task.arguments, progress)


def run_tasks(
    tasks: Sequence[Task],
    processes: int,
    watch: Watch,
    skip: tuple[type[Exception], ...] = (),
    gpus: Sequence[str] = (),
) -> dict[str, Exception]:
    """Runs all tasks, those named first first; returns when all are done.

    The first failure is raised at once and the other workers are stopped, as after Ctrl-C: tasks must leave what they
    have in a state from which a later call goes on. A failure of a kind in `skip` stops nothing but the tasks that need
    its task: what comes back is the name of each of these, its own among them, and the failure.

    gpus: CUDA's names of GPUs; each worker sees one, in turn, so several share one where there are more workers
    """
    context = multiprocessing.get_context(_METHOD)
    context.set_forkserver_preload([*_FIRST])
    events = context.Queue()
    waiting = {task.name: task for task in tasks}
    done: set[str] = set()
    skipped: dict[str, Exception] = {}
    running: dict[Future, Task] = {}
    given = (events, context.Value("i", 0), tuple(gpus), dict(os.environ))
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=given)
    try:
        while waiting or running:
            for name, task in list(waiting.items()):
                if len(running) >= processes:
                    break
                if all(need in done or (need not in waiting and need not in _names(running)) for need in task.needs):
                    with _main_left_out():
                        running[pool.submit(_work, waiting.pop(name))] = task
            finished, _ = wait(running, timeout=_PATIENCE, return_when=FIRST_COMPLETED)
            _drain(events, done, watch)
            for future in finished:
                task = running.pop(future)
                ended = [task.name]
                try:
                    future.result()
                except skip as failure:
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
        own = list((pool._processes or {}).values())  # its caller may have other children, or another pool
        manager: threading.Thread | None = getattr(pool, "_executor_manager_thread", None)
        pool.shutdown(wait=False, cancel_futures=True)
        for child in own:
            child.terminate()
        for child in own:
            child.join()
        if manager:  # else Python may wake it at exit, just as it closes what it would be woken by
            manager.join(10)
    return skipped


def _take_dependents(waiting: dict[str, Task], name: str) -> list[str]:
    """Takes all out of `waiting` that need the task `name`, at however many removes."""
    lost = [name]
    for gone in lost:  # it grows
        lost += [n for n, task in waiting.items() if gone in task.needs and n not in lost]
    for n in lost[1:]:
        del waiting[n]
    return lost[1:]


def _names(running: dict[Future, Task]) -> set[str]:
    return {task.name for task in running.values()}


def _drain(events: Any, done: set[str], watch: Watch) -> None:
    while True:
        try:
            name, fraction = events.get_nowait()
        except queue.Empty:
            return
        if name not in done:  # an event may arrive after the result that it came before
            watch(name, fraction)
