"""The executors whose work is done by jobs, by way of submitit: on SLURM, or in the background of this machine."""

import math
import signal
import subprocess
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import log
from sublim_interp.core.store import Store
from sublim_interp.core.workers import Watch
from sublim_interp.experiments.executors.groups import Group, grouped
from sublim_interp.experiments.executors.ledger import Entry, Ledger, alone_with, new_ledger, read_ledger
from sublim_interp.experiments.executors.pieces import Work
from sublim_interp.experiments.executors.protocol import EXECUTORS, Executor
from sublim_interp.experiments.executors.site import Site
from sublim_interp.experiments.executors.worker import Job, runs_here

if TYPE_CHECKING:
    from submitit.core.core import PicklingExecutor


class Jobs(Executor):
    """Schedules what the store lacks and no job is about to make, in groups. Whoever scheduled it may leave."""

    name: str
    """Its name, as `--on` takes it."""
    detached = True

    def __init__(self, site: Site, processes: int = 2) -> None:
        super().__init__(site, processes)
        self._new: list[str] = []
        """Jobs that this object has had begun, in order."""

    @abstractmethod
    def submit(self, ledger: Ledger, jobs: Sequence[Job], after: Sequence[str], asked: Mapping[str, Any]) -> list[str]:
        """Has jobs begun that are alike, once others have ended, however these did.

        jobs: what they do
        after: ids of the others
        asked: what each asks for: cores, memory (GiB), minutes

        Returns their ids. Raises SublimError where they are not taken.
        """

    @abstractmethod
    def alive(self, jobs: Sequence[str]) -> dict[str, tuple[bool, str]]:
        """Those of some jobs that have not ended: whether each runs, and where, or what it waits for."""

    @abstractmethod
    def stop(self, jobs: Sequence[str]) -> None:
        """Ends jobs, also those that have not begun."""

    def start(
        self, work: Work, store: Store, watch: Watch, skip: tuple[type[Exception], ...] = ()
    ) -> dict[str, Exception]:
        ledger = new_ledger(store, work.name, work.key, self.name)
        with alone_with(ledger, self.site.locks):
            _require_own(store, ledger)
            ledger = new_ledger(store, work.name, work.key, self.name)
            alive, held = self.alive(ledger.open_jobs(store)), store.held()
            todo = [
                piece
                for piece in work.pieces
                if piece.key[:16] not in held
                and not (piece.key in ledger.entries and ledger.entries[piece.key].job in alive)
            ]
            ledger.write()
            for array, after in self._arrays(grouped(todo, self.site.pack), ledger, alive):
                self._submit_array(ledger, store, array, after)
        return {}

    def _arrays(
        self, groups: Sequence[Group], ledger: Ledger, alive: Mapping[str, Any]
    ) -> Iterator[tuple[list[Group], list[str]]]:
        """Groups that go to the scheduler together, and the jobs that they wait for, submitted by then."""
        for level in dict.fromkeys(group.level for group in groups):
            alike: dict[tuple[int, tuple[str, ...]], list[Group]] = {}
            submitted = {key: entry.job for key, entry in ledger.entries.items()}
            for group in (group for group in groups if group.level == level):
                jobs = dict.fromkeys(submitted[key] for key in group.outer if key in submitted)
                fresh = tuple(job for job in jobs if job in alive or job in self._new)
                alike.setdefault((math.ceil(group.memory).bit_length(), fresh), []).append(group)
            for (_, after), some in alike.items():
                for first in range(0, len(some), self.site.array):
                    yield some[first : first + self.site.array], list(after)

    def _submit_array(self, ledger: Ledger, store: Store, groups: Sequence[Group], after: Sequence[str]) -> None:
        site = self.site
        jobs = [
            Job(tuple(group.pieces), store.root, ledger.folder, site.cores, site.device, site.locks) for group in groups
        ]
        at_once = max(min(site.cores, len(group.pieces)) for group in groups)
        minutes = max(group.seconds for group in groups) * site.slack / 60 + 10
        memory = site.memory or math.ceil(1.25 * at_once * max(group.memory for group in groups))
        asked = {
            "cores": site.cores,
            "memory": memory,
            "minutes": max(1, math.ceil(min(site.hours * 60, minutes))),
        }
        ids = self.submit(ledger, jobs, after, asked)
        self._new += [job for job in ids if job not in self._new]
        for group, job in zip(groups, ids, strict=True):
            for piece in group.pieces:
                ledger.entries[piece.key] = Entry(piece.stage, piece.inputs, piece.needs.seconds, job)
        ledger.write()

    def cancel(self, ledger: Ledger) -> int:
        """Ends the jobs of a run that have not ended; what they made stays. Returns how many they were."""
        with alone_with(ledger, self.site.locks):
            ledger = read_ledger(ledger.folder)  # more may have been scheduled while this waited
            alive = list(self.alive(ledger.jobs))
            ledger.cancelled.update(alive)
            ledger.write()
            self.stop(alive)
        return len(alive)

    def _submitit(self, ledger: Ledger, cluster: str, **asked: Any) -> "PicklingExecutor":
        """submitit's executor for a cluster. Raises SublimError where submitit or the cluster is missing."""
        try:
            from submitit.local.local import LocalExecutor
            from submitit.slurm.slurm import SlurmExecutor
        except ImportError:
            raise SublimError(
                f"--on {self.name} needs submitit: pip install 'sublim-interp[slurm]', or run with --on local"
            ) from None
        kind = {"local": LocalExecutor, "slurm": SlurmExecutor}[cluster]
        try:
            executor = kind(ledger.logs, max_num_timeout=self.site.restarts, python=self.site.python or None)
        except RuntimeError:
            raise SublimError(
                "--on slurm: there is no sbatch here; run it where SLURM's commands are, such as a login node, or with "
                "--on background, or with --on local"
            ) from None
        executor.update_parameters(**asked)
        return executor

    @property
    def _setup(self) -> list[str]:
        return [*(f"module load {name}" for name in self.site.modules), *self.site.lines]


