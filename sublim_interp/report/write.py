"""Writes a run's report: tables as CSV, and the page."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from sublim_interp.core.drawing import in_words
from sublim_interp.core.errors import SublimError, said_of
from sublim_interp.core.files import write_atomic
from sublim_interp.experiments.catalogue import Published, published
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import Tables
from sublim_interp.report.figures.by_name import FIGURES
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.report.inside import inside
from sublim_interp.report.page import PageFigure
from sublim_interp.report.page import page as make_page

SMALL = 10_000_000
"""Parameters of a base up to which the page that a run ends with runs its models for a figure: seconds, on a CPU."""


def write(
    directory: Path,
    experiment: Experiment,
    tables: Tables,
    beside: Published | None = None,
    key: str = "",
    versions: Mapping[str, str] | None = None,
    run: Run | None = None,
) -> Path:
    """Writes the tables, and `report.html`, a page that needs nothing else. Equal arguments give equal bytes.

    directory: exists already
    experiment: with its traits by name
    tables: of the run
    beside: a larger run of the same recipe, shown beneath this run's own numbers
    key: the run's key in the store
    versions: package → version
    run: the run itself, whose parts lie in the store, and whose files these become; None shows nothing of its inside

    Returns the path of the page. Raises SublimError as `tables.replicates` does, before anything is written.
    """
    frames = {
        "results": tables.results,
        "distances": tables.distances,
        "summary": tables.summary,  # bad tables are refused here, not called a figure that cannot be drawn
        "contrasts": tables.contrasts,
    }
    for name, frame in frames.items():
        frame.to_csv(directory / f"{name}.csv", index=False, lineterminator="\n", encoding="utf-8")
    drawn = dict(page_figures(tables, run))
    shown = None if run is None else inside(run, later=_later(run) if _is_large(run) else "")
    html = make_page(experiment, tables, drawn, beside, key, versions or {}, shown)
    path = directory / "report.html"
    path.write_text(html, encoding="utf-8", newline="\n")
    return path


def write_page(run: Run, path: Path) -> None:
    """Writes the page of a finished run anew, with all that can be shown of it today: models are loaded and asked.

    run: as `open_run` gives it

    Raises SublimError as `write` does.
    """
    tables, packages = run.tables, run.artifact.manifest["packages"]
    versions = {name: packages[name] for name in ("torch", "transformers", "numpy")}
    drawn = dict(page_figures(tables, run, asked=True))
    beside = published(run.experiment, run.key)
    experiment = run.plan.named if run.plan.cells else run.experiment  # without its parts, its traits may be gone too
    html = make_page(experiment, tables, drawn, beside, run.key, versions, inside(run, ask=True))
    write_atomic(path, html)


def page_figures(tables: Tables, run: Run | None = None, asked: bool = False) -> Iterator[tuple[str, PageFigure]]:
    """Name and drawing of every registered figure for the page. One that lacks something says so in its place.

    run: without it, the figures of tables alone
    asked: whether also those that wait until they are asked for
    """
    for name, entry in FIGURES.items():
        if not entry.page or (entry.input == "run" and run is None) or not (entry.fits is None or entry.fits(tables)):
            continue
        of_run = entry.input == "run"
        source, draw = (run, entry.narrow or entry.draw) if of_run else (tables, entry.draw)
        drawing, narrow, words = None, None, ""
        try:
            why = "" if asked or run is None else _waits(entry, run)
            if not why:
                drawing = draw(source)
                narrow = entry.narrow(tables) if entry.narrow and not of_run else None
                words = entry.says(source) if entry.says else in_words(drawing)
        except Exception as error:
            if not (of_run or isinstance(error, SublimError)):
                raise
            drawing = None  # no run is lost for a picture of its inside, whatever goes wrong
            why = str(error) if isinstance(error, SublimError) else said_of(error)
        yield name, PageFigure(entry.shows, entry.caption, drawing, narrow, why, words, of_run)


def _waits(entry: FigureEntry, run: Run) -> str:
    """Why a figure is left to be asked for; "" where it is not."""
    waits = entry.waits == "always" or (entry.waits == "large" and _is_large(run))
    return _later(run) if waits else ""


def _is_large(run: Run) -> bool:
    """Whether a base of the run is too large for the page that the run ends with to run it."""
    return any(c.evaluation.base.shape["parameters"] > SMALL for c in run.plan.cells)


def _later(run: Run) -> str:
    """Why what runs the models is left to be asked for."""
    return f"it runs the models; `sublim plot {run.experiment.name} page` writes a page that has it"
