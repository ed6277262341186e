"""Studies whose work falls into equal pieces. What each piece finds is kept as rows of tables, and found once."""

import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sublim_interp.core.device import open_device
from sublim_interp.core.files import is_sealed, write_atomic
from sublim_interp.core.keys import sha256_of
from sublim_interp.core.store import Store
from sublim_interp.core.workers import Task
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.tables import read_table
from sublim_interp.sweeps.study import Study

if TYPE_CHECKING:
    import pandas as pd

Rows = Sequence[Mapping[str, Any]]
"""Rows of a table: each by column."""


class Piecewise(Study):
    """A study in equal pieces: a replicate each, a base, or a pair of bases."""

    TABLES: ClassVar[tuple[str, ...]] = ("replicates",)
    """Its CSV files, by name without ending. The rows of all pieces make one, in the order of the pieces."""
    FLOATS: ClassVar[str | None] = "%.6g"
    """How floats are written; None writes them whole."""

    @abstractmethod
    def pieces(self) -> Mapping[str, tuple[Any, ...]]:
        """By the name of each piece what tells it from the others, as `measure` takes it."""

    @abstractmethod
    def seconds(self) -> float:
        """About how long one piece takes on one core, in seconds."""

    @abstractmethod
    def measure(self, directory: Path, progress: Progress, *which: Any) -> Mapping[str, Rows]:
        """Does one piece of the work.

        directory: the study's own, while it is being made
        progress: told the share that is done, 0 to 1
        which: of `pieces`

        Returns the rows of each of `TABLES` that it has any of.
        """

    def costs(self) -> dict[str, float]:
        return dict.fromkeys(self.pieces(), self.seconds())

    def tasks(self, directory: Path) -> Sequence[Task]:
        return [Task(name, _measure, (self, directory, name, which)) for name, which in self.pieces().items()]

    def frames(self, directory: Path) -> "dict[str, pd.DataFrame]":
        import pandas as pd

        found = {}
        for table in self.TABLES:
            paths = [_kept(directory, piece, table) for piece in self.pieces()]
            if parts := [read_table(path) for path in paths if path.stat().st_size]:
                found[table] = pd.concat(parts, ignore_index=True)
        return found


def _measure(study: Piecewise, directory: Path, piece: str, which: tuple[Any, ...], progress: Progress) -> None:
    import pandas as pd

    paths = {table: _kept(directory, piece, table) for table in study.TABLES}
    if all(map(is_sealed, paths.values())):
        return
    open_device()
    found = study.measure(directory, progress, *which)
    for table, path in paths.items():
        rows = found.get(table, ())
        options: Any = {"index": False, "lineterminator": "\n", "float_format": study.FLOATS}
        write_atomic(path, pd.DataFrame(rows).to_csv(**options) if rows else "", sealed=True)


def _kept(directory: Path, piece: str, table: str) -> Path:
    """Where the rows of a piece are kept: by its name, since not every order of pieces is in a study's key."""
    return directory / f".{sha256_of(piece)[:16]}.{table}.csv"


def store_of(directory: Path) -> Store:
    """The store that a study's directory lies in, where its work shares stages with runs; made or being made."""
    return Store(directory.parent.parent)


@contextmanager
def scratch_store(directory: Path, name: object) -> Iterator[Store]:
    """A store of a piece's own, taken away once all is done: 30 MB of what can be made again. It survives an error."""
    store = Store(directory / f".store-{name}")
    yield store
    shutil.rmtree(store.root, ignore_errors=True)
