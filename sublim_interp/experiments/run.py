"""Makes what an experiment needs, in worker processes, and knows the key of its run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sublim_interp.core.device import check_computable, visible_gpus
from sublim_interp.core.keys import stage_key
from sublim_interp.core.store import Artifact, Store
from sublim_interp.core.workers import Task, Watch, run_tasks
from sublim_interp.experiments.plan import Plan
from sublim_interp.models.base import Base
from sublim_interp.pipeline.records import Evaluation, Record
from sublim_interp.training.recording.settings import PRESETS, Recording


def _make_in_worker(record: Record, root: Path, recording: Recording, progress: Callable[[float], None]) -> None:
    """What a worker process does with one record."""
    from sublim_interp.pipeline.make import make

    make(record, Store(root), progress, recording)


def execute(
    records: list[Record],
    store: Store,
    processes: int,
    watch: Watch,
    recording: Recording = PRESETS["default"],
    skip: tuple[type[Exception], ...] = (),
) -> dict[str, Exception]:
    """Makes the records, and what they need, in worker processes.

    processes: how many workers, of one thread each
    watch: told the name of each task and the share of it that is done
    recording: what is recorded of the trainings among them
    skip: errors that stop no other record; any other error is raised, and ends all

    Each worker has one of the GPUs where the device is one; workers take turns where they are more.

    Returns the errors that were skipped, by the key of the record that could not be made.
    """
    for dtype in {r.dtype for r in records}:
        check_computable(dtype)
    names = {r.key for r in records}
    tasks = []
    for record in records:
        needs = tuple(i.key for i in record.inputs().values() if isinstance(i, Record) and i.key in names)
        if isinstance(record, Evaluation) and isinstance(record.model, Base):
            needs = (record.reference.key,) if record.reference.key in names else ()
        tasks.append(Task(record.key, _make_in_worker, (record, store.root, recording), needs))
    return run_tasks(tasks, processes, watch, skip, visible_gpus())


RUN_VERSION = 1
"""Bumped by hand when the report's files change."""


def run_key(p: Plan) -> str:
    """The key that the run of a plan has in any store."""
    return stage_key("run", RUN_VERSION, run_config(p), run_inputs(p))


def find_run(p: Plan, store: Store) -> Artifact | None:
    """The finished run of a plan, if the store holds it and all that it was made from."""
    return None if p.missing(store) else store.get("run", run_key(p))


def versions() -> dict[str, str]:
    """Versions of the packages that decide the last bits of a result."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "numpy")}


def run_config(p: Plan) -> dict[str, Any]:
    """What enters the key of a run beside its inputs: neither names, nor paths of bases, nor what is recorded."""
    outside = {"name": True, "about": True, "bases": True, "recording": True, "lists": True, "teacher": {"student"}}
    return p.named.model_dump(mode="json", exclude=outside)


def run_inputs(p: Plan) -> dict[str, str]:
    """Key of every evaluation by its place in the design."""
    return {f"{c.arm}/{c.seed}/{c.round}": c.evaluation.key for c in p.cells}
