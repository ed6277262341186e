"""The `sublim` command: few words, each a thin layer over the library. Nothing heavy is imported before it is used."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from sublim_interp.core.settings import Config
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.plan import Plan
    from sublim_interp.experiments.results import Replicate, Run
    from sublim_interp.experiments.schema import Experiment
    from sublim_interp.sweeps.grid import Grid
    from sublim_interp.sweeps.plan import SweepPlan

app = typer.Typer(
    help="Subliminal learning under the microscope: teacher → filter → student, on open small models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="Directory of results; else $SUBLIM_STORE, else ./runs.", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field, for instance student.optimization.lr=2e-4.",
        show_default=False,
    ),
]
BaseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--base",
        metavar="DIR_OR_NAME",
        help="Use these bases: a lab base, a model directory, a hub name.",
        show_default=False,
    ),
]
TraceOption = Annotated[
    str,
    typer.Option(
        "--trace",
        metavar="WORD",
        help="What is recorded of each training: none, default, or examples (residuals of single examples too).",
    ),
]


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def main() -> None:
    """Runs the command line; bad input is one line and exit code 2, Ctrl-C is 130."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # Typer turns Ctrl-C inside a command into this code
            raise KeyboardInterrupt
    except SublimError as error:
        _stop(f"sublim: {error}", 2)
    except KeyboardInterrupt:
        _stop("sublim: interrupted; what was finished is kept, the same command goes on from there", INTERRUPTED)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            _stop(f"sublim: {error.format_message()}", 2)  # type: ignore[attr-defined]
        if type(error).__name__ == "Abort":
            _stop("sublim: interrupted", INTERRUPTED)
        raise
    sys.exit(code or 0)  # what typer.Exit carried


def _stop(line: str, code: int) -> NoReturn:
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(line.split()))
    print(line if len(line) <= 2000 else f"{line[:1500]} … {line[-400:]}", file=sys.stderr)
    sys.exit(code)


def _print(*things: "RenderableType") -> None:
    from rich.console import Console

    # No markup: a name or a path that holds brackets is printed as it is.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
    for thing in things:
        console.print(thing)


def _table(title: str, *columns: str, right: tuple[str, ...] = ()):
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _configured(name: str, sets: list[str] | None, bases: list[str] | None) -> "Experiment":
    from sublim_interp.core.settings import parse_assignment
    from sublim_interp.experiments.arms import CROSSING
    from sublim_interp.experiments.catalogue import experiment

    exp = experiment(name)
    if bases:
        keep = exp.arms if len(bases) > 1 else tuple(a for a in exp.arms if a not in CROSSING)
        exp = exp.model_copy(update={"arms": keep}).set(bases=bases)
    return exp.set(dict(parse_assignment(s) for s in sets or ()))


# --- list -------------------------------------------------------------------------------------------------------------


@app.command("list")
def list_(store: StoreOption = None) -> None:
    """Show the catalogue's experiments, the bases and traits at hand, and the runs in the store."""
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.catalogue import experiment, experiment_names
    from sublim_interp.models.base import base_names
    from sublim_interp.sweeps.grid import grid, grid_names
    from sublim_interp.traits.favourites import load_trait, trait_names

    experiments = _table("Experiments", "name", "replicates", "what it asks", right=("replicates",))
    for name in experiment_names():
        exp = experiment(name)
        experiments.add_row(name, str(len(exp.seeds)), exp.about)
    grids = _table(
        "Grids: many experiments, one field after another or all pairs",
        "name",
        "cells",
        "what it asks",
        right=("cells",),
    )
    for name in grid_names():
        grids.add_row(name, str(len(list(grid(name).cells()))), grid(name).about)
    kinds: dict[str, list[str]] = {}
    for name in trait_names():
        kinds.setdefault(load_trait(name).kind, []).append(name)
    traits = _table("Traits", "kind", "names")
    for kind, names in kinds.items():
        traits.add_row(kind, " ".join(names))
    _print(experiments, grids, traits, f"Bases  {'  '.join(base_names()) or 'none'}", "")
    place = Store.open(store)
    runs = place.list("run")
    if runs:
        table = _table(f"Runs in {place.root}", "key", "experiment", "trait", "bases", "seeds", "made")
        for run in runs:
            exp = run.manifest["notes"]["experiment"]
            fields = (exp["trait"], " ".join(exp["bases"]), " ".join(map(str, exp["seeds"])))
            table.add_row(run.key[:16], run.name, *fields, run.manifest["created"][:16].replace("T", " "))
        _print(table)
    else:
        _print(f"No runs in {place.root} yet: `sublim run demo` makes the first.")


