"""Journals: results by key, a line each, appended as they arrive. What a killed process wrote is read again."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sublim_interp.core.files import one_line
from sublim_interp.core.keys import canonical_json


class Journal:
    """Plain data by key, in a file to which any number of processes may append.

    path: of the file; it need not be there yet

    A line holds its own digest: one that is torn or damaged is left out, as if it had never been written. Lines are
    handed to the operating system one by one, so they outlive the process; what a power cut may lose is made again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = _read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Any:
        return self._rows[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or else `default`."""
        return self._rows.get(key, default)

    def add(self, key: str, value: Any) -> None:
        """Writes a value down. Raises SublimError where the disk does not take it."""
        text = canonical_json([key, value])
        line = f"\n{_digest(text)} {text}".encode()  # the line break ends whatever a killed process left
        with one_line(f"{self._path} is not written"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, line)  # short on a full disk alone; the line then counts as torn
            finally:
                os.close(file)
        self._rows[key] = value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    """The whole lines of a journal; none where there is no file."""
    if not path.is_file():
        return {}
    rows = {}
    with one_line(f"{path} cannot be read"):
        lines = path.read_bytes().decode(errors="replace").split("\n")
    for line in lines:
        digest, _, text = line.partition(" ")
        if text and digest == _digest(text):
            key, value = json.loads(text)
            rows[key] = value
    return rows
