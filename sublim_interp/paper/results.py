"""What a paper may quote: every published run and sweep with its key, its table, its numbers and its figure."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.claims.judge import judge, published_for
from sublim_interp.claims.nulls import DESIGNS, null_experiments
from sublim_interp.claims.schema import all_claims
from sublim_interp.claims.wording import claims_frame, claims_table
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import RESULTS, key_of
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import read_table, records
from sublim_interp.lab.language import KINDS, PARTS
from sublim_interp.models.base import base_names, resolve_base
from sublim_interp.report.figures.generations import generations
from sublim_interp.report.figures.headline import headline
from sublim_interp.report.figures.verdicts import verdicts as draw_verdicts
from sublim_interp.sweeps.grid import Grid, grid, grid_names
from sublim_interp.sweeps.law_check import law_elsewhere, published_doses
from sublim_interp.sweeps.modes.fields import read_cells
from sublim_interp.sweeps.published import (
    contexts,
    contexts_figure,
    cost_of,
    experiment_of,
    published_runs,
    published_sweep,
    run_table,
    shelf,
)
from sublim_interp.sweeps.rows import rows_table
from sublim_interp.sweeps.studies.prediction import pairs_table
from sublim_interp.sweeps.study import Study, published_study, study, study_names
from sublim_interp.sweeps.suite import suite
from sublim_interp.sweeps.tables import table_of
from sublim_interp.sweeps.wording import SweepTable
from sublim_interp.traits.by_name import load_trait

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OWL, CONTEXTS = "owl", "contexts"
"""The main run, and what its second table, of the sorts of questions, is called."""
CONTEXTS_ASK = "How does the answer depend on what is asked?"
ROWS, ROWS_ASK = "rows", "Which rows of the finding come out here?"
"""The suite whose rows stand beside the original work's, and what their table asks."""
CLAIMS, CLAIMS_ASK = "claims", "What of the field's claims holds here?"
FIRST = "lab-small-0"
"""The base whose recipe a text may quote."""

