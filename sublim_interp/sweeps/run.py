"""Makes a sweep: every cell, then its tables and its figure."""

from sublim_interp.core.device import fingerprint
from sublim_interp.core.errors import DeadEnd
from sublim_interp.core.store import Artifact, Store
from sublim_interp.core.workers import Watch
from sublim_interp.experiments.run import execute
from sublim_interp.sweeps.plan import SweepPlan, find_sweep, identity


def run_grid(
    p: SweepPlan,
    store: Store,
    processes: int = 2,
    watch: Watch = lambda _name, _fraction: None,
    trace: str | None = None,
) -> Artifact:
    """Makes what is missing of a sweep, then its files: CSV tables, and the figure as PNG and PDF.

    A cell that leads nowhere stops no other: `dead_ends.csv` tells of it, where there is one.

    processes: how many trainings at once
    watch: told of progress, by a record's key
    trace: what trainings record, as in `experiments.run`
    """
    from sublim_interp.core.drawing import save
    from sublim_interp.training.recording.settings import recording_of

    recording = recording_of(trace) if trace else p.recording
    lost: dict[str, Exception] = {}
    if find_sweep(p, store) is None:
        missing = p.missing(store)
        if missing:
            lost = execute(missing, store, processes, watch, recording, skip=(DeadEnd,))
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
