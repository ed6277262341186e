"""Publishes finished runs, sweeps and studies, and shows all that is published in docs, README and checkpoints/.

    python paper/publish.py              write every table and figure again, from the committed results alone
    python paper/publish.py owl dose     first copy these finished runs and sweeps from the store into the catalogue
    python paper/publish.py gallery      first draw what docs/gallery.md shows of the run tour, from the store

A table stands on one page, between two marks: `<!-- NAME: begin … -->` and `<!-- NAME: end -->`.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from sublim_interp.claims.judge import judge
from sublim_interp.claims.nulls import null_experiments
from sublim_interp.claims.schema import all_claims
from sublim_interp.claims.wording import claims_table
from sublim_interp.core.drawing import save, small_png
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.results import open_run
from sublim_interp.experiments.tables import read_table
from sublim_interp.models.base import base_names, resolve_base
from sublim_interp.paper.remaking import publish
from sublim_interp.paper.results import CLAIMS, CLAIMS_ASK, CONTEXTS, CONTEXTS_ASK, published_figure
from sublim_interp.report.figures.by_name import run_figures
from sublim_interp.sweeps.grid import grid, grid_names
from sublim_interp.sweeps.law_check import law_elsewhere, published_doses
from sublim_interp.sweeps.modes.fields import read_cells
from sublim_interp.sweeps.published import (
    contexts_table,
    experiment_of,
    headline,
    published_runs,
    published_sweep,
    shelf,
)
from sublim_interp.sweeps.rows import rows_table
from sublim_interp.sweeps.studies.prediction import pairs_table
from sublim_interp.sweeps.study import published_study, study, study_names
from sublim_interp.sweeps.suite import suite
from sublim_interp.sweeps.tables import published_study_table, published_table
from sublim_interp.sweeps.wording import as_markdown, bare

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures"
GALLERY, TOUR = FIGURES / "gallery", "tour"
"""Pictures of the gallery that are of a run, and the run that they are of."""
BEGIN, END = "<!-- {}: begin (tests compare this table with the committed results) -->", "<!-- {}: end -->"
HEADLINE = "owl"
"""The run whose table and figure are the headline."""


# --- from the catalogue into the pages --------------------------------------------------------------------------------


def tables() -> dict[str, Callable[[], str]]:
    """Every table that pages show, by its mark: what makes it as Markdown."""
    made: dict[str, Callable[[], str]] = {
        "headline": lambda: headline(RESULTS / HEADLINE),
        "contexts": lambda: contexts_table(RESULTS / HEADLINE),
        "bases": lambda: bare(shelf([resolve_base(base) for base in base_names()])),
        "claims": lambda: as_markdown(
            claims_table(judge(all_claims()), null_experiments()), "Made by `sublim claims`."
        ),
        "rows": lambda: as_markdown(rows_table(suite("rows").rows), "Made by `python paper/publish.py`."),
        "prediction-pairs": lambda: bare(pairs_table(read_table(RESULTS / "prediction" / "cases.csv"))),
        "law-elsewhere": lambda: bare(law_elsewhere(read_cells(RESULTS / "law"), published_doses())),
    }
    for name in published_runs():
        if name != HEADLINE:
            made[name] = lambda name=name: headline(RESULTS / name)
    for name in filter(published_sweep, grid_names()):
        made[name] = lambda name=name: published_table(RESULTS / name)
    for name in filter(published_study, study_names()):
        made[name] = lambda name=name: published_study_table(RESULTS / name)
    return made | {"gallery-published": gallery_of_published, "gallery-run": gallery_of_run}


def drawn() -> dict[str, str]:
    """Every published figure: by its name the question that it answers."""
    runs = {name: experiment_of(RESULTS / name).about for name in published_runs()}
    grids = {name: grid(name).about for name in filter(published_sweep, grid_names())}
    studies = {name: study(name).about for name in filter(published_study, study_names())}
    return {**runs, CONTEXTS: CONTEXTS_ASK, **grids, **studies, CLAIMS: CLAIMS_ASK}


def gallery_of_published() -> str:
    """Every published figure with the code that draws it, as Markdown."""
    parts = []
    for name, about in drawn().items():
        page = page_of("headline" if name == HEADLINE else name).relative_to(ROOT / "docs")
        made = f"[{name}]({page})" if page.parts[0] == "results" else name
        code = f'import sublim_interp as si\n\nsi.published_figure("{name}")'
        parts.append(
            f"### {name}\n{about} Its page: {made}.\n\n![{about}](figures/{name}.png)\n\n```python\n{code}\n```\n"
        )
    return "\n".join(parts)


def gallery_of_run() -> str:
    """Every figure of a run with the code that draws it, as Markdown; of those whose picture is there."""
    parts = []
    for name, entry in run_figures().items():
        if (GALLERY / f"{name}.png").exists():
            picture = f"![{entry.shows}](figures/{GALLERY.name}/{name}.png)"
            code = f'import sublim_interp as si\n\nsi.plot(si.open_run("{TOUR}"), "{name}")'
            parts.append(f"### {name}\n{entry.sentence}\n\n{picture}\n\n*{entry.caption}*\n\n```python\n{code}\n```\n")
    return "\n".join(parts)


def draw_gallery() -> None:
    """Draws every figure of the run tour, which the store must hold; tells of those that it has nothing for."""
    run = open_run(TOUR)
    GALLERY.mkdir(exist_ok=True)
    for name, entry in run_figures().items():
        try:
            figure = entry.draw(run.tables if entry.input == "tables" else run)
        except SublimError as error:
            print(f"gallery: no picture of {name}: {error}")
            continue
        write_atomic(GALLERY / f"{name}.png", small_png(figure))


def show() -> None:
    """Writes every table between its marks, and every figure into docs/figures."""
    pages = {name: page_of(name) for name in tables()}
    for name, table in tables().items():
        insert(pages[name], name, table())
    for name in drawn():
        save(published_figure(name), FIGURES / f"{name}.png")


def page_of(name: str) -> Path:
    """The one page that has a place for the table called `name`. Raises SublimError where none has, or several have."""
    docs = sorted((ROOT / "docs").rglob("*.md"))
    pages = [ROOT / "README.md", ROOT / "checkpoints" / "README.md", *docs]
    copy = ROOT / "docs" / "checkpoints.md"  # made by the site's build
    found = [page for page in pages if page != copy and BEGIN.format(name) in page.read_text()]
    if len(found) != 1:
        said = ", ".join(str(page.relative_to(ROOT)) for page in found) or "no page"
        raise SublimError(
            f"{said} has a place for the table '{name}', where one page must; it stands between "
            f"'{BEGIN.format(name)}' and '{END.format(name)}'"
        )
    return found[0]


def shown(name: str) -> str:
    """The table called `name` as its page has it."""
    return page_of(name).read_text().split(BEGIN.format(name) + "\n")[1].split(END.format(name))[0]


def insert(page: Path, name: str, table: str) -> None:
    """Puts a table between its two marks of a page."""
    begin, end = BEGIN.format(name), END.format(name)
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{table}{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    try:
        for published in sys.argv[1:]:
            if published == GALLERY.name:
                draw_gallery()
                continue
            page_of("headline" if published == HEADLINE else published)
            publish(published, Store.open(), RESULTS)
        show()
    except SublimError as error:
        sys.exit(f"publish: {error}")
