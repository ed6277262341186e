"""Study kernel: the linearised student takes the real one's updates, a small study whole, its table, bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from on_metal import OnMetal, on_metal, overwritten
from sublim_interp.analysis.kernel import rise
from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.sweeps.studies.kernel import SCORES, Kernel, _controls, account, parting
from sublim_interp.sweeps.studies.kernel_case import CONDITIONS, Asked, Case, _single_steps, looks, updates_of
from sublim_interp.sweeps.study import study
from sublim_interp.training.loop import train

FEW: dict[str, Any] = {
    "study": "kernel",
    "change": {
        "corpus.prompts": 64,
        "filter.held_out": 8,
        "teacher.optimization.steps": 6,
        "student.optimization.steps": 3,
        "student.optimization.batch": 16,
        "student.interventions": [{"kind": "freeze", "parameters": "*norm*"}],
    },
    "seeds": [0],
    "lists": 8,
    "shares": [0.001, 0.1],
    "rows": {
        "same base": ["lab-small-0", "lab-small-0"],
        "permuted": ["lab-small-0", "permuted(lab-small-0, seed=1)"],
        "another init": ["lab-small-0", "lab-small-1"],
    },
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the store, the folder of a small study that `sublim run` made)."""
    here = tmp_path_factory.mktemp("kernel")
    (here / "few.yaml").write_text(yaml.safe_dump(FEW, sort_keys=False))
    store = here / "store"
    done = CliRunner().invoke(app, ["run", str(here / "few.yaml"), "--store", str(store), "--processes", "1"])
    assert done.exit_code == 0, done.exception
    [made] = (store / "study").iterdir()
    return store, made


def test_a_small_study_runs_whole(ran: tuple[Path, Path]) -> None:
    _, made = ran
    frames = {name: pd.read_csv(made / f"{name}.csv") for name in Kernel.TABLES}
    assert [*dict.fromkeys(frames["cases"]["row"])] == [*FEW["rows"]]
    assert set(frames["controls"]["condition"]) == {*CONDITIONS} and len(frames["controls"]) == 3 * len(CONDITIONS)
    steps = frames["steps"]
    assert sorted(set(steps["step"])) == looks(3) == [0, 1, 2, 3]
    start, first = steps.loc[steps["step"] == 0], steps.loc[steps["step"] == 1]
    assert np.allclose(start["margin"], start["linear_margin"], atol=1e-4)
    assert (first["alike"] > 0.99).all() and np.allclose(first["moved"], first["linear_moved"], rtol=1e-3)
    for words in FEW["rows"]:
        parts, controls = (f.loc[f["row"] == words] for f in (frames["parts"], frames["controls"]))
        whole = controls.loc[controls["condition"] == "teacher", "product"].item()
        assert parts["product"].sum() == pytest.approx(whole, rel=1e-3)
    single = frames["single"].query("share == 0.001 and rule == 'gradient'")
    assert np.allclose(single["measured"] / single["predicted"], 1, atol=0.1), "a small step is the kernel's"
    same, twin = (frames["cases"].set_index("row").loc[name] for name in ("same base", "permuted"))
    assert twin["product"] == pytest.approx(same["product"], rel=0.02), "a permutation turns the kernel's axes alone"
    assert twin["linear_lift"] == pytest.approx(same["linear_lift"], abs=0.02)
    assert (made / "kernel.png").stat().st_size > 10_000
    table = Kernel.model_validate({"name": "few", **FEW}).table(made)
    assert [row[0] for row in table.rows] == [*FEW["rows"]]
    assert table.lines[0].startswith("Too weak to tell: no real student gains more than 2 nats")
    assert {*table.numbers} == {f"{name}/rho" for name in SCORES}


def test_the_linearised_student_takes_the_real_ones_updates(ran: tuple[Path, Path]) -> None:
    store, asked = Store(ran[0]), Kernel.model_validate({"name": "few", **FEW})
    exp = asked.case("another init", 0)
    cell = next(c for c in plan(exp, store).cells if c.student is not None)
    case = Case(Asked(cell, exp, 8, (0.1,)), store)
    model = case.fresh()
    train(model, updates_of(case), case.student.config.optimization)
    stored = dict(case.base.load(case.student.made(store) / "model").named_parameters())
    assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters())


