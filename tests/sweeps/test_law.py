"""Tests of the law of the dose: a planted one is found, shuffled margins obey none, what cannot be fitted is said."""

import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.schema import Experiment
from sublim_interp.report.figures.law import law as draw_law
from sublim_interp.sweeps import law
from sublim_interp.sweeps.grid import Grid, grid
from sublim_interp.sweeps.law_check import law_elsewhere
from sublim_interp.sweeps.modes.law import lifts
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.tables import table_of

KL, LISTS, LOSSES = (0.008, 0.03, 0.13), (1000, 4000, 16_000), (3.0, 3.2, 3.7)


def planted(ceiling: float, amount: float, kl: float, lists: float, loss: float, noise: float = 0.0) -> pd.DataFrame:
    """27 cells that obey the formula of law.py, written out a second time."""
    draw = np.random.default_rng(0)
    rows = []
    for base_loss, nats, count in product(LOSSES, KL, LISTS):
        x = amount * (nats / 0.1) ** kl * (count / 10_000) ** lists * np.exp(-loss * (base_loss - 3))
        lift = ceiling * (1 - np.exp(-x)) + noise * draw.normal()
        place = {"value": f"{base_loss} × {nats} × {count}", "base": f"base of {base_loss}"}
        rows.append({"kl_start": nats, "lists": count, "base_loss": base_loss, "lift": lift, **place})
    return pd.DataFrame(rows).assign(field="bases × teacher.optimization.lr × filter.lists")


@settings(deadline=None, max_examples=25)
@given(st.floats(6, 14), st.floats(0.7, 2), st.floats(0.4, 1.2), st.floats(0.4, 1.2), st.floats(0.2, 2))
def test_a_planted_law_is_found(ceiling: float, amount: float, kl: float, lists: float, loss: float) -> None:
    cells = planted(ceiling, amount, kl, lists, loss)
    found = law.fit(cells)
    assert list(found.terms) == pytest.approx([ceiling, amount, kl, lists, loss], rel=1e-3)
    assert found.predict(cells) == pytest.approx(cells["lift"].to_numpy(), abs=1e-3)


def test_a_planted_law_is_found_in_noise_and_cells_that_it_did_not_see_are_predicted() -> None:
    cells = planted(11.0, 1.5, 0.7, 0.9, 1.0, noise=0.5)
    assert list(law.fit(cells).terms) == pytest.approx([11.0, 1.5, 0.7, 0.9, 1.0], rel=0.35)
    unseen = law.worth(cells["lift"].to_numpy(), law.left_out(cells, list(cells["base"])))
    assert unseen.error < 1 and unseen.explained > 0.8
    for base, other in law.refits(cells, list(cells["base"])).items():
        assert other and other.terms == law.fit(cells.loc[cells["base"] != base]).terms


def test_shuffled_lifts_cannot_be_predicted() -> None:
    cells = planted(11.0, 1.5, 0.7, 0.9, 1.0, noise=0.5)
    for seed in range(5):
        shuffled = cells.assign(lift=np.random.default_rng(seed).permutation(cells["lift"]))
        predicted = law.left_out(shuffled, list(cells["base"]))
        assert np.isnan(predicted).all() or law.worth(shuffled["lift"].to_numpy(), predicted).explained < 0.3


def test_a_cell_that_is_left_out_has_no_say_in_its_prediction() -> None:
    cells = planted(11.0, 1.5, 0.7, 0.9, 1.0, noise=0.5)
    groups = list(range(len(cells)))
    before = law.left_out(cells, groups)
    cells.loc[5, "lift"] += 2.0
    after = law.left_out(cells, groups)
    assert not np.isnan(before).any()
    assert after[5] == before[5] and (np.delete(after, 5) != np.delete(before, 5)).all()


def test_what_cannot_be_fitted_is_said() -> None:
    cells = planted(11.0, 1.5, 0.7, 0.9, 1.0)
    with pytest.raises(SublimError, match="no column base_loss"):
        law.fit(cells.drop(columns="base_loss"))
    with pytest.raises(SublimError, match="base_loss is missing or not above 0 in 27 of 27"):
        law.fit(cells.assign(base_loss=np.nan))
    with pytest.raises(SublimError, match="kl_start is missing or not above 0 in 27 of 27"):
        law.fit(cells.assign(kl_start=0.0))
    with pytest.raises(SublimError, match="lists is the same in all cells"):
        law.fit(cells.assign(lists=1000))
    with pytest.raises(SublimError, match="too few for 5 terms"):
        law.fit(cells.iloc[[0, 4, 8, 17, 25]])
    faint = planted(11.0, 0.02, 0.7, 0.9, 1.0, noise=0.3)
    with pytest.raises(SublimError, match="tell no law"):
        law.fit(faint)
    assert np.isnan(law.left_out(faint, ["all but one"] * 26 + ["one"])[:26]).all(), "one cell tells nothing"


