"""The index of a store: what is asked often of every artefact, so that a large store is not read again each time.

It lies in `.index.json`, and may be deleted: it is made again. An artefact whose manifest has another size or time than
the index says is read again, so the index is never wrong for longer than it takes to look.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import log, one_line, write_atomic
from sublim_interp.core.manifests import MANIFEST, names_in, read_manifest, stages_in

INDEX = ".index.json"
_VERSION = 1
_WORTH = 500
"""Artefacts that must have been read anew before the index is written: a small store needs none."""


@dataclass(frozen=True)
class Row:
    """What the index knows of one artefact."""

    stage: str
    key: str
    name: str
    """The name that its stage gave it, else the empty string."""
    created: str
    inputs: tuple[str, ...]
    """The first 16 digits of the keys of its inputs, those that are no artefacts among them."""
    size: int
    """Bytes of its files."""

    @property
    def short(self) -> str:
        """The first 16 digits of its key, by which its folder is called."""
        return self.key[:16]


def indexed(root: Path) -> dict[str, Row]:
    """Every artefact of a store by the first 16 digits of its key, oldest first; damaged ones are left out."""
    try:
        return _indexed(root, _kept(root))
    except (TypeError, ValueError, IndexError, AttributeError):  # an index that is JSON, and nothing of ours
        return _indexed(root, {})


def _indexed(root: Path, kept: dict[str, dict[str, list[Any]]]) -> dict[str, Row]:
    fresh, read = {}, 0
    for stage in stages_in(root):
        before = kept.get(stage, {})
        rows = fresh[stage] = {}
        for name in names_in(root, stage):
            seen = _seen(root / stage / name / MANIFEST)
            row = before.get(name)
            if row is None or row[0] != seen or not row[1]:
                row, read = [seen, *_read(root / stage / name)], read + 1
            rows[name] = row
    if read >= _WORTH or (kept and read):
        _keep(root, fresh)
    known = [
        Row(stage, key, label, created, tuple(inputs), size)
        for stage, rows in fresh.items()
        for _, key, label, created, inputs, size in rows.values()
        if key
    ]
    return {row.short: row for row in sorted(known, key=lambda row: (row.created, row.stage, row.key))}


def _seen(path: Path) -> list[int]:
    """Size and time of a file, or nothing where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _read(path: Path) -> list[Any]:
    """Key, name, time, inputs and bytes of an artefact; a key that is empty where its manifest is damaged."""
    manifest, problem = read_manifest(path)
    if problem:
        log.warning("%s is left out: %s", path, problem)
        return ["", "", "", [], 0]
    size = sum(file["bytes"] for file in manifest["files"].values())
    inputs = [key[:16] for key in manifest["inputs"].values()]
    return [manifest["key"], manifest["notes"].get("name", ""), manifest["created"], inputs, size]


def _kept(root: Path) -> dict[str, dict[str, list[Any]]]:
    """The index as it lies there, by stage and name; nothing where there is none, or one that cannot be read."""
    try:
        data = json.loads((root / INDEX).read_text())
        return data["stages"] if data["version"] == _VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _keep(root: Path, stages: dict[str, dict[str, list[Any]]]) -> None:
    try:
        with one_line(f"{root / INDEX} is not written"):
            write_atomic(root / INDEX, json.dumps({"version": _VERSION, "stages": stages}, separators=(",", ":")))
    except SublimError as error:  # a store that is only read works all the same
        log.debug("%s", error)
