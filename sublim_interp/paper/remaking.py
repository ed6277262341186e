"""From nothing: which runs, sweeps and studies a paper shows, what making them anew costs, and what is kept of them."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Run
from sublim_interp.paper.joining import join
from sublim_interp.sweeps.grid import grid
from sublim_interp.sweeps.modes.pairs import Pairs
from sublim_interp.sweeps.published import published_runs, published_sweep
from sublim_interp.sweeps.study import published_study
from sublim_interp.sweeps.suite import Item, item, items

if TYPE_CHECKING:
    from sublim_interp.core.store import Store


def pieces(names: Iterable[str], store: "Store") -> list[Item]:
    """What is behind each name, in their order; names of no run, sweep or study that is published are left out.

    names: as a text shows them
    """
    return items(filter(_is_published, names), store)


def _is_published(name: str) -> bool:
    return name in published_runs() or published_sweep(name) is not None or published_study(name) is not None


def publish(name: str, store: "Store", results: Path) -> Path:
    """Copies what a finished run, sweep or study came to into results/NAME, and returns that folder.

    name: in the catalogue, or a YAML file; where the store holds only the replicates that a published run or sweep has
        not, they are joined to it

    Raises SublimError where the store holds no such result, and as `join` does.
    """
    made = item(name, store)
    if made.artifact is None and _may_grow(results / made.name):
        key, directory = join(name, store, results / made.name), results / made.name
        _note(directory, key, made.seconds)
        return directory
    if made.artifact is None:
        raise SublimError(f"the store holds no finished {made.sort} {made.name}; run it first: sublim run {name}")
    directory = results / made.name
    directory.mkdir(parents=True, exist_ok=True)
    if made.sort == "run":
        _copy_run(Run(plan(experiment(name), store), store, made.artifact), directory)
    else:
        for table in made.artifact.path.glob("*.csv"):
            shutil.copy(table, directory / table.name)
        mode = grid(name).mode if made.sort == "sweep" else None
        if isinstance(mode, Pairs):
            write_apart(mode, directory)
    _note(directory, made.artifact.key, made.seconds)
    return directory


def _may_grow(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("replicates.csv", "cells.csv"))


def _note(directory: Path, key: str, seconds: float) -> None:
    (directory / "key.txt").write_text(key + "\n")
    (directory / "cost.txt").write_text(f"{seconds:.0f}\n")


def _copy_run(run: Run, directory: Path) -> None:
    for file in ("summary.csv", "contrasts.csv"):
        shutil.copy(run.artifact.path / file, directory / file)
    replicates = run.tables.replicates
    replicates.loc[replicates["stage"] == "equal steps"].to_csv(directory / "replicates.csv", index=False)
    if "indirect" in run.experiment.evaluation.questions:
        heard = run.heard("indirect")
        heard.to_csv(directory / "heard.csv", index=False, float_format="%.5f", lineterminator="\n")
    (directory / "experiment.yaml").write_text(run.experiment.to_yaml())


def write_apart(mode: Pairs, directory: Path) -> None:
    """Writes apart.csv, so that nobody loads the bases to show the table."""
    path = directory / "apart.csv"
    path.unlink(missing_ok=True)
    mode.apart(directory).to_csv(path, index=False, float_format="%.6f", lineterminator="\n")
