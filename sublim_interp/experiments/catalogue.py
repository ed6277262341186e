"""Experiments by name or YAML file, and the published results that lie beside them."""

from typing import TYPE_CHECKING, Any, NamedTuple

from sublim_interp.core.settings import read_yaml
from sublim_interp.core.shelf import CATALOGUE, Shelf
from sublim_interp.experiments.schema import Experiment

if TYPE_CHECKING:
    import pandas as pd


EXPERIMENTS = Shelf("experiment", "experiments", Experiment)
"""Every experiment by name."""

RESULTS = CATALOGUE / "results"
"""Committed tables: for each experiment its configuration, its run's key, summary, contrasts; for a grid its cells."""


def experiment_names() -> tuple[str, ...]:
    """Names of all experiments at hand."""
    return EXPERIMENTS.names()


def experiment(name: str) -> Experiment:
    """The experiment called `name`, or the one in a YAML file of one's own."""
    return EXPERIMENTS.load(name)


def published(exp: Experiment, beside: str = "") -> "Reference | None":
    """The committed table of the same recipe over as many replicates or more, or None; also where it is that of the
    run `beside`, a key.

    The recipe is all that decides a single replicate: trait, teacher, corpus, filter, student, and a base among the
    committed ones.
    """
    import pandas as pd

    for path in sorted(RESULTS.glob("*/experiment.yaml")):
        directory, whole = path.parent, read_yaml(Experiment, path)
        parts = ("trait", "teacher", "corpus", "filter", "student")
        same = all(_recipe(whole, part) == _recipe(exp, part) for part in parts)
        if same and {*exp.bases} <= {*whole.bases} and len(whole.seeds) >= len(exp.seeds):
            key = (directory / "key.txt").read_text().strip()
            if key == beside:
                continue
            summary, contrasts = (
                pd.read_csv(directory / f"{n}.csv", keep_default_na=False, na_values=[""])
                for n in ("summary", "contrasts")
            )
            text = ["equal_kl"], ["note"]
            for frame, columns in zip((summary, contrasts), text, strict=True):
                frame[columns] = frame[columns].fillna("")
            return Reference(summary, contrasts, whole.name, key)
    return None


def _recipe(exp: Experiment, part: str) -> Any:
    value = getattr(exp, part)
    return value.model_copy(update={"extra_rounds": 0}) if part == "student" else value


class Reference(NamedTuple):
    """A finished, larger run, shown beside a small one."""

    summary: "pd.DataFrame"
    contrasts: "pd.DataFrame"
    name: str
    """Its experiment's name."""
    key: str
    """The key of the run that wrote it."""
