"""`run`: makes an experiment's records, then writes its report; what is there already is found, not made again."""

from sublim_interp.core.device import fingerprint, using_device
from sublim_interp.core.store import Store
from sublim_interp.core.workers import Watch
from sublim_interp.experiments.catalogue import experiment, published
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Run, tables_of
from sublim_interp.experiments.run import RUN_VERSION, execute, run_config, run_inputs, versions
from sublim_interp.experiments.schema import Experiment
from sublim_interp.report.figures.registry import FIGURES
from sublim_interp.report.write import write
from sublim_interp.training.recording.settings import recording_of


def run(
    exp: Experiment | str,
    store: Store | None = None,
    processes: int = 2,
    watch: Watch = lambda _name, _fraction: None,
    trace: str | None = None,
    device: str | None = None,
) -> Run:
    """Runs an experiment, or finds it done. What an interrupted call made is kept and not made again.

    exp: an experiment, its name in the catalogue, or a path of a YAML file
    store: where everything lies that is made; else `$SUBLIM_STORE`, else ./runs
    processes: how many workers, of one thread each
    watch: told the name of each piece of work and the share of it that is done
    trace: what is recorded of the trainings, in place of `exp.recording`: none, default, or examples
    device: where models are put: cpu, cuda, mps, auto; else `$SUBLIM_DEVICE`, else the CPU; no part of any key

    Weights, and so all results and keys, are the same whatever is recorded. Raises SublimError for what cannot run.
    """
    exp = experiment(exp) if isinstance(exp, str) else exp
    if trace:
        exp = exp.model_copy(update={"recording": recording_of(trace)})
    with using_device(device):
        return _run(exp, store or Store.open(), processes, watch)


def _run(exp: Experiment, store: Store, processes: int, watch: Watch) -> Run:
    p = plan(exp)
    missing = p.missing(store)
    FIGURES.import_outside()
    if missing:
        execute(missing, store, processes, watch, p.recording)
    with store.make("run", RUN_VERSION, run_config(p), run_inputs(p), fingerprint(dtype=p.experiment.dtype)) as work:
        if work.done:
            for cell in p.cells:
                cell.evaluation.made(store)  # its digest is compared: a run is not shown beside a damaged part of it
        else:
            work.note(name=p.experiment.name, experiment=p.experiment.model_dump(mode="json"))
            beside = published(p.experiment, work.key)
            write(work.directory, p.named, tables_of(p, store), beside, work.key, versions())
    return Run(p, store, work.artifact)
