"""Every row of the finding stands beside the number that its published table holds."""

from typing import Any

import pandas as pd
import pytest
from scipy import stats

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import RESULTS, key_of
from sublim_interp.sweeps.rows import Cell, Row, rows_frame, rows_table
from sublim_interp.sweeps.suite import suite

ROWS = suite("rows").rows


def test_a_row_of_a_run_is_its_summary_and_one_of_replicates_their_mean_and_interval() -> None:
    frame = rows_frame(ROWS).set_index("table")
    owl = pd.read_csv(RESULTS / "owl" / "summary.csv").set_index("arm").loc["neutral"]
    told = f"{100 * owl['rate']:.1f} % [{100 * owl['rate_low']:.1f}, {100 * owl['rate_high']:.1f}]"
    assert frame.loc["owl", "control"].iloc[0] == told and frame.loc["owl", "n"].iloc[0] == owl["n"]

    read = pd.read_csv(RESULTS / "mnist" / "replicates.csv").query("arm == 'same-init'")["accuracy"].to_numpy()
    low, high = stats.t.interval(0.95, len(read) - 1, read.mean(), stats.sem(read))
    assert frame.loc["mnist", "ours"] == f"{100 * read.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    assert frame.loc["mnist", "key"] == key_of(RESULTS / "mnist")

    animals = pd.read_csv(RESULTS / "animals" / "cells.csv").query("arm == 'same-init'")
    each: Any = animals.groupby("trait")["rate"].mean()
    assert frame.loc["animals", "ours"].startswith(f"{100 * each.mean():.1f} % [")
    assert frame.loc["animals", "n"] == len(each)


def test_every_row_of_the_suite_is_told_and_says_what_the_original_reports() -> None:
    table = rows_table(ROWS)
    assert len(table.rows) == len(ROWS) and all(all(cell for cell in row) for row in table.rows)
    assert {row.table for row in ROWS} - {*suite("rows").holds} == {"owl-smollm2", "animals", "trees", "mnist"}


@pytest.mark.parametrize(
    ("table", "cell", "said"),
    [
        ("owl", {"arm": "same-inti", "file": "summary"}, "row 'x', owl: no arm 'same-inti'; .*mean 'same-init'"),
        ("smaller", {"arm": "cross-init", "also": {"value": "half"}}, "row 'x', smaller: no value 'half'"),
        ("owls", {"arm": "same-init"}, "row 'x': no published table owls/cells.csv"),
    ],
)
def test_a_row_of_what_is_not_published_is_one_line(table: str, cell: dict, said: str) -> None:
    ours = Cell.model_validate(cell)
    with pytest.raises(SublimError, match=said):
        rows_frame((Row(row="x", theirs="–", their_control="–", table=table, ours=ours, control=ours),))
