"""A run as the store holds it: its records under the keys that they were made with, and what would differ today."""

import json
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import canonical_json
from sublim_interp.core.store import Artifact, Store
from sublim_interp.experiments.plan import Plan
from sublim_interp.experiments.run import run_key
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.pipeline.records import Record


def stored_experiment(artifact: Artifact) -> tuple[Experiment, list[str]]:
    """The experiment of a run as its manifest tells it, and what of it is no field any more.

    Raises SublimError where today's fields do not take what it says.
    """
    data, lost = artifact.manifest["notes"]["experiment"], []
    while True:
        try:
            return Experiment.model_validate(data), lost
        except ValidationError as error:
            gone = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
            if not gone:
                first = error.errors()[0]
                place, why = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
                said = f"run {artifact.name} {artifact.key[:16]}: {place}: {why}; its report is in {artifact.path}"
                raise SublimError(said) from None
            data = json.loads(json.dumps(data))
            for *path, name in gone:
                inner: Any = data
                for part in path:
                    inner = inner[part]
                del inner[name]
                lost.append(f"{'.'.join(map(str, (*path, name)))} is no field any more")


def adopt(p: Plan, artifact: Artifact, store: Store) -> tuple[Plan, list[str]]:
    """A plan whose records have the keys under which the store holds a run's, and what would differ today.

    p: of the run's experiment, as it is planned today
    artifact: the run's own

    No key is computed where the run's is the plan's. Each difference is one line; cells that the run does not have are
    left out.
    """
    if run_key(p) == artifact.key:
        return p, []
    inputs: dict[str, str] = artifact.manifest["inputs"]
    cells = [c for c in p.cells if f"{c.arm}/{c.seed}/{c.round}" in inputs]
    said = dict.fromkeys(f"{place} is not planned any more" for place in {*inputs} - {_place(c) for c in cells})
    found: dict[tuple[str, str], Artifact | None] = {}
    for cell in cells:
        _adopt(cell.evaluation, inputs[_place(cell)], store, found, said)
    return replace(p, cells=tuple(cells)), [*said]


def _place(cell: Any) -> str:
    return f"{cell.arm}/{cell.seed}/{cell.round}"


def _adopt(
    record: Record,
    key: str,
    store: Store,
    found: "dict[tuple[str, str], Artifact | None]",
    said: dict[str, None],
) -> None:
    """Gives a record, and what it is made from, the keys that the store has; adds a line for each difference."""
    object.__setattr__(record, "key", key)  # as its cached property would
    place = (record.STAGE, key)
    if place not in found:
        found[place] = store.get(*place)
    made = found[place]
    if made is None:
        said[f"{record.STAGE} {key[:16]} is not in the store any more"] = None
        return
    manifest = made.manifest
    if manifest["version"] != record.VERSION:
        said[f"{record.STAGE}: made by version {manifest['version']} of the stage, today it is {record.VERSION}"] = None
    today = json.loads(canonical_json(record.settings()))
    for name, was, now in _changes(manifest["config"], today):
        said[f"{record.STAGE}: {name} was {_short(was)}, today it is {_short(now)}"] = None
    for role, given in record.inputs().items():
        was = manifest["inputs"].get(role)
        if was is None:
            said[f"{record.STAGE}: it had no input '{role}'"] = None
        elif isinstance(given, Record):
            _adopt(given, was, store, found, said)
        elif given.key != was:
            if isinstance(given, Base):
                what = f"base {given.name} has other files"
            else:
                what = f"student {given.address} is another"
            said[f"{what} today"] = None


def _changes(was: Any, now: Any, place: str = "") -> "list[tuple[str, Any, Any]]":
    """(field, value then, value now) of all that differs between two settings."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = dict.fromkeys([*was, *now])
        return [found for n in names for found in _changes(was.get(n), now.get(n), f"{place}.{n}" if place else n)]
    return [] if was == now else [(place, was, now)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:36]} …"
