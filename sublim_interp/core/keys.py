"""Keys and digests: canonical JSON, SHA-256 of values, files and directories."""

import fnmatch
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sublim_interp.core.errors import SublimError


def canonical_json(value: object) -> str:
    """Write plain data in the one form that keys are taken from: sorted keys, no spaces, ASCII, floats by repr.

    1 and 1.0 differ, a tuple is a list. NaN and infinity raise SublimError and name their place; a key that is no
    string, or an object that is not plain data, raises TypeError.
    """
    _require_plain(value, "")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _require_plain(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise SublimError(f"{where or 'value'} is {value}: what is stored must be a finite number")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):  # json would write 1 and "1" alike
                raise TypeError(f"{where or 'value'} has the key {name!r}, which is not a string")
            _require_plain(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")


def stage_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the key of what a stage makes: SHA-256, in hex, of the canonical JSON of the four arguments.

    `version` is the stage's own, bumped by hand; `inputs` maps a role to the key, or content digest, of what it uses.
    """
    return sha256_of({"stage": stage, "version": version, "config": dict(config), "inputs": dict(inputs)})


def sha256_of(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex. Raise SublimError if it is no regular file or cannot be read."""
    try:
        if path.exists() and not path.is_file():  # opening a named pipe would wait for ever
            raise SublimError(f"{path} is not a regular file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SublimError(f"{path} cannot be read: {error.strerror}") from error


def digest_directory(path: Path, ignore: Iterable[str] = ()) -> str:
    """Return the SHA-256, in hex, over the sorted relative names and the digests of the files below a directory.

    Left out are names that begin with a dot and names that match a glob in `ignore`, whose * also crosses slashes.
    Raise SublimError if nothing is left, or if an entry is neither a directory nor a readable regular file.
    """
    patterns = tuple(ignore)
    try:
        names = [name for name in file_names(path) if not any(fnmatch.fnmatchcase(name, glob) for glob in patterns)]
    except OSError as error:
        raise SublimError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    if not names:
        raise SublimError(f"the directory {path} holds no files")
    return sha256_of({name: digest_file(path / name) for name in names})


def file_names(directory: Path) -> list[str]:
    """List the relative POSIX names of all entries but directories, scratch left out; a linked directory is named."""

    def refuse(error: OSError) -> None:
        raise error

    names = []
    for folder, subfolders, files in os.walk(directory, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        for name in [*files, *links]:
            if not name.startswith("."):
                names.append((Path(folder) / name).relative_to(directory).as_posix())
    return sorted(names)
