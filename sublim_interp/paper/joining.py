"""More replicates for a published run or sweep: the store holds these alone, the earlier ones are as published."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.arms import ARMS, in_order
from sublim_interp.experiments.catalogue import experiment, key_of
from sublim_interp.experiments.plan import Plan, plan
from sublim_interp.experiments.results import frames
from sublim_interp.experiments.run import run_key
from sublim_interp.experiments.tables import base_pairs, contrasts, read_table, replicates, summary
from sublim_interp.sweeps.grid import GRIDS, grid
from sublim_interp.sweeps.plan import plan_grid, sweep_key
from sublim_interp.sweeps.published import experiment_of

if TYPE_CHECKING:
    from sublim_interp.core.store import Store


def join(name: str, store: "Store", directory: Path) -> str:
    """Adds the replicates that a recipe's `seeds` have gained to its published tables, and returns the key of them all.

    Published replicates stay as they are; means, intervals and contrasts are made anew from all. Weights of the earlier
    ones are not needed, so that one machine after another may add its own.
    name: an experiment or a grid of the catalogue, or a YAML file
    store: holds each new replicate's evaluations
    directory: where the published tables lie

    Raises SublimError where anything but later seeds has changed since, where the store lacks a replicate, and for
    tables that cannot be put together: of sweeps of several tables, or with dead ends; of runs with crossed arms, which
    train on to equal KL, or with indirect questions, whose answers are drawn.
    """
    return _join_sweep(name, store, directory) if GRIDS.means(name) else _join_run(name, store, directory)


def _join_run(name: str, store: "Store", directory: Path) -> str:
    exp, old = experiment(name), experiment_of(directory)
    crossed = [arm for arm in exp.arms if ARMS[arm].reference]
    if crossed or "indirect" in exp.evaluation.questions:
        why = f"its arm {crossed[0]} trains on to equal KL" if crossed else "its indirect questions draw answers"
        raise SublimError(f"{exp.name}: replicates cannot be joined, as {why}; one store must hold them all")
    p = plan(exp, store)
    before = run_key(plan(exp.model_copy(update={"seeds": old.seeds}), store))
    new = _gained(exp.name, old.seeds, exp.seeds, before, directory)
    added = _only(p, new, store)
    table = _together(directory / "replicates.csv", replicates(*frames(added, store), p.named.trait), ["arm"])
    rank = {arm: i for i, arm in enumerate(in_order(table["arm"]))}
    table = table.sort_values("arm", key=lambda arms: arms.map(rank), kind="stable")
    table.to_csv(directory / "replicates.csv", index=False)
    summary(table).to_csv(directory / "summary.csv", index=False)
    contrasts(table, base_pairs(p.frame)).to_csv(directory / "contrasts.csv", index=False)
    (directory / "experiment.yaml").write_text(exp.to_yaml())
    return run_key(p)


def _join_sweep(name: str, store: "Store", directory: Path) -> str:
    g = grid(name)
    if (directory / "dead_ends.csv").exists():
        raise SublimError(f"{g.name}: replicates cannot be joined, as it has dead ends; one store must hold them all")
    old = tuple(int(seed) for seed in read_table(directory / "cells.csv")["seed"].drop_duplicates())
    p = plan_grid(g, store)
    earlier = g.model_copy(update={"change": {**g.change, "seeds": [*old]}})
    new = _gained(g.name, old, g.centre.seeds, sweep_key(plan_grid(earlier, store)), directory)
    cells = [cell._replace(plan=_only(cell.plan, new, store)) for cell in p.cells]
    made = g.mode.frames(cells, store)
    if {*made} != {"cells"}:
        raise SublimError(f"{g.name}: replicates cannot be joined, as it has several tables; one store must hold all")
    table = _together(directory / "cells.csv", made["cells"], ["field", "value", "arm"])
    table.to_csv(directory / "cells.csv", index=False)
    return sweep_key(p)


def _gained(name: str, old: Sequence[int], now: Sequence[int], before: str, directory: Path) -> tuple[int, ...]:
    """The seeds that a recipe has now and had not when it was published under the key in `directory`.

    before: the key that it has today with the old seeds
    """
    if tuple(now[: len(old)]) != tuple(old) or len(now) == len(old):
        raise SublimError(
            f"the store holds no finished {name}, and its seeds, {', '.join(map(str, now))}, add none to the published "
            f"{', '.join(map(str, old))}; run it first: sublim run {name}"
        )
    if before != key_of(directory):
        raise SublimError(
            f"{name} was published as {key_of(directory)[:16]}; with the same seeds it is {before[:16]} today, so more "
            "than its seeds has changed: run all of it anew"
        )
    return tuple(now[len(old) :])


def _only(p: Plan, seeds: Sequence[int], store: "Store") -> Plan:
    """The cells of these replicates; SublimError where the store lacks one."""
    part = replace(p, cells=tuple(cell for cell in p.cells if cell.seed in seeds))
    lacking = sorted({cell.seed for cell in part.cells if cell.evaluation.find(store) is None})
    if lacking:
        missed = ", ".join(map(str, lacking))
        raise SublimError(f"the store holds no finished replicates of {p.experiment.name} with seeds {missed}")
    return part


def _together(path: Path, more: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The rows of a published table and these, the new ones of each group behind its old ones."""
    table = pd.concat([read_table(path), more], ignore_index=True)
    return table.iloc[table.groupby(by, sort=False).ngroup().argsort(kind="stable")].reset_index(drop=True)
