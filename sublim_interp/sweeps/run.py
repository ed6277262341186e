"""Makes a sweep: every cell, then its tables and its figure."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sublim_interp.core.device import fingerprint
from sublim_interp.core.errors import DeadEnd
from sublim_interp.core.store import Artifact, Store
from sublim_interp.core.workers import Watch
from sublim_interp.experiments.cost import REPORT, Needs
from sublim_interp.experiments.executors.pieces import Piece, Progress, Work, pieces_of
from sublim_interp.experiments.run import execute
from sublim_interp.pipeline.records import Evaluation, Record
from sublim_interp.sweeps.plan import SweepPlan, find_sweep, identity, sweep_key


def run_grid(
    p: SweepPlan,
    store: Store,
    processes: int = 2,
    watch: Watch = lambda _name, _fraction: None,
    trace: str | None = None,
    known: Mapping[str, str] = MappingProxyType({}),
) -> Artifact:
    """Makes what is missing of a sweep, then its files: CSV tables, and the figure as PNG and PDF.

    A cell that leads nowhere stops no other: `dead_ends.csv` tells of it, where there is one.

    processes: how many trainings at once
    watch: told of progress, by a record's key
    trace: what trainings record, as in `experiments.run`
    known: why records lead nowhere that are not tried again, by the first 16 digits of their keys
    """
    from sublim_interp.core.drawing import save
    from sublim_interp.training.recording.settings import recording_of

    recording = recording_of(trace) if trace else p.recording
    lost: dict[str, Exception] = {}
    if find_sweep(p, store) is None:
        missing = p.missing(store)
        lost = {r.key: DeadEnd(why) for r in missing for why in _dead_end(r, known)}
        missing = [r for r in missing if r.key not in lost]
        if missing:
            lost |= execute(missing, store, processes, watch, recording, skip=(DeadEnd,))
    there, mode = p.without(lost), p.grid.mode
    with store.make("sweep", mode.version, *identity(p), fingerprint(dtype=p.dtype)) as work:
        if not work.done:
            work.note(name=p.grid.name)
            tables = mode.frames(there.cells, store)
            if not (ends := p.dead_ends(lost)).empty:
                tables["dead_ends"] = ends
            for name, frame in tables.items():
                frame.to_csv(work.directory / f"{name}.csv", index=False)
            figure = mode.draw(work.directory)
            for ending in ("png", "pdf"):
                save(figure, work.directory / f"{mode.figure}.{ending}")
    return work.artifact


def _dead_end(record: Record, known: Mapping[str, str]) -> list[str]:
    """Why a record cannot be had, as is known of it or of what it is made from; an empty list if nothing is known."""
    return [known[r.key[:16]] for r in record.lineage() if r.key[:16] in known][:1]


def sweep_work(p: SweepPlan, store: Store) -> Work:
    """All that is to be made of a grid, the sweep itself last: for an executor that is left alone."""
    records = p.missing(store)
    pieces = pieces_of(records, store, p.recording)
    evaluations = tuple(r.key for r in records if isinstance(r, Evaluation))
    last = Piece(
        "sweep",
        sweep_key(p),
        _end_sweep,
        (p, store.root),
        evaluations,
        Needs(60.0, REPORT, "sweep"),
        tells_dead_ends=True,
    )
    return Work(p.grid.name, last.key, (*pieces, last))


def _end_sweep(p: SweepPlan, root: Path, dead_ends: Mapping[str, str], progress: Progress) -> None:
    run_grid(p, Store(root), 1, lambda _name, fraction: progress(fraction), known=dead_ends)
