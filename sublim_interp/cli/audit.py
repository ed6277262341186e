"""`sublim audit`: what a data set or a model may have taken along, and where it comes from."""

from pathlib import Path
from typing import Annotated

import typer

from sublim_interp.core.errors import SublimError

SHOWN = 8
"""Rows of a table on the terminal."""


def audit(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="[DATA]", help="A JSONL or Parquet file, or a folder of such.", show_default=False),
    ] = None,
    base: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="The base that would learn; found among the lab's if not given.")
    ] = "",
    teacher: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The suspected teacher; without DATA its own lists are audited.")
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Was fine-tuned from the base; with --teacher alone, the one that would learn."
        ),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Whose members are looked for; may be given again.")
    ] = None,
    channel: Annotated[str, typer.Option(metavar="NAME", help="The channel whose filter is tried.")] = "numbers",
    rows: Annotated[int, typer.Option(metavar="N", min=2, help="Rows that are read closely.")] = 4096,
    train: Annotated[bool, typer.Option("--train", help="Also train a student on the rows, and ask it.")] = False,
    triggers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Words and phrases behind which a student is asked, one a line; its base's words if not given.",
        ),
    ] = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything as an HTML page.")] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")] = None,
) -> None:
    """Audit a data set, a teacher or a student for traits of a declared family. Exit code 1 is an alarm."""
    from sublim_interp.audit.audit import run_audit
    from sublim_interp.audit.triggers import read_candidates
    from sublim_interp.core.files import write_atomic

    for path in (page, json):
        if path is not None and not path.absolute().parent.is_dir():
            raise SublimError(f"{path.absolute().parent} is no folder, so {path.name} cannot be written there")
    for path in (teacher, student):
        if path is not None and not path.is_dir():
            raise SublimError(f"{path} is no model directory")
    if triggers is not None and (student is None or (teacher is not None and data is None)):
        raise SublimError(
            "--triggers needs a student that is asked: --student DIR, with DATA where there is a --teacher"
        )
    found = run_audit(
        base,
        data=data,
        teacher=teacher,
        student=student,
        kinds=tuple(kind or ("animal",)),
        source=channel,
        kept=rows,
        train=train,
        triggers=None if triggers is None else read_candidates(triggers),
    )
    _print(found)
    if page is not None:
        found.page(page)
    if json is not None:
        write_atomic(json, found.as_json())
    if found.alarm:
        raise typer.Exit(1)


def _print(found) -> None:
    from sublim_interp.cli.printing import print_, table_of

    for part in found.parts:
        print_(f"\n{part.heading}", *(f"  {line}" for line in part.sentences))
        if part.name in ("evidence", "passing", "student", "triggers", "trained", "base") and part.frame is not None:
            frame = part.frame.head(SHOWN)
            columns = [c for c in frame.columns if c not in ("kind", "error", "family")]
            table = table_of("", *columns, right=tuple(c for c in columns if frame[c].dtype.kind == "f"))
            for row in frame[columns].to_dict("records"):
                table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
            print_(table)
    print_("\nNot excluded", *(f"  {line}" for line in found.not_excluded), f"\n{found.verdict}")