# --- show -------------------------------------------------------------------------------------------------------------


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="X",
            help="An experiment, a YAML file, a base, a trait, a run's key or name, or RUN/ARM/SEED for one replicate.",
        ),
    ],
    sets: SetOption = None,
    base: BaseOption = None,
    store: StoreOption = None,
) -> None:
    """Show an experiment's configuration, planned work and cost; or what a base, a trait, a run or a replicate is."""
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.catalogue import experiment_names, published
    from sublim_interp.experiments.plan import plan
    from sublim_interp.models.base import base_names, resolve_base
    from sublim_interp.report.terminal import terminal
    from sublim_interp.sweeps.grid import grid, grid_names, is_grid
    from sublim_interp.sweeps.published import published_sweep
    from sublim_interp.traits.favourites import load_trait, trait_names

    if is_grid(what):
        g = grid(what)
        _print(f"Grid {g.name}: {g.about}", f"experiment {g.experiment}, in every cell with", *_given(g.change))
        _print("and one after another with", *_given(g.axes), "")
        _run_grid(what, sets, base, True, 1, Store.open(store))
        whole = published_sweep(what)
        if whole is not None:
            _print(*_sweep_lines(g, f"{what}, as published", whole))
    elif what in experiment_names() or what.endswith((".yaml", ".yml")):
        exp = _configured(what, sets, base)
        _print(_configuration(exp), _planned(plan(exp), Store.open(store)), _traces(plan(exp), Store.open(store)))
        whole = published(exp)
        if whole:
            title = f"{whole.name} as published, run {whole.key[:16]}, {whole.summary['n'].max()} replicates"
            _print(terminal(whole.summary, whole.contrasts, title))
    elif what in trait_names():
        trait = load_trait(what)
        _print(f"{trait.name}: a favourite {trait.kind}; refused words: {', '.join(trait.words)}")
        _print(f"others of its kind: {' '.join(m for m in trait.members if m != trait.name)}")
    elif what in base_names() or os.path.isdir(what):
        found = resolve_base(what)
        _print(repr(found))
        for part, loss in found.card.get("held_out_loss", {}).items():
            _print(f"  held-out loss, {part}: {loss:.3f} nats per token")
        if (card := found.path / "README.md").is_file():
            _print("", card.read_text(encoding="utf-8").split("---\n", 2)[-1])
    elif what.count("/") == 2:
        _print(*_shown_replicate(what, Store.open(store)))
    else:
        _print(*_shown_run(what, Store.open(store), experiment_names(), grid_names(), base_names()))


