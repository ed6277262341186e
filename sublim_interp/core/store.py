"""The content-addressed store: artefacts, locks, publication, verification. What a stage computes is not here."""

import errno
import json
import os
import platform
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sublim_interp.core.device import changes, version_of
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import DISK, locked, log, one_line, seal_problem, sync, write_atomic
from sublim_interp.core.index import Row, indexed
from sublim_interp.core.keys import canonical_json, digest_file, file_names, sha256_of, stage_key
from sublim_interp.core.manifests import MANIFEST, manifest_text, names_in, read_manifest, stages_in

_FINGERPRINT = ".fingerprint.json"


LOCKS, NO_LOCKS = "SUBLIM_LOCKS", "none"
"""The environment variable that says by "none" that file locks do not reach all who write into a store."""
OWNER = "SUBLIM_OWNER"
"""The environment variable that names who works, such as a cluster's job. Where there are no locks, what a process left
unfinished is gone on from by one of the same name, and by nobody else."""


_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "numpy", "pydantic")


def _read_fingerprint(path: Path) -> dict[str, Any]:
    """Return what a partial result says of itself; nothing if that cannot be read."""
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        before = None
    return before if isinstance(before, dict) else {}


@dataclass(frozen=True, repr=False)
class Artifact:
    """One finished result of one stage: a directory that is only read, and the manifest that says how it came to be.

    The manifest holds stage, key, version, config, inputs, files (bytes and SHA-256 of each), notes, fingerprint, code,
    packages, created (UTC), seconds (of the process that finished it), resumed, and digest (over all the others).
    """

    path: Path
    manifest: dict[str, Any] = field(compare=False)

    @property
    def stage(self) -> str:
        """The name of the stage that made it."""
        return self.path.parent.name

    @property
    def key(self) -> str:
        """Its key: 64 hexadecimal digits (the first 16, if its manifest is damaged)."""
        return self.manifest.get("key", self.path.name)

    @property
    def name(self) -> str:
        """The name that the stage gave it by `note(name=...)`, else the empty string."""
        return self.manifest.get("notes", {}).get("name", "")

    def verify(self) -> list[str]:
        """Compare the files on disk with the manifest; return one line per altered, missing or extra file."""
        manifest, problem = read_manifest(self.path)
        if problem:
            return [problem]
        expected: dict[str, dict[str, Any]] = manifest["files"]
        with one_line(f"{self.path} cannot be verified"):
            found = set(file_names(self.path)) - {MANIFEST}
            problems = []
            for name in sorted(expected.keys() | found):
                if name not in found:
                    problems.append(f"{name} is missing")
                elif name not in expected:
                    problems.append(f"{name} does not belong here")
                elif (size := (self.path / name).stat().st_size) != expected[name]["bytes"]:
                    problems.append(f"{name} is altered: {size} bytes, not {expected[name]['bytes']}")
                elif digest_file(self.path / name) != expected[name]["sha256"]:
                    problems.append(f"{name} is altered: same size, other content")
        return problems

    @staticmethod
    def at(path: Path) -> "Artifact":
        """What lies in a directory of a store; its manifest is empty where it is damaged, and `verify` says how."""
        return Artifact(path, read_manifest(path)[0])

    def __repr__(self) -> str:
        if not self.manifest:
            return f"<{self.stage} {self.key}, manifest damaged, in {self.path}>"
        sizes = [file["bytes"] for file in self.manifest["files"].values()]
        what = f"{self.stage} {self.name}".strip()
        made = f"{self.manifest['created'][:16]} in {self.manifest['seconds']:.1f} s"
        return f"<{what} {self.key[:16]}, {len(sizes)} files, {sum(sizes):,} bytes, made {made}>"


@dataclass
class Work:
    """What `Store.make` hands to its block.

    Unless `done`, the block writes its files into `directory`. Where `resumed`, some are there already, left by a
    process of the same key and fingerprint that was interrupted at any point: each by `write_atomic` is whole, and one
    for which `is_sealed` is true has not been damaged since.
    """

    stage: str
    key: str
    directory: Path
    resumed: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    finished: Artifact | None = None

    @property
    def done(self) -> bool:
        """Whether the artefact exists, so that there is nothing to do."""
        return self.finished is not None

    @property
    def artifact(self) -> Artifact:
        """The artefact: at once if `done`, else after the block; RuntimeError before."""
        if self.finished is None:
            raise RuntimeError(f"{self.stage} {self.key[:16]} is published when its with block ends, not earlier")
        return self.finished

    def note(self, **notes: Any) -> None:
        """Add plain facts to the manifest (seeds, filter counts; `name` is what `Store.find` knows it by), no paths."""
        self.notes.update(json.loads(canonical_json(notes)))


NAMED = ("run", "sweep", "study")
"""Stages whose artefacts are finished work that has a name."""


def _stages(stage: str | Sequence[str]) -> Sequence[str]:
    return (stage,) if isinstance(stage, str) else stage


