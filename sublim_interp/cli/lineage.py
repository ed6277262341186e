"""`sublim lineage X`: what something was made from, what was made from it, and exports of that."""

from pathlib import Path
from typing import Annotated

import typer

from sublim_interp.cli.options import BaseOption, StoreOption
from sublim_interp.cli.printing import print_
from sublim_interp.core.errors import SublimError


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            metavar="X",
            help="A run, RUN/ARM/SEED, a record's key, a base, a directory of a model or of data, or a file of data.",
        ),
    ],
    descendants: Annotated[
        bool, typer.Option("--descendants", help="Show what was made from it instead of what it was made from.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show every link, also where many are alike.")] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw it as SVG.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as one HTML page.", show_default=False)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print things and links as JSON.")] = False,
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            "--export",
            metavar="FORMAT FILE",
            help="Write it as in-toto, slsa, croissant, model-card, or oms: a signature of the model.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="The private key that oms signs with, PEM.", show_default=False),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check", metavar="FILE", help="Compare with an in-toto or slsa export of before.", show_default=False
        ),
    ] = None,
    base: BaseOption = None,
    store: StoreOption = None,
) -> None:
    """Show what something was made from, by keys and digests; exit code 1 if any file on the way is damaged."""
    import json

    from sublim_interp.audit.lineage.drawing import WIDTH, figure, page, tree
    from sublim_interp.audit.lineage.exports import EXPORTS
    from sublim_interp.audit.lineage.exports import export as write
    from sublim_interp.audit.lineage.statements import compare
    from sublim_interp.audit.lineage.trace import lineage
    from sublim_interp.core.drawing import render
    from sublim_interp.core.files import write_atomic
    from sublim_interp.core.store import Store

    if key and (not export or export[0] != "oms"):
        raise SublimError("--key has no effect without --export oms FILE")
    if export:
        EXPORTS[export[0]]  # an unknown one is told before anything is read
    found = lineage(what, Store.open(store), descendants=descendants, bases=base or ())
    differs = compare(found, check) if check else []
    if export:
        write(found, export[0], export[1], key)
    if svg:
        write_atomic(svg, render(figure(found), "svg"))
    if html:
        page(found, html)
    if json_:
        print(json.dumps({**found.plain(), "differs": differs}, indent=1))
    else:
        from rich.constrain import Constrain

        print_(Constrain(tree(found, everything), WIDTH), *(Constrain(_plain(line), WIDTH) for line in found.finding))
        for line in differs:
            print_(f"not as {check} says: {_plain(line)}")
        for path in filter(None, (svg, html, export[1] if export else None)):
            print_(f"written: {path}")
    if found.problems or differs:
        raise typer.Exit(1)


def _plain(line: str) -> str:
    """A line without what a terminal would not show: names of files may hold anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
