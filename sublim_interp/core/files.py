"""Files that are whole or not there: atomic writes, seals, and system errors as one line."""

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import digest_file, file_names

log = logging.getLogger(__name__)


_MOVING = "moving"
"""A file in the folder in which something is made: all is made, and being moved to its places."""


STORE = ("store", "--store or $SUBLIM_STORE", ", it goes on from what is kept")
"""What a place on disk is called, how another is named, what a second try finds: to end an error."""


_HINTS = {  # {0}, {1} and {2} are the parts of a place such as STORE
    errno.ENOSPC: "free some space and run the same command again{2}",
    errno.EROFS: "name a {0} that can be written, with {1}",
    errno.ENOLCK: "this file system has no file locks, name a {0} on another with {1}, or see SUBLIM_LOCKS",
    errno.ENOTDIR: "a file stands where a directory is needed, name another {0} with {1}",
}
_HINTS |= {errno.EDQUOT: _HINTS[errno.ENOSPC], errno.EACCES: _HINTS[errno.EROFS], errno.EPERM: _HINTS[errno.EROFS]}
_HINTS |= dict.fromkeys((errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP), _HINTS[errno.ENOLCK])
_HINTS |= {errno.EEXIST: _HINTS[errno.ENOTDIR]}


# What a stage's own code may meet on the store's disk; its other system errors are not the store's to explain.
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def write_atomic(path: Path, data: bytes | str, *, sealed: bool = False) -> None:
    """Write a file so that a reader, or a run after a power cut, finds the old content or the new, nothing between.

    With `sealed`, its digest is kept beside it: see `seal`. Raise SublimError, one line, if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with one_line(f"{path} is not written"):
        try:
            with temporary.open("wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            if sealed:
                seal(path, temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read_regular(path: Path) -> bytes:
    """What a file holds. Raise OSError as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes. Raise OSError, also for no regular file: a pipe or a device would not end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def seal(path: Path, coming: Path) -> None:
    """Keep the digest of `coming`, which is about to be moved to `path`, in a dot-file beside it.

    So damage to a file from which an interrupted stage goes on is found before it is used. The old content stays sealed
    too, since a process may be killed between this call and the move.
    """
    write_atomic(_beside(path), "\n".join([*_sealed(path)[-1:], digest_file(coming)]))


def is_sealed(path: Path) -> bool:
    """Whether a file is there and is what `seal` saw; one that is something else is said to be damaged in the log."""
    if not path.is_file():
        return False
    problem = seal_problem(path)
    if problem:
        log.warning("%s %s: it is made again", path, problem)
    return not problem


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _sealed(path: Path) -> list[str]:
    """Return the digests that a file may have, the newest last."""
    try:
        return _beside(path).read_text().split()
    except (OSError, ValueError):  # no seal yet, or no text any more
        return []


def seal_problem(path: Path) -> str:
    return "" if digest_file(path) in _sealed(path) else "is altered"


def copy_tree(source: Path, target: Path) -> None:
    """Copies a directory with all below it; names that begin with a dot are left out.

    Raises OSError as the first file has it, which `one_line` can tell. `shutil.copytree` gathers its errors in one that
    has no number.

    source: the directory
    target: where its files go; it may be there already
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in file_names(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def one_line(what: str, only: Collection[int] | None = None, place: tuple[str, str, str] = STORE) -> Iterator[None]:
    """Turn a system error (of the numbers in `only`, if given) into a SublimError that says what to do about it."""
    try:
        yield
    except SublimError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if rust := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors and tokenizers raise no OSError
            number = int(rust[1])
        if number is None or (only is not None and number not in only):
            raise
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        hint = f"; {_HINTS[number].format(*place)}" if number in _HINTS else ""
        raise SublimError(f"{what}: {os.strerror(number)}{where}{hint}") from error


def require_free(places: Iterable[Path]) -> None:
    """Raises SublimError, with the first of them, where one of the places that are to be made is there already."""
    if there := [place for place in places if place.exists()]:
        raise SublimError(f"{there[0]} exists already; choose another directory, or delete it first")


def partial_of(directory: Path, origin: str) -> Path:
    """The folder beside `directory` in which it is made: a name of its own for each origin.

    What another recipe or machine began is never mixed with it, and never lost.

    origin: all that decides what is made, as text
    """
    return directory.with_name(f".{directory.name}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}.partial")


def begin(partial: Path, origin: str) -> None:
    """Makes the folder in which something is made, and says there what; what lies there already stays.

    partial, origin: as `partial_of` has them
    """
    partial.mkdir(parents=True, exist_ok=True)
    (partial / _MOVING).unlink(missing_ok=True)
    write_atomic(partial / "started.json", origin)


def move_out(partial: Path, places: Mapping[str, Path]) -> None:
    """Moves what is made to its places, and removes the folder in which it was made; `finish_moving` goes on with it.

    partial: as `partial_of` gives it
    places: where each directory goes, by its name in `partial`
    """
    write_atomic(partial / _MOVING, "")
    for name, place in places.items():
        if (partial / name).exists():
            (partial / name).rename(place)
    shutil.rmtree(partial)


def finish_moving(directory: Path, partial: Path, places: Mapping[str, Path]) -> bool:
    """Moves what a killed process had made and was moving, and returns whether there was such a process.

    directory: what is made
    partial, places: as `move_out` takes them

    Raises SublimError where another process is at it.
    """
    parts = [(partial / name, place) for name, place in places.items()]
    if not (partial / _MOVING).exists() or any(made.exists() == place.exists() for made, place in parts):
        return False  # a place that is taken, or a part that is gone: all is made anew
    with one_line(f"{directory} is not finished"), alone(directory, partial):
        move_out(partial, places)
    return True


@contextmanager
def alone(directory: Path, partial: Path) -> Iterator[None]:
    """Inside the block no other process makes the same directory; SublimError where one does."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(partial / ".lock", timeout=0, fallback_to_soft=False):
            yield
    except Timeout:
        raise SublimError(f"{directory} is being made by another process") from None


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` inside the block; where another process has it, say that `what` is in the making."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock would outlive the process that is killed while it holds it.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s is being made by another process: waiting for it", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
