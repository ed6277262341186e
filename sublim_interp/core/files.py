"""Files that are whole or not there: atomic writes, seals, and system errors as one line."""

import errno
import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import digest_file

log = logging.getLogger(__name__)


_HINTS = {
    errno.ENOSPC: "free some space and run the same command again, it goes on from what is kept",
    errno.EROFS: "name a store that can be written, with --store or $SUBLIM_STORE",
    errno.ENOLCK: "this file system has no file locks, name a store on another with --store or $SUBLIM_STORE",
    errno.ENOTDIR: "a file stands where a directory is needed, name another store with --store or $SUBLIM_STORE",
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
    """What a file holds. Raise OSError as `read_bytes`, and for no regular file: a pipe or a device would not end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


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


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def one_line(what: str, only: Collection[int] | None = None) -> Iterator[None]:
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
        place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        hint = f"; {_HINTS[number]}" if number in _HINTS else ""
        raise SublimError(f"{what}: {os.strerror(number)}{place}{hint}") from error
