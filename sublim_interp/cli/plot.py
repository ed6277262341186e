"""`sublim plot RUN FIGURE`: a figure of a finished run, as files."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_, table_of
from sublim_interp.core.errors import SublimError


def plot(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A finished run: its name, or how its key begins.")] = "",
    figure: Annotated[str, typer.Argument(help="What to draw, or all; `sublim plot` alone lists all figures.")] = "",
    out: Annotated[Path, typer.Option(help="Directory for the files.")] = Path("."),
    store: StoreOption = None,
) -> None:
    """Draw a figure of a finished run, as PNG and PDF; without arguments, list the figures there are."""
    from sublim_interp.core.drawing import save
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.results import open_run
    from sublim_interp.report.figures.by_name import plot as plots_plot
    from sublim_interp.report.figures.by_name import require_figure, run_figures

    if not name:
        table = table_of("Figures of a finished run: sublim plot RUN FIGURE", "figure", "what it shows")
        for known, entry in run_figures().items():
            table.add_row(known, entry.shows)
        print_(table)
        return
    if figure != "all":
        require_figure(figure)
    finished = open_run(name, Store.open(store))
    lacking = []
    for one in run_figures() if figure == "all" else (figure,):
        try:
            drawn = plots_plot(finished, one)
        except SublimError as why:  # of all figures those are drawn that can be
            if figure != "all":
                raise
            lacking.append(f"{one}: {why}")
            continue
        try:
            out.mkdir(parents=True, exist_ok=True)
            for ending in ("png", "pdf"):
                path = out / f"{finished.experiment.name}-{finished.key[:8]}-{one}.{ending}"
                save(drawn, path)
                print_(str(path))
        except OSError as error:
            raise SublimError(f"--out {out}: cannot write there ({error.strerror})") from None
    for line in lacking:
        print(f"not drawn  {line}", file=sys.stderr)
