"""Tests of grids: their cells, what they share, the table and figure they end with, and what they refuse."""

from pathlib import Path

import pandas as pd
import pytest

from sublim_interp.config import Experiment
from sublim_interp.errors import SublimError
from sublim_interp.records import Teacher
from sublim_interp.report import cell_means
from sublim_interp.store import Store
from sublim_interp.sweep import Grid, find_sweep, grid, grid_names, plan_grid, run_grid


@pytest.fixture
def small(tiny_experiment: Experiment, tmp_path: Path) -> Grid:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    return Grid(
        name="small",
        experiment=str(path),
        change={"arms": ["same-init"], "seeds": [0, 1]},
        axes={"student.optimization.lr": (1e-4, 1e-2), "bases": ([tiny_experiment.bases[0]],)},
        words={"bases": ("first",)},
    )


def test_a_grid_makes_every_cell_once_and_its_table_has_them_all(small: Grid, store_root: Path) -> None:
    p, store = plan_grid(small), Store.open(store_root)
    teachers = [r for r in p.records if isinstance(r, Teacher)]
    assert len(teachers) == 3, "cells share what they have in common: two replicates, and one on another base"
    done: dict[str, float] = {}
    artifact = run_grid(p, store, 2, done.__setitem__)
    assert done == {r.key: 1.0 for r in p.records}
    cells = pd.read_csv(artifact.path / "cells.csv", dtype={"value": str})
    places = [("student.optimization.lr", "0.0001"), ("student.optimization.lr", "0.01"), ("bases", "first")]
    assert list(zip(cells["field"], cells["value"], cells["seed"], strict=True)) == [
        (field, value, seed) for field, value in places for seed in (0, 1)
    ]
    assert set(cells["arm"]) == {"same-init"} and set(cells["trait"]) == {"owl"}
    assert (artifact.path / "dose.png").stat().st_size > 5_000
    again: dict[str, float] = {}
    assert run_grid(p, store, 2, again.__setitem__).key == artifact.key and not again
    assert find_sweep(p, store) is not None


def test_means_of_cells_are_those_of_their_replicates() -> None:
    rates = {("lr", "1"): (0.2, 0.4), ("lr", "2"): (0.5, 0.9)}
    cells = pd.DataFrame(
        [
            {"field": f, "value": v, "arm": "same-init", "rate": r, "kl": r, "kl_start": 1.0, "kept": 0.5}
            for (f, v), own in rates.items()
            for r in own
        ]
    )
    rows = cell_means(cells).to_dict("records")
    assert [row["rate"] for row in rows] == pytest.approx([0.3, 0.7])
    assert [(row["n"], row["least"], row["most"]) for row in rows] == [(2, 0.2, 0.4), (2, 0.5, 0.9)]


def test_the_key_of_a_sweep_follows_its_cells_and_not_its_name(small: Grid, store_root: Path) -> None:
    from sublim_interp.sweep import sweep_key

    key = sweep_key(plan_grid(small))
    assert sweep_key(plan_grid(small.set(name="other", about="words"))) == key
    assert sweep_key(plan_grid(small.set(axes={"student.optimization.lr": (1e-4,)}, words={}))) != key


def test_what_a_grid_cannot_run_is_one_line(small: Grid) -> None:
    with pytest.raises(SublimError, match="no field 'speed'"):
        plan_grid(small.set(axes={"student.speed": (1,)}, words={}))
    with pytest.raises(SublimError, match=r"words.bases has 2 entries"):
        small.set(words={"bases": ("a", "b")})
    with pytest.raises(SublimError, match=r"unknown grid 'doses'.*dose"):
        grid("doses")


@pytest.mark.parametrize("name", grid_names())
def test_every_grid_of_the_catalogue_can_be_planned(name: str) -> None:
    p = plan_grid(grid(name))
    assert p.records and grid(name).about.endswith("?")
