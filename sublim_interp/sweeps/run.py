"""Makes a sweep: every cell, then its tables and its figure."""

from pathlib import Path
from typing import TYPE_CHECKING

from sublim_interp.core.device import fingerprint
from sublim_interp.core.errors import DeadEnd
from sublim_interp.core.store import Artifact, Store
from sublim_interp.core.workers import Watch
from sublim_interp.experiments.run import execute
from sublim_interp.sweeps.grid import Grid
from sublim_interp.sweeps.plan import VERSIONS, SweepPlan, find_sweep, identity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_grid(
    p: SweepPlan,
    store: Store,
    processes: int = 2,
    watch: Watch = lambda _name, _fraction: None,
    trace: str | None = None,
) -> Artifact:
    """Makes what is missing, then `cells.csv`, for bases or traits `matrix.csv`, for traits `questions.csv`, and the
    figure as PNG and PDF. A cell that leads nowhere stops no other: `dead_ends.csv` tells of it, where there is one.

    `trace` is that of `runs.run`.
    """
    from sublim_interp.core.drawing import save
    from sublim_interp.training.recording.settings import recording_of

    recording = recording_of(trace) if trace else p.recording
    lost: dict[str, Exception] = {}
    if find_sweep(p, store) is None:
        missing = p.missing(store)
        if missing:
            lost = execute(missing, store, processes, watch, recording, skip=(DeadEnd,))
    there = p.without(lost)
    with store.make("sweep", VERSIONS[p.grid.matrix], *identity(p), fingerprint()) as work:
        if not work.done:
            work.note(name=p.grid.name)
            if not (ends := p.dead_ends(lost)).empty:
                ends.to_csv(work.directory / "dead_ends.csv", index=False)
            there.table(store).to_csv(work.directory / "cells.csv", index=False)
            if p.grid.figure == "matrix":
                there.matrix(store).to_csv(work.directory / "matrix.csv", index=False)
            if p.grid.matrix == "traits":
                there.by_question(store).to_csv(work.directory / "questions.csv", index=False)
            figure = draw(p.grid, work.directory)
            for ending in ("png", "pdf"):
                save(figure, work.directory / f"{p.grid.figure}.{ending}")
    return work.artifact


def draw(g: Grid, directory: Path) -> "Figure":
    """The figure of a sweep of `g` whose tables lie in `directory`."""
    import pandas as pd

    from sublim_interp.report.figures.dose import dose
    from sublim_interp.report.figures.law import law as draw_law
    from sublim_interp.report.figures.matrix import matrix as draw_matrix

    if g.figure == "matrix":
        return draw_matrix(pd.read_csv(directory / "matrix.csv"), g.matrix)
    cells = pd.read_csv(directory / "cells.csv", dtype={"value": str})
    return draw_law(cells) if g.figure == "law" else dose(cells)
