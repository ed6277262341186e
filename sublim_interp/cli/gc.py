"""`sublim gc`: what no kept run needs, and its removal."""

from typing import Annotated

import typer

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_


def gc(
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="RUN", help="A run, sweep or study that need not be kept.", show_default=False),
    ] = None,
    days: Annotated[
        float,
        typer.Option("--days", help="Leave alone what belongs to no run, if it is younger than this, 0 to 36500."),
    ] = 7.0,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this it is only shown.")] = False,
    store: StoreOption = None,
) -> None:
    """Show what no run, sweep or study needs, or remove it. Nothing that a kept one was made from is ever taken."""
    from collections import Counter

    from sublim_interp.cli.selection import ENDS, chosen
    from sublim_interp.core.store import Store
    from sublim_interp.core.upkeep import garbage, remove
    from sublim_interp.experiments.executors.ledger import ledgers

    place = Store.open(store)
    scheduled = [one for one in ledgers(place) if not place.holds(one.key)]
    needed = [key for ledger in scheduled for key in ledger.entries]
    found = garbage(place, ENDS, chosen(drop or [], place, one_each=True), needed, days)
    stages = ", ".join(f"{n} {stage}" for stage, n in Counter(row.stage for row in found.rows).items())
    what = f"{stages or 'no record'} and {len(found.folders)} unfinished, {found.size / 1e6:.1f} MB"
    if not delete:
        removable = (found.rows or found.folders) and not found.hindrance
        print_(f"no run in {place.root} needs {what}" + ("; --delete removes it" if removable else ""))
        if found.hindrance:
            print_(f"--delete removes nothing: {found.hindrance}")
        return
    remove(place, found)
    print_(f"removed from {place.root}: {what}")
