"""Addresses, RUN/ARM/SEED: the finished student of another run, found in the store, as a teacher takes it."""

from typing import Any

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.arms import ARMS
from sublim_interp.models.base import Base
from sublim_interp.pipeline.records import StoredStudent, Student


def stored_student(address: str, seed: int, base: Base, trait: str, store: Store) -> StoredStudent:
    """The student at an address, after its last round.

    address: RUN/ARM/SEED, or RUN/ARM, which means the student of `seed`; RUN is a name or the beginning of a key
    base: the base that it must have started from
    trait: the trait that its run must be about

    Raises SublimError where the store holds no such student, and for one of another base or trait.
    """
    name, arm, *own = address.split("/")
    run = store.find("run", name).manifest
    places: dict[str, str] = run["inputs"]
    wanted = f"{arm}/{own[0] if own else seed}"
    rounds = [place for place in places if place.rpartition("/")[0] == wanted]
    if not rounds:
        known = sorted({place.rpartition("/")[0] for place in places})
        raise SublimError(f"teacher.student: run {name} has no {wanted}; {meant(wanted, known)}")
    if arm in ARMS and ARMS[arm].route is None:
        raise SublimError(f"teacher.student: {name}/{wanted} is no student; choose an arm whose student was trained")
    last = max(rounds, key=lambda place: int(place.rpartition("/")[2]))
    key = _inputs(store, "evaluation", places[last])["model"]
    if _start(store, key) != base.key:
        raise SublimError(
            f"teacher.student: {name}/{wanted} did not start from {base.name}, which is base A of replicate {seed}; "
            "give the bases, seeds and dtype of its run"
        )
    if run["config"]["trait"] != trait:
        raise SublimError(f"teacher.student: run {name} is about {run['config']['trait']}, not {trait}")
    together = run["notes"]["experiment"].get("teacher", {}).get("traits")
    if together:
        raise SublimError(
            f"teacher.student: the teachers of run {name} were given {', '.join(together)} at once; name a student of "
            "one trait. To go on with several, set generations in that run"
        )
    return StoredStudent(f"{name}/{wanted}", key, base)


def _start(store: Store, key: str) -> str:
    """Key of the base that a student started from, in its first round."""
    start = _inputs(store, Student.STAGE, key)["start"]
    while store.get(Student.STAGE, start) is not None:
        start = _inputs(store, Student.STAGE, start)["start"]
    return start


def _inputs(store: Store, stage: str, key: str) -> dict[str, Any]:
    artifact = store.get(stage, key)
    if artifact is None:
        raise SublimError(f"teacher.student: {stage} {key[:16]} is not in the store {store.root}; run its run again")
    return artifact.manifest["inputs"]
