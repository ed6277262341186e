"""`sublim list`: experiments, grids, traits, bases, and the runs in the store."""

from typing import TYPE_CHECKING

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_, table_of

if TYPE_CHECKING:
    pass


def list_(store: StoreOption = None) -> None:
    """Show the catalogue's experiments, the bases and traits at hand, and the runs in the store."""
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.catalogue import experiment, experiment_names
    from sublim_interp.models.base import base_names
    from sublim_interp.sweeps.grid import grid, grid_names
    from sublim_interp.traits.registry import load_trait, trait_names

    experiments = table_of("Experiments", "name", "replicates", "what it asks", right=("replicates",))
    for name in experiment_names():
        exp = experiment(name)
        experiments.add_row(name, str(len(exp.seeds)), exp.about)
    grids = table_of(
        "Grids: many experiments, one field after another or all pairs",
        "name",
        "cells",
        "what it asks",
        right=("cells",),
    )
    for name in grid_names():
        grids.add_row(name, str(len(list(grid(name).cells()))), grid(name).about)
    kinds: dict[str, list[str]] = {}
    for name in trait_names():
        kinds.setdefault(load_trait(name).kind, []).append(name)
    traits = table_of("Traits", "kind", "names")
    for kind, names in kinds.items():
        traits.add_row(kind, " ".join(names))
    print_(experiments, grids, traits, f"Bases  {'  '.join(base_names()) or 'none'}", "")
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
