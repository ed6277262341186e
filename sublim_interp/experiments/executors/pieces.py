"""One piece of work: an artefact to be made, what makes it, what must lie in the store before, what it needs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublim_interp.core.journal import Journal
from sublim_interp.core.store import Artifact, Store
from sublim_interp.experiments.cost import Needs, needs
from sublim_interp.models.base import Base
from sublim_interp.pipeline.records import Evaluation, Record
from sublim_interp.training.recording.settings import Recording

Progress = Callable[[float], None]
"""Called with the share of a piece that is done, 0 to 1."""


@dataclass(frozen=True)
class Piece:
    """One artefact that is to be made. It is done when the store holds it under its key, and only then.

    stage, key: where it will lie in the store
    function, arguments: what makes it: called as `function(*arguments, progress)`
    inputs: keys of other pieces that are made before
    needs: time and memory that it takes
    tells_dead_ends: whether it is made even where an input led nowhere, such as a sweep that says so in its tables
    """

    stage: str
    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    inputs: tuple[str, ...]
    needs: Needs
    tells_dead_ends: bool = False

    @property
    def label(self) -> str:
        """Its stage and the beginning of its key."""
        return f"{self.stage} {self.key[:16]}"

    def find(self, store: Store) -> Artifact | None:
        """Its artefact in the store, or None."""
        return store.get(self.stage, self.key)


def peaks_of(store: Store) -> Journal:
    """Bytes of a GPU that pieces of each shape took, as was measured. It may be deleted: then it is measured anew."""
    return Journal(store.root / ".peaks.jsonl")


@dataclass(frozen=True)
class Work:
    """All that is to be made of one experiment or grid.

    name: of the experiment or grid
    key: of the run or sweep that it ends in
    pieces: in an order in which they can be made
    """

    name: str
    key: str
    pieces: tuple[Piece, ...]


def make_record(record: Record, root: Path, recording: Recording, progress: Progress) -> None:
    """What a worker process does with one record."""
    from sublim_interp.pipeline.make import make

    make(record, Store(root), progress, recording)


def pieces_of(records: Sequence[Record], store: Store, recording: Recording) -> list[Piece]:
    """A piece for each record; of the others among them, it names those that it is made from."""
    keys = {record.key for record in records}
    return [
        Piece(
            record.STAGE,
            record.key,
            make_record,
            (record, store.root, recording),
            tuple(key for key in _made_from(record) if key in keys),
            needs(record),
        )
        for record in records
    ]


def _made_from(record: Record) -> Iterable[str]:
    if isinstance(record, Evaluation) and isinstance(record.model, Base):
        return (record.reference.key,)
    return (given.key for given in record.inputs().values() if isinstance(given, Record))
