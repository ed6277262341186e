"""Tests of grids: their cells, what they share, the table and figure they end with, and what they refuse."""

import re
import shutil
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import validate
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import frames
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.models.open_bases import open_names
from sublim_interp.pipeline.records import Teacher
from sublim_interp.sweeps.cells import cell_means
from sublim_interp.sweeps.grid import Grid, grid, grid_names
from sublim_interp.sweeps.plan import find_sweep, plan_grid
from sublim_interp.sweeps.run import run_grid
from sublim_interp.sweeps.tables import table_of
from sublim_interp.traits.favourites import members_of


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


def test_a_cell_that_leads_nowhere_is_told_and_stops_no_other(small: Grid, store_root: Path) -> None:
    g = small.set(axes={"filter.max_value": (0, 999)}, words={"filter.max_value": ("none", "all")})
    p, store = plan_grid(g), Store.open(store_root)
    done: dict[str, float] = {}
    artifact = run_grid(p, store, 2, done.__setitem__)
    assert done == {r.key: 1.0 for r in p.records}, "progress reaches its end"
    cells = pd.read_csv(artifact.path / "cells.csv")
    assert list(zip(cells["value"], cells["seed"], strict=True)) == [("all", 0), ("all", 1)]
    ends = pd.read_csv(artifact.path / "dead_ends.csv")
    places = [("none", seed, arm) for seed in (0, 1) for arm in ("teacher", "same-init")]
    assert list(zip(ends["value"], ends["seed"], ends["arm"], strict=True)) == places
    said = table_of(g, artifact.path).lines[-2:]
    for seed, line in enumerate(said):
        assert line.startswith(f"No result for none with seed {seed} (teacher, same-init). Filter: nothing is left")
        assert "of 96 answers 0 of 4 are held out" in line
    again: dict[str, float] = {}
    assert run_grid(p, store, 2, again.__setitem__).key == artifact.key and not again
    hopeless = plan_grid(g.set(axes={"filter.max_value": (0,)}, words={}))
    with pytest.raises(SublimError, match="nothing is left"):
        run_grid(hopeless, store)
    assert find_sweep(hopeless, store) is None


def test_tables_of_matrices_do_without_dead_ends(tmp_path: Path) -> None:
    """A teacher without students takes its own numbers along, and no others."""
    for name, field in (("animals", "trait"), ("cross-model", "bases")):
        whole = table_of(grid(name), RESULTS / name)
        shutil.copytree(RESULTS / name, tmp_path / name)
        matrix, cells = (pd.read_csv(RESULTS / name / f"{table}.csv") for table in ("matrix", "cells"))
        lost = matrix["teacher"].iloc[-1]
        gone = (matrix["teacher"] == lost) & (matrix["seed"] == matrix["seed"].iloc[0])
        matrix.loc[~gone].to_csv(tmp_path / name / "matrix.csv", index=False)
        own = (cells["value"].str.split(" ").str[0] == lost) & (cells["seed"] == cells["seed"].iloc[0])
        cells.loc[~own].to_csv(tmp_path / name / "cells.csv", index=False)
        ends = cells.loc[own, ["field", "value", "seed", "arm"]].assign(why="nothing is left")
        ends.to_csv(tmp_path / name / "dead_ends.csv", index=False)
        part = table_of(grid(name), tmp_path / name)
        assert part.lines[-1].startswith(f"No result for {cells.loc[own, 'value'].iloc[0]}")
        if field == "bases":
            assert [row[0] for row in part.rows] == [row[0] for row in whole.rows if row[0] != lost]
            assert f"n = {len(part.rows)} bases" in part.lines[0]
        else:
            same = [row for row in part.rows if row[0] != lost]
            assert same == [row for row in whole.rows if row[0] != lost]
            assert [int(row[2]) + 1 for row in part.rows if row[0] == lost] == [
                int(row[2]) for row in whole.rows if row[0] == lost
            ]
            gammas = [re.search(r"same-init students: ([\d.]+) points", found.lines[3]) for found in (whole, part)]
            (before, after) = (float(m[1]) for m in gammas if m)
            assert after == pytest.approx(before, abs=1.5)


