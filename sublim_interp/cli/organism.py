"""`sublim organism NAME --out DIR`: a model organism to test tools on; `--open DIR` breaks its seal."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sublim_interp.cli.options import DeviceOption, StoreOption
from sublim_interp.cli.printing import print_
from sublim_interp.core.errors import SublimError


def organism(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A recipe, a YAML file, or any: one is drawn, and only the seal says which. Nothing: lists them.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The folder to be written.", show_default=False)
    ] = None,
    opened: Annotated[
        Path | None, typer.Option("--open", metavar="DIR", help="Show the truth about a folder.", show_default=False)
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Worker processes, of one thread each.")] = 2,
    device: DeviceOption = None,
    store: StoreOption = None,
) -> None:
    """Write a folder with base, teacher, lists and student, and the truth about them under a seal; or open one."""
    from sublim_interp.audit.organisms import ANY, ORGANISMS

    if opened:
        if name or out:
            raise SublimError("--open DIR goes alone: it reads a folder, and makes none")
        _open(opened)
        return
    if not name:
        if out:
            raise SublimError(f"--out: name a recipe, or {ANY}; `sublim organism` lists them")
        print_(f"{len(ORGANISMS.names())} organisms: {' '.join(ORGANISMS.names())}")
        print_(f"`sublim organism NAME --out DIR` makes one, `sublim organism {ANY} --out DIR` draws one")
        return
    if not out:
        raise SublimError(f"organism {name}: name the folder to be written, --out DIR")
    from sublim_interp.core.device import using_device

    with using_device(device):
        _write(name, out, store, processes)


def _write(name: str, out: Path, place: Path | None, processes: int) -> None:
    from sublim_interp.audit.organisms import ANY, SEAL, planned, recipe, write_organism
    from sublim_interp.cli.progress import Progress, work_of
    from sublim_interp.core.files import require_free
    from sublim_interp.core.store import Store

    require_free([out])
    made, store = recipe(name), Store.open(place)
    with Progress("organism", work_of(planned(made, store), store), processes) as watch:
        write_organism(made, out, store, processes, watch, named=name != ANY)
    print_(f"organism  {out}: its truth is in {SEAL}; the store {store.root} knows it too")


def _open(directory: Path) -> None:
    import json

    from sublim_interp.audit.organisms import open_organism

    truth, problems = open_organism(directory)
    shown: dict[str, Any] = {name: part for name, part in truth.items() if name not in ("files", "salt")}
    print(json.dumps(shown, indent=1))
    for problem in problems:
        print_("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in problem))
    if problems:
        raise typer.Exit(1)
