"""What was scheduled of a run, as files beside its store: which job has which piece, and what jobs say of theirs.

    .jobs/{run}/ledger.json      pieces, in order, each with its job
    .jobs/{run}/said/{key}.json  the last word of a piece that is not in the store: it runs, it failed, and why
    .jobs/{run}/logs/            what submitit keeps of each job, its output among it

The store alone says what is done. All of this may be deleted; then nobody knows any more which jobs work for a run.
"""

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import locked, write_atomic
from sublim_interp.core.store import Store

FOLDER = ".jobs"
"""The folder of the store that holds a folder for each scheduled run."""
STATES = ("waits", "runs", "done", "failed", "lost", "blocked", "dead end", "cancelled")
"""What a piece may be. lost: its job ended before the piece was made. blocked: what it is made from is not made, and no
job is about to. dead end: the work was done and led nowhere."""


@dataclass(frozen=True)
class Entry:
    """One piece as it was scheduled."""

    stage: str
    inputs: tuple[str, ...]
    seconds: float
    job: str


class Standing(NamedTuple):
    """How a piece stands."""

    key: str
    stage: str
    state: str
    """One of `STATES`."""
    job: str
    why: str
    """Where it runs and how far it is, what it waits for, or what went wrong."""


@dataclass
class Ledger:
    """One scheduled run.

    folder: where it is kept
    name: of the experiment or grid
    key: of the run or sweep that it ends in
    executor: the name of the executor
    entries: every scheduled piece by key, in an order in which they can be made
    cancelled: jobs that were cancelled
    """

    folder: Path
    name: str
    key: str
    executor: str
    entries: dict[str, Entry] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)

    @property
    def logs(self) -> Path:
        """Where the jobs' files lie."""
        return self.folder / "logs"

    @property
    def jobs(self) -> list[str]:
        """Every job that has a piece."""
        return list(dict.fromkeys(entry.job for entry in self.entries.values()))

    def open_jobs(self, store: Store) -> list[str]:
        """Every job that has a piece which is not in the store."""
        held = store.held()
        return list(dict.fromkeys(entry.job for key, entry in self.entries.items() if key[:16] not in held))

    def stopped_by(self, dead: Iterable[str]) -> set[str]:
        """The pieces that cannot be made where some led nowhere: these, and what is made from them.

        dead: first 16 digits of their keys
        """
        dead, found = {*dead}, set[str]()
        for key, entry in self.entries.items():
            if key[:16] in dead or not found.isdisjoint(entry.inputs):
                found.add(key)
        return found

    def write(self) -> None:
        """Keeps it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = {key: asdict(entry) for key, entry in self.entries.items()}
        rest = {"name": self.name, "key": self.key, "executor": self.executor, "cancelled": sorted(self.cancelled)}
        write_atomic(self.folder / "ledger.json", json.dumps({**rest, "entries": entries}))

    @cached_property
    def words(self) -> "Words":
        """What its pieces say."""
        return Words(self.folder)

    def log(self, job: str) -> Path:
        """The output of a job."""
        return self.logs / f"{job}_0_log.out"

    def standings(self, store: Store, alive: Mapping[str, tuple[bool, str]]) -> list[Standing]:
        """How every piece stands.

        alive: of every job that has not ended: whether it runs, and where, or what it waits for
        """
        found: dict[str, Standing] = {}
        held = store.held()
        for key, entry in self.entries.items():
            found[key] = Standing(key, entry.stage, *self._state(key, entry, held, alive, found))
        return list(found.values())

    def _state(
        self,
        key: str,
        entry: Entry,
        held: frozenset[str],
        alive: Mapping[str, tuple[bool, str]],
        found: Mapping[str, Standing],
    ) -> tuple[str, str, str]:
        if key[:16] in held:
            return "done", entry.job, ""
        word, job = self.words.of(key, entry.job), entry.job
        if word.get("state") in ("failed", "dead end"):
            return word["state"], job, word["why"]
        runs, where = alive.get(job, (False, ""))
        if runs:
            if word.get("state") == "runs":
                return "runs", job, f"{where}, {word['fraction']:.0%}"
            return "waits", job, f"in its job, which runs on {where}"
        if job in alive:
            return "waits", job, where
        if job in self.cancelled:
            return "cancelled", job, ""
        before = [found[k] for k in entry.inputs if k in found and found[k].state not in ("done", "waits", "runs")]
        for standing in before:
            said = f"needs {standing.stage} {standing.key[:16]}"
            return ("dead end" if standing.state == "dead end" else "blocked"), job, said
        cut = f" in the middle, on {word['host']}" if word else ""
        return "lost", job, f"its job ended{cut}; the same `sublim run` goes on"


class Words:
    """The last word of each piece of a run: one small file a piece, so that no two jobs write one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "said"

    def _path(self, key: str) -> Path:
        return self._folder / f"{key[:16]}.json"

    def say(self, key: str, job: str, state: str, fraction: float = 0.0, why: str = "") -> None:
        """Keeps what a job says of one of its pieces."""
        word = {"job": job, "state": state, "fraction": fraction, "why": why, "host": socket.gethostname()}
        self._folder.mkdir(exist_ok=True)  # no parents: a store that is away for a while is not begun anew
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomic(self._path(key), json.dumps({**word, "at": since, "pid": os.getpid()}))

    def forget(self, key: str) -> None:
        """A piece that is done has nothing more to say."""
        self._path(key).unlink(missing_ok=True)

    def of(self, key: str, job: str) -> dict[str, Any]:
        """What a job said last of a piece; nothing where another job said it, or none did."""
        word = _word(self._path(key))
        return word if word.get("job") == job else {}

    def dead_ends(self) -> dict[str, str]:
        """Why, by the first 16 digits of the key, of every piece that led nowhere."""
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            word = _word(path)
            if word.get("state") == "dead end":
                found[path.stem] = word["why"]
        return found