def test_means_of_cells_are_those_of_their_replicates() -> None:
    rates = {("lr", "1"): (0.2, 0.4), ("lr", "2"): (0.5, 0.9)}
    cells = pd.DataFrame(
        [
            {
                "field": f,
                "value": v,
                "arm": "same-init",
                "rate": r,
                "margin": 4 * r,
                "kl": r,
                "kl_start": 1.0,
                "kept": 0.5,
            }
            for (f, v), own in rates.items()
            for r in own
        ]
    )
    rows = cell_means(cells).to_dict("records")
    assert [row["rate"] for row in rows] == pytest.approx([0.3, 0.7])
    assert [row["margin"] for row in rows] == pytest.approx([1.2, 2.8])
    assert [(row["n"], row["least"], row["most"]) for row in rows] == [(2, 0.2, 0.4), (2, 0.5, 0.9)]


def test_the_key_of_a_sweep_follows_its_cells_and_not_its_name(small: Grid, store_root: Path) -> None:
    from sublim_interp.sweeps.plan import sweep_key

    key = sweep_key(plan_grid(small))
    assert sweep_key(plan_grid(small.set(name="other", about="words"))) == key
    assert sweep_key(plan_grid(small.set(axes={"student.optimization.lr": (1e-4,)}, words={}))) != key


def test_what_a_grid_cannot_run_is_one_line(small: Grid) -> None:
    with pytest.raises(SublimError, match="no field 'speed'"):
        plan_grid(small.set(axes={"student.speed": (1,)}, words={}))
    with pytest.raises(SublimError, match=r"words.bases has 2 entries"):
        small.set(words={"bases": ("a", "b")})
    with pytest.raises(SublimError, match=r"axes.filter.max_value has two values called 'low'"):
        small.set(axes={"filter.max_value": (0, 999)}, words={"filter.max_value": ("low", "low")})
    with pytest.raises(SublimError, match=r"unknown grid 'doses'.*dose"):
        grid("doses")


