"""Every figure by name. The page, `sublim plot`, notebooks and the paper ask this table."""

from typing import TYPE_CHECKING

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry
from sublim_interp.report.figures.protocol import FigureEntry

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sublim_interp.experiments.results import Run

_HERE = "sublim_interp.report.figures"


def _check(name: str, entry: FigureEntry) -> None:
    """Refuses what another package calls a figure and is none, or what cannot be on the page."""
    if not isinstance(entry, FigureEntry):
        raise SublimError(f"figure '{name}' is a {type(entry).__name__}; give a {_HERE}.protocol.FigureEntry")
    if entry.page and entry.input in ("cells", "frame"):
        raise SublimError(f"figure '{name}' takes {entry.input}; the page draws figures that take tables or a run")


FIGURES: Registry[FigureEntry] = Registry(
    "figure",
    "sublim_interp.figures",
    {
        "arms": f"{_HERE}.arms:ARMS_FIGURE",
        "generations": f"{_HERE}.generations:GENERATIONS",
        "probes": f"{_HERE}.answers:PROBES",
        "loss": f"{_HERE}.training:LOSS",
        "training": f"{_HERE}.training:TRAINING",
        "margin": f"{_HERE}.training:MARGIN",
        "stream": f"{_HERE}.stream:STREAM",
        "stream-cosine": f"{_HERE}.stream:STREAM_COSINE",
        "weights": f"{_HERE}.training:WEIGHTS",
        "directions": f"{_HERE}.directions:DIRECTIONS",
        "own-base": f"{_HERE}.directions:OWN_BASE",
        "patching": f"{_HERE}.patching:PATCHING",
        "patching-teacher": f"{_HERE}.patching:PATCHING_TEACHER",
        "modules": f"{_HERE}.patching:MODULES",
        "diff": f"{_HERE}.diff:DIFF",
        "steering": f"{_HERE}.steering:STEERING",
        "games": f"{_HERE}.games:GAMES",
        "mnist": f"{_HERE}.mnist:MNIST",
        "theorem": f"{_HERE}.theorem:THEOREM",
        "audit": f"{_HERE}.audit:AUDIT",
        "triggers": f"{_HERE}.triggers:TRIGGERS",
        "organisms": f"{_HERE}.organisms:ORGANISMS",
        "prediction": f"{_HERE}.prediction:PREDICTION",
        "inside": f"{_HERE}.inside:INSIDE",
        "patches": f"{_HERE}.patches:PATCHES",
        "recovered": f"{_HERE}.recovered:RECOVERED",
        "entanglement": f"{_HERE}.entanglement:ENTANGLEMENT",
        "kernel": f"{_HERE}.kernel:KERNEL",
        "in-context": f"{_HERE}.in_context:IN_CONTEXT",
    },
    _check,
)
"""Every figure by name, in the order in which they are listed; other packages' come last."""


def plot(run: "Run | pd.DataFrame", name: str) -> "Figure":
    """Draws a figure of a finished run, or of a frame that a call returned. Notebooks show it as it is.

    run: as `open_run` gives it; or the frame of `steering` or `tell_apart`
    name: one of `FIGURES`, such as `training`; of a frame `steering` or `games`

    Raises SublimError for another name, and where the run lacks what the figure shows.
    """
    import pandas as pd

    if isinstance(run, pd.DataFrame):
        of_frames = {name: entry for name, entry in FIGURES.items() if entry.input == "frame"}
        if name not in of_frames:
            raise SublimError(f"no figure '{name}' of a frame; {meant(name, of_frames)}")
        return of_frames[name].draw(run)
    entry = require_figure(name)
    return entry.draw(run.tables if entry.input == "tables" else run)


def require_figure(name: str) -> FigureEntry:
    """The figure of a run called `name`; SublimError, with those there are, for another name."""
    of_runs = run_figures()
    if name not in of_runs:
        raise SublimError(f"no figure '{name}'; {meant(name, of_runs, 'sublim plot', 'figures')}")
    return of_runs[name]


def run_figures() -> dict[str, FigureEntry]:
    """Every figure that can be drawn of a run, by name."""
    return {name: entry for name, entry in FIGURES.items() if entry.input in ("run", "tables")}
