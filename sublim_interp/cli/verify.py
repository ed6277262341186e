"""`sublim verify`: compares every stored file with its digest."""

import typer

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_
from sublim_interp.core.errors import SublimError


def verify(store: StoreOption = None) -> None:
    """Compare every file of the store with its digest; exit code 1 if any is damaged, 2 if there is no such store."""
    from sublim_interp.core.store import Store

    place, bad, count = Store.open(store), 0, 0
    if not place.root.is_dir():
        raise SublimError(f"there is no store {place.root}; name one with --store or $SUBLIM_STORE")
    for artifact, problems in place.verify():
        count += 1
        bad += bool(problems)
        for problem in problems:
            print_(f"{artifact.stage}/{artifact.path.name}: {problem}")
    partly = 0
    for path, problems in place.unfinished():
        partly += bool(problems)
        for problem in problems:
            print_(f".partial/{path.name}: {problem}; the run that goes on makes it again")
    print_(
        f"{count} artefacts in {place.root}, {bad} damaged"
        + ("; delete their directories, they are made again" if bad else "")
    )
    if bad or partly:
        raise typer.Exit(1)