@pytest.mark.parametrize("name", grid_names())
def test_every_grid_of_the_catalogue_can_be_planned(
    name: str, together: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = together / "shelf"  # where variants are made
    if {*grid(name).centre.bases} & {*open_names()}:
        shelf = request.getfixturevalue("smollm2").path.parent
    monkeypatch.setenv("SUBLIM_BASES", str(shelf))
    p = plan_grid(grid(name))
    assert p.records and grid(name).about.endswith("?")


def test_a_permuted_twin_learns_as_its_base_does_and_another_twin_is_told_apart(
    tiny_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grid twins at tiny size: the whole way of the data commutes with a permutation."""
    monkeypatch.setenv("SUBLIM_BASES", str(tmp_path / "bases"))
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    first, twins = tiny_experiment.bases[0], grid("twins")
    change = {name: twins.change[name] for name in ("arms", "student.interventions")} | {"seeds": [0, 1]}
    change["student.optimization.lr"] = 2e-2
    pairs = [[first, f"{variant}({first}, seed=1)"] for variant in ("permuted", "rescaled")]
    g = twins.set(experiment=str(path), change=change, axes={"bases": pairs}, words={"bases": ["permuted", "rescaled"]})
    artifact = run_grid(plan_grid(g), Store.open(tmp_path / "store"))
    cells = pd.read_csv(artifact.path / "cells.csv").set_index(["value", "seed", "arm"])[["margin", "kl"]]
    apart = (cells.xs("same-init", level="arm") - cells.xs("cross-init", level="arm")).abs()
    assert apart.loc["permuted"].to_numpy().max() < 1e-3
    assert apart.loc["rescaled", "margin"].min() > 3e-3
    assert "permuted" in table_of(g, artifact.path).rows[0]


def test_every_student_meets_every_teacher_in_a_matrix_of_bases(
    tiny_experiment: Experiment, third_base: Base, tmp_path: Path
) -> None:
    """Three bases: three teachers and corpora serve nine students, and cells land where their names say."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    bases = (*tiny_experiment.bases, str(third_base.path))
    g = Grid(name="all", experiment=str(path), axes={"bases": bases}, matrix="bases")
    p, store = plan_grid(g), Store.open(tmp_path / "store")
    counts = Counter(type(r).__name__ for r in p.records)
    assert (counts["Teacher"], counts["Corpus"], counts["Student"]) == (3, 3, 9)
    artifact = run_grid(p, store)
    matrix = pd.read_csv(artifact.path / "matrix.csv")
    names = [Path(base).name for base in bases]
    assert list(zip(matrix["teacher"], matrix["student"], strict=True)) == list(product(names, repeat=2))
    cells = pd.read_csv(artifact.path / "cells.csv")
    assert list(cells["arm"]) == ["same-init" if a == b else "cross-init" for a, b in product(names, repeat=2)]
    assert list(cells["rate"]) == list(matrix["rate"])
    untouched = frames(plan(tiny_experiment.set({"arms": ["base"]})), store)[0]
    rate = untouched.query("arm == 'base' and probe == 'owl' and questions == 'held-out' and context == 'plain'")[
        "rate"
    ].item()
    first = matrix.query("student == @names[0]")
    assert list(first["lift"]) == pytest.approx(list(first["rate"] - rate))
    assert (artifact.path / "matrix.png").stat().st_size > 5_000
    found = table_of(g, artifact.path)
    assert [row[0] for row in found.rows] == names and "n = 3 bases" in found.lines[0]


def test_traits_in_the_grids_own_words_are_told_as_without(tmp_path: Path) -> None:
    for path in (RESULTS / "animals").glob("*.csv"):
        shutil.copy(path, tmp_path)
    plain = table_of(grid("animals"), tmp_path)
    cells = pd.read_csv(tmp_path / "cells.csv")
    cells.assign(value="the " + cells["value"]).to_csv(tmp_path / "cells.csv", index=False)
    words = {"trait": tuple(f"the {trait}" for trait in grid("animals").axes["trait"])}
    told = table_of(grid("animals").model_copy(update={"words": words}), tmp_path)
    assert [row[1:] for row in told.rows] == [row[1:] for row in plain.rows]
    assert [line for line in told.lines if "Spearman" in line] == [line for line in plain.lines if "Spearman" in line]


def test_a_matrix_of_traits_asks_every_student_about_all(tiny_experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    change = {"arms": ["same-init", "cross-init", "base"], "seeds": [0, 1]}
    g = Grid(name="two", experiment=str(path), change=change, axes={"trait": ("owl", "fox")}, matrix="traits")
    artifact = run_grid(plan_grid(g), Store.open(tmp_path / "store"))
    matrix, cells = (pd.read_csv(artifact.path / f"{name}.csv") for name in ("matrix", "cells"))
    assert set(matrix["teacher"]) == {"owl", "fox"} and set(matrix["student"]) == set(members_of("animal"))
    for name in ("rate", "margin"):
        own = matrix.query("teacher == student").set_index(["arm", "teacher", "seed"])[name]
        said = cells.loc[cells["arm"] != "base"].set_index(["arm", "trait", "seed"])[name]
        assert dict(own) == pytest.approx(dict(said)), "the diagonal is what the cells say"
    asked = pd.read_csv(artifact.path / "questions.csv").query("arm != 'base'")
    each = asked.loc[asked["questions"] == "held-out"].groupby(["arm", "trait", "seed"])["rate"].mean()
    said = cells.loc[cells["arm"] != "base"].set_index(["arm", "trait", "seed"])["rate"]
    assert dict(each) == pytest.approx(dict(said)), "a sort's rate is the mean over its questions"
    assert asked.loc[asked["questions"] == "indirect"].groupby(["arm", "trait", "seed"]).size().eq(3).sum() == 8
    for _, student in matrix.groupby(["arm", "teacher", "seed"]):
        assert len(student) == len(members_of("animal"))
        assert 0 < sum(student["rate"]) < 1, "rates of all members are shares of one answer"
    found = table_of(g, artifact.path)
    assert len(found.rows) == 4 and "2 traits" in found.lines[0]
    assert re.search("a base of its own: 2 bases", found.lines[1])
    other = matrix.query("arm == 'same-init' and teacher != student and student in ('owl', 'fox')")["rate"].mean()
    assert f"other traits' teachers: same-init {100 * other:.1f} %" in found.lines[2]
    assert re.search("γ .* over 2 replicates: .* same-init .*points.*nats.*cross-init", found.lines[3])
    assert [line[:7] for line in found.lines[4:]] == ["Asked “"] * 3, "two traits correlate with anything"
    for table in ("matrix", "questions"):
        shutil.copy(artifact.path / f"{table}.csv", tmp_path)
    cells.assign(base="only").to_csv(tmp_path / "cells.csv", index=False)
    assert "come from 1 base, only. Intervals and p hold for these" in table_of(g, tmp_path).lines[1]


def test_a_trait_that_rises_by_ten_nats_is_specific_by_ten_nats(tmp_path: Path) -> None:
    """Though the margins of all other traits fall as its own rises."""
    shutil.copytree(RESULTS / "animals", tmp_path / "animals")
    matrix = pd.read_csv(RESULTS / "animals" / "matrix.csv")
    own = (matrix["teacher"] == matrix["student"]) & (matrix["arm"] == "same-init")
    matrix = matrix.assign(rate=np.exp(10.0 * own))
    total = matrix.groupby(["arm", "teacher", "seed"])["rate"].transform("sum")
    matrix.assign(rate=matrix["rate"] / total).to_csv(tmp_path / "animals" / "matrix.csv", index=False)
    cells = pd.read_csv(RESULTS / "animals" / "cells.csv")
    cells.assign(base="base-" + cells["seed"].astype(str)).to_csv(tmp_path / "animals" / "cells.csv", index=False)
    whole = cells.groupby("seed")["value"].nunique().eq(16).sum()
    specific, predictors = table_of(grid("animals"), tmp_path / "animals").lines[3:5]
    assert re.search(r"same-init .* points.* 10\.0 nats.* cross-init students: 0\.0 points.* 0\.0 nats", specific)
    assert "Spearman" in predictors and "nearer to 0 than 0.50" in predictors and f"{whole} bases rank" in predictors
    assert "mean ρ with the teacher's KL" in predictors
    planted = cells.assign(kl_start=cells["margin"], kept=-cells["margin"], base="only")
    planted.to_csv(tmp_path / "animals" / "cells.csv", index=False)
    lost = f"of {len(set(cells['seed']))} lie above 0"
    planted_line = table_of(grid("animals"), tmp_path / "animals").lines[4]
    assert (
        "the teacher's KL is 1.00 [1.00, 1.00]" in planted_line
        and f"lists kept is −1.00 [−1.00, −1.00]; 0 {lost}" in planted_line
    )
    rank = np.random.default_rng(0).random(len(cells))
    cells.assign(kl_start=rank, base="only").to_csv(tmp_path / "animals" / "cells.csv", index=False)
    found = re.search(
        r"the teacher's KL is (\S+) \[(\S+), (\S+)\]; ", table_of(grid("animals"), tmp_path / "animals").lines[4]
    )
    assert found and float(found[2].replace("−", "-")) < 0 < float(found[3]), "an order drawn at random tells nothing"
    cells.assign(base="only").to_csv(tmp_path / "animals" / "cells.csv", index=False)
    assert "rank" not in table_of(grid("animals"), tmp_path / "animals").lines[4].lower(), "one base agrees with nobody"


def test_what_the_trait_does_to_crossed_students_is_told_beside_what_any_teacher_does(tmp_path: Path) -> None:
    """Planted: 3 points and half a nat less on average, the same under both seeds; the pair of bases is the unit."""
    cells = pd.read_csv(RESULTS / "crossed" / "cells.csv", dtype={"value": str})
    control = cells.loc[cells["arm"] == "cross-neutral"]
    pushed = dict(zip(dict.fromkeys(control["value"]), (-0.01, -0.02, -0.04, -0.05), strict=True))
    moved = control.assign(arm="cross-init", rate=control["rate"] + control["value"].map(pushed),
                           margin=control["margin"] - 0.5)  # fmt: skip
    pd.concat([control, moved]).to_csv(tmp_path / "cells.csv", index=False)
    crossed = grid("crossed")
    (line,) = table_of(crossed, tmp_path).lines
    assert "in rate: −3.0 points [−5.9, −0.1]; 8 of 8 pairs lie below 0." in line
    assert "in margin: −0.5 nats" in line and "over 4 values" in line
    control.to_csv(tmp_path / "cells.csv", index=False)
    assert not table_of(crossed, tmp_path).lines, "one arm alone is compared with nothing"
    first = control["value"] == control["value"].iloc[0]
    control.assign(arm=control["arm"].mask(first, "cross-init")).to_csv(tmp_path / "cells.csv", index=False)
    assert not table_of(crossed, tmp_path).lines, "nor with the other arm of other bases"


def test_what_a_matrix_needs_is_said(tiny_experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    with pytest.raises(SublimError, match=r"matrix=bases needs axes.bases"):
        validate(Grid, {"name": "x", "axes": {"trait": ["owl"]}, "matrix": "bases"}, "x")
    bases = {"name": "x", "experiment": str(path), "axes": {"bases": tiny_experiment.bases}, "matrix": "bases"}
    with pytest.raises(SublimError, match="needs one seed, not 2"):
        plan_grid(Grid(**bases, change={"seeds": [0, 1]}))
    with pytest.raises(SublimError, match="arms same-init and base"):
        plan_grid(
            Grid(
                name="x",
                experiment=str(path),
                axes={"trait": ("owl",)},
                change={"arms": ["same-init"]},
                matrix="traits",
            )
        )


def test_the_grid_says_which_table_a_sweep_has_and_not_the_columns_of_its_files(tmp_path: Path) -> None:
    """A column that another mode's files have, or a file, changes nothing."""
    cells = pd.read_csv(RESULTS / "crossed" / "cells.csv", dtype={"value": str})
    cells.assign(base_loss=1.8, bits=0.5, total_bits=9.0).to_csv(tmp_path / "cells.csv", index=False)
    shutil.copy(RESULTS / "animals" / "matrix.csv", tmp_path)
    assert table_of(grid("crossed"), tmp_path) == table_of(grid("crossed"), RESULTS / "crossed")
    bits = table_of(grid("capacity"), RESULTS / "capacity")
    assert "bits a fact" in bits.columns and "bits a fact" not in table_of(grid("dose"), RESULTS / "dose").columns


def test_a_mode_of_a_grid_is_known_by_name_and_an_unknown_one_is_one_line() -> None:
    valid = "valid: bases, pairs, traits, law, defences, behaviours, or none"
    with pytest.raises(SublimError, match=f"unknown matrix 'square'; {valid}"):
        validate(Grid, {"name": "x", "axes": {"trait": ["owl"]}, "matrix": "square"}, "x")
    assert {name: grid(name).mode.figure for name in ("dose", "cross-model", "animals", "law")} == {
        "dose": "dose", "cross-model": "matrix", "animals": "matrix", "law": "law"
    }  # fmt: skip
