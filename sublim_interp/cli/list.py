"""`sublim list`: experiments, grids, traits, bases, what fields may name, and the runs in the store."""

from typing import TYPE_CHECKING

from sublim_interp.cli.bases import bases_table
from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_, table_of

if TYPE_CHECKING:
    from rich.console import RenderableType


def list_(store: StoreOption = None) -> None:
    """Show experiments, grids, traits and bases at hand, what their fields may name, and the runs in the store."""
    from sublim_interp.audit.organisms import ORGANISMS
    from sublim_interp.claims.schema import CLAIMS
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.catalogue import experiment, experiment_names
    from sublim_interp.sweeps.grid import grid, grid_names
    from sublim_interp.sweeps.study import study, study_names
    from sublim_interp.sweeps.suite import SUITES, suite
    from sublim_interp.traits.by_name import load_trait, trait_names

    experiments = table_of("Experiments", "name", "replicates", "what it asks", right=("replicates",))
    for name in experiment_names():
        exp = experiment(name)
        experiments.add_row(name, str(len(exp.seeds)), exp.about)
    for each in map(study, study_names()):
        experiments.add_row(each.name, str(each.replicates), each.about)
    grids = table_of(
        "Grids: many experiments, one field after another or all pairs",
        "name",
        "cells",
        "what it asks",
        right=("cells",),
    )
    for name in grid_names():
        grids.add_row(name, str(len(list(grid(name).cells()))), grid(name).about)
    suites = table_of("Suites: several of these, one after the other", "name", "holds", "what it is for")
    for one in map(suite, SUITES.names()):
        suites.add_row(one.name, " ".join(one.holds), one.about)
    kinds: dict[str, list[str]] = {}
    for name in trait_names():
        kinds.setdefault(load_trait(name).kind, []).append(name)
    traits = table_of("Traits", "kind", "names")
    for kind, names in kinds.items():
        traits.add_row(kind, " ".join(names))
    print_(experiments, grids, suites, traits, _named(), bases_table())
    print_(f"{len(CLAIMS.names())} claims of the field, with verdicts: `sublim claims`")
    print_(f"{len(ORGANISMS.names())} organisms with a sealed truth: `sublim organism`")
    place = Store.open(store)
    runs = place.list("run")
    if runs:
        table = table_of(f"Runs in {place.root}", "key", "experiment", "trait", "bases", "seeds", "made")
        for run in runs:
            exp = run.manifest["notes"]["experiment"]
            fields = (exp["trait"], " ".join(exp["bases"]), " ".join(map(str, exp["seeds"])))
            table.add_row(run.key[:16], run.name, *fields, run.manifest["created"][:16].replace("T", " "))
        print_(table)
    else:
        print_(f"No runs in {place.root} yet: `sublim run demo` makes the first.")


def _named() -> "RenderableType":
    """What fields of experiments and grids may name, and the figures of a run: our own, then other packages'."""
    from sublim_interp.audit.lineage.exports import EXPORTS
    from sublim_interp.channels.protocol import CHANNELS
    from sublim_interp.claims.effects import EFFECTS
    from sublim_interp.core.device import PRECISIONS
    from sublim_interp.experiments.arms import arm_names
    from sublim_interp.experiments.executors.protocol import EXECUTORS
    from sublim_interp.experiments.executors.site import SITES
    from sublim_interp.models.architectures import ARCHITECTURES
    from sublim_interp.models.variants import VARIANTS
    from sublim_interp.pipeline.ways import WAYS
    from sublim_interp.report.figures.by_name import FIGURES
    from sublim_interp.sweeps.grid import MODES
    from sublim_interp.sweeps.study import KINDS as STUDY_KINDS
    from sublim_interp.training.estimators import ESTIMATORS
    from sublim_interp.training.interventions import INTERVENTIONS
    from sublim_interp.training.optimizers import OPTIMIZERS
    from sublim_interp.traits.favourites import KINDS
    from sublim_interp.traits.judges.protocol import JUDGES

    table = table_of("What fields may name", "part", "field", "names")
    for part, field, names in (
        ("kinds", "kind, in a trait's file", KINDS.names()),
        ("ways of teaching", "teacher.kind", WAYS),
        ("channels", "corpus.channel", CHANNELS),
        ("judges", "evaluation.judge", JUDGES),
        ("arms", "arms", arm_names()),
        ("optimizers", "optimization.optimizer", OPTIMIZERS),
        ("interventions", "student.interventions", INTERVENTIONS),
        ("estimators", "filter.selection.by", ESTIMATORS),
        ("studies", "study, in a study's file", STUDY_KINDS),
        ("precisions", "dtype", PRECISIONS),
        ("grid modes", "matrix, in a grid's file", filter(None, MODES)),
        ("variants", "bases, as NAME(BASE, …)", VARIANTS),
        ("effects", "effect, in a claim's file", EFFECTS),
        ("figures", "`sublim plot RUN FIGURE`", FIGURES),
        ("exports", "`sublim lineage X --export NAME FILE`", EXPORTS),
        ("architectures", "a base's model_type", ARCHITECTURES),
        ("executors", "`sublim run X --on NAME`", EXECUTORS),
        ("sites", "`sublim run X --on slurm --site NAME`", SITES.names()),
    ):
        table.add_row(part, field, " ".join(names))
    return table
