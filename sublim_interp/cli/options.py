"""Options that several commands share, and an experiment as the command line asks for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sublim_interp.core.store import Store
    from sublim_interp.experiments.schema import Experiment
    from sublim_interp.sweeps.plan import SweepPlan
    from sublim_interp.sweeps.study import Study


StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="Directory of results; else $SUBLIM_STORE, else ./runs.", show_default=False),
]


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field, for instance student.optimization.lr=2e-4.",
        show_default=False,
    ),
]


BaseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--base",
        metavar="DIR_OR_NAME",
        help="Use these bases: a lab base, a model directory, a hub name.",
        show_default=False,
    ),
]


ImagesOption = Annotated[
    str | None,
    typer.Option("--images", metavar="DIR", help="MNIST's four IDX files, for mnist.", show_default=False),
]


DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="WORD",
        help="Where models are put: cpu, cuda, mps, or auto; else $SUBLIM_DEVICE, else the CPU.",
        show_default=False,
    ),
]


TraceOption = Annotated[
    str | None,
    typer.Option(
        "--trace",
        metavar="WORD",
        help="What is recorded of each training, in place of `recording`: none, default, or examples.",
    ),
]


OnOption = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="WHERE",
        help="Who works: local, this command's own processes; slurm, a cluster's jobs; background, jobs of this "
        "machine. With the last two the command schedules and is over.",
    ),
]


SiteOption = Annotated[
    str | None,
    typer.Option(
        "--site",
        metavar="NAME_OR_FILE",
        help="The cluster's partition, account, modules and limits; else $SUBLIM_SITE.",
        show_default=False,
    ),
]


def configured(name: str, sets: list[str] | None, bases: list[str] | None, lists: Path | None = None) -> "Experiment":
    """The experiment `name` as `--set`, `--base` and `--lists` change it.

    With one base it goes without the arms that need two; with lists it has the arm that learns them.
    """
    from sublim_interp.core.settings import changed, parse_assignment
    from sublim_interp.experiments.arms import arms_of_two_bases
    from sublim_interp.experiments.catalogue import experiment

    exp = experiment(name)
    if bases:
        keep = exp.arms if len(bases) > 1 else tuple(a for a in exp.arms if a not in arms_of_two_bases(exp.arms))
        exp = changed(exp.model_copy(update={"arms": keep}), {"bases": bases})
    if lists:
        arms = exp.arms if "own-lists" in exp.arms else ("own-lists", *exp.arms)
        exp = changed(exp, {"lists": str(lists), "arms": arms})
    return changed(exp, dict(parse_assignment(s) for s in sets or ()))


def configured_study(
    name: str, sets: list[str] | None, images: str | None = None, unfit: "Mapping[str, Any] | None" = None
) -> "Study":
    """The study `name` as `--set` and `--images` change it.

    unfit: options that studies do not take, with what was given for them; SublimError where anything was
    """
    from sublim_interp.core.errors import SublimError
    from sublim_interp.core.settings import changed, parse_assignment
    from sublim_interp.sweeps.study import study

    for option in (option for option, given in (unfit or {}).items() if given):
        raise SublimError(f"{option}: {name} is no experiment on language models, and takes none")
    asked = dict(parse_assignment(s) for s in sets or ())
    return changed(study(name), {**asked, **({"images": images} if images else {})})


def planned_grid(
    name: str,
    sets: list[str] | None,
    bases: list[str] | None,
    trace: str | None = None,
    store: "Store | None" = None,
) -> "SweepPlan":
    """The plan of the grid `name`, with what `--set` and `--base` change in every cell."""
    from sublim_interp.core.settings import changed, parse_assignment
    from sublim_interp.experiments.catalogue import experiment
    from sublim_interp.sweeps.grid import grid
    from sublim_interp.sweeps.plan import plan_grid
    from sublim_interp.training.recording.settings import recording_of

    g = grid(name)
    asked = {**dict(parse_assignment(s) for s in sets or ()), **({"bases": bases} if bases else {})}
    changed(experiment(g.experiment).set(g.change), asked)  # an error names what was typed
    if trace:
        asked["recording"] = recording_of(trace).model_dump()
    return plan_grid(g.set(change={**g.change, **asked}), store)
