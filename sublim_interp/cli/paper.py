"""`sublim paper`: builds the paper from the committed results, or says what in it is stale."""

from pathlib import Path
from typing import Annotated

import typer

from sublim_interp.cli.printing import print_


def paper(
    check: Annotated[bool, typer.Option("--check", help="build nothing; name what is stale, and exit 1")] = False,
    out: Annotated[Path, typer.Option(help="where PDF, numbers.tex, tables and figures go")] = Path("build/paper"),
    text: Annotated[Path | None, typer.Option(help="folder of main.typ; else paper/ of this checkout")] = None,
) -> None:
    """Build the paper from the committed results: a PDF, numbers for LaTeX, tables as CSV, figures as PDF."""
    from sublim_interp.paper.check import check as findings_of
    from sublim_interp.paper.check import read_main
    from sublim_interp.paper.document import build, require_typst
    from sublim_interp.paper.results import collect

    folder = text or _folder()
    read_main(folder)
    if not check:
        require_typst()
    results = collect()
    if check:
        findings = findings_of(folder, results)
        for finding in findings:
            print_(finding)
        if findings:
            print_(f"{len(findings)} findings; `sublim paper` writes numbers, tables and figures anew.")
            raise typer.Exit(1)
        print_(f"The paper is what the committed results give: {len(results)} tables, every number of the text.")
        return
    written = build(folder, out, results)
    print_(f"paper   {written[0]}")
    print_(f"beside  {out}: numbers.tex, tables/, figures/")


def _folder() -> Path:
    """The folder of the paper: below the current one, or of the checkout that this package lies in."""
    here = Path("paper")
    return here if (here / "main.typ").exists() else Path(__file__).resolve().parents[2] / "paper"
