"""What can be run by a name, an experiment, a grid or a study: each is shown, planned, scheduled and made alike."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.cli.options import configured, configured_study, planned_grid
from sublim_interp.cli.planned import announce, machine_lines, request_table, spread, trace_table, work_table
from sublim_interp.cli.printing import duration, print_, table_of
from sublim_interp.cli.progress import Progress, watch, work_of
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sublim_interp.core.store import Artifact, Store
    from sublim_interp.experiments.executors.pieces import Work
    from sublim_interp.experiments.plan import Plan
    from sublim_interp.experiments.schema import Experiment
    from sublim_interp.sweeps.plan import SweepPlan
    from sublim_interp.sweeps.study import Study
    from sublim_interp.sweeps.wording import SweepTable


class Subject(ABC):
    """Something that `sublim run NAME` makes in a store."""

    store: "Store"

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called."""

    @abstractmethod
    def found(self) -> "Artifact | None":
        """What it came to, where the store holds it."""

    @abstractmethod
    def configured(self) -> "Iterator[RenderableType]":
        """What it is, field by field."""

    @abstractmethod
    def planned(self, processes: int = 2) -> "Iterator[RenderableType]":
        """What is still to be done, and what it costs; or that the store holds it."""

    @abstractmethod
    def published(self) -> "Iterator[RenderableType]":
        """The committed result of its name or recipe, where there is one."""

    @abstractmethod
    def work(self, cores: int) -> "Work":
        """All that is to be made, for an executor that is left alone.

        cores: that a job may have
        """

    @abstractmethod
    def make(self, processes: int) -> None:
        """Makes what the store lacks, with its progress shown, and prints what it came to."""

    @property
    def _done(self) -> str:
        """What is said where nothing is left to be done."""
        return f"{self.name} is in the store already: nothing to do."


@dataclass(frozen=True)
class OfExperiment(Subject):
    """A run: an experiment with all its arms and replicates."""

    plan: "Plan"
    store: "Store"

    @property
    def name(self) -> str:
        return self.plan.experiment.name

    def found(self) -> "Artifact | None":
        from sublim_interp.experiments.run import find_run

        return find_run(self.plan, self.store)

    def configured(self) -> "Iterator[RenderableType]":
        yield _configuration(self.plan.experiment)

    def planned(self, processes: int = 2) -> "Iterator[RenderableType]":
        yield from _tables(self.plan, self.store, processes)

    def published(self) -> "Iterator[RenderableType]":
        from sublim_interp.experiments.catalogue import published
        from sublim_interp.report.terminal import terminal

        if whole := published(self.plan.experiment):
            title = f"{whole.name} as published, run {whole.key[:16]}, {whole.summary['n'].max()} replicates"
            yield terminal(whole.summary, whole.contrasts, title)

    def work(self, cores: int) -> "Work":
        from sublim_interp.report.run import run_work

        return run_work(self.plan, self.store)

    def make(self, processes: int) -> None:
        from sublim_interp.experiments.catalogue import published
        from sublim_interp.report.terminal import terminal

        if self.found():
            print_(self._done)
        else:
            announce(self.plan, self.store)
        finished = watch(self.plan.experiment, self.store, processes)
        title = f"{self.name}: how often “{finished.plan.named.trait}” is the answer"
        print_(terminal(finished.tables.summary, finished.contrasts, title))
        if whole := published(finished.experiment, finished.key):
            title = f"for comparison: the published run {whole.name}, {whole.key[:16]}, of this recipe"
            print_(terminal(whole.summary, whole.contrasts, title))
        print_(f"run     {finished.key[:16]}  {finished.artifact.path}", f"report  {finished.page}")
        if elsewhere := finished.elsewhere():
            print(f"sublim: {elsewhere}", file=sys.stderr)


@dataclass(frozen=True)
class OfGrid(Subject):
    """A sweep: an experiment varied along one field after another."""

    plan: "SweepPlan"
    store: "Store"
    is_own: bool
    """Whether it is of a file of one's own, which has no committed result, whatever its name."""

    @property
    def name(self) -> str:
        return self.plan.grid.name

    def found(self) -> "Artifact | None":
        from sublim_interp.sweeps.plan import find_sweep

        return find_sweep(self.plan, self.store)

    def configured(self) -> "Iterator[RenderableType]":
        g = self.plan.grid
        yield from (f"Grid {g.name}: {g.about}", f"experiment {g.experiment}, in every cell with", *_given(g.change))
        yield from ("and one after another with", *_given(g.axes), "")

    def planned(self, processes: int = 2) -> "Iterator[RenderableType]":
        yield from (self._done,) if self.found() else _tables(self.plan, self.store, processes)

    def published(self) -> "Iterator[RenderableType]":
        from sublim_interp.sweeps.published import published_sweep
        from sublim_interp.sweeps.tables import table_of as sweep_table

        if whole := None if self.is_own else published_sweep(self.name):
            yield from _told(sweep_table(self.plan.grid, whole), f"{self.name}, as published")

    def work(self, cores: int) -> "Work":
        from sublim_interp.sweeps.run import sweep_work

        return sweep_work(self.plan, self.store)

    def make(self, processes: int) -> None:
        from sublim_interp.sweeps.run import run_grid
        from sublim_interp.sweeps.tables import table_of as sweep_table

        if self.found():  # though dead ends are missing from the store
            print_(self._done)
            artifact = run_grid(self.plan, self.store, processes)
        else:
            announce(self.plan, self.store)
            with Progress(self.name, work_of(self.plan, self.store), processes) as seen:
                artifact = run_grid(self.plan, self.store, processes, seen)
        print_(*_told(sweep_table(self.plan.grid, artifact.path), self.name))
        figure = artifact.path / f"{self.plan.grid.mode.figure}.png"
        print_(f"sweep   {artifact.key[:16]}  {artifact.path}", f"figure  {figure}")


