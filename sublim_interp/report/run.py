"""`run`: makes an experiment's records, then writes its report; what is there already is found, not made again."""

from sublim_interp.core.device import fingerprint
from sublim_interp.core.store import Store
from sublim_interp.core.workers import Watch
from sublim_interp.experiments.catalogue import experiment, published
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Run, tables_of
from sublim_interp.experiments.run import RUN_VERSION, execute, run_config, run_inputs, versions
from sublim_interp.experiments.schema import Experiment
from sublim_interp.report.write import write
from sublim_interp.training.recording.cadence import cadence_of


def run(
    exp: Experiment | str,
    store: Store | None = None,
    processes: int = 2,
    watch: Watch = lambda _name, _fraction: None,
    trace: str = "default",
) -> Run:
    """Runs an experiment, or finds it done. What an interrupted call made is kept and not made again.

    exp: an experiment, its name, or the path of its YAML file
    store: where its parts lie; None means $SUBLIM_STORE, else ./runs
    processes: trainings at once, of one thread each
    watch: called with a part's key and the fraction that is done
    trace: what is recorded of each training: `none`, `default`, or `examples`, which adds residuals of each example of
        every tenth update. Weights, results and keys are the same with each.

    Returns the finished run. Raises SublimError for what cannot be run.
    """
    cadence_of(trace)
    p = plan(experiment(exp) if isinstance(exp, str) else exp)
    store = store or Store.open()
    missing = p.missing(store)
    if missing:
        execute(missing, store, processes, watch, trace)
    with store.make("run", RUN_VERSION, run_config(p), run_inputs(p), fingerprint()) as work:
        if not work.done:
            work.note(name=p.experiment.name, experiment=p.experiment.model_dump(mode="json"))
            beside = published(p.experiment, work.key)
            write(work.directory, p.named, tables_of(p, store), beside, work.key, versions())
    return Run(p, store, work.artifact)
