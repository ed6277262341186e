"""A suite: runs, sweeps and studies under one name, made one after the other; and what each item of it costs."""

from collections.abc import Iterable
from math import fsum
from typing import TYPE_CHECKING, NamedTuple

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.core.shelf import Shelf, is_path
from sublim_interp.experiments.catalogue import RESULTS, experiment
from sublim_interp.experiments.cost import estimate
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.run import find_run
from sublim_interp.sweeps.grid import GRIDS, grid
from sublim_interp.sweeps.plan import find_sweep, plan_grid
from sublim_interp.sweeps.rows import Row
from sublim_interp.sweeps.study import STUDIES, find_study, study

if TYPE_CHECKING:
    from sublim_interp.core.store import Artifact, Store
    from sublim_interp.pipeline.records import Record


class Suite(Config):
    """What `sublim run NAME` makes one after the other."""

    name: str
    """Name in the catalogue."""
    about: str
    """What it is for, in one sentence."""
    holds: tuple[str, ...]
    """Experiments, grids and studies of the catalogue, in the order in which they are made."""
    rows: tuple[Row, ...] = ()
    """Rows of the finding that they answer, each with the original work's figure."""


SUITES = Shelf("suite", "suites", Suite, marked_by="holds")
"""Every suite by name."""


def suite(name: str) -> Suite:
    """The suite called `name`, or the one in a YAML file; its files are named from where that file lies.

    Raises SublimError for what it may not hold.
    """
    found = SUITES.load(name)
    folder = SUITES.find(name).parent
    return found.model_copy(update={"holds": tuple(str(folder / one) if is_path(one) else one for one in found.holds)})


class Item(NamedTuple):
    """A run, sweep or study."""

    name: str
    sort: str
    """run, sweep or study."""
    seconds: float
    """Of one core, for all of it."""
    left: float
    """The same, for what a store does not hold."""
    artifact: "Artifact | None"
    """What it came to, where the store holds it."""
    todo: "tuple[Record, ...]" = ()
    """The stages that a store does not hold, of a run or a sweep."""
    lacks: str = ""
    """Why it cannot be made here, such as a base that is to be pulled first."""


def left_of(found: Iterable[Item]) -> float:
    """About how many seconds of one core are left of all items together; a stage that several share counts once."""
    found = list(found)
    shared = {record.key: record for one in found for record in one.todo}
    return fsum(map(estimate, shared.values())) + fsum(one.left for one in found if not one.todo)


def item(name: str, store: "Store") -> Item:
    """What a name of the catalogue, or a YAML file, stands for, and what it costs.

    Raises SublimError for a name of nothing that could be run.
    """
    if STUDIES.means(name):
        asked = study(name)
        whole, found = sum(asked.costs().values()), find_study(asked, store)
        return Item(asked.name, "study", whole, 0.0 if found else whole, found)
    if GRIDS.means(name):
        sweep = plan_grid(grid(name), store)
        found, records = find_sweep(sweep, store), sweep.records
        title, sort = sweep.grid.name, "sweep"
    else:
        p = plan(experiment(name), store)
        found, records, title, sort = find_run(p, store), p.records, p.experiment.name, "run"
    todo = () if found else tuple(record for record in records if record.find(store) is None)
    return Item(title, sort, fsum(map(estimate, records)), fsum(map(estimate, todo)), found, todo)


def items(names: Iterable[str], store: "Store") -> list[Item]:
    """What each name stands for, in their order; one that cannot be planned here says why."""
    return [_item_or_why(name, store) for name in names]


def _item_or_why(name: str, store: "Store") -> Item:
    try:
        return item(name, store)
    except SublimError as error:
        cost = RESULTS / name / "cost.txt"
        seconds = float(cost.read_text()) if cost.exists() else 0.0
        return Item(name, "run", seconds, seconds, None, lacks=str(error))