@dataclass(frozen=True)
class OfStudy(Subject):
    """A study, whose pieces are its own."""

    study: "Study"
    store: "Store"
    is_own: bool
    """As of a grid."""

    @property
    def name(self) -> str:
        return self.study.name

    def found(self) -> "Artifact | None":
        from sublim_interp.sweeps.study import find_study

        return find_study(self.study, self.store)

    def configured(self) -> "Iterator[RenderableType]":
        yield _configuration(self.study)

    def planned(self, processes: int = 2) -> "Iterator[RenderableType]":
        if self.found():
            yield self._done
            return
        table = table_of("Planned work", "piece", "replicates", "about", right=("replicates", "about"))
        costs = self.study.costs()
        for name, seconds in costs.items():
            table.add_row(name, str(self.study.replicates), duration(seconds))
        total = sum(costs.values())
        table.caption = f"about {duration(total)} of one core{spread(total, processes)}"
        yield table
        yield from machine_lines()

    def published(self) -> "Iterator[RenderableType]":
        from sublim_interp.sweeps.study import published_study

        if whole := None if self.is_own else published_study(self.name):
            yield from _told(self.study.table(whole), f"{self.name}, as published")

    def work(self, cores: int) -> "Work":
        from sublim_interp.sweeps.study import study_work

        return study_work(self.study, self.store, cores)

    def make(self, processes: int) -> None:
        from sublim_interp.sweeps.study import run_study

        if self.found():
            print_(self._done)
            artifact = run_study(self.study, self.store, processes)
        else:
            costs = self.study.costs()
            with Progress(self.name, {name: (name, seconds) for name, seconds in costs.items()}, processes) as seen:
                artifact = run_study(self.study, self.store, processes, seen)
        print_(*_told(self.study.table(artifact.path), self.name))
        figure = artifact.path / f"{self.study.FIGURE}.png"
        print_(f"study   {artifact.key[:16]}  {artifact.path}", f"figure  {figure}")


def subject(
    name: str,
    store: "Store",
    sets: list[str] | None = None,
    base: list[str] | None = None,
    images: str | None = None,
    trace: str | None = None,
    lists: Path | None = None,
) -> Subject:
    """What a name of the catalogue, or a YAML file, stands for, as the options of a command change it.

    Raises SublimError for an option that does not go with it, and for what cannot be planned.
    """
    from sublim_interp.core.shelf import is_path
    from sublim_interp.experiments.plan import plan
    from sublim_interp.sweeps.grid import GRIDS
    from sublim_interp.sweeps.study import STUDIES
    from sublim_interp.training.recording.settings import recording_of

    if STUDIES.means(name):
        unfit = {"--base": base, "--trace": trace, "--lists": lists}
        return OfStudy(configured_study(name, sets, images, unfit), store, is_path(name))
    if images:
        raise SublimError(f"--images: '{name}' reads no images; `sublim run mnist` does")
    if GRIDS.means(name):
        if lists:
            raise SublimError("--lists goes with an experiment, not with a grid; a grid may set lists under change")
        return OfGrid(planned_grid(name, sets, base, trace, store), store, is_path(name))
    exp = configured(name, sets, base, lists)
    return OfExperiment(plan(exp.set(recording=recording_of(trace)) if trace else exp, store), store)


def _tables(p: "Plan | SweepPlan", store: "Store", processes: int) -> "Iterator[RenderableType]":
    """What is still to be done and recorded of a plan."""
    from sublim_interp.experiments.cost import planned_memory, planned_reach

    yield work_table(p, store, processes)
    yield from machine_lines(planned_memory(p.records, store), processes)
    yield from request_table(p, store)
    yield from planned_reach(p.records)
    yield trace_table(p, store)


def _told(found: "SweepTable", name: str) -> "list[RenderableType]":
    """The table of a sweep or a study, its verdict, and what else is to be said below it."""
    labels = ("field", "value", "arm", "trait", "base", "the other base")
    numbers = [column for column in found.columns if column not in labels]
    table = table_of(f"{name}: {found.about.rstrip('.')}", *found.columns, right=tuple(numbers))
    for row in found.rows:
        table.add_row(*row)
    return [table, *found.lines]


def _configuration(exp: "Experiment | Study") -> "RenderableType":
    """Every field with its value and, beneath the name, its meaning."""
    from sublim_interp.core.settings import fields_of

    table = table_of(f"Experiment {exp.name}" + (f": {exp.about}" if exp.about else ""), "field", "value", "what it is")
    for name, value, _, meaning in fields_of(exp):
        if name not in ("name", "about", "study"):
            table.add_row(name, " ".join(map(str, value)) if isinstance(value, tuple) else str(value), meaning)
    return table


def _given(fields: Mapping[str, Any]) -> list[str]:
    """One line a field; the values of an axis side by side."""
    return [f"    {name}: {' '.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in fields.items()]
