"""Experiments by name or YAML file, and the published results that lie beside them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import changed, read_text, read_yaml, validate
from sublim_interp.core.shelf import CATALOGUE, Shelf, is_path, mapping_of
from sublim_interp.experiments.schema import Experiment

if TYPE_CHECKING:
    import pandas as pd


EXPERIMENTS = Shelf("experiment", "experiments", Experiment)
"""Every experiment by name."""

RESULTS = CATALOGUE / "results"
"""Committed tables: for each experiment its configuration, its run's key, summary, contrasts; for a grid its cells."""

_DECIDES = ("trait", "other_trait", "dtype", "other_bases", "teacher", "corpus", "filter", "student")
"""What decides a single replicate, with its bases and its seed."""


class Published(NamedTuple):
    """A published, larger run, shown beside a small one."""

    summary: "pd.DataFrame"
    """As `tables.summary` gives it."""
    contrasts: "pd.DataFrame"
    """As `tables.contrasts` gives it; the notes of older runs are sentences, not codes."""
    name: str
    """Its experiment's name."""
    key: str
    """The key of the run that wrote it."""


def experiment_names() -> tuple[str, ...]:
    """Names of all experiments at hand."""
    return EXPERIMENTS.names()


def experiment(name: str) -> Experiment:
    """The experiment called `name`, or the one in a YAML file of one's own.

    A file that says `extends: owl` holds what differs from that experiment. Names of YAML files in it, such as a
    trait's, are looked for beside it first. Raises SublimError for what it may not hold, and for files that extend each
    other in a circle.
    """
    return _loaded(name, ())


def _loaded(name: str, extended_by: tuple[str, ...]) -> Experiment:
    path = EXPERIMENTS.find(name)
    if not is_path(name) and "extends" not in read_text(path):
        return EXPERIMENTS.load(name)
    data = mapping_of(path)
    data = {"name": path.stem, **data}
    parent = data.pop("extends", None)
    if parent is None:
        return validate(Experiment, data, str(path))
    if not isinstance(parent, str) or str(path) in extended_by:
        raise SublimError(f"{path}: extends: {parent!r} is no experiment that it could extend")
    about = {} if "about" in data else {"about": ""}
    return changed(_loaded(parent, (*extended_by, str(path))), {**about, **data}, f"{path}: {{}}")


def published(exp: Experiment, beside: str = "") -> Published | None:
    """The largest published run of the same recipe, with the same arms and at least as many replicates; None if none.

    exp: what decides its replicates, other than bases and seeds, is as in the published run; its bases and arms are
        among that run's
    beside: the key of a run beside which nothing is shown, because it is the published one
    """
    from sublim_interp.experiments.tables import read_table

    found: dict[Path, Experiment] = {}
    for path in sorted(RESULTS.glob("*/experiment.yaml")):
        whole = read_yaml(Experiment, path)
        same = all(_recipe(whole, part) == _recipe(exp, part) for part in _DECIDES)
        holds = {*exp.bases} <= {*whole.bases} and {*exp.arms} <= {*whole.arms} and len(exp.seeds) <= len(whole.seeds)
        if same and holds and key_of(path.parent) != beside:
            found[path.parent] = whole
    if not found:
        return None
    place, whole = max(found.items(), key=lambda each: len(each[1].seeds))
    summary, contrasts = (read_table(place / f"{name}.csv") for name in ("summary", "contrasts"))
    return Published(summary, contrasts, whole.name, key_of(place))


def key_of(directory: Path) -> str:
    """The key of the published run, sweep or study in `directory`."""
    return (directory / "key.txt").read_text().strip()


def _recipe(exp: Experiment, part: str) -> Any:
    """One part of an experiment, without the further rounds, which change no first round."""
    value = getattr(exp, part)
    return value.model_copy(update={"extra_rounds": 0}) if part == "student" else value
