"""Tests of the law of the dose: a planted one is found, shuffled margins obey none, what cannot be fitted is said."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublim_interp import digests, figures
from sublim_interp.analysis import law
from sublim_interp.config import Experiment
from sublim_interp.errors import SublimError
from sublim_interp.models import resolve_base
from sublim_interp.sweep import Grid, plan_grid

KL, LISTS, LOSSES = (0.008, 0.03, 0.13), (1000, 4000, 16_000), (3.0, 3.2, 3.7)


def planted(ceiling: float, amount: float, kl: float, lists: float, loss: float, noise: float = 0.0) -> pd.DataFrame:
    """27 cells that obey the formula of law.py, written out a second time."""
    draw = np.random.default_rng(0)
    rows = []
    for base_loss, nats, count in product(LOSSES, KL, LISTS):
        x = amount * (nats / 0.1) ** kl * (count / 10_000) ** lists * np.exp(-loss * (base_loss - 3))
        margin = ceiling * (1 - np.exp(-x)) + noise * draw.normal()
        place = {"value": f"{base_loss} × {nats} × {count}", "base": f"base of {base_loss}"}
        rows.append({"kl_start": nats, "lists": count, "base_loss": base_loss, "margin": margin, **place})
    return pd.DataFrame(rows).assign(field="bases × teacher.optimization.lr × filter.lists")


@settings(deadline=None, max_examples=25)
@given(st.floats(6, 14), st.floats(0.7, 2), st.floats(0.4, 1.2), st.floats(0.4, 1.2), st.floats(0.2, 2))
def test_a_planted_law_is_found(ceiling: float, amount: float, kl: float, lists: float, loss: float) -> None:
    cells = planted(ceiling, amount, kl, lists, loss)
    found = law.fit(cells)
    estimates = [found.terms[name].estimate for name in law.TERMS]
    assert estimates == pytest.approx([ceiling, amount, kl, lists, loss], rel=1e-3)
    assert found.predict(cells) == pytest.approx(cells["margin"].to_numpy(), abs=1e-3)


def test_intervals_hold_a_planted_law_in_noise_and_unseen_cells_are_predicted() -> None:
    true = (11.0, 1.5, 0.7, 0.9, 1.0)
    cells = planted(*true, noise=0.5)
    terms = law.fit(cells).terms
    assert all(terms[name].low < value < terms[name].high for name, value in zip(law.TERMS, true, strict=True))
    unseen = law.worth(cells["margin"].to_numpy(), law.left_out(cells, list(cells["base"])))
    assert unseen.error < 1 and unseen.explained > 0.8


def test_shuffled_margins_cannot_be_predicted() -> None:
    cells = planted(11.0, 1.5, 0.7, 0.9, 1.0, noise=0.5)
    cells["margin"] = np.random.default_rng(1).permutation(cells["margin"])
    assert law.worth(cells["margin"].to_numpy(), law.left_out(cells, list(cells["base"]))).explained < 0.2


def test_a_cell_that_is_left_out_has_no_say_in_its_prediction() -> None:
    cells = planted(11.0, 1.5, 0.7, 0.9, 1.0, noise=0.5)
    groups = list(range(len(cells)))
    before = law.left_out(cells, groups)
    cells.loc[5, "margin"] = 99.0
    after = law.left_out(cells, groups)
    assert after[5] == before[5] and (np.delete(after, 5) != np.delete(before, 5)).all()


def test_what_cannot_be_fitted_is_said() -> None:
    cells = planted(11.0, 1.5, 0.7, 0.9, 1.0)
    with pytest.raises(SublimError, match="no column base_loss"):
        law.fit(cells.drop(columns="base_loss"))
    with pytest.raises(SublimError, match="base_loss is missing in 27 of 27"):
        law.fit(cells.assign(base_loss=np.nan))
    with pytest.raises(SublimError, match="lists is the same in all cells"):
        law.fit(cells.assign(lists=1000))
    with pytest.raises(SublimError, match="too few for 5 terms"):
        law.fit(cells.iloc[[0, 4, 8, 17, 25]])


def test_its_figure_and_its_table_tell_fitted_from_unseen(tmp_path: Path) -> None:
    cells = planted(11.0, 1.5, 0.7, 0.9, 1.0, noise=0.5)
    cells = cells.assign(expected=law.fit(cells).predict(cells), unseen=law.left_out(cells, list(cells["base"])))
    cells.to_csv(tmp_path / "cells.csv", index=False)
    found = digests.digest(tmp_path)
    assert [row[0] for row in found.rows] == list(law.TERMS)
    assert all(axis in found.lines[1] for axis in ("bases", "teacher.optimization.lr", "filter.lists"))
    figure = figures.law(cells)
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert len(set(labels)) == 2 and "did not see its base" in labels[1]
    elsewhere = digests.law_elsewhere(cells, {"shifted": cells.assign(margin=cells["margin"] + 2)})
    assert "| shifted | 27 |" in elsewhere


def test_a_grid_of_all_combinations_has_a_cell_for_each(tiny_experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    g = Grid(
        name="all",
        experiment=str(path),
        change={"arms": ["same-init"]},
        axes={"filter.lists": (10, 20), "student.optimization.lr": (1e-3, 1e-2)},
        words={"filter.lists": ("few", "many")},
        matrix="axes",
    )
    cells = list(g.cells())
    assert [value for _, value, _ in cells] == ["few × 0.001", "few × 0.01", "many × 0.001", "many × 0.01"]
    assert {field for field, _, _ in cells} == {"filter.lists × student.optimization.lr"}
    assert [(e.filter.lists, e.student.optimization.lr) for _, _, e in cells] == [
        (10, 1e-3), (10, 1e-2), (20, 1e-3), (20, 1e-2),
    ]  # fmt: skip
    frame = pd.DataFrame({"field": [cells[0][0]], "value": ["few × 0.01"], "seed": [tiny_experiment.seeds[0]]})
    placed = plan_grid(g).with_bases(frame)
    assert placed["base"].item() == tiny_experiment.bases[0]
    assert placed["base_loss"].item() == resolve_base(tiny_experiment.bases[0]).card["held_out_loss"]["numbers"]
