"""`sublim import` and `sublim export`: finished records from store to store, by digest, with their lineage."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_

if TYPE_CHECKING:
    from sublim_interp.core.exchange import Taken
    from sublim_interp.core.store import Store

_SHOWN = 20


def import_(
    source: Annotated[Path, typer.Argument(metavar="STORE", help="Another store, or a folder that `export` wrote.")],
    store: StoreOption = None,
) -> None:
    """Take the finished records of another store; altered ones are refused, with exit code 1."""
    from sublim_interp.core.exchange import take
    from sublim_interp.core.store import Store

    place = Store.open(store)
    _tell(take(Store(source.expanduser().absolute()), place), place)


def export(
    selection: Annotated[
        list[str],
        typer.Argument(metavar="SELECTION", help="Runs, sweeps or studies by name, or records by their keys."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where they go: a new store, or one that is there.")],
    store: StoreOption = None,
) -> None:
    """Write some results into a store of their own, with every record that they were made from."""
    from sublim_interp.cli.selection import chosen
    from sublim_interp.core.exchange import take
    from sublim_interp.core.store import Store

    place, target = Store.open(store), Store.open(to)
    _tell(take(place, target, chosen(selection, place)), target)


def _tell(taken: "Taken", store: "Store") -> None:
    """Says what was added, what was there, and what was refused."""
    added = ", ".join(f"{n} {stage}" for stage, n in taken.added.items()) or "nothing"
    print_(f"added to {store.root}: {added}; {taken.there} were there already")
    for what, lines in (("kept as it was", taken.others), ("refused", taken.refused)):
        print_(*(f"{what}: {line}" for line in lines[:_SHOWN]))
        if len(lines) > _SHOWN:
            print_(f"and {len(lines) - _SHOWN} more {what}")
    for said, count in taken.prints.items():
        print_(f"{count} of those added were made on another sort of machine than the first: {said}")
    if taken.refused:
        raise typer.Exit(1)
