"""Feeds a tracker from traces: what a training left behind, shown in Trackio or Weights & Biases."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.training.recording.trace import Trace

if TYPE_CHECKING:
    from sublim_interp.experiments.results import Replicate, Run

TRACKERS = ("trackio", "wandb")
"""Packages whose `init`, `log` and `finish` are alike."""


def track(
    what: "Run | Replicate | Trace", project: str = "sublim", tracker: str = "trackio", name: str = "", **how: Any
) -> None:
    """Sends the series of a training to a tracker: loss, norms, projections, and what the probe showed.

    what: a run, each of whose students becomes a run of the tracker; or one replicate; or a trace
    project: the tracker's project
    tracker: trackio (the extra `track` installs it) or wandb
    name: what a trace is called there; runs and replicates have their own
    how: further arguments of the tracker's `init`

    A quantity of each parameter is sent as its norm over all of them; of the probe, the log-probability of each member
    is sent, mean over questions. Raises SublimError for a tracker that is not installed.
    """
    if tracker not in TRACKERS:
        raise SublimError(f"no tracker '{tracker}'; {meant(tracker, TRACKERS)}")
    try:
        package: Any = import_module(tracker)
    except ImportError:
        raise SublimError(f"{tracker} is not installed; pip install {tracker}") from None
    for called, config, trace in _traces(what, name):
        package.init(project=project, name=called, config=config, **how)
        for step, values in sorted(rows(trace).items()):
            package.log(values, step=step)
        package.finish()


def rows(trace: Trace) -> dict[int, dict[str, float]]:
    """What a trace holds of each step, as single numbers by name."""
    found: dict[int, dict[str, float]] = {}
    for name in trace.names():
        if name == "answers":
            answers = trace.xarray(name).mean("question")
            for step, values in zip(answers["step"].values.tolist(), answers.values.tolist(), strict=True):
                members = answers["member"].values.tolist()
                found.setdefault(step, {}).update({f"answers/{m}": v for m, v in zip(members, values, strict=True)})
        elif name in ("loss", "probe_loss") or name.endswith("_norm"):
            series = trace.series(name)
            whole = (series**2).sum(axis=1) ** 0.5 if name.endswith("_norm") else series.iloc[:, 0]
            for step, value in whole.items():
                found.setdefault(int(str(step)), {})[name] = float(value)
    return found


def _traces(what: Any, name: str) -> "list[tuple[str, dict[str, Any], Trace]]":
    """(name, what is said of it, trace) of each training."""
    if isinstance(what, Trace):
        return [(name or what.path.name, {"model": what.about["model"]}, what)]
    if hasattr(what, "cell"):
        about = {"arm": what.arm, "seed": what.seed, "base": what.base.name}
        return [(name or what.name, about, what.trace)]
    return [
        (f"{what.experiment.name}/{r.name}", {**what.experiment.model_dump(mode="json"), **more}, trace)
        for r in what
        if r.cell.student
        for _, more, trace in _traces(r, "")
    ]
