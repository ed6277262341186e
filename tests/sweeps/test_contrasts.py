"""A grid's contrasts: what was planted is found, paired by seed, with scipy's interval; and their cells exist."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.schema import Experiment
from sublim_interp.sweeps.contrasts import Contrast, contrast_lines
from sublim_interp.sweeps.grid import grid, grid_names
from sublim_interp.sweeps.plan import plan_grid, sweep_key

DRAW = np.random.default_rng(0)
CELLS: Any = pd.DataFrame(
    [
        {"value": value, "arm": arm, "seed": seed, "rate": rate, "margin": seed + shift + DRAW.normal(0, 0.1)}
        for value, arm, rate, shift in (
            ("a", "cross-init", 0.5, 2),
            ("b", "cross-init", 0.5, 4),
            ("a", "same-init", 0.4, 0),
        )
        for seed in range(5)
    ]
)


def test_a_difference_is_paired_by_seed_and_cells_of_a_side_are_averaged_within_it() -> None:
    asked = Contrast(
        name="both minus own", plus=(("a", "cross-init"), ("b", "cross-init")), minus=(("a", "same-init"),)
    )
    (line,), numbers = contrast_lines([asked], CELLS)
    table = CELLS.pivot(index="seed", columns=["value", "arm"], values="margin")
    each: Any = (table["a", "cross-init"] + table["b", "cross-init"]) / 2 - table["a", "same-init"]
    low, high = stats.t.interval(0.95, len(each) - 1, each.mean(), stats.sem(each))
    assert numbers["contrast/both minus own/margin"] == f"{each.mean():.2f} nats [{low:.2f}, {high:.2f}]"
    assert abs(each.mean() - 3) < 0.2, "seeds differ by whole nats, and cancel"
    assert line.startswith("Both minus own: 10.0 points [10.0, 10.0], by margin") and line.endswith("by 5 seeds.")


def test_a_seed_that_lacks_a_cell_is_left_out_and_without_any_it_is_said() -> None:
    asked = Contrast(name="x", plus=(("b", "cross-init"),), minus=(("a", "same-init"),))
    (line,), _ = contrast_lines([asked], CELLS.drop(index=7))
    assert line.endswith("paired by 4 seeds.")
    (line,), numbers = contrast_lines([asked], CELLS[CELLS["value"] != "b"])
    assert line == "X: cannot be told, as no seed has all of its cells." and not numbers
    (line,), _ = contrast_lines([asked], CELLS[CELLS["seed"] == 0])
    assert "[no interval: n = 1]" in line and line.endswith("paired by 1 seed.")


@pytest.mark.parametrize("name", [name for name in grid_names() if grid(name).contrasts])
def test_what_a_grid_contrasts_are_cells_of_it_and_decide_no_key(
    name: str, pulled_for: Callable[[Experiment], None]
) -> None:
    g = grid(name)
    pulled_for(g.centre)
    cells = {(value, arm) for _, value, exp in g.cells() for arm in exp.arms}
    assert {cell for asked in g.contrasts for cell in (*asked.plus, *asked.minus)} <= cells
    assert sweep_key(plan_grid(g)) == sweep_key(plan_grid(g.set(contrasts=())))


def test_a_contrast_of_a_value_that_no_axis_has_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "extends: owl\naxes: {student.part: [full, body]}\n"
        "contrasts: [{name: typo, plus: [[ful, same-init]], minus: [[body, same-init]]}]\n"
    )
    with pytest.raises(SublimError, match="'ful' is no value of the axes; valid: body, full"):
        grid(str(file))
