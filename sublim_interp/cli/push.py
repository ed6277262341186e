"""`sublim push RUN/ARM/SEED OWNER/NAME`: a student, its lists and its trace on the Hugging Face hub, with a card."""

from pathlib import Path
from typing import Annotated

import typer

from sublim_interp.cli.options import BaseOption, StoreOption
from sublim_interp.cli.printing import print_, table_of
from sublim_interp.core.errors import SublimError, said_of


def push(
    what: Annotated[str, typer.Argument(metavar="RUN/ARM/SEED", help="A student of a finished run.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="What it is called on the hub.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder, say what is in it, send nothing.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Where the folder is written; else ./NAME.", show_default=False),
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", metavar="ID", help="Of the weights; else that of its base.", show_default=False)
    ] = "",
    trace: Annotated[bool, typer.Option("--trace/--no-trace", help="Whether its trace goes along.")] = True,
    public: Annotated[bool, typer.Option("--public", help="For everyone to see; else for yourself alone.")] = False,
    base: BaseOption = None,
    store: StoreOption = None,
) -> None:
    """Put a student on the Hugging Face hub: weights, lists, trace, card and lineage. Try it with --dry-run first.

    The hub's own client sends it, and logs in as `hf auth login` set it up, or by $HF_TOKEN.
    """
    from rich.constrain import Constrain

    from sublim_interp.cli.bundle import bundle
    from sublim_interp.core.store import Store

    made = bundle(what, name, to or Path(name.rpartition("/")[2]), Store.open(store), licence, trace, tuple(base or ()))
    table = table_of(f"{made.path}", "file", "bytes", right=("bytes",))
    for file, size in made.files.items():
        table.add_row(file, f"{size:,}")
    lines = [f"{field:14} {_plain(value)}" for field, value in made.card.items()]
    print_(table, *(Constrain(line, 120) for line in lines))
    if dry_run:
        print_(f"nothing was sent; {len(made.files)} files, {sum(made.files.values()):,} bytes would go to {name}")
        return
    _send(made.path, name, public)
    print_(f"sent: {name}")


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _send(folder: Path, name: str, public: bool) -> None:
    """Creates the repository and uploads the folder. Raises SublimError, with the hub's words, where it cannot."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="sublim push")
    except Exception as error:  # the client raises many kinds; each means: it is not there, or not whole
        raise SublimError(f"{name} is not sent ({said_of(error)}); the folder {folder} is kept") from None
