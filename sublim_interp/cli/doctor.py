"""`sublim doctor`: what this machine can run, and what is missing."""

import typer

from sublim_interp.cli.options import BaseOption, StoreOption
from sublim_interp.cli.printing import print_, table_of


def doctor(base: BaseOption = None, store: StoreOption = None) -> None:
    """Examine this machine, the installation and the store; exit code 1 if something is wrong or missing."""
    from sublim_interp.cli.examine import examine

    found = examine(store, tuple(base or ()))
    table = table_of("", "about", "", "what was found", "what to do")
    for f in found:
        table.add_row(f.topic, "ok" if f.well else "LOOK", f.text, f.advice)
    bad = sum(not f.well for f in found)
    print_(table, f"{bad} of {len(found)} findings need a look" if bad else "all well")
    if bad:
        raise typer.Exit(1)
