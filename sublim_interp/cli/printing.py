"""Tables and lines on the terminal."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


PIPE_CLOSED = 141
"""Exit code where nobody reads the output to its end, as of `sublim list | head -1`: 128 + SIGPIPE, as in shells."""


def print_(*things: "RenderableType") -> None:
    """Prints to a terminal's width, or wider where a table has what may not be cut; elsewhere to 120 columns."""
    from rich.console import Console, Group
    from rich.measure import Measurement
    from rich.table import Table

    class ToTheEnd(Console):
        """A console that says by its exit code where its reader has gone."""

        def on_broken_pipe(self) -> None:
            try:
                super().on_broken_pipe()
            except SystemExit:
                raise SystemExit(PIPE_CLOSED) from None

    # No markup: a name or a path that holds brackets is printed as it is.
    console = ToTheEnd(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
    terminal, wide = console.width, console.options.update(width=1000)
    for thing in (part for given in things for part in (given.renderables if isinstance(given, Group) else (given,))):
        size = Measurement.get(console, wide, thing)
        whole = isinstance(thing, Table) and any(column.no_wrap for column in thing.columns)
        console.width = max(terminal, size.maximum if whole else size.minimum)
        console.print(thing)


def table_of(title: str, *columns: str, right: tuple[str, ...] = ()):
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
