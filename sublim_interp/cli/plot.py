"""`sublim plot RUN FIGURE`: a figure of a finished run, as files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_, table_of
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    pass


def plot(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A finished run: its name, or how its key begins.")] = "",
    figure: Annotated[str, typer.Argument(help="What to draw; `sublim plot` alone lists all figures.")] = "",
    out: Annotated[Path, typer.Option(help="Directory for the files.")] = Path("."),
    store: StoreOption = None,
) -> None:
    """Draw a figure of a finished run, as PNG and PDF; without arguments, list the figures there are."""
    from sublim_interp.core.drawing import save
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.results import open_run
    from sublim_interp.report.figures.registry import plot as plots_plot
    from sublim_interp.report.figures.registry import require_figure, run_figures

    if not name:
        table = table_of("Figures of a finished run: sublim plot RUN FIGURE", "figure", "what it shows")
        for known, entry in run_figures().items():
            table.add_row(known, entry.shows)
        print_(table)
        return
    require_figure(figure)
    finished = open_run(name, Store.open(store))
    drawn = plots_plot(finished, figure)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for ending in ("png", "pdf"):
            path = out / f"{finished.experiment.name}-{finished.key[:8]}-{figure}.{ending}"
            save(drawn, path)
            print_(str(path))
    except OSError as error:
        raise SublimError(f"--out {out}: cannot write there ({error.strerror})") from None
