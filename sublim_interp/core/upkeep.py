"""What a store need not keep, and its removal: never anything that a kept artefact was made from."""

import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from stat import S_ISREG

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import one_line
from sublim_interp.core.index import Row
from sublim_interp.core.store import Store

OLDEST = 36_500.0
"""Days that may be asked for at most, a hundred years."""
_NAMED = 8
"""Damaged folders that are named at most."""


def lineage(index: dict[str, Row], keys: Iterable[str]) -> list[str]:
    """All artefacts that some were made from, at however many removes, and these themselves, each after its inputs.

    index: of the store
    keys: the first 16 digits of each; those of artefacts that the store lacks are left out
    """
    found: dict[str, None] = {}
    waiting = [(key, False) for key in reversed([*keys])]
    while waiting:
        key, ready = waiting.pop()
        if key in found or key not in index:
            continue
        if ready:
            found[key] = None
        else:
            waiting += [(key, True), *((given, False) for given in reversed(index[key].inputs))]
    return [*found]


@dataclass(frozen=True)
class Garbage:
    """What may be removed.

    rows: artefacts, each before those that it was made from
    folders: unfinished work that is finished elsewhere, or that nobody has touched for long
    damaged: folders of damaged records; while there are any nothing is removed
    """

    rows: tuple[Row, ...]
    folders: tuple[Path, ...]
    damaged: tuple[Path, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(row.size for row in self.rows) + sum(_bytes(folder) for folder in self.folders)

    @property
    def hindrance(self) -> str:
        """Why nothing may be removed: what a run was made from is not known beyond a damaged record. "" if nothing."""
        if not self.damaged:
            return ""
        some = ", ".join(map(str, self.damaged[:_NAMED]))
        more = f" and {len(self.damaged) - _NAMED} more" if len(self.damaged) > _NAMED else ""
        return f"nobody knows what damaged records were made from: {some}{more}; delete or import them again first"


def garbage(
    store: Store, ends: Collection[str], drop: Collection[str] = (), needed: Iterable[str] = (), days: float = 7.0
) -> Garbage:
    """What no kept artefact needs.

    ends: stages whose artefacts are kept for their own sake, and all that they were made from
    drop: keys of such artefacts that are not kept any more
    needed: keys of further artefacts that are kept, such as those of a run that is still being made
    days: how long what is unfinished, or belongs to nothing yet, is left alone; 0 to OLDEST

    Raises SublimError for other days.
    """
    if not 0 <= days <= OLDEST:  # also what is no number
        raise SublimError(f"days is {days:g}; valid: 0 to {OLDEST:.0f}")
    index = store.index()
    dropped = {key[:16] for key in drop}
    kept = {row.short for row in index.values() if row.stage in ends} - dropped
    alive = {*lineage(index, [*kept, *(key[:16] for key in needed)])}
    since = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    orphans = {*lineage(index, dropped)}  # of any age: somebody has just said that they may go
    rows = [r for r in index.values() if r.short not in alive and (r.created <= since or r.short in orphans)]
    order = {key: place for place, key in enumerate(lineage(index, [row.short for row in rows]))}
    rows.sort(key=lambda row: -order[row.short])
    return Garbage(tuple(rows), tuple(_unfinished(store, index, days)), tuple(store.damaged()))


def _unfinished(store: Store, index: dict[str, Row], days: float) -> Iterable[Path]:
    """Folders of partial results that are published by now, or that nobody has written into for so many days."""
    for folder in sorted((store.root / ".partial").glob("*/")):
        published = any(part in index for part in folder.name.split("-"))
        newest = max((found.st_mtime for found in _stats(folder)), default=0.0)
        if time.time() - newest > (3600 if published else days * 86400):
            yield folder


def _bytes(folder: Path) -> int:
    return sum(found.st_size for found in _stats(folder) if S_ISREG(found.st_mode))


def _stats(folder: Path) -> Iterator[os.stat_result]:
    """Of a folder and all that is in it; a training beside may take a file away meanwhile."""
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            yield path.lstat()


def remove(store: Store, found: Garbage) -> None:
    """Removes it: each artefact in one step, before what it was made from.

    store: where it lies
    found: as `garbage` gives it

    Raises SublimError, with nothing removed, while the store has damaged records; and where the disk refuses.
    """
    if found.hindrance:
        raise SublimError(f"the store {store.root} is not cleared: {found.hindrance}")
    with one_line(f"the store {store.root} is not cleared to the end"):
        for path in [*(store.root / row.stage / row.short for row in found.rows), *found.folders]:
            aside = path.with_name(f".{path.name}.{os.getpid()}.removed")
            os.rename(path, aside)
            shutil.rmtree(aside)
        for row in found.rows:
            (store.root / ".locks" / f"{row.stage}-{row.short}.lock").unlink(missing_ok=True)