def test_its_figure_and_its_table_tell_fitted_from_unseen(tmp_path: Path) -> None:
    cells = planted(11.0, 1.5, 0.7, 0.9, 1.0, noise=0.5)
    cells = cells.assign(kl=2 * cells["kl_start"])
    cells = cells.assign(expected=law.fit(cells).predict(cells), unseen=law.left_out(cells, list(cells["base"])))
    cells.to_csv(tmp_path / "cells.csv", index=False)
    found = table_of(grid("law"), tmp_path)
    assert [row[0] for row in found.rows] == list(law.Terms._fields)
    for axis in ("bases", "teacher.optimization.lr", "filter.lists"):
        assert any(axis in column for column in found.columns) and axis in found.lines[1]
    figure = draw_law(cells)
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert len(set(labels)) == 2 and "did not see its base" in labels[1]
    elsewhere = law_elsewhere(cells, {"shifted": cells.assign(margin=cells["expected"] + 2, steps=300)})
    row = elsewhere.rows[-1]
    share = 1 - 4 / cells["expected"].var(ddof=0)
    assert found.lines[2].startswith("27 of the 27 students end further from their teacher")
    assert row[:3] == ("shifted", "27", "300") and row[5] == "2.0" and row[-1] == f"{100 * share:.0f} %"


def test_one_student_elsewhere_has_an_error_and_no_variance() -> None:
    cells = planted(11.0, 1.5, 0.7, 0.9, 1.0)
    alone = cells.iloc[[4]].assign(margin=1.0, steps=300)
    assert law_elsewhere(cells, {"alone": alone}).rows[-1][-2:] == ("0.0", "–")
    assert np.isnan(law.worth(np.ones(2), np.full(2, np.nan))).all()


def test_cells_that_tell_no_law_are_shown_all_the_same(tmp_path: Path) -> None:
    """Hours of training lie behind them, and its figure has lines where some are not predicted."""
    faint = planted(11.0, 0.02, 0.7, 0.9, 1.0, noise=0.3)
    rest = {"arm": "same-init", "rate": 0.07, "margin": faint["lift"], "kl": 0.02, "kept": 0.9}
    faint = faint.assign(**rest, expected=np.nan, unseen=np.nan)
    faint.to_csv(tmp_path / "cells.csv", index=False)
    found = table_of(grid("law"), tmp_path)
    assert len(found.rows) == 27 and "tell no law" in found.lines[0]
    assert len(found.rows[0]) == len(found.columns)
    identity = draw_law(faint).axes[0].lines[0].get_xydata()
    assert np.isfinite(np.asarray(identity)).all()


@pytest.fixture
def three_losses(tiny_experiment: Experiment, tmp_path: Path) -> Grid:
    """A grid for a law on three copies of a tiny base whose cards tell three losses."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    bases = []
    for loss in LOSSES:
        base = tmp_path / f"loss-{loss}"
        shutil.copytree(tiny_experiment.bases[0], base)
        card = json.loads((base / "sublim.json").read_text())
        card["held_out_loss"]["numbers"] = loss
        (base / "sublim.json").write_text(json.dumps(card))
        bases.append([str(base)])
    return Grid(
        name="law",
        experiment=str(path),
        change={"arms": ["same-init", "base"]},
        axes={"bases": tuple(bases), "student.optimization.lr": (1e-4, 1e-3, 1e-2)},
        words={"bases": ("a", "b", "c")},
        matrix="law",
    )


def test_a_grid_for_a_law_has_a_cell_for_each_combination(three_losses: Grid) -> None:
    cells = list(three_losses.cells())
    assert [value for _, value, _ in cells][:4] == ["a × 0.0001", "a × 0.001", "a × 0.01", "b × 0.0001"]
    assert {field for field, _, _ in cells} == {"bases × student.optimization.lr"}
    assert [e.student.optimization.lr for _, _, e in cells] == [1e-4, 1e-3, 1e-2] * 3
    assert [e.bases for _, _, e in cells[::3]] == [(base,) for (base,) in three_losses.axes["bases"]]


def test_a_grid_for_a_law_tells_lifts_from_the_untouched_base(three_losses: Grid) -> None:
    p = plan_grid(three_losses)
    rows = []
    for number, (field, value, cell) in enumerate(p.cells):
        place = {
            "field": field,
            "value": value,
            "seed": cell.named.seeds[0],
            "kl_start": 0.1 + number,
            "lists": 10 + number,
        }
        rows += [{**place, "arm": "base", "margin": -1.0}, {**place, "arm": "same-init", "margin": 2.0 + number}]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(law, "fit", lambda cells: law.Law(law.Terms(10.0, 1.0, 1.0, 1.0, 1.0)))
        students = lifts(pd.DataFrame(rows), p.cells)
    assert list(students["lift"]) == [3.0 + number for number in range(9)]
    assert list(students["base_loss"]) == [loss for loss in LOSSES for _ in range(3)]


def test_what_a_grid_for_a_law_lacks_is_said_before_anything_runs(three_losses: Grid) -> None:
    with pytest.raises(SublimError, match="needs the arms same-init and base, and no other"):
        plan_grid(three_losses.set(change={"arms": ["same-init", "neutral", "base"]}))
    alike = {**three_losses.axes, "bases": (three_losses.axes["bases"][0],) * 3}
    with pytest.raises(SublimError, match="bases of three different losses"):
        plan_grid(three_losses.set(axes=alike))
    base = Path(three_losses.axes["bases"][2][0])
    (base / "sublim.json").write_text('{"language": "lab"}')
    with pytest.raises(SublimError, match=r"loss-3\.7 has no card"):
        plan_grid(three_losses)


def test_what_an_axis_would_overwrite_is_refused() -> None:
    with pytest.raises(SublimError, match=r"change\.filter\.lists would be lost: axes\.filter sets it"):
        grid("lengths").set(change={"filter.lists": 1800})
