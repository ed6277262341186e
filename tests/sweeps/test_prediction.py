"""Tests of study prediction: what a score is worth, that no student is needed for it, and one small study run whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.sweeps.studies.prediction import RIVALS, SCORES, Prediction, pairs_table, scored, worth_table
from sublim_interp.sweeps.study import find_study, run_study, study

QUICK = {
    "name": "quick",
    "study": "prediction",
    "change": {
        "corpus.prompts": 64,
        "filter.held_out": 8,
        "student.optimization.steps": 2,
        "teacher.optimization.steps": 6,
    },
    "traits": ("owl",),
    "others": ("cat",),
    "seed": 7,
    "lists": 16,
    "pairs": (
        ("lab-small-0", "lab-small-0-step004000"),
        ("lab-small-0", "lab-order-0"),
        ("lab-small-0", "lab-small-1"),
    ),
}


def cases(n: int, noise: float, seed: int = 0) -> pd.DataFrame:
    """Cases of two traits a pair whose lifts follow the imprint, and no rival."""
    draw = np.random.default_rng(seed)
    rows = []
    for pair in range(n):
        imprint = draw.uniform(0, 1)
        for trait in ("owl", "wolf"):
            row = {name: draw.normal() for name in SCORES}
            lift = 10 * imprint + noise * draw.normal()
            rows.append({**row, "imprint": imprint, "trait": trait, "teacher_base": "a", "student_base": f"b{pair}",
                         "lift": lift, "rate": float(lift > 5)})  # fmt: skip
    return pd.DataFrame(rows)


def test_a_score_that_ranks_the_lifts_is_found() -> None:
    frame = cases(20, 0.5)
    table = worth_table(frame, resamples=300)
    assert table.lines[0].startswith("Reached by its estimate: imprint")
    own = table.rows[0]
    assert own[0] == "imprint" and own[1].startswith(f"{spearmanr(frame['imprint'], frame['lift'])[0]:.2f} [")
    assert table.numbers["cases"] == "40" and table.numbers["pairs"] == "20"
    assert any(line.startswith("Match 0.2 or more: ") for line in table.lines)


def test_a_score_of_noise_is_not_called_a_prediction() -> None:
    frame = cases(20, 0.5)
    frame["imprint"] = np.random.default_rng(1).permutation(frame["imprint"])
    line = worth_table(frame, resamples=300).lines[0]
    assert line.startswith("Not reached: imprint has ρ = ") and " and is not ahead of " in line


def test_a_rival_as_good_is_named() -> None:
    frame = cases(20, 0.5)
    frame["distance"] = frame["imprint"] * 2
    line = worth_table(frame, resamples=300).lines[0]
    assert line == "Not reached: imprint is not ahead of distance by its interval."
    assert all(name in SCORES for name in RIVALS)


def test_scores_need_no_student(tmp_path: Path) -> None:
    asked, store = Prediction.model_validate(QUICK), Store(tmp_path)
    found = scored(asked, asked.pairs[0], store)
    assert set(found["owl"]) == set(SCORES)
    assert not (tmp_path / "student").exists() and (tmp_path / "teacher").exists()
    far = scored(asked, asked.pairs[2], store)["owl"]
    near = found["owl"]
    assert near["imprint"] > far["imprint"] and near["distance"] > far["distance"] and near["CKA"] > far["CKA"]


def test_a_small_study_goes_from_pairs_to_a_verdict(tmp_path: Path) -> None:
    asked, store = Prediction.model_validate(QUICK), Store(tmp_path)
    artifact = run_study(asked, store, processes=1)
    frame = pd.read_csv(artifact.path / "cases.csv")
    assert list(frame["student_base"]) == [pair[1] for pair in asked.pairs]
    assert frame["rate"].between(0, 1).all() and frame[list(SCORES)].notna().to_numpy().all()
    assert (artifact.path / "prediction.png").exists()
    assert asked.table(artifact.path).lines[0].split(":")[0] in ("Reached by its estimate", "Not reached")
    assert find_study(asked, store) == artifact
    assert not any(path.name.startswith(".") for path in artifact.path.iterdir()), "what cases are made of is removed"


def test_what_a_study_may_not_ask() -> None:
    with pytest.raises(ValueError, match="one trait"):
        Prediction.model_validate({**QUICK, "others": ()})
    with pytest.raises((ValueError, SublimError), match="twice"):
        Prediction.model_validate({**QUICK, "pairs": (*QUICK["pairs"], QUICK["pairs"][0])})


def test_the_catalogue_s_study_holds_its_pairs_out() -> None:
    from sublim_interp.sweeps.grid import grid

    asked = study("prediction")
    assert isinstance(asked, Prediction)
    fitted = {tuple(pair) for pair in grid("orders").axes["bases"]}
    assert not fitted & set(asked.pairs)


def test_each_pair_is_told_with_its_rates_the_best_match_first() -> None:
    cases: Any = pd.read_csv(RESULTS / "prediction" / "cases.csv")
    rows = pairs_table(cases).rows
    assert [float(row[2].replace("\N{MINUS SIGN}", "-")) for row in rows] == sorted(
        (round(match, 2) for match in cases.groupby(["teacher_base", "student_base"])["imprint"].mean()), reverse=True
    )
    for first, second, _, *rates in rows:
        own = cases[(cases["teacher_base"] == first) & (cases["student_base"] == second)]
        assert rates == [f"{100 * rate:.1f} %" for rate in own["rate"]]
