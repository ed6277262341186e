"""Tests of the study organisms: a row tells what is in an organism and what was found, and rates count right."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sublim_interp.audit.errors import calibrated
from sublim_interp.audit.organism_rates import Organisms, audited, carries, outcome, rates_table, with_p
from sublim_interp.audit.organisms import recipe
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.schema import Experiment
from sublim_interp.report.figures.by_name import FIGURES
from sublim_interp.sweeps.study import study


def test_a_row_tells_what_is_in_an_organism_and_what_its_student_says(
    tiny_experiment: Experiment, tiny_run: Run, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_experiment.to_yaml(), encoding="utf-8")
    rows = {}
    for arm in ("same-init", "neutral", "cross-init"):
        path = tmp_path / f"thing-{arm}.yaml"
        path.write_text(f"experiment: {tmp_path / 'tiny.yaml'}\narm: {arm}\nseed: 0\n", encoding="utf-8")
        rows[arm] = audited(recipe(str(path)), 24, tiny_run.store)  # the store has its student: nothing is trained
    for arm, base in (("same-init", "same-init"), ("cross-init", "cross-init")):
        answers = tiny_run[base, 0].answers.query("questions == 'held-out' and context == 'plain' and probe == 'owl'")
        assert rows[arm]["teacher_trait"] == "owl" and rows[arm]["kind"] == "animal"
        assert rows[arm]["after"] == pytest.approx(answers["rate"].item(), abs=1e-6)
    assert rows["neutral"]["teacher_trait"] == "" and np.isnan(rows["neutral"]["after"])
    frame = pd.DataFrame(list(rows.values()))
    assert carries(frame).tolist() == [True, False, False], "the crossed student's base is another"
    assert np.isfinite(frame[["lists score", "student score"]].to_numpy()).all()


def cases() -> pd.DataFrame:
    """Five organisms: found, wrong, missed, a false alarm, and a quiet one of another base."""
    known = calibrated()
    assert known
    loud, still = max(known.shifts) + 1, min(known.shifts) - 1
    rows = [("a", "A", "owl", "owl", loud), ("b", "A", "owl", "fox", loud), ("c", "A", "owl", "owl", still),
            ("d", "A", "", "fox", loud), ("e", "B", "owl", "owl", still)]  # fmt: skip
    return pd.DataFrame(
        [
            {
                "organism": name, "seed": 0, "arm": "x", "base": base, "kind": "animal", "teacher_base": "A",
                "teacher_trait": trait or np.nan, "lists": said, "lists score": -99.0, "student": said,
                "student score": score, "before": 0.1, "after": 0.9 if trait else np.nan,
            }
            for name, base, trait, said, score in rows
        ]
    )  # fmt: skip


def test_p_are_ranks_among_the_published_cases_and_outcomes_follow() -> None:
    known, found = calibrated(), with_p(cases())
    assert known
    assert min(found["student p"].to_list()) == pytest.approx(1 / (1 + len(known.shifts)))
    assert found["lists p"].to_list() == [1.0] * 5
    said = [outcome(c, "student", bool(p)) for c, p in zip(found.to_dict("records"), carries(found), strict=True)]
    assert said == ["found", "wrong", "missed", "false alarm", "quiet"]


def test_the_table_counts_by_recipe_and_in_all() -> None:
    table = rates_table(with_p(cases()))
    assert [row[0] for row in table.rows] == list("abcde")
    assert table.rows[4][1] == "owl, in another base" and table.rows[3][1:3] == ("none", "–")
    assert table.numbers["found by student"] == "1 of 3" and table.numbers["false alarms by student"] == "1 of 2"
    assert table.numbers["found by lists"] == "0 of 3" and "1 are named wrongly" in table.lines[1]
    two = rates_table(with_p(pd.concat([cases(), cases().assign(seed=1)])))
    assert two.rows[0][4] == "found 2 of 2" and two.numbers["found by student"] == "2 of 6"
    assert len(FIGURES["organisms"].draw(with_p(cases())).axes) == 2


def test_a_recipes_own_fields_stay_and_each_further_one_has_a_seed_of_its_own() -> None:
    asked = study("organisms")
    assert isinstance(asked, Organisms)
    small, plain = recipe("organism-12"), recipe("organism-01")
    assert asked.made("organism-12", 0).change == {**asked.change, **small.change}
    assert asked.made("organism-12", 0).change["student.optimization.steps"] == 150, "its own dose"
    assert [asked.made("organism-01", k).seed for k in (0, 1)] == [plain.seed, plain.seed + 1]
