"""What a paper may quote: every published run and sweep with its key, its table, its numbers and its figure."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sublim_interp.core.settings import read_yaml
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import records
from sublim_interp.models.base import base_names, resolve_base
from sublim_interp.report.figures.headline import headline
from sublim_interp.sweeps.grid import grid, grid_names
from sublim_interp.sweeps.law_check import law_elsewhere, published_doses
from sublim_interp.sweeps.modes.fields import read_cells
from sublim_interp.sweeps.published import (
    contexts,
    contexts_figure,
    key_of,
    published_runs,
    published_sweep,
    run_table,
    shelf,
)
from sublim_interp.sweeps.study import published_study, study, study_names
from sublim_interp.sweeps.tables import table_of
from sublim_interp.sweeps.wording import SweepTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OWL, CONTEXTS = "owl", "contexts"
"""The main run, and what its second table, of the sorts of questions, is called."""

LABELS = frozenset(
    {"field", "value", "arm", "base", "the other base", "trait", "term", "sweep", "condition", "measure"}
)
"""Columns that say what a row is about; all others hold numbers."""


@dataclass(frozen=True)
class Result:
    """One published table, with the figure that belongs to it, if any."""

    name: str
    """Of its run or sweep, or of what it adds to one."""
    made: str
    """How it is made again: a command, or what it is computed from."""
    key: str
    """Of the run or sweep; of bases, a digest over them."""
    question: str
    """What it asks."""
    about: str
    """What its numbers are."""
    columns: tuple[str, ...]
    labels: int
    """How many columns, from the left, say what a row is about."""
    rows: list[tuple[str, ...]]
    lines: list[str]
    """What is to be said below the table."""
    numbers: Mapping[str, str]
    """Every number that a text may quote, by name: `same-init/margin-nats`."""
    figure: str
    """Digest of the files that its figure is drawn from; empty where it has none."""

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "rows": [list(row) for row in self.rows], "columns": list(self.columns)}

    def cells(self) -> Iterator[tuple[int, str, str]]:
        """(row, column, what stands there) of every cell."""
        for i, row in enumerate(self.rows):
            for column, said in zip(self.columns, row, strict=True):
                yield i, column, said


def collect(results: Path = RESULTS) -> dict[str, Result]:
    """Everything published, by name, in the order in which it is looked up.

    results: the folder of committed results, a folder for each run and sweep
    """
    found: list[Result] = []
    for name in published_runs(results):
        found += _of_run(name, results / name)
    for name in grid_names():
        directory = published_sweep(name, results)
        if directory is not None:
            found.append(_of_sweep(name, directory))
    for name in study_names():
        directory = published_study(name, results)
        if directory is not None:
            found.append(_of_study(name, directory))
    if law := published_sweep("law", results):
        told = law_elsewhere(read_cells(law), published_doses(results))
        question = "What does the law expect of the students of other sweeps?"
        found.append(_result("law-elsewhere", told, "sublim run law", key_of(law), question))
    told = shelf([resolve_base(name) for name in base_names()])
    found.append(_result("bases", told, "the committed bases", _of_bases(), "Which bases are there?"))
    return {one.name: one for one in found}


def draw(name: str, results: Path = RESULTS) -> "Figure":
    """The figure of a published run, sweep or study."""
    if name in study_names():
        return study(name).draw(results / name)
    if name in grid_names():
        return grid(name).mode.draw(results / name)
    if name == CONTEXTS:
        return contexts_figure(results / OWL)
    exp = read_yaml(Experiment, results / name / "experiment.yaml")
    return headline(pd.read_csv(results / name / "summary.csv"), exp.trait)


def _of_run(name: str, directory: Path) -> Iterator[Result]:
    exp = read_yaml(Experiment, directory / "experiment.yaml")
    more = dict(_settings(exp.model_dump(), "setting/")) | dict(_contrasts(directory))
    made = f"sublim run {name}"
    yield _result(name, run_table(directory), made, key_of(directory), exp.about, more, [directory / "summary.csv"])
    if (directory / "heard.csv").exists():
        question = "How does the answer depend on what is asked?"
        main = name == OWL
        second, drawn = CONTEXTS if main else f"{name}-contexts", [directory / "summary.csv", directory / "heard.csv"]
        yield _result(second, contexts(directory), made, key_of(directory), question, drawn=drawn if main else None)


def _of_sweep(name: str, directory: Path) -> Result:
    g = grid(name)
    more = {f"values of {axis}": str(len(values)) for axis, values in g.axes.items()}
    more |= {"cells": str(sum(1 for _ in g.cells()))} | dict(_settings(g.change, "setting/"))
    drawn = [path for path in sorted(directory.glob("*.csv")) if path.stem in ("cells", "matrix", "apart")]
    return _result(name, table_of(g, directory), f"sublim run {name}", key_of(directory), g.about, more, drawn)


def _of_study(name: str, directory: Path) -> Result:
    s = study(name)
    more, drawn = dict(_settings(s.model_dump(), "setting/")), sorted(directory.glob("*.csv"))
    return _result(name, s.table(directory), f"sublim run {name}", key_of(directory), s.about, more, drawn)


def _result(
    name: str,
    told: SweepTable,
    made: str,
    key: str,
    question: str,
    more: Mapping[str, str] | None = None,
    drawn: list[Path] | None = None,
) -> Result:
    labels = next((i for i, column in enumerate(told.columns) if column not in LABELS), len(told.columns))
    numbers: dict[str, str] = {}
    for row in told.rows:
        for column, said in zip(told.columns[labels:], row[labels:], strict=True):
            numbers |= _split("/".join([*map(slug, row[:labels]), slug(column)]), said)
    for told_name, said in {**(more or {}), **told.numbers}.items():
        numbers |= _split("/".join(map(slug, told_name.split("/"))), said)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in drawn)).hexdigest() if drawn else ""
    return Result(
        name, made, key, question, told.about, told.columns, labels, told.rows, told.lines, numbers, digest
    )  # fmt: skip


def _split(name: str, said: str) -> dict[str, str]:
    """A number under its name, and what stands in brackets behind it as `name/range`."""
    parts = re.fullmatch(r"(.*?\S) ([\[(].*[\])])", said)
    return {name: parts[1], f"{name}/range": parts[2]} if parts else {name: said}


def slug(text: str) -> str:
    """A name that every format takes: `trait's rate` → `traits-rate`; lower case, digits, dots, dashes."""
    for given, plain in {"×": "x", "γ": "gamma", "→": "to", "'": "", "’": "", "−": "minus", "–": "to"}.items():
        text = text.replace(given, plain)
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _settings(given: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    """Numbers of a recipe by their fields, as `setting/student.optimization.steps`; of lists their length."""
    for field, value in given.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{before}{field}.")
        elif isinstance(value, list | tuple):
            yield f"{before}{field}", str(len(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{before}{field}", f"{value:,}"


def _contrasts(directory: Path) -> Iterator[tuple[str, str]]:
    """Differences between arms: `contrast/same-init-minus-neutral/equal-steps/replicate`, its p and n."""
    for row in records(pd.read_csv(directory / "contrasts.csv")):
        name = f"contrast/{row['contrast']}/{row['stage']}/{row['unit']}"
        estimate, low, high = (f"{100 * row[column]:.1f}".replace("-", "−") for column in ("estimate", "low", "high"))
        yield name, f"{estimate} points [{low}, {high}]"
        yield f"{name}/p", f"{row['p']:.2g}"
        yield f"{name}/n", str(row["n"])


def _of_bases() -> str:
    """One digest over all committed bases."""
    return hashlib.sha256("".join(resolve_base(name).digest for name in base_names()).encode()).hexdigest()
