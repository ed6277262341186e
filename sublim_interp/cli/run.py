"""`sublim run NAME`: makes an experiment, a grid, a study or a suite of them, with its progress shown."""

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
)
from sublim_interp.cli.planned import print_items, require_makeable
from sublim_interp.cli.printing import print_
from sublim_interp.cli.status import print_status
from sublim_interp.cli.subjects import subject
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.executors.pieces import Work
    from sublim_interp.experiments.executors.protocol import Executor
    from sublim_interp.sweeps.suite import Item, Suite


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
    from sublim_interp.report.figures.by_name import FIGURES
    from sublim_interp.sweeps.grid import grid_names
    from sublim_interp.sweeps.study import study_names
    from sublim_interp.sweeps.suite import SUITES, suite

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
    asked = subject(name, place, sets, base, images, trace, lists)
    FIGURES.import_outside()
    if dry_run:
        print_(*asked.planned(processes))
    elif executor.detached:
        _schedule(asked.work(executor.site.cores), place, executor)
    else:
        asked.make(processes)


def _schedule(work: "Work", store: "Store", executor: "Executor") -> None:
    """Has the work begun by others, and says what was scheduled."""
    if work.pieces[-1].find(store):
        print_(f"{work.name} is in the store already: nothing to do.")
        return
    executor.start(work, store, lambda _name, _fraction: None)
    print_status(work.name, store)


def _run_suite(s: "Suite", store: "Store", processes: int, dry_run: bool) -> None:
    found = print_suite_plan(s, store, processes)
    if dry_run:
        return
    require_makeable(found)
    for name in s.holds:
        subject(name, store).make(processes)


def print_suite_plan(s: "Suite", store: "Store", processes: int = 2) -> "list[Item]":
    """What is left of each item of a suite, as a table."""
    from sublim_interp.sweeps.suite import items

    found = items(s.holds, store)
    print_items(f"{s.name}: {s.about.rstrip('.')}", found, processes)
    return found