def _word(path: Path) -> dict[str, Any]:
    """What was said last; nothing where another job has just taken it back."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def new_ledger(store: Store, name: str, key: str, executor: str) -> Ledger:
    """The ledger of a run, as it is kept, or a fresh one."""
    folder = store.root / FOLDER / key[:16]
    if (folder / "ledger.json").exists():
        kept = read_ledger(folder)
        if kept.executor == executor:  # ids of another's jobs mean nothing here
            return Ledger(folder, name, key, executor, kept.entries, kept.cancelled)
    return Ledger(folder, name, key, executor)


def read_ledger(folder: Path) -> Ledger:
    """The ledger in a folder. Raises SublimError where it cannot be read."""
    path = folder / "ledger.json"
    try:
        data = json.loads(path.read_text())
        entries = {key: Entry(**{**e, "inputs": tuple(e["inputs"])}) for key, e in data["entries"].items()}
        return Ledger(folder, data["name"], data["key"], data["executor"], entries, set(data["cancelled"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SublimError(
            f"{path} cannot be read ({type(error).__name__}); delete {folder}, no result is lost"
        ) from None


def ledgers(store: Store) -> list[Ledger]:
    """Every scheduled run of a store, oldest first."""
    paths = sorted(store.root.glob(f"{FOLDER}/*/ledger.json"), key=lambda path: path.stat().st_mtime)
    return [read_ledger(path.parent) for path in paths]


def find_ledger(store: Store, name: str) -> Ledger:
    """The scheduled run of this name, the newest of several, or of a key that begins so.

    Raises SublimError, with the names, where there is none.
    """
    known = ledgers(store)
    found = [one for one in known if one.name == name] or [one for one in known if name and one.key.startswith(name)]
    if not found:
        there = meant(name, [one.name for one in known], "sublim status", "scheduled")
        raise SublimError(f"nothing is scheduled as '{name}' in {store.root}; {there}")
    return found[-1]


@contextmanager
def alone_with(ledger: Ledger, locks: bool) -> Iterator[None]:
    """Inside the block no other command schedules or cancels the same run, where there are locks."""
    with locked(ledger.folder / ".lock", f"scheduling of {ledger.name}") if locks else nullcontext():
        yield


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a text file; none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 400 * lines))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def counts(standings: Iterable[Standing]) -> dict[str, int]:
    """How many pieces are in each state that any is in, in the order of `STATES`."""
    states: Sequence[str] = [standing.state for standing in standings]
    return {state: states.count(state) for state in STATES if state in states}
