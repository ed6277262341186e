"""What a job does: the pieces of its group, each with a word of how it stands."""

import os
import signal
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.cards import cards_here
from sublim_interp.core.device import using_device
from sublim_interp.core.errors import DeadEnd, OutOfMemory, SublimError, said_of
from sublim_interp.core.store import LOCKS, NO_LOCKS, OWNER, Store
from sublim_interp.core.workers import Task, prepare_process, run_tasks
from sublim_interp.experiments.executors.ledger import Words, read_ledger
from sublim_interp.experiments.executors.pieces import Piece, peaks_of

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_EACH = 10.0
"""Seconds between two words on the progress of one piece."""
_TRIES = 5
"""Pools of workers that a job begins, where they break."""
_PATIENCE = 900
"""Seconds that a job waits for a store that is away."""


@dataclass(frozen=True)
class Job:
    """The work of one job; submitit calls it on a node, and again after each time that the job was requeued.

    pieces: in an order in which they can be made
    root: of the store
    folder: of the run's ledger
    processes: how many pieces at once
    device: where models are put
    locks: whether the store's file locks reach all nodes
    after: processes of this machine to wait for, where no scheduler does
    """

    pieces: tuple[Piece, ...]
    root: Path
    folder: Path
    processes: int
    device: str
    locks: bool
    after: tuple[int, ...] = ()

    def __call__(self) -> None:
        """Makes what the store lacks. A piece that fails stops none that does not need it."""
        from submitit.core.job_environment import JobEnvironment

        while any(map(runs_here, self.after)):
            time.sleep(1)
        job = JobEnvironment().job_id
        os.environ[OWNER] = job
        if not self.locks:
            os.environ[LOCKS] = NO_LOCKS
        with using_device(self.device):
            for _ in range(_TRIES):
                self._wait_for_store()
                if self._work(job):
                    return

    def _work(self, job: str) -> bool:
        """Whether every piece has been tried, in as many pools of workers as it takes."""
        store, words = Store(self.root), Words(self.folder)
        waiting = [p for p in self.pieces if not store.holds(p.key) and not words.of(p.key, job).get("why")]
        try:
            if self.processes == 1:
                prepare_process()
                for piece in waiting:
                    with suppress(OutOfMemory):  # it had the card to itself
                        make_piece(piece, self.root, self.folder, job, lambda _fraction: None)
                return True
            names = {piece.key for piece in waiting}
            tasks = [
                Task(
                    p.key,
                    _make_beside,
                    (p, self.root, self.folder, job),
                    tuple(k for k in p.inputs if k in names),
                    p.needs.shape,
                )
                for p in waiting
            ]
            run_tasks(
                tasks, self.processes, lambda _name, _fraction: None, (OutOfMemory,), cards_here(), peaks_of(store)
            )
            return True
        except SublimError as error:  # a worker died, or the store is away
            print(error, flush=True)
            if _is_there(self.folder):
                for piece in (p for p in waiting if words.of(p.key, job).get("state") == "runs"):
                    words.say(piece.key, job, "failed", why=str(error))
            return False

    def _wait_for_store(self) -> None:
        """A store that was unmounted comes back, or does not; it is not begun anew in its absence."""
        for _ in range(_PATIENCE):
            if _is_there(self.folder):
                return
            time.sleep(1)
        raise SublimError(f"the store {self.root} is not there, after {_PATIENCE} seconds; run again when it is")

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit has requeued before the time is up: the same again, since the store knows what is done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _make_beside(piece: Piece, root: Path, folder: Path, job: str, progress: Any) -> None:
    """The same in a process beside the job's own, which alone is to hear that its time is over."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    make_piece(piece, root, folder, job, progress)


def make_piece(piece: Piece, root: Path, folder: Path, job: str, progress: Any) -> None:
    """Makes one piece and keeps what is to be said of it; an error is a word, and is not raised.

    Raises OutOfMemory besides, so that whoever shares out a GPU may try again, and then it says another word.
    """
    store, words = Store(root), Words(folder)
    if piece.find(store) is not None:
        words.forget(piece.key)
        return
    dead = words.dead_ends() if piece.tells_dead_ends else {}
    lacking = {key for key in piece.inputs if not store.holds(key)}
    if dead:
        lacking -= read_ledger(folder).stopped_by(dead)
    if lacking:
        print(f"{piece.label} waits for {len(lacking)} others that are not made", flush=True)
        return
    words.say(piece.key, job, "runs")
    said = time.monotonic()

    def watch(fraction: float) -> None:
        nonlocal said
        progress(fraction)
        if time.monotonic() - said > _EACH:
            said = time.monotonic()
            words.say(piece.key, job, "runs", fraction)

    try:
        print(f"{piece.label} begins", flush=True)
        piece.function(*piece.arguments, *((dead,) if piece.tells_dead_ends else ()), watch)
    except DeadEnd as why:
        words.say(piece.key, job, "dead end", why=str(why))
        print(f"{piece.label} led nowhere: {why}", flush=True)
    except Exception as error:
        traceback.print_exc()
        if not _is_there(folder):
            raise SublimError(f"the store {root} went away") from None
        words.say(piece.key, job, "failed", why=str(error) if isinstance(error, SublimError) else said_of(error))
        if isinstance(error, OutOfMemory):
            raise
    else:
        words.forget(piece.key)
        print(f"{piece.label} is done", flush=True)


def _is_there(folder: Path) -> bool:
    return (folder / "ledger.json").is_file()


def runs_here(pid: int) -> bool:
    """Whether a process of this machine runs that submitit began."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any("submitit" in word for word in process.cmdline())
    except psutil.Error:
        return False
