"""`sublim cancel RUN`: ends the jobs of a scheduled run."""

from typing import Annotated

import typer

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_


def cancel(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A scheduled experiment or grid, or its key.")],
    store: StoreOption = None,
) -> None:
    """End the jobs of a scheduled run. What they finished stays, and the same `sublim run` goes on from there."""
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.executors.jobs import jobs_of
    from sublim_interp.experiments.executors.ledger import find_ledger

    ledger = find_ledger(Store.open(store), run)
    ended = jobs_of(ledger).cancel(ledger)
    print_(f"{ledger.name}: {ended} jobs ended" if ended else f"{ledger.name}: no job was left to end")
