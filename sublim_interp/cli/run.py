"""`sublim run NAME`: makes an experiment, a grid, a study or a suite of them, with its progress shown."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sublim_interp.cli.options import (
    BaseOption,
    DeviceOption,
    ImagesOption,
    OnOption,
    SetOption,
    SiteOption,
    StoreOption,
    TraceOption,
    configured,
    configured_study,
    planned_grid,
)
from sublim_interp.cli.planned import (
    announce,
    print_items,
    request_table,
    require_makeable,
    spread,
    trace_table,
    work_table,
)
from sublim_interp.cli.printing import duration, print_, table_of
from sublim_interp.cli.progress import Progress, watch, work_of
from sublim_interp.cli.status import print_status
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sublim_interp.core.store import Store
    from sublim_interp.experiments.executors.pieces import Work
    from sublim_interp.experiments.executors.protocol import Executor
    from sublim_interp.experiments.plan import Plan
    from sublim_interp.experiments.results import Run
    from sublim_interp.experiments.schema import Experiment
    from sublim_interp.sweeps.grid import Grid
    from sublim_interp.sweeps.plan import SweepPlan
    from sublim_interp.sweeps.study import Study
    from sublim_interp.sweeps.suite import Item, Suite
    from sublim_interp.sweeps.wording import SweepTable


def run(
    name: Annotated[
        str, typer.Argument(metavar="EXPERIMENT|GRID", help="A name from `sublim list`, or a YAML file of your own.")
    ],
    sets: SetOption = None,
    base: BaseOption = None,
    images: ImagesOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Worker processes, of one thread each.")] = 2,
    trace: TraceOption = None,
    device: DeviceOption = None,
    lists: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL lists of your own, for the arm own-lists to learn.")
    ] = None,
    on: OnOption = "local",
    site: SiteOption = None,
    store: StoreOption = None,
) -> None:
    """Run an experiment or a grid; what the store holds already is not done again, and an interrupted run goes on."""
    from sublim_interp.core.device import using_device
    from sublim_interp.experiments.executors.protocol import EXECUTORS
    from sublim_interp.experiments.executors.site import site_of

    executor = EXECUTORS[on](site_of(site), processes)
    if site and not executor.detached:
        raise SublimError(f"--site goes with jobs, as of --on slurm; --on {on} asks no cluster")
    if device and executor.detached:
        raise SublimError("--device: with jobs the site's file says it, as in device: cuda")
    with using_device(device):
        _run(name, sets, base, images, dry_run, processes, trace, lists, store, executor)


def _run(
    name: str,
    sets: list[str] | None,
    base: list[str] | None,
    images: str | None,
    dry_run: bool,
    processes: int,
    trace: str | None,
    lists: Path | None,
    store: Path | None,
    executor: "Executor",
) -> None:
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.catalogue import experiment_names
    from sublim_interp.experiments.plan import plan
    from sublim_interp.report.figures.by_name import FIGURES
    from sublim_interp.report.run import run_work
    from sublim_interp.sweeps.grid import GRIDS, grid_names
    from sublim_interp.sweeps.run import sweep_work
    from sublim_interp.sweeps.study import STUDIES, study_names, study_work
    from sublim_interp.sweeps.suite import SUITES, suite
    from sublim_interp.training.recording.settings import recording_of

    names = (*experiment_names(), *study_names(), *grid_names(), *SUITES.names())
    if name not in names and not name.endswith((".yaml", ".yml")):
        known = meant(name, names, "sublim list", "experiments and grids")
        raise SublimError(f"unknown experiment '{name}'; {known}; or give a YAML file")
    place = Store.open(store)
    if SUITES.means(name):
        given = {"--set": sets, "--base": base, "--images": images, "--trace": trace, "--lists": lists}
        if unfit := [option for option, value in given.items() if value] + ["--on"] * executor.detached:
            raise SublimError(f"{unfit[0]} goes with one experiment, not with a suite; '{name}' runs each as it is")
        _run_suite(suite(name), place, processes, dry_run)
        return
    if STUDIES.means(name):
        asked = {"--base": base, "--trace": trace, "--lists": lists}
        s = configured_study(name, sets, images, asked)
        if dry_run:
            print_study_plan(s, place, processes)
        elif executor.detached:
            _schedule(study_work(s, place, executor.site.cores), place, executor)
        else:
            _run_study(s, place, processes)
        return
    if images:
        raise SublimError(f"--images: '{name}' reads no images; `sublim run mnist` does")
    if GRIDS.means(name):
        if lists:
            raise SublimError("--lists goes with an experiment, not with a grid; a grid may set lists under change")
        sweep = planned_grid(name, sets, base, trace, place)
        if dry_run:
            print_grid_plan(sweep, place, processes)
        elif executor.detached:
            _schedule(sweep_work(sweep, place), place, executor)
        else:
            _run_grid(sweep, place, processes)
        return
    exp = configured(name, sets, base, lists)
    if trace:
        exp = exp.set(recording=recording_of(trace))
    p = plan(exp, place)
    FIGURES.import_outside()
    if dry_run:
        print_plan(p, place, processes)
        return
    if executor.detached:
        _schedule(run_work(p, place), place, executor)
        return
    _run_experiment(exp, p, place, processes)


def _run_experiment(exp: "Experiment", p: "Plan", store: "Store", processes: int) -> None:
    from sublim_interp.experiments.run import find_run

    if find_run(p, store):
        print_(f"{exp.name} is in the store already: nothing to do.")
    else:
        announce(p, store)
    _show_result(watch(exp, store, processes))


def _schedule(work: "Work", store: "Store", executor: "Executor") -> None:
    """Has the work begun by others, and says what was scheduled."""
    if work.pieces[-1].find(store):
        print_(f"{work.name} is in the store already: nothing to do.")
        return
    executor.start(work, store, lambda _name, _fraction: None)
    print_status(work.name, store)


def _run_grid(p: "SweepPlan", store: "Store", processes: int) -> None:
    from sublim_interp.sweeps.plan import find_sweep
    from sublim_interp.sweeps.run import run_grid

    name = p.grid.name
    if find_sweep(p, store):  # though dead ends are missing from the store
        print_(f"{name} is in the store already: nothing to do.")
        artifact = run_grid(p, store, processes)
    else:
        announce(p, store)
        with Progress(name, work_of(p, store), processes) as watch:
            artifact = run_grid(p, store, processes, watch)
    figure = artifact.path / f"{p.grid.mode.figure}.png"
    print_(
        *sweep_lines(p.grid, name, artifact.path), f"sweep   {artifact.key[:16]}  {artifact.path}", f"figure  {figure}"
    )


def _run_study(s: "Study", store: "Store", processes: int) -> None:
    from sublim_interp.sweeps.study import find_study, run_study

    if find_study(s, store):
        print_(f"{s.name} is in the store already: nothing to do.")
        artifact = run_study(s, store, processes)
    else:
        with Progress(s.name, {name: (name, seconds) for name, seconds in s.costs().items()}, processes) as watch:
            artifact = run_study(s, store, processes, watch)
    figure = artifact.path / f"{s.FIGURE}.png"
    print_(*told_lines(s, s.name, artifact.path), f"study   {artifact.key[:16]}  {artifact.path}", f"figure  {figure}")


def _run_suite(s: "Suite", store: "Store", processes: int, dry_run: bool) -> None:
    found = print_suite_plan(s, store, processes)
    if dry_run:
        return
    require_makeable(found)
    for name in s.holds:
        made_anew(name, store, processes)


def print_suite_plan(s: "Suite", store: "Store", processes: int = 2) -> "list[Item]":
    """What is left of each item of a suite, as a table."""
    from sublim_interp.sweeps.suite import items

    found = items(s.holds, store)
    print_items(f"{s.name}: {s.about.rstrip('.')}", found, processes)
    return found


def made_anew(name: str, store: "Store", processes: int) -> None:
    """Makes what the catalogue has under a name, or what a YAML file holds, as `sublim run NAME` does."""
    from sublim_interp.experiments.catalogue import experiment
    from sublim_interp.experiments.plan import plan
    from sublim_interp.sweeps.grid import GRIDS, grid
    from sublim_interp.sweeps.plan import plan_grid
    from sublim_interp.sweeps.study import STUDIES, study

    if STUDIES.means(name):
        _run_study(study(name), store, processes)
    elif GRIDS.means(name):
        _run_grid(plan_grid(grid(name), store), store, processes)
    else:
        exp = experiment(name)
        _run_experiment(exp, plan(exp, store), store, processes)


def print_study_plan(s: "Study", store: "Store", processes: int = 2) -> None:
    """What a study costs, or that the store holds it."""
    from sublim_interp.sweeps.study import find_study

    if find_study(s, store):
        print_(f"{s.name} is in the store already: nothing to do.")
        return
    table = table_of("Planned work", "piece", "replicates", "about", right=("replicates", "about"))
    costs = s.costs()
    for name, seconds in costs.items():
        table.add_row(name, str(s.replicates), duration(seconds))
    total = sum(costs.values())
    table.caption = f"about {duration(total)} of one core{spread(total, processes)}"
    print_(table)


def print_plan(p: "Plan | SweepPlan", store: "Store", processes: int = 2) -> None:
    """What is still to be done and recorded, as tables."""
    from sublim_interp.experiments.cost import planned_reach

    print_(work_table(p, store, processes), *request_table(p, store), *planned_reach(p.records), trace_table(p, store))


def print_grid_plan(p: "SweepPlan", store: "Store", processes: int = 2) -> None:
    """The same of a grid, or that its sweep is there."""
    from sublim_interp.sweeps.plan import find_sweep

    if find_sweep(p, store):
        print_(f"{p.grid.name} is in the store already: nothing to do.")
    else:
        print_plan(p, store, processes)


def sweep_lines(g: "Grid", name: str, directory: "Path") -> "list[RenderableType]":
    """The table of a sweep, and what is to be said below it."""
    from sublim_interp.sweeps.tables import table_of as sweep_table

    return _told(sweep_table(g, directory), name)


def told_lines(s: "Study", name: str, directory: "Path") -> "list[RenderableType]":
    """The table of a study, its verdict, and what else is to be said below it."""
    return _told(s.table(directory), name)


def _told(found: "SweepTable", name: str) -> "list[RenderableType]":
    labels = ("field", "value", "arm", "trait", "base", "the other base")
    numbers = [column for column in found.columns if column not in labels]
    table = table_of(f"{name}: {found.about.rstrip('.')}", *found.columns, right=tuple(numbers))
    for row in found.rows:
        table.add_row(*row)
    return [table, *found.lines]


def _show_result(finished: "Run") -> None:
    from sublim_interp.experiments.catalogue import published
    from sublim_interp.report.terminal import terminal as report_terminal

    exp = finished.experiment
    title = f"{exp.name}: how often “{finished.plan.named.trait}” is the answer"
    print_(report_terminal(finished.tables.summary, finished.contrasts, title))
    whole = published(exp, finished.key)
    if whole:
        title = f"for comparison: the published run {whole.name}, {whole.key[:16]}, of this recipe"
        print_(report_terminal(whole.summary, whole.contrasts, title))
    print_(f"run     {finished.key[:16]}  {finished.artifact.path}", f"report  {finished.page}")
    elsewhere = finished.elsewhere()
    if elsewhere:
        print(f"sublim: {elsewhere}", file=sys.stderr)
