"""A run in progress, drawn in a notebook's cell from the traces that grow in its store."""

import time
from typing import TYPE_CHECKING, Any

import pandas as pd

from sublim_interp.core.drawing import small_png
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.plan import Cell, Plan, plan, students_of
from sublim_interp.experiments.run import find_run
from sublim_interp.report.figures.progress import progress as draw_progress
from sublim_interp.report.figures.training import grown
from sublim_interp.training.recording.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sublim_interp.experiments.schema import Experiment


def live(exp: "Experiment | str", store: Store | None = None, every: float = 2.0) -> None:
    """Draws how the students of an experiment come along, anew whenever there is more, until its run is finished.

    The run is made elsewhere: by `sublim run` in a terminal, or by another notebook. Interrupting the cell ends the
    view and not the run.

    exp: an experiment, its name, or the path of its YAML file
    store: where the run is made; None means $SUBLIM_STORE, else ./runs
    every: seconds between two looks

    Raises SublimError outside a notebook, and for a trace that is damaged.
    """
    place = store or Store.open()
    p = plan(experiment(exp) if isinstance(exp, str) else exp, place)
    picture, image = _place_in_cell()
    shown: list[int] | None = None
    failed = False
    try:
        while True:
            finished = find_run(p, place) is not None
            try:
                traces = so_far(p, place)
                seen = [len(trace.shards) for _, trace in traces]
                if finished or seen != shown:
                    picture.update(image(small_png(drawn(p, traces))))
                shown, failed = seen, False
            except SublimError:
                if failed or finished:
                    raise
                failed = True  # a trace may just have been moved to where finished ones lie: look once more
            if finished:
                return
            time.sleep(every)
    except KeyboardInterrupt:
        return


def _place_in_cell() -> Any:
    """A place in the output of the cell that runs, whose content can be replaced, and the class of what it takes."""
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import Image, display

        if hasattr(get_ipython(), "kernel"):
            return display(display_id=True), Image
    except ImportError:
        pass
    raise SublimError("live draws in the cell of a notebook; in a terminal, `sublim run` shows its progress")


def so_far(p: Plan, store: Store) -> list[tuple[Cell, Trace]]:
    """Every student of a plan whose first state is recorded, with its trace up to the last whole shard."""
    growing = [path for path, _ in store.unfinished()]
    found = []
    for cell in students_of(p):
        assert cell.student
        made = cell.student.find(store)
        start = f"{cell.student.STAGE}-{cell.student.key[:16]}-"
        homes = [made.path] if made else [path for path in growing if path.name.startswith(start)]
        opened = [Trace.open(home / "trace") for home in homes if (home / "trace").is_dir()]
        found += [(cell, trace) for trace in opened if trace.names("delta_norm")]
    return found


def drawn(p: Plan, traces: list[tuple[Cell, Trace]]) -> "Figure":
    """The figure `progress` of those of a plan's students whose traces are given."""
    trait, updates = p.named.trait, p.experiment.student.optimization.steps
    states, losses = [pd.DataFrame(columns=["arm", "seed", "step", "rate", "loss"])] * 2
    done = 0
    for cell, trace in traces:
        own = grown(cell, trace, trait).assign(arm=cell.arm, seed=cell.seed)
        states = pd.concat([states, own]) if len(states) else own
        done += own["step"].max() == updates
        if trace.names("loss"):
            loss = trace.series("loss")["loss"]
            each = pd.DataFrame({"step": loss.index, "loss": loss.rolling(20, min_periods=1).mean()})
            each = each.assign(arm=cell.arm, seed=cell.seed)
            losses = pd.concat([losses, each]) if len(losses) else each
    heading = f"{p.experiment.name}: {len(students_of(p))} students, {done} trained, {len(traces) - done} in training"
    return draw_progress(states, losses, trait, updates, heading)