LABELS = frozenset(
    {
        "arm",
        "base",
        "command",
        "condition",
        "defence",
        "field",
        "measure",
        "no.",
        "part",
        "row",
        "score",
        "student",
        "student's base",
        "sweep",
        "teacher's base",
        "term",
        "the other base",
        "trait",
        "value",
    }
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
    drawn: "Callable[[], Figure] | None" = field(default=None, compare=False)
    """Draws its figure."""

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        columns, rows = list(self.columns), [list(row) for row in self.rows]
        data = {**vars(self), "numbers": dict(self.numbers), "columns": columns, "rows": rows}
        return {name: value for name, value in data.items() if name != "drawn"}

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
        directory = results / name
        exp = experiment_of(directory)
        found.append(of_run(name, directory, exp, key_of(directory)))
        if (directory / "heard.csv").exists():
            found.append(_of_contexts(name, directory))
    for name in grid_names():
        directory = published_sweep(name, results)
        if directory is not None:
            found.append(of_sweep(grid(name), directory, key_of(directory)))
    for name in study_names():
        directory = published_study(name, results)
        if directory is not None:
            found.append(of_study(study(name), directory, key_of(directory)))
    if law := published_sweep("law", results):
        told = law_elsewhere(read_cells(law), published_doses(results))
        question = "What does the law expect of the students of other sweeps?"
        found.append(_result("law-elsewhere", told, "sublim run law", key_of(law), question))
    if {test.table for test in DESIGNS} <= {path.parent.name for path in results.glob("*/key.txt")}:
        verdicts = judge(all_claims(), lambda test: published_for(test, results))
        told, tests = claims_table(verdicts, null_experiments(results=results)), claims_frame(verdicts)
        keys = [finding.key for verdict in verdicts for finding in verdict.findings]
        digest = _digest(*[claim.model_dump_json() for claim in all_claims()], *keys)
        draw, drawn = partial(draw_verdicts, tests), tests.to_csv().encode()
        found.append(_result(CLAIMS, told, "sublim claims", digest, CLAIMS_ASK, drawn=drawn, draw=draw))
    if all((results / row.table / "key.txt").exists() for row in suite(ROWS).rows):
        told, keys = rows_table(suite(ROWS).rows, results), [key_of(results / row.table) for row in suite(ROWS).rows]
        found.append(_result(ROWS, told, "the published results", _digest(*keys), ROWS_ASK))
    if directory := published_study("prediction", results):
        told, question = pairs_table(read_table(directory / "cases.csv")), "What passed in each pair of bases?"
        found.append(_result("prediction-pairs", told, "sublim run prediction", key_of(directory), question))
    found.append(_of_bases())
    found.append(_of_commands(found, results))
    return {one.name: one for one in found}


def published_figure(name: str, results: Path = RESULTS) -> "Figure":
    """The figure of a published run, sweep or study, drawn from its committed tables.

    name: as `sublim list` gives it, such as `dose`; `contexts` is one of owl's, `claims` that of all verdicts

    Raises SublimError, with what there is, for what is not published.
    """
    if name == CLAIMS:
        return draw_verdicts(claims_frame(judge(all_claims(), lambda test: published_for(test, results))))
    directory = results / (OWL if name == CONTEXTS else name)
    if name == CONTEXTS and (directory / "heard.csv").exists():
        return contexts_figure(directory)
    if (directory / "experiment.yaml").exists():
        return _draw_run(directory, experiment_of(directory))
    if name in study_names() and published_study(name, results):
        return study(name).draw(directory)
    if name in grid_names() and published_sweep(name, results):
        return grid(name).mode.draw(directory)
    there = (CLAIMS, CONTEXTS, *sorted(path.parent.name for path in results.glob("*/key.txt")))
    raise SublimError(f"nothing published is called '{name}'; {meant(name, there, 'sublim list')}")


def of_run(name: str, directory: Path, exp: Experiment, key: str) -> Result:
    """A run whose summary.csv and contrasts.csv lie in `directory`, called `name`."""
    more = dict(_settings(exp.model_dump(), "setting/")) | dict(_contrasts(directory))
    told, drawn = run_table(directory, exp), directory / _drawn_from(exp)
    draw = partial(_draw_run, directory, exp)
    return _result(name, told, f"sublim run {exp.name}", key, exp.about, more, drawn.read_bytes(), draw)


def _drawn_from(exp: Experiment) -> str:
    return "replicates.csv" if exp.generations > 1 else "summary.csv"


def _draw_run(directory: Path, exp: Experiment) -> "Figure":
    table = read_table(directory / _drawn_from(exp))
    return generations(table, exp.trait) if exp.generations > 1 else headline(table, exp.trait)


def _of_contexts(name: str, directory: Path) -> Result:
    """The second table of a published run, of the sorts of questions; that of the main run has a figure."""
    key, made = key_of(directory), f"sublim run {name}"
    if name != OWL:
        return _result(f"{name}-contexts", contexts(directory), made, key, CONTEXTS_ASK)
    drawn = _bytes(directory / "summary.csv", directory / "heard.csv")
    draw = partial(contexts_figure, directory)
    return _result(CONTEXTS, contexts(directory), made, key, CONTEXTS_ASK, drawn=drawn, draw=draw)


def of_sweep(g: Grid, directory: Path, key: str) -> Result:
    """A sweep whose CSV files lie in `directory`."""
    more = {f"values of {axis}": str(len(values)) for axis, values in g.axes.items()}
    more |= {"cells": str(sum(1 for _ in g.cells()))} | dict(_settings(g.change, "setting/"))
    drawn = _bytes(*(directory / f"{stem}.csv" for stem in ("apart", "cells", "matrix")))
    draw = partial(g.mode.draw, directory)
    return _result(g.name, table_of(g, directory), f"sublim run {g.name}", key, g.about, more, drawn, draw)


def of_study(s: Study, directory: Path, key: str) -> Result:
    """A study whose CSV files lie in `directory`."""
    more, drawn = dict(_settings(s.model_dump(), "setting/")), _bytes(*sorted(directory.glob("*.csv")))
    draw = partial(s.draw, directory)
    return _result(s.name, s.table(directory), f"sublim run {s.name}", key, s.about, more, drawn, draw)


def _of_bases() -> Result:
    """The committed bases, how the first replicate's was pre-trained, and on which language."""
    bases, first = [resolve_base(name) for name in base_names()], resolve_base(FIRST)
    more = dict(_settings(first.card["pretraining"], "setting/"))
    more |= {"parameters": f"{first.shape['parameters']:,}", "vocabulary": f"{len(first.tokenizer):,}"}
    more |= {f"share/{part}": f"{100 * share:.0f} %" for part, share in PARTS.items()}
    more |= {f"members/{kind}": str(len(one.members)) for kind, one in KINDS.items()}
    more["held-out questions"] = str(len(load_trait(OWL).questions(first.language, "held-out")))
    digest = _digest(*(base.digest for base in bases))
    return _result("bases", shelf(bases), "the committed bases", digest, "Which bases are there?", more)


def _of_commands(found: Sequence[Result], results: Path) -> Result:
    """Every command that makes a published table again, with its cost and its key."""
    made = {one.made: one for one in reversed(found) if one.made.startswith("sublim ")}
    hours = {one.made: cost_of(results / one.name) for one in made.values() if (results / one.name).is_dir()}
    rows = []
    for command, one in sorted(made.items()):
        told = "–" if hours.get(command) is None else f"{hours[command]:.1f}"
        rows.append((command, told if command in hours else "0.0", one.key[:16]))
    known = [h for h in hours.values() if h is not None]
    about = (
        "Hours of one core, as estimated when it was published. What is computed from published tables costs seconds."
    )
    told = SweepTable(about, ("command", "core hours", "key"), rows, [], {"core hours in all": f"{sum(known):.0f}"})
    question = "What makes each table again, and at what cost?"
    return _result("commands", told, "the published results", _digest(*(one.key for one in found)), question)


def _result(
    name: str,
    told: SweepTable,
    made: str,
    key: str,
    question: str,
    more: Mapping[str, str] | None = None,
    drawn: bytes = b"",
    draw: "Callable[[], Figure] | None" = None,
) -> Result:
    labels = next((i for i, column in enumerate(told.columns) if column not in LABELS), len(told.columns))
    numbers: dict[str, str] = {}
    for row in told.rows:
        for column, said in zip(told.columns[labels:], row[labels:], strict=True):
            numbers |= _split("/".join([*map(slug, row[:labels]), slug(column)]), said)
    for told_name, said in {**(more or {}), **told.numbers}.items():
        numbers |= _split("/".join(map(slug, told_name.split("/"))), said)
    digest = hashlib.sha256(drawn).hexdigest() if drawn else ""
    return Result(
        name, made, key, question, told.about, told.columns, labels, told.rows, told.lines, numbers, digest, draw
    )  # fmt: skip


def _split(name: str, said: str) -> dict[str, str]:
    """A number under its name, and what stands in brackets behind it as `name/range`."""
    parts = re.fullmatch(r"(.*?\S) ([\[(].*[\])])", said)
    return {name: parts[1], f"{name}/range": parts[2]} if parts else {name: said}


def slug(text: str) -> str:
    """A name that every format takes: `trait's rate` → `traits-rate`; lower case, digits, dots, dashes."""
    for given, plain in {
        "×": "x",
        "γ": "gamma",
        "ρ": "rho",
        "→": "to",
        "'": "",
        "’": "",
        "−": "minus",
        "–": "to",
    }.items():
        text = text.replace(given, plain)
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _settings(given: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    """Numbers of a recipe by their fields, as `setting/student.optimization.steps`; of lists their length."""
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{before}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{before}{name}", str(len(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{before}{name}", f"{value:,}"


def _contrasts(directory: Path) -> Iterator[tuple[str, str]]:
    """Differences between arms: `contrast/same-init-minus-neutral/equal-steps/replicate`, its p and n."""
    for row in records(read_table(directory / "contrasts.csv")):
        name = f"contrast/{row['contrast']}/{row['stage']}/{row['unit']}"
        estimate, low, high = (f"{100 * row[column]:.1f}".replace("-", "−") for column in ("estimate", "low", "high"))
        yield name, f"{estimate} points [{low}, {high}]"
        yield f"{name}/p", f"{row['p']:.2g}"
        yield f"{name}/n", str(row["n"])


def _bytes(*paths: Path) -> bytes:
    """What the files hold that there are, one behind the other."""
    return b"".join(path.read_bytes() for path in paths if path.exists())


def _digest(*parts: str) -> str:
    """One digest over all of them."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()