@dataclass(frozen=True, init=False)
class Store:
    """A directory of artefacts. Reading needs no write permission: only `make` creates anything that counts."""

    root: Path

    def __init__(self, root: Path | str) -> None:
        object.__setattr__(self, "root", Path(root))

    @classmethod
    def open(cls, path: Path | str | None = None) -> "Store":
        """Return the store at `path`, else at $SUBLIM_STORE, else at ./runs. Raise SublimError if a file is there."""
        root = Path(os.path.expanduser(path or os.environ.get("SUBLIM_STORE") or "runs")).absolute()
        with one_line(f"the store {root} cannot be opened"):
            nearest = next(folder for folder in (root, *root.parents) if folder.exists())
            if not nearest.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "", str(nearest))
        return Store(root)

    def get(self, stage: str, key: str, *, check: bool = False) -> Artifact | None:
        """Return the artefact of a key, or None if there is none.

        Raise SublimError naming what is wrong if its manifest is damaged or, with `check`, if any of its files is.
        """
        path = self.root / stage / key[:16]
        with one_line(f"the store {self.root} cannot be read"):
            if not path.is_dir():
                return None
        manifest, problem = read_manifest(path)
        artifact = Artifact(path, manifest)
        problems = [problem] if problem else artifact.verify() if check else []
        if problems:
            raise SublimError(f"{path} is damaged: {'; '.join(problems)}. Delete that directory, it is made again")
        return artifact

    def holds(self, key: str) -> bool:
        """Whether a finished artefact has this key. Nothing of it is read: what is there was published whole."""
        return next(self.root.glob(f"[!.]*/{key[:16]}"), None) is not None

    def held(self) -> frozenset[str]:
        """The first 16 digits of the key of every finished artefact, none of which is read."""
        return frozenset(name for stage in stages_in(self.root) for name in names_in(self.root, stage))

    def verify(self) -> Iterator[tuple[Artifact, list[str]]]:
        """Yield every artefact with what is wrong with it (an empty list if nothing is), digests of all files taken."""
        for artifact in self.artifacts():
            yield artifact, artifact.verify()

    def artifacts(self) -> Iterator[Artifact]:
        """Yield every artefact, as `Artifact.at` reads it; no digest of its files is taken."""
        yield from map(Artifact.at, self._paths("*"))

    def holding(self, key: str) -> list[Artifact]:
        """Return what lies under a key, or a beginning of one of at least 8 digits, of whatever stage."""
        if not re.fullmatch("[0-9a-f]{8,64}", key):
            return []
        found = (Artifact.at(path) for path in self._paths("*") if path.name.startswith(key[:16]))
        return [artifact for artifact in found if artifact.key.startswith(key) or key.startswith(artifact.key)]

    def damaged(self) -> "list[Path]":
        """Return the folders of artefacts whose manifest is damaged."""
        index = self.index()
        unknown = [path for path in self._paths("*") if path.name not in index]
        return [path for path in unknown if read_manifest(path)[1]]  # one may just have been published

    def unfinished(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield every partial result with what is wrong with its sealed files (an empty list if nothing is)."""
        with one_line(f"the store {self.root} cannot be read"):
            for path in sorted((self.root / ".partial").glob("*/")):
                seals = sorted(path.rglob(".*.sha256"))
                files = [seal.with_name(seal.name.removeprefix(".").removesuffix(".sha256")) for seal in seals]
                problems = [(file, seal_problem(file)) for file in files if file.is_file()]
                yield path, [f"{file.relative_to(path).as_posix()} {problem}" for file, problem in problems if problem]

    def matches(self, stage: str | Sequence[str], name: str) -> list[Artifact]:
        """Return artefacts of a stage, or of several, with this name, else those whose key begins so, oldest first."""
        stages = _stages(stage)
        rows = [row for row in self.index().values() if row.stage in stages] if name else []
        found = [row for row in rows if row.name == name] or [row for row in rows if row.key.startswith(name.lower())]
        return self._read([self.root / row.stage / row.short for row in found])

    def index(self) -> dict[str, Row]:
        """What is known of every artefact without reading it again, by the first 16 digits of its key, oldest first."""
        return indexed(self.root)

    def find(self, stage: str | Sequence[str], name: str) -> Artifact:
        """Return the artefact of a stage, or of several, by its name or the beginning of its key; a name goes first.

        Raise SublimError naming the candidates if none is meant, or more than one.
        """
        matches = self.matches(stage, name)
        if len(matches) == 1:
            return matches[0]
        stages = _stages(stage)
        known = matches or [row for row in self.index().values() if row.stage in stages]
        choices = [f"{one.key[:16]} {one.name}".strip() for one in known]
        said = ", ".join(choices[-12:]) + (f" and {len(choices) - 12} older" if len(choices) > 12 else "")
        if matches:
            raise SublimError(f"{name!r} may mean any of these, give (more of) the key of one: {said}")
        words = " or ".join(filter(None, [", ".join(stages[:-1]), stages[-1]]))
        raise SublimError(f"no {words} is called {name!r} in {self.root}; there is: {said or 'none'}")

    def _paths(self, stage: str) -> list[Path]:
        stages = stages_in(self.root) if stage == "*" else [stage]
        return [self.root / own / name for own in stages for name in names_in(self.root, own)]

    @contextmanager
    def make(
        self,
        stage: str,
        version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        fingerprint: Mapping[str, str | int],
    ) -> Iterator[Work]:
        """Make one artefact once: `with store.make(...) as work:`, and in it `if not work.done:` the work.

        An artefact that exists is verified and handed over. Otherwise the lock of the key is taken; a process that had
        to wait for it finds the work done. When the block ends without an exception, all it wrote is digested, synced
        and moved into place in one step. After an exception or a kill nothing is published, and the files stay for the
        next call with an equal fingerprint; another fingerprint starts from an empty directory, with a warning.
        Where `$SUBLIM_LOCKS` is "none", no lock is taken. Each process then works in a folder of its own: work may be
        done twice; the first to end publishes, and the others take what it published.
        Raise SublimError if the artefact is damaged, or the store full, not writable, or without file locks.
        """
        key = stage_key(stage, version, config, inputs)
        short = f"{stage}-{key[:16]}"
        locks = os.environ.get(LOCKS) != NO_LOCKS
        own = "" if locks else f"-{os.environ.get(OWNER) or f'{socket.gethostname()}-{os.getpid()}'}"
        work = Work(stage, key, self.root / ".partial" / f"{short}-{sha256_of(dict(fingerprint))[:8]}{own}")
        complaint = f"{stage} {key[:16]} is not finished in the store {self.root}"
        with ExitStack() as held:
            work.finished = self.get(stage, key, check=True)
            if not work.done and locks:
                with one_line(complaint):
                    held.enter_context(locked(self.root / ".locks" / f"{short}.lock", short))
                work.finished = self.get(stage, key, check=True)
            if work.done:
                held.close()
                yield work
                return
            start = time.monotonic()
            with one_line(complaint):
                self._prepare(work, short, fingerprint)
            try:
                with one_line(complaint, only=DISK):
                    yield work
            except BaseException:
                if [entry.name for entry in work.directory.iterdir()] == [_FINGERPRINT]:
                    shutil.rmtree(work.directory)
                raise
            manifest = {
                "stage": stage,
                "key": key,
                "version": version,
                "config": dict(config),
                "inputs": dict(inputs),
                "fingerprint": dict(fingerprint),
                "code": version_of("sublim_interp"),
                "packages": {"python": platform.python_version(), **{name: version_of(name) for name in _PACKAGES}},
                "notes": work.notes,
                "resumed": work.resumed,
                "seconds": round(time.monotonic() - start, 3),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            with one_line(complaint):
                self._publish(work, short, manifest)
            work.finished = self.get(stage, key)

    def _prepare(self, work: Work, short: str, fingerprint: Mapping[str, str | int]) -> None:
        work.directory.mkdir(parents=True, exist_ok=True)
        work.resumed = any(entry.name != _FINGERPRINT for entry in work.directory.iterdir())
        write_atomic(work.directory / _FINGERPRINT, canonical_json(dict(fingerprint)))
        if work.resumed:
            log.info("%s goes on from a partial result", short)
            return
        for other in set(work.directory.parent.glob(f"{short}-*/{_FINGERPRINT}")) - {work.directory / _FINGERPRINT}:
            said = changes(_read_fingerprint(other), fingerprint)
            log.warning("%s starts afresh, its partial result has another fingerprint: %s", short, said)

    def _publish(self, work: Work, short: str, manifest: dict[str, Any]) -> None:
        files = {}
        mode = (work.directory / _FINGERPRINT).stat().st_mode
        for name in file_names(work.directory):
            path = work.directory / name
            if name != MANIFEST:  # of a process that was killed on its way to here
                files[name] = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
                path.chmod(mode)  # safetensors writes files that only their owner may read, whatever the umask
                sync(path)
        write_atomic(work.directory / MANIFEST, manifest_text({**manifest, "files": files}))
        for folder, _, _ in os.walk(work.directory):
            sync(Path(folder))
        final = self.root / work.stage / work.key[:16]
        final.parent.mkdir(exist_ok=True)
        try:
            os.rename(work.directory, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (final / MANIFEST).is_file():
                raise
            log.info("%s was published by another process first: its result is taken", short)
            shutil.rmtree(work.directory)
            return
        for folder in (final.parent, self.root):
            sync(folder)
        # Scratch goes last: a process killed before the rename still finds its checkpoints when it goes on.
        partial = [] if os.environ.get(LOCKS) == NO_LOCKS else work.directory.parent.glob(f"{short}-*")
        for path in [*final.rglob(".*"), *partial]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def list(self, stage: str | None = None) -> list[Artifact]:
        """Return all artefacts, or those of one stage, oldest first; a damaged manifest is logged and left out."""
        return sorted(self._read(self._paths(stage or "*")), key=lambda a: (a.manifest["created"], a.path))

    def _read(self, paths: Iterable[Path]) -> "list[Artifact]":
        artifacts = []
        for path in paths:
            manifest, problem = read_manifest(path)
            if problem:
                log.warning("%s is left out: %s", path, problem)
            else:
                artifacts.append(Artifact(path, manifest))
        return artifacts
