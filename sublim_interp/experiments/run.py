"""Makes what an experiment needs, in worker processes, and knows the key of its run."""

from typing import Any

from sublim_interp.core.device import check_computable
from sublim_interp.core.keys import stage_key
from sublim_interp.core.store import Artifact, Store
from sublim_interp.core.workers import Watch
from sublim_interp.experiments.executors.local import Local
from sublim_interp.experiments.executors.pieces import Work, pieces_of
from sublim_interp.experiments.executors.site import Site
from sublim_interp.experiments.plan import Plan
from sublim_interp.pipeline.records import Record
from sublim_interp.pipeline.settings import EVALUATION_UNKEYED, TEACHER_UNKEYED
from sublim_interp.training.recording.settings import PRESETS, Recording


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

    Returns the errors that were skipped, by the key of the record that could not be made.
    """
    for dtype in {r.dtype for r in records}:
        check_computable(dtype)
    work = Work("", "", tuple(pieces_of(records, store, recording)))
    return Local(Site(), processes).start(work, store, watch, skip)


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
    outside: dict[str, Any] = dict.fromkeys(("name", "about", "bases", "other_bases", "recording", "lists"), True)
    outside |= {"teacher": TEACHER_UNKEYED, "evaluation": EVALUATION_UNKEYED, "student": {"adapter"}}
    return p.named.model_dump(mode="json", exclude=outside)


def run_inputs(p: Plan) -> dict[str, str]:
    """Key of every evaluation by its place in the design."""
    return {f"{c.arm}/{c.seed}/{c.round}": c.evaluation.key for c in p.cells}
