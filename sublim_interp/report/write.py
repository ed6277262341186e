"""Writes a run's report: tables as CSV, figures as PNG and PDF, the page."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from sublim_interp.core.drawing import save
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import Published
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import Tables
from sublim_interp.report.figures.by_name import FIGURES
from sublim_interp.report.page import PageFigure
from sublim_interp.report.page import page as make_page


def write(
    directory: Path,
    experiment: Experiment,
    tables: Tables,
    published: Published | None = None,
    key: str = "",
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Writes tables, figures, and `report.html`, a page that needs nothing else. Equal arguments give equal bytes.

    directory: exists already
    experiment: with its traits by name
    tables: of the run
    published: a larger run of the same recipe, shown beneath this run's own numbers
    key: the run's key in the store
    versions: package → version

    Returns the path of the page. Raises SublimError as `tables.replicates` does, before anything is written.
    """
    drawn = dict(page_figures(tables))
    html = make_page(experiment, tables, list(drawn.values()), published, key, versions or {})
    frames = {
        "results": tables.results,
        "distances": tables.distances,
        "summary": tables.summary,
        "contrasts": tables.contrasts,
    }
    for name, frame in frames.items():
        frame.to_csv(directory / f"{name}.csv", index=False, lineterminator="\n", encoding="utf-8")
    for name, figure in drawn.items():
        if figure.drawing:
            for ending in ("png", "pdf"):
                save(figure.drawing, directory / f"{name}.{ending}")
    path = directory / "report.html"
    path.write_text(html, encoding="utf-8", newline="\n")
    return path


def page_figures(tables: Tables) -> Iterator[tuple[str, PageFigure]]:
    """Name and drawing of every figure of the run's page. One that lacks something says so in its place."""
    tables.summary  # noqa: B018 — bad tables are refused here, not called a figure that cannot be drawn
    for name, entry in FIGURES.items():
        if entry.page and (entry.fits is None or entry.fits(tables)):
            try:
                drawing, why = entry.draw(tables), ""
            except SublimError as error:
                drawing, why = None, str(error)
            narrow = entry.narrow(tables) if entry.narrow and drawing else None
            yield name, PageFigure(entry.shows, entry.caption, drawing, narrow, why)