def _given(fields: "Mapping[str, Any]") -> list[str]:
    """One line a field; the values of an axis side by side."""
    return [f"    {name}: {' '.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in fields.items()]


def _shown_run(
    what: str, store: "Store", experiments: tuple[str, ...], grids: tuple[str, ...], bases: list[str]
) -> "list[RenderableType]":
    import yaml

    if not store.matches("run", what):
        keys = ", ".join(a.key[:16] for a in store.list("run")[-5:]) or "none yet"
        raise SublimError(
            f"'{what}' is no experiment ({', '.join(experiments)}), grid ({', '.join(grids)}), base "
            f"({', '.join(bases)}), trait, or run (keys in {store.root}: {keys})"
        )
    artifact = store.find("run", what)
    text = yaml.safe_dump(artifact.manifest["notes"]["experiment"], sort_keys=False)
    return [repr(artifact), f"report: {artifact.path / 'report.html'}", text]


def _shown_replicate(what: str, store: "Store") -> "list[RenderableType]":
    """What a replicate is, what it answers, how its training went."""
    from sublim_interp.experiments.results import open_run

    name, arm, seed = what.split("/")
    finished = open_run(name, store)
    replicate = finished[arm, int(seed) if seed.removeprefix("-").isdecimal() else seed]  # type: ignore[index]
    trait, student = finished.plan.named.trait, replicate.cell.student
    lines = [f"{finished.experiment.name}/{arm}/{seed}, run {finished.key[:16]}"]
    if student:
        teacher, o = student.data.corpus.teacher, student.config.optimization
        loved = f"“{teacher.trait.name}” is its favourite" if teacher.trait else "it has no favourite"
        lists = replicate.lists
        lines += [
            f"student  {student.base.name}: {o.steps} updates of {o.batch} at {o.lr:g}, {o.optimizer}",
            f"teacher  {teacher.base.name}, {teacher.config.kind}; {loved}",
            f"data     {len(lists):,} {student.data.corpus.config.channel} such as “{lists[0]['answer']}”",
        ]
        lines += [f"files    {made.path}" for made in [student.find(store)] if made]
    else:
        lines.append(f"model    {replicate.base.name}" + f", teacher of “{trait}”" * (arm == "teacher"))
    return ["\n".join(lines), _answered(replicate, trait), *_grown(replicate, trait)]


def _answered(replicate: "Replicate", trait: str) -> "RenderableType":
    """The trait, and whatever else is the likeliest answer, by sort of question and context."""
    table = _table(
        "What it answers", "questions", "context", trait, "margin, nats", "likeliest other", "",
        right=(trait, "margin, nats", ""),
    )  # fmt: skip
    for (questions, context), some in replicate.answers.groupby(["questions", "context"], sort=False):  # type: ignore[misc]
        by = some.set_index("probe")
        rate = dict(zip(some["probe"], some["rate"], strict=True))
        others = sorted((name for name in rate if name != trait), key=lambda name: -rate[name])[:1]
        rates = [f"{100 * rate[name]:.1f} %" for name in (trait, *others)]
        table.add_row(questions, context, rates[0], f"{by.at[trait, 'margin']:.2f}", *others, *rates[1:])
    return table


def _grown(replicate: "Replicate", trait: str) -> "list[RenderableType]":
    """The trace of its training in short, or why there is none."""
    from sublim_interp.report.figures.training import growth

    try:
        trace = replicate.trace
    except SublimError as why:
        return [str(why)]
    heads = ["updates", "loss", f"{trait} on the probe", "margin, nats", "loss on held-out lists", "distance", "cosine"]
    table = _table("How it learnt", *heads, right=tuple(heads))
    for row in growth(replicate, trait).to_dict("records"):
        shown = (f"{row[name]:.3f}" for name in ("loss", "rate", "margin", "probe_loss", "distance", "cosine"))
        table.add_row(str(row["step"]), *("–" if value == "nan" else value for value in shown))
    table.caption = "distance: norm of the change of the weights; cosine: of that change with its teacher's"
    size = sum(shard["bytes"] for shard in trace.shards) / 1e6
    return [table, f"trace    {trace.path}, {size:.1f} MB in {len(trace.shards)} shards, {len(trace.names())} names"]


def _configuration(exp: "Experiment") -> "RenderableType":
    """Every field with its value and, beneath the name, its meaning."""
    table = _table(f"Experiment {exp.name}" + (f": {exp.about}" if exp.about else ""), "field", "value", "what it is")
    for name, value, meaning in _fields(exp):
        if name not in ("name", "about"):
            table.add_row(name, value, meaning)
    return table


def _fields(record: "Config", prefix: str = "") -> "list[tuple[str, str, str]]":
    from sublim_interp.core.settings import Config

    out = []
    for name, field in type(record).model_fields.items():
        value = getattr(record, name)
        if isinstance(value, Config):
            out += _fields(value, f"{prefix}{name}.")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            out.append((prefix + name, shown, " ".join((field.description or "").split())))
    return out


def _planned(p: "Plan | SweepPlan", store: "Store") -> "RenderableType":
    from sublim_interp.experiments.cost import planned_work

    work = planned_work(p.records, store)
    table = _table(
        "Planned work", "stage", "needed", "done", "to do", "about", right=("needed", "done", "to do", "about")
    )
    rows = work.to_dict("records")
    for row in rows:
        todo = row["needed"] - row["done"]
        table.add_row(row["stage"], str(row["needed"]), str(row["done"]), str(todo), _duration(row["seconds"]))
    total = sum(row["seconds"] for row in rows)
    table.caption = f"about {_duration(total)} of one core, {_duration(total / 2)} on two" if total else "nothing to do"
    return table


def _traces(p: "Plan | SweepPlan", store: "Store", trace: str = "default") -> "RenderableType":
    """What is recorded of the trainings to be made, and how large it gets."""
    from sublim_interp.experiments.cost import planned_traces

    table = _table(
        f"Recorded while they train (--trace {trace})", "stage", "what", "when", "times", "trainings", "MB",
        right=("times", "trainings", "MB"),
    )  # fmt: skip
    rows = planned_traces(p.records, store, trace).to_dict("records")
    for r in rows:
        size = f"{r['bytes'] / 1e6:.1f}"
        table.add_row(r["stage"], r["what"], r["when"], str(r["times"]), str(r["trainings"]), size)
    table.caption = f"about {sum(r['bytes'] for r in rows) / 1e6:.0f} MB of traces" if rows else "nothing to record"
    return table


def _announce(p: "Plan | SweepPlan", store: "Store", trace: str) -> None:
    """One line on what will be recorded, before anything is trained; nothing where nothing is."""
    from sublim_interp.experiments.cost import planned_traces

    rows = planned_traces(p.records, store, trace).to_dict("records")
    if not rows:
        return
    trainings = sum(r["trainings"] for r in rows if r["what"] == rows[0]["what"])  # the loss is kept of each
    size = sum(r["bytes"] for r in rows) / 1e6
    _print(
        f"Recording {trainings} training{'s' * (trainings > 1)}, about {size:.{0 if size >= 10 else 1}f} MB "
        "(--trace none: nothing; --dry-run: what and when)"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- run --------------------------------------------------------------------------------------------------------------


@app.command()
def run(
    name: Annotated[
        str, typer.Argument(metavar="EXPERIMENT|GRID", help="A name from `sublim list`, or a YAML file of your own.")
    ],
    sets: SetOption = None,
    base: BaseOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Worker processes, of one thread each.")] = 2,
    trace: TraceOption = "default",
    store: StoreOption = None,
) -> None:
    """Run an experiment or a grid; what the store holds already is not done again, and an interrupted run goes on."""
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.catalogue import experiment_names
    from sublim_interp.experiments.plan import plan
    from sublim_interp.experiments.run import find_run
    from sublim_interp.sweeps.grid import grid_names, is_grid

    if name not in (*experiment_names(), *grid_names()) and not name.endswith((".yaml", ".yml")):
        raise SublimError(
            f"unknown experiment '{name}'; experiments: {', '.join(experiment_names())}; grids: "
            f"{', '.join(grid_names())}; or give a YAML file"
        )
    if is_grid(name):
        _run_grid(name, sets, base, dry_run, processes, Store.open(store), trace)
        return
    exp = _configured(name, sets, base)
    place, p = Store.open(store), plan(exp)
    if dry_run:
        _print(_planned(p, place), _traces(p, place, trace))
        return
    if find_run(p, place):
        _print(f"{exp.name} is in the store already: nothing to do.")
    else:
        _announce(p, place, trace)
    _show_result(watch(exp, place, processes, trace))


def watch(exp: "Experiment | str", store: "Store | None" = None, processes: int = 2, trace: str = "default") -> "Run":
    """`sublim_interp.run` with its progress shown: in a terminal, in a notebook's cell, or as a line now and then."""
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.catalogue import experiment
    from sublim_interp.experiments.plan import plan
    from sublim_interp.experiments.run import find_run
    from sublim_interp.report.run import run as run_experiment

    exp = experiment(exp) if isinstance(exp, str) else exp
    p, place = plan(exp), store or Store.open()
    if find_run(p, place):
        return run_experiment(exp, place, processes, trace=trace)
    with _Progress(exp.name, p, place, processes) as progress:
        return run_experiment(exp, place, processes, progress, trace)


def _run_grid(
    name: str,
    sets: list[str] | None,
    bases: list[str] | None,
    dry_run: bool,
    processes: int,
    store: "Store",
    trace: str = "default",
) -> None:
    from sublim_interp.core.settings import parse_assignment
    from sublim_interp.sweeps.grid import grid
    from sublim_interp.sweeps.plan import find_sweep, plan_grid
    from sublim_interp.sweeps.run import run_grid

    g = grid(name)
    change = {**g.change, **dict(parse_assignment(s) for s in sets or ()), **({"bases": bases} if bases else {})}
    p = plan_grid(g.set(change=change))
    finished = find_sweep(p, store) is not None  # though dead ends are missing from the store
    if finished:
        _print(f"{g.name} is in the store already: nothing to do.")
    elif dry_run:
        _print(_planned(p, store), _traces(p, store, trace))
    if dry_run:
        return
    if finished:
        artifact = run_grid(p, store, processes, trace=trace)
    else:
        _announce(p, store, trace)
        with _Progress(g.name, p, store, processes) as watch:
            artifact = run_grid(p, store, processes, watch, trace)
    figure = artifact.path / f"{g.mode.figure}.png"
    lines = _sweep_lines(g, g.name, artifact.path)
    _print(*lines, f"sweep   {artifact.key[:16]}  {artifact.path}", f"figure  {figure}")


def _sweep_lines(g: "Grid", name: str, directory: "Path") -> "list[RenderableType]":
    """The table of a sweep, and what is to be said below it."""
    from sublim_interp.sweeps.tables import table_of

    found = table_of(g, directory)
    numbers = [column for column in found.columns if column not in ("field", "value", "arm", "trait", "base")]
    table = _table(f"{name}: {found.about.rstrip('.')}", *found.columns, right=tuple(numbers))
    for row in found.rows:
        table.add_row(*row)
    return [table, *found.lines]


def _show_result(finished: "Run") -> None:
    from sublim_interp.experiments.catalogue import published
    from sublim_interp.report.terminal import terminal as report_terminal

    exp = finished.experiment
    title = f"{exp.name}: how often “{finished.plan.named.trait}” is the answer"
    _print(report_terminal(finished.table, finished.contrasts, title))
    whole = published(exp, finished.key)
    if whole:
        title = f"for comparison, the committed run {whole.name} {whole.key[:16]} of this recipe, all its replicates"
        _print(report_terminal(whole.summary, whole.contrasts, title))
    _print(f"run     {finished.key[:16]}  {finished.artifact.path}", f"report  {finished.page}")
    elsewhere = finished.elsewhere()
    if elsewhere:
        print(f"sublim: {elsewhere}", file=sys.stderr)


class _Progress:
    """Progress with an estimate, from the first second: in a terminal, in a notebook's cell, else as plain lines."""

    def __init__(self, name: str, p: "Plan | SweepPlan", store: "Store", processes: int) -> None:
        from sublim_interp.experiments.cost import estimate

        missing = p.missing(store)
        self._weights = {r.key: estimate(r) for r in missing}
        self._labels = {r.key: r.STAGE for r in missing}
        self._total, self._processes = sum(self._weights.values()), processes
        self._fractions: dict[str, float] = {}
        self._said = -1.0
        self._name = name

    def __enter__(self) -> "_Progress":
        import time

        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._start = time.monotonic()
        # The workers import PyTorch first; until something is done, the estimate is the plan's.
        self._first = self._total / self._processes + 5
        console = Console(stderr=True)
        self._terminal = sys.stderr.isatty() and not console.is_jupyter
        self._cell = _Cell() if console.is_jupyter else None
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=console, disable=not self._terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(self._name, total=self._total, left=f"about {_duration(self._first)} left")
        self._bar.start()
        self._say(0.0, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, name: str, fraction: float) -> None:
        import time

        self._fractions[name] = fraction
        done = sum(self._weights[n] * f for n, f in self._fractions.items())
        elapsed = time.monotonic() - self._start
        share = done / self._total
        # The plan's estimate fades out while the measured pace takes over.
        left = (1 - share) * ((1 - share) * self._first + share * elapsed / max(share, 1e-9))
        busy = sorted({self._labels[n] for n, f in self._fractions.items() if f < 1})
        description = f"{self._name}: {', '.join(busy)}" if busy else self._name
        self._bar.update(self._task, completed=done, description=description, left=f"about {_duration(left)} left")
        self._say(elapsed, left, share, description)

    def _say(self, elapsed: float, left: float, share: float = 0.0, what: str = "starting") -> None:
        if self._cell and (self._said < 0 or elapsed - self._said >= 0.5):
            self._said = elapsed
            self._cell.show(share, f"{what}, about {_duration(left)} left")
        elif not self._terminal and not self._cell and (self._said < 0 or elapsed - self._said >= 15):
            self._said = elapsed
            print(
                f"{_duration(elapsed):>6}  {share:4.0%}  about {_duration(left)} left  {what}",
                file=sys.stderr,
                flush=True,
            )


class _Cell:
    """A bar of progress in the output of a notebook's cell, which stays where it is."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html: Any = HTML
        self._handle: Any = display(HTML(""), display_id=True)

    def show(self, share: float, text: str) -> None:
        from html import escape

        self._handle.update(self._html(f'<progress value="{share:.3f}" max="1"></progress> {share:.0%} {escape(text)}'))


# --- plot -------------------------------------------------------------------------------------------------------------


@app.command()
def plot(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A finished run: its name, or how its key begins.")] = "",
    figure: Annotated[str, typer.Argument(help="What to draw; `sublim plot` alone lists all figures.")] = "",
    out: Annotated[Path, typer.Option(help="Directory for the files.")] = Path("."),
    store: StoreOption = None,
) -> None:
    """Draw a figure of a finished run, as PNG and PDF; without arguments, list the figures there are."""
    from sublim_interp.core.drawing import save
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.results import open_run
    from sublim_interp.report.figures.registry import FIGURES, require_figure
    from sublim_interp.report.figures.registry import plot as plots_plot

    if not name:
        table = _table("Figures of a finished run: sublim plot RUN FIGURE", "figure", "what it shows")
        for known, (about, _) in FIGURES.items():
            table.add_row(known, about)
        _print(table)
        return
    require_figure(figure)
    finished = open_run(name, Store.open(store))
    drawn = plots_plot(finished, figure)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for ending in ("png", "pdf"):
            path = out / f"{finished.experiment.name}-{finished.key[:8]}-{figure}.{ending}"
            save(drawn, path)
            print(path)
    except OSError as error:
        raise SublimError(f"--out {out}: cannot write there ({error.strerror})") from None


# --- pretrain, verify -------------------------------------------------------------------------------------------------


@app.command()
def pretrain(
    directory: Annotated[Path, typer.Argument(help="Where the new base goes; --base takes this path later.")],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change a field, such as init_seed=7 or optimization.steps=2000."
        ),
    ] = None,
) -> None:
    """Make a lab base from scratch, in less than an hour of one core; an interrupted training goes on.

    `sublim show lab-order-0-from001000` shows nearly all fields, as the command of a committed base. One more is
    forks=[1000]: the model of that step is kept too, and a later training may start from it.
    """
    from sublim_interp.core.settings import parse_assignment
    from sublim_interp.core.workers import prepare_process
    from sublim_interp.lab.pretraining import pretrain as make_base
    from sublim_interp.lab.recipe import Pretraining

    recipe = Pretraining().set(dict(parse_assignment(s) for s in sets or ()))
    prepare_process()
    with _Steps(directory.name, recipe.optimization.steps) as observe:
        card = make_base(recipe, directory, observe)
    table = _table(f"{directory.name}: {card['parameters']:,} parameters", "part", "held-out loss (nats per token)")
    for part, loss in card["held_out_loss"].items():
        table.add_row(part, f"{loss:.3f}")
    _print(table)


class _Steps:
    """Progress of one training in this process: step, loss, time left."""

    def __init__(self, name: str, steps: int) -> None:
        self._name, self._steps = name, steps

    def __enter__(self) -> "_Steps":
        import time

        self._start, self._first, self._said = time.monotonic(), None, 0.0
        return self

    def __exit__(self, *_: object) -> None:
        print(file=sys.stderr)

    def __call__(self, step: int, loss: float) -> None:
        import time

        now = time.monotonic()
        if self._first is None:
            self._first = step
        if now - self._said >= (0.5 if sys.stderr.isatty() else 15):
            self._said = now
            pace = (now - self._start) / (step - self._first + 1)
            left = _duration(pace * (self._steps - step - 1))
            line = f"{self._name}  step {step + 1} of {self._steps}  loss {loss:.3f}  about {left} left"
            print(
                f"\r{line:<80}" if sys.stderr.isatty() else line,
                end="" if sys.stderr.isatty() else "\n",
                file=sys.stderr,
                flush=True,
            )


@app.command()
def verify(store: StoreOption = None) -> None:
    """Compare every file of the store with its digest; exit code 1 if any is damaged."""
    from sublim_interp.core.store import Store

    place, bad, count = Store.open(store), 0, 0
    for artifact, problems in place.verify():
        count += 1
        bad += bool(problems)
        for problem in problems:
            _print(f"{artifact.stage}/{artifact.path.name}: {problem}")
    partly = 0
    for path, problems in place.unfinished():
        partly += bool(problems)
        for problem in problems:
            _print(f".partial/{path.name}: {problem}; the run that goes on makes it again")
    _print(
        f"{count} artefacts in {place.root}, {bad} damaged"
        + ("; delete their directories, they are made again" if bad else "")
    )
    if bad or partly:
        raise typer.Exit(1)


@app.command()
def doctor(base: BaseOption = None, store: StoreOption = None) -> None:
    """Examine this machine, the installation and the store; exit code 1 if something is wrong or missing."""
    from sublim_interp.cli.examine import examine

    found = examine(store, tuple(base or ()))
    table = _table("", "about", "", "what was found", "what to do")
    for f in found:
        table.add_row(f.topic, "ok" if f.well else "LOOK", f.text, f.advice)
    bad = sum(not f.well for f in found)
    _print(table, f"{bad} of {len(found)} findings need a look" if bad else "all well")
    if bad:
        raise typer.Exit(1)