class Slurm(Jobs):
    """Jobs of SLURM: arrays of groups, each array after those that it needs."""

    name = "slurm"

    def submit(self, ledger: Ledger, jobs: Sequence[Job], after: Sequence[str], asked: Mapping[str, Any]) -> list[str]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        site = self.site
        given = {name: getattr(site, name) for name in ("partition", "account", "qos") if getattr(site, name)}
        if after:
            given["dependency"] = "afterany:" + ":".join(after)
        executor = self._submitit(
            ledger,
            "slurm",
            job_name=f"sublim-{ledger.name}"[:60],
            cpus_per_task=asked["cores"],
            mem=f"{math.ceil(asked['memory'] * 1024)}M",
            time=asked["minutes"],
            setup=self._setup,
            signal_delay_s=min(site.warning, 30 * asked["minutes"]),
            array_parallelism=site.at_once,
            stderr_to_stdout=True,
            additional_parameters={"requeue": True, "comment": f"sublim {ledger.key[:16]}", **site.sbatch},
            **({"gpus_per_node": 1} if site.device == "cuda" else {}),
            **given,
        )
        try:
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            said = (str(error).strip().splitlines() or ["no reason given"])[-1]
            raise SublimError(
                f"SLURM did not take {len(jobs)} jobs of {ledger.name}: {said}; {len(self._new)} are scheduled, the "
                "same command schedules the rest"
            ) from None
        return [job.job_id for job in submitted]

    def alive(self, jobs: Sequence[str]) -> dict[str, tuple[bool, str]]:
        if not jobs:
            return {}
        lines = _said(["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%N"]).splitlines()
        wanted, found = set(jobs), {}
        for line in lines:
            job, state, reason, nodes = line.strip().split("|", 3)
            if job in wanted:
                runs = state in ("RUNNING", "COMPLETING", "SUSPENDED")
                found[job] = (runs, nodes if runs else f"{state.lower()}: {reason}")
        return found

    def stop(self, jobs: Sequence[str]) -> None:
        for first in range(0, len(jobs), 500):
            _said(["scancel", *jobs[first : first + 500]])


def _said(command: Sequence[str]) -> str:
    """What one of SLURM's commands prints. Raises SublimError where it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    except FileNotFoundError:
        raise SublimError(f"there is no {command[0]} here; run it where SLURM's commands are") from None
    except subprocess.TimeoutExpired:
        raise SublimError(f"{command[0]} gives no answer; SLURM is busy or away, try again later") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["it failed"])[-1]
        raise SublimError(f"{command[0]}: {said}") from None


class Background(Jobs):
    """Processes of this machine that go on when the command is over: a workstation without SLURM, or a first try."""

    name = "background"

    def submit(self, ledger: Ledger, jobs: Sequence[Job], after: Sequence[str], asked: Mapping[str, Any]) -> list[str]:
        executor = self._submitit(
            ledger,
            "local",
            timeout_min=self.site.hours * 60,
            signal_delay_s=self.site.warning,
            stderr_to_stdout=True,
            **({"setup": self._setup} if self._setup else {}),
            **({"gpus_per_node": 1} if self.site.device == "cuda" else {}),
        )
        ids: list[str] = []
        for job in jobs:
            # No more at once than --processes: each also waits for the one that many before it.
            ahead = self._new[-self.processes :][:1] if len(self._new) >= self.processes else []
            pids = tuple(int(one) for one in [*after, *ahead])
            done = Job(job.pieces, job.root, job.folder, job.processes, job.device, job.locks, pids)
            ids.append(executor.submit(done).job_id)
            self._new.append(ids[-1])
        log.debug("%d processes begun for %s", len(ids), ledger.name)
        return ids

    def alive(self, jobs: Sequence[str]) -> dict[str, tuple[bool, str]]:
        return {job: (True, "this machine") for job in jobs if runs_here(int(job))}

    def stop(self, jobs: Sequence[str]) -> None:
        import psutil

        asked: list[psutil.Process] = []
        for job in jobs:
            try:
                process = psutil.Process(int(job))
                family = [process, *process.children(recursive=True)]
                for one in [one for one in family if "submitit.local._local" in " ".join(one.cmdline())]:
                    one.send_signal(signal.SIGINT)
                    asked += family
            except psutil.Error:
                continue
        # What a shell began in the background hears no SIGINT. A kill loses nothing: the store has what is done.
        for one in psutil.wait_procs(asked, timeout=_PATIENCE)[1]:
            with suppress(psutil.Error):
                one.kill()


_PATIENCE = 5.0
"""Seconds that a job of this machine has to end by itself."""


def _require_own(store: Store, ledger: Ledger) -> None:
    """Raises SublimError where another executor still has jobs for a run: each asks about its own alone."""
    if not (ledger.folder / "ledger.json").exists():
        return
    kept = read_ledger(ledger.folder)
    if kept.executor == ledger.executor:
        return
    if alive := jobs_of(kept).alive(kept.open_jobs(store)):
        raise SublimError(
            f"{kept.name} is scheduled on {kept.executor}, where jobs have not ended ({len(alive)}); wait, or end them "
            f"with `sublim cancel {kept.name}`"
        )


def jobs_of(ledger: Ledger) -> Jobs:
    """The executor that a run was scheduled on, to ask about its jobs. Raises SublimError for one that has none."""
    found = EXECUTORS[ledger.executor](Site())
    if not isinstance(found, Jobs):
        raise SublimError(f"{ledger.name} was scheduled on {ledger.executor}, which has no jobs")
    return found
