"""`sublim plot RUN FIGURE`: a figure of a finished run, as files."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_, table_of
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = "page"
"""What `sublim plot RUN page` asks for: no figure, but the page of them all."""


def plot(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A finished run: its name, or how its key begins.")] = "",
    figure: Annotated[
        str, typer.Argument(help="What to draw, all, or page; `sublim plot` alone lists all figures.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Directory for the files.")] = Path("."),
    store: StoreOption = None,
) -> None:
    """Draw a figure of a finished run, as PNG and PDF; `page` writes its page anew, with what runs the models.

    Without arguments, it lists the figures there are.
    """
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.results import open_run
    from sublim_interp.report.figures.by_name import plot as plots_plot
    from sublim_interp.report.figures.by_name import require_figure, run_figures
    from sublim_interp.report.write import write_page
    from sublim_interp.sweeps.study import STUDIES, find_study, study

    if not name:
        table = table_of("Figures of a finished run: sublim plot RUN FIGURE", "figure", "what it shows")
        for known, entry in run_figures().items():
            table.add_row(known, entry.shows)
        print_(table)
        return
    place = Store.open(store)
    if STUDIES.means(name):
        s = study(name)
        artifact = find_study(s, place)
        if artifact is None:
            raise SublimError(f"the store {place.root} holds no finished {name}; run it first: sublim run {name}")
        if figure not in ("all", s.FIGURE):
            raise SublimError(f"no figure '{figure}' of {name}; it has one: {s.FIGURE}")
        _write(s.draw(artifact.path), out, f"{name}-{artifact.key[:8]}-{s.FIGURE}")
        return
    if figure not in ("all", _PAGE):
        require_figure(figure)
    finished = open_run(name, place)
    if figure == _PAGE:
        path = _directory(out) / f"{finished.experiment.name}-{finished.key[:8]}-{_PAGE}.html"
        write_page(finished, path)
        print_(str(path))
        return
    lacking = []
    for one in run_figures() if figure == "all" else (figure,):
        try:
            drawn = plots_plot(finished, one)
        except SublimError as why:  # of all figures those are drawn that can be
            if figure != "all":
                raise
            lacking.append(f"{one}: {why}")
            continue
        _write(drawn, out, f"{finished.experiment.name}-{finished.key[:8]}-{one}")
    for line in lacking:
        print(f"not drawn  {line}", file=sys.stderr)


def _write(drawn: "Figure", out: Path, name: str) -> None:
    """Writes a figure as PNG and PDF into `out`, and prints both paths."""
    from sublim_interp.core.drawing import save

    folder = _directory(out)
    try:
        for ending in ("png", "pdf"):
            path = folder / f"{name}.{ending}"
            save(drawn, path)
            print_(str(path))
    except OSError as error:
        raise SublimError(f"--out {out}: cannot write there ({error.strerror})") from None


def _directory(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SublimError(f"--out {out}: cannot write there ({error.strerror})") from None
    return out
