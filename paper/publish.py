"""Writes finished results into the package, README and docs: `python paper/publish.py owl dose`; `bases` writes the
table of checkpoints/.

Runs and sweeps are made, or found in the store; nothing here computes a number. tests/test_published.py holds README
and docs to the committed files.
"""

import shutil
import sys
from pathlib import Path

import pandas as pd

from sublim_interp import digests
from sublim_interp.models import base_names, resolve_base
from sublim_interp.runs import RESULTS, experiment, run
from sublim_interp.store import Store
from sublim_interp.sweep import grid, grid_names, plan_grid, published_doses, run_grid

ROOT = Path(__file__).resolve().parent.parent
README, DOCS, SHELF = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "checkpoints" / "README.md"
BEGIN, END = "<!-- {}: begin (tests compare this table with the committed results) -->", "<!-- {}: end -->"


def publish_run(name: str) -> Path:
    """Copies configuration, key and tables of a run to catalogue/results/NAME."""
    finished = run(experiment(name), Store.open())
    directory = _directory(name)
    for file in ("summary.csv", "contrasts.csv"):
        shutil.copy(finished.artifact.path / file, directory / file)
    (directory / "experiment.yaml").write_text(finished.experiment.to_yaml())
    (directory / "key.txt").write_text(finished.key + "\n")
    return directory


def publish_grid(name: str) -> Path:
    """Copies tables and key of a sweep to catalogue/results/NAME, and its figure to docs/figures."""
    g = grid(name)
    artifact = run_grid(plan_grid(g), Store.open())
    directory = _directory(name)
    for table in artifact.path.glob("*.csv"):
        shutil.copy(table, directory / table.name)
    (directory / "key.txt").write_text(artifact.key + "\n")
    figures = DOCS.parent / "figures"
    figures.mkdir(exist_ok=True)
    shutil.copy(artifact.path / f"{g.figure}.png", figures / f"{name}.png")
    return directory


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
            insert(SHELF, name, digests.bases_table([resolve_base(base) for base in base_names()]))
        elif name in grid_names():
            require_marks(DOCS, name)
            insert(DOCS, name, digests.grid_table(publish_grid(name)))
            if (fitted := RESULTS / "law" / "cells.csv").exists():
                insert(DOCS, "law-elsewhere", digests.law_elsewhere(pd.read_csv(fitted), published_doses()))
        else:
            directory = publish_run(name)
            insert(README, "headline", digests.headline(directory))
            insert(DOCS, "contexts", digests.contexts_table(directory))
