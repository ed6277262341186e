"""Tables and lines on the terminal."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def print_(*things: "RenderableType") -> None:
    from rich.console import Console

    # No markup: a name or a path that holds brackets is printed as it is.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
    for thing in things:
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
