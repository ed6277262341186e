"""`sublim paper`: builds a paper from results, says what in it is stale, or begins a paper of your own."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from sublim_interp.core.store import Store


def paper(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]",
            help="Where main.typ is: a paper of your own, or else paper/ of this checkout.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="build nothing; name what is stale, and exit 1")] = False,
    new: Annotated[bool, typer.Option("--new", help="begin a paper of your own in FOLDER")] = False,
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run", metavar="RUN", help="with --new: a finished run it is about; else every one of the store"
        ),
    ] = None,
    from_nothing: Annotated[
        bool, typer.Option("--from-nothing", help="first make every run, sweep and study that it shows anew")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="with --from-nothing: say what is left, and what it costs")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, max=64, help="with --from-nothing: processes of one thread.")] = 2,
    out: Annotated[
        Path | None,
        typer.Option(help="where PDF, LaTeX, tables and figures go; build/FOLDER", show_default=False),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Build a paper from results: a PDF, numbers and tables for LaTeX, tables as CSV, figures as PDF."""
    from sublim_interp.core.store import Store
    from sublim_interp.paper.check import check as findings_of
    from sublim_interp.paper.check import read_main
    from sublim_interp.paper.document import build, require_typst
    from sublim_interp.paper.own import begin, collect_own, is_own
    from sublim_interp.paper.results import collect

    if from_nothing and (check or new):
        raise SublimError("--from-nothing makes results anew and then the paper; leave --check and --new out")
    if dry_run and not from_nothing:
        raise SublimError("--dry-run goes with --from-nothing, which may take days")
    if run and not new:
        raise SublimError("--run goes with --new; a paper that exists names its runs in paper.yaml")
    if new:
        if folder is None or check:
            raise SublimError("--new takes a folder and no --check, as in `sublim paper my-paper --new`")
        runs = begin(folder, run or [], Store.open(store))
        print_(f"{folder} is about {', '.join(runs)}. Write in {folder / 'main.typ'}, then: sublim paper {folder}")
        return
    place = folder or _folder()
    read_main(place)
    if not check:
        require_typst()
    to = out or Path("build") / place.resolve().name
    if from_nothing:
        made = _remade(place, Store.open(store), to / "results", processes, dry_run)
        if made is None:
            return
        results, place = collect(made), Path(shutil.copytree(place, to / "text", dirs_exist_ok=True))
    else:
        results = collect_own(place, Store.open(store)) if is_own(place) else collect()
    if check:
        findings = findings_of(place, results)
        for finding in findings:
            print_(finding)
        if findings:
            print_(f"{len(findings)} findings; `sublim paper` writes numbers, tables and figures anew.")
            raise typer.Exit(1)
        print_(f"The paper is what its results give: {len(results)} results, every number of the text.")
        return
    written = build(place, to, results)
    print_(f"paper   {written[0]}")
    print_(f"beside  {to}: numbers.tex, skeleton.tex, tables/, figures/")


def _remade(place: Path, store: "Store", results: Path, processes: int, dry_run: bool) -> Path | None:
    """Makes all that the paper shows, and publishes it into `results`; None where it was only asked what that costs."""
    from sublim_interp.cli.planned import print_items, require_makeable
    from sublim_interp.cli.subjects import subject
    from sublim_interp.paper.check import read_main
    from sublim_interp.paper.own import is_own
    from sublim_interp.paper.remaking import pieces, publish
    from sublim_interp.paper.text import read_text

    if is_own(place):
        raise SublimError(f"--from-nothing is for a paper about published results; {place} names runs of its own")
    found = pieces(read_text(read_main(place)).shown, store)
    print_items("To be made anew", found, processes)
    if dry_run:
        return None
    require_makeable(found)
    for one in found:
        subject(one.name, store).make(processes)
        publish(one.name, store, results)
    return results


def _folder() -> Path:
    """The folder of the paper: below the current one, or of the checkout that this package lies in."""
    here = Path("paper")
    return here if (here / "main.typ").exists() else Path(__file__).resolve().parents[2] / "paper"