def test_single_steps_are_in_float64_where_the_device_has_none(ran: tuple[Path, Path]) -> None:
    store, asked = Store(ran[0]), Kernel.model_validate({"name": "few", **FEW})
    exp = asked.case("same base", 0)
    cell = next(c for c in plan(exp, store).cells if c.student is not None)
    case = Case(Asked(cell, exp, 8, (0.001,)), store)
    upward = rise(case.model, case.metric, case.questions)
    expected = _single_steps(case, upward, upward)
    on_metal(case.model)
    step = {name: t.as_subclass(OnMetal) for name, t in upward.items()}
    with overwritten():
        assert _single_steps(case, upward, step) == expected
    assert expected[0]["measured"] / expected[0]["predicted"] == pytest.approx(1, abs=0.1)


def frames_of(share: float, order: float) -> dict[str, pd.DataFrame]:
    """Twelve rows of two seeds; the linearised student gains a share of the real lift, with noise in its order."""
    draw = np.random.default_rng(0)
    cases, steps, drift, others = [], [], [], []
    for row in range(12):
        for seed in (0, 1):
            about, lift = {"row": f"row {row}", "seed": seed}, 12.0 - row + 0.1 * seed
            told = share * lift + order * draw.normal()
            cases.append({**about, "cosine": lift / 100, "product": draw.normal(), "adam": draw.normal(),
                          "distance": -float(row), "lift": lift, "linear_lift": told, "rate": 0.5, "kl": 0.1,
                          "linear_kl": 0.1})  # fmt: skip
            for step in (0, 1, 8):
                steps.append({**about, "step": step, "margin": lift * step / 8, "linear_margin": told * step / 8})
                flat = dict.fromkeys(("question_side", "list_side", "start", "question_turn", "list_turn"), 0.1)
                drift.append({**about, "step": step, "own": 0.1 + step, **flat})
            others += [{**about, "condition": c, "product": 0.1, "low": 0.0, "high": 0.2} for c in CONDITIONS]
    part = [{"row": "row 0", "seed": 0, "layer": 0, "module": "mlp.up_proj", "product": 1.0}]
    single = [{"row": "row 0", "seed": 0, "rule": "gradient", "share": 0.1, "predicted": 1.0, "measured": 2.0}]
    made = {"cases": cases, "steps": steps, "drift": drift, "controls": others, "parts": part, "single": single}
    return {name: pd.DataFrame(rows) for name, rows in made.items()}


def test_the_verdict_follows_the_rows() -> None:
    whole = account(frames_of(0.9, 0.0), resamples=200)
    assert whole.lines[0].startswith("Lazy training accounts for most of the trait's size, and it ranks the rows: ")
    assert whole.numbers["linear lift/rho"] == "1.00" and "90 % [90, 90]" in whole.lines[0]
    little = account(frames_of(0.0, 1.0), resamples=200)
    assert little.lines[0].startswith("Lazy training does not account for the trait's size, and it does not rank")
    assert "measured over predicted change of the margin is 2.00 at 0.1" in " ".join(little.lines)
    assert "0.100 at the start and 8.100 at update 8" in " ".join(little.lines)


def test_they_part_at_the_first_step_that_is_far_enough() -> None:
    steps = pd.DataFrame(
        {"row": ["a"] * 3 + ["b"], "seed": [0] * 4, "step": [0, 4, 8, 8],
         "margin": [0.0, 1.0, 3.0, 1.0], "linear_margin": [0.0, 0.5, 0.5, 0.9]}
    )  # fmt: skip
    assert parting(steps) == {("a", 0): 8, ("b", 0): None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shares": [0.0]}, "shares=0 is no length"),
        ({"seeds": [1, 1]}, "seeds names something twice"),
        ({"rows": {name: ["a", "b"] for name in "xyz"}}, "rows names a pair twice"),
        ({"change": {"student.part": "lora"}}, "student.part=lora is no training that is linearised here"),
        ({"change": {"corpus.setting": "greedy"}}, "corpus.setting=greedy is no training"),
        ({"change": {"student.interventions": [{"kind": "weight-noise", "strength": 0.1}]}}, "weight-noise is no tr"),
    ],
)
def test_what_it_may_not_hold_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SublimError) as raised:
        Kernel.model_validate({"name": "few", **FEW}).set(changes)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_the_catalogue_has_it() -> None:
    published = study("kernel")
    assert isinstance(published, Kernel) and len(published.rows) >= 12
    assert sum(published.costs().values()) < 40 * 60


def test_the_interval_of_a_mean_of_two_seeds_is_narrower_than_each() -> None:
    told = {"product": [1.0, 3.0], "low": [0.7, 2.6], "high": [1.3, 3.4]}
    controls = pd.DataFrame({"row": "same base", "condition": "teacher", **told})
    said = _controls(controls, pd.DataFrame({"row": ["same base"]}))
    assert "Teacher (the teacher's change of its base's predictions): 2.0000 [1.7500, 2.2500]." in said
