"""`run`: makes an experiment and its report; what is there is found. `learn`: one student of own lists."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sublim_interp.core.device import fingerprint, using_device
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Artifact, Store
from sublim_interp.core.workers import Watch
from sublim_interp.experiments.catalogue import experiment, published
from sublim_interp.experiments.cost import REPORT, Needs
from sublim_interp.experiments.executors.pieces import Piece, Progress, Work, pieces_of
from sublim_interp.experiments.plan import Plan, plan
from sublim_interp.experiments.results import Replicate, Run, tables_of
from sublim_interp.experiments.run import RUN_VERSION, execute, run_config, run_inputs, run_key, versions
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.pipeline.records import Evaluation
from sublim_interp.report.figures.by_name import FIGURES
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
    place = store or Store.open()
    with using_device(device):
        return _run(plan(exp, place), place, processes, watch)


def run_work(p: Plan, store: Store) -> Work:
    """All that is to be made of an experiment, its report last: for an executor that is left alone."""
    records = p.missing(store)
    pieces = pieces_of(records, store, p.recording)
    evaluations = tuple(dict.fromkeys(r.key for r in records if isinstance(r, Evaluation)))
    last = Piece("run", run_key(p), _end_run, (p, store.root), evaluations, Needs(60.0, REPORT, "run"))
    return Work(p.experiment.name, last.key, (*pieces, last))


def _end_run(p: Plan, root: Path, progress: Progress) -> None:
    _run(p, Store(root), 1, lambda _name, fraction: progress(fraction))


def learn(base: Base | str, lists: Path | str | Sequence[Mapping[str, Any]], like: Replicate, **how: Any) -> Replicate:
    """A student of one's own lists, made, asked and recorded as another student was: its arm is `own-lists`.

    base: where it starts: a base, or its name
    lists: a JSONL file of rows with `prompt` and `answer`, or such rows
    like: the student whose trait, filter, training, questions and seed it shares
    how: store, processes, watch, trace, device, as of `run`; the store is that of `like` where none is given

    The rows pass the filter; what it refused is counted. Its KL is from the untouched base.
    Raises SublimError for a row without both texts, and as `run`.
    """
    student = like.cell.student
    if student is None:
        raise SublimError(f"{like.name} is no student; like takes one, such as run['same-init', {like.seed}]")
    store = how.pop("store", None) or like.store
    data, asked = student.data, like.cell.evaluation
    exp = Experiment(
        name="own-lists",
        trait=asked.trait.name,
        bases=(base if isinstance(base, str) else str(base.path),),
        arms=("own-lists", "base"),
        seeds=(like.seed,),
        lists=str(lists if isinstance(lists, Path | str) else _as_file(lists, store)),
        corpus=data.corpus.config,
        filter=data.config,
        student=student.config,
        evaluation=asked.config,
        dtype=student.base.dtype,
    )
    return run(exp, store, **how)["own-lists", like.seed]


def _as_file(rows: Sequence[Mapping[str, Any]], store: Store) -> Path:
    """Rows as a file of the store, by their digest."""
    text = "".join(json.dumps(dict(row)) + "\n" for row in rows)
    path = store.root / ".lists" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return path


def _run(p: Plan, store: Store, processes: int, watch: Watch) -> Run:
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
            manifest = {"key": work.key, "config": run_config(p), "notes": work.notes}
            growing = Run(p, store, Artifact(work.directory, manifest))
            write(work.directory, p.named, tables_of(p, store), beside, work.key, versions(), growing)
    return Run(p, store, work.artifact)
