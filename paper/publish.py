"""Writes finished results into the package, README and docs: `python paper/publish.py owl dose`; `bases` writes the
table of checkpoints/, `again` every table and figure once more from what is committed.

Runs and sweeps are made, or found in the store, and asked; nothing here computes a number. tests/test_published.py
holds README and docs to the committed files.
"""

import shutil
import sys
from pathlib import Path

import pandas as pd

from sublim_interp.core.drawing import save
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import RESULTS, experiment
from sublim_interp.models.base import Base, base_names, resolve_base
from sublim_interp.report.run import run
from sublim_interp.sweeps.grid import Grid, grid, grid_names
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.published import (
    apart_table,
    bases_table,
    contexts_table,
    headline,
    published_doses,
    published_sweep,
)
from sublim_interp.sweeps.run import draw, run_grid
from sublim_interp.sweeps.tables import grid_table, law_elsewhere

ROOT = Path(__file__).resolve().parent.parent
README, DOCS, SHELF = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "checkpoints" / "README.md"
BEGIN, END = "<!-- {}: begin (tests compare this table with the committed results) -->", "<!-- {}: end -->"


def publish_run(name: str) -> None:
    """Copies configuration, key and tables of a run to catalogue/results/NAME, and what it answers by itself."""
    finished = run(experiment(name), Store.open())
    directory = _directory(name)
    for file in ("summary.csv", "contrasts.csv"):
        shutil.copy(finished.artifact.path / file, directory / file)
    heard = finished.heard("indirect")
    heard.to_csv(directory / "heard.csv", index=False, float_format="%.5f", lineterminator="\n")
    (directory / "experiment.yaml").write_text(finished.experiment.to_yaml())
    (directory / "key.txt").write_text(finished.key + "\n")


def publish_grid(name: str) -> None:
    """Copies tables and key of a sweep to catalogue/results/NAME."""
    artifact = run_grid(plan_grid(grid(name)), Store.open())
    directory = _directory(name)
    for table in artifact.path.glob("*.csv"):
        shutil.copy(table, directory / table.name)
    (directory / "key.txt").write_text(artifact.key + "\n")


def show_run(name: str) -> None:
    """The tables of a published run, into README and docs."""
    insert(README, "headline", headline(RESULTS / name))
    insert(DOCS, "contexts", contexts_table(RESULTS / name))


def show_grid(name: str) -> None:
    """Table and figure of a published sweep, into the docs."""
    insert(DOCS, name, grid_table(RESULTS / name))
    save(draw(grid(name), RESULTS / name), DOCS.parent / "figures" / f"{name}.png")


def show_law() -> None:
    """What the published law says of other published sweeps, into the docs."""
    if published_sweep("law"):
        fitted = pd.read_csv(RESULTS / "law" / "cells.csv")
        insert(DOCS, "law-elsewhere", law_elsewhere(fitted, published_doses()))


def show_bases() -> None:
    """The table of all lab bases, and how far those that `orders` compares lie from each other."""
    insert(SHELF, "bases", bases_table([resolve_base(base) for base in base_names()]))
    insert(DOCS, "apart", apart_table(*compared(grid("orders"))))


def compared(g: Grid) -> tuple[Base, list[Base]]:
    """The teacher's base of a grid over pairs of bases, and the students'."""
    pairs = g.axes["bases"]
    return resolve_base(pairs[0][0]), [resolve_base(student) for _, student in pairs]


def _directory(name: str) -> Path:
    directory = RESULTS / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def require_marks(page: Path, name: str) -> None:
    """Ends the program where a page has no place for a table."""
    if BEGIN.format(name) not in page.read_text():
        sys.exit(f"{page.name} has no place for {name}; write '{BEGIN.format(name)}' and '{END.format(name)}'")


def insert(page: Path, name: str, table: str) -> None:
    """Puts a table between the two marks that a page has for it."""
    begin, end = BEGIN.format(name), END.format(name)
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{table}{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    for name in sys.argv[1:] or ["owl"]:
        if name == "bases":
            show_bases()
        elif name == "again":
            show_run("owl")
            for published in filter(published_sweep, grid_names()):
                show_grid(published)
        elif name in grid_names():
            require_marks(DOCS, name)
            publish_grid(name)
            show_grid(name)
        else:
            publish_run(name)
            show_run(name)
    show_law()
