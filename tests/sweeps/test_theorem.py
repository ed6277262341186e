"""Study theorem: the sign that the theorem asks for, weights left as they were, controls near 0, table, bad input."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from on_metal import on_metal, overwritten
from sublim_interp.analysis.one_step import cosine, descent, first_adam_step, inner, length, moved, weight_length
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.models.base import Base
from sublim_interp.sweeps.studies.theorem import CONDITIONS, Theorem
from sublim_interp.sweeps.studies.theorem_steps import Asked, Replicate
from sublim_interp.sweeps.study import find_study, run_study, study


@pytest.fixture(scope="module")
def small() -> Theorem:
    return Theorem(
        name="small", study="theorem", bases=("lab-small-0", "lab-small-1"), seeds=(0, 1), lists=12, steps=(1e-3, 0.1)
    )


@pytest.fixture(scope="module")
def ran(small: Theorem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("theorem"))
    path = run_study(small, store, processes=1).path
    found = find_study(small, store)
    assert found and found.path == path
    return path


def test_no_student_moves_against_its_teacher_and_no_control_moves_with_it(small: Theorem, ran: Path) -> None:
    rows = pd.read_csv(ran / "replicates.csv")
    by: dict[str, list[float]] = defaultdict(list)
    for row in rows.to_dict("records"):
        assert np.sign(row["inner"]) == np.sign(row["cosine"])
        if row["step"] == small.steps[0]:
            by[row["condition"]].append(row["cosine"])
    assert list(by) == list(CONDITIONS) and len(rows) == 2 * 2 * len(CONDITIONS)
    assert min(by["theorem"] + by["other inputs"]) > 0, "the theorem, whose inner product is a squared norm"
    own = np.mean(by["theorem"])
    for control in ("another start", "shuffled labels"):
        assert abs(np.mean(by[control])) < own / 2, control


def test_the_table_says_what_few_replicates_allow(small: Theorem, ran: Path) -> None:
    table = small.table(ran)
    assert [row[0] for row in table.rows] == list(CONDITIONS)
    assert table.lines[0].startswith("Too weak to tell: 2 of 2 inner products are above 0")
    assert (ran / "theorem.png").stat().st_size > 10_000


def test_models_are_in_float64_where_the_device_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Base.load
    monkeypatch.setattr(Base, "load", lambda self, weights=None: on_metal(load(self, weights)))
    with overwritten():
        r = Replicate(Asked("lab-small-0", "lab-small-1", "owl", 0, 2, (0.1,)))
    for model in (r.model, r.other, r._wrapped):
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float64}


def test_the_published_study_states_what_is_predicted() -> None:
    published = study("theorem")
    assert published.replicates == 12 and set(published.costs()) == {f"seed {seed}" for seed in range(200, 212)}


def test_steps_are_plain_calculus(lab_base: Base) -> None:
    """The squared norm by an independent route: a linear model, where Jacobian and Hessian are known."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3, bias=False).double()
    x, other = torch.randn(7, 5).double(), torch.randn(4, 5).double()
    rise = descent(model, lambda m: F.cross_entropy(m(other), torch.tensor([0, 1, 2, 0])))
    before = model.weight.detach().clone()
    with moved(model, rise, 1e-4):
        target = model(x).log_softmax(-1).detach()
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)
    step = descent(model, lambda m: F.kl_div(m(x).log_softmax(-1), target, reduction="batchmean", log_target=True))
    p = model(x).softmax(-1).detach()
    change = x @ rise["weight"].T * 1e-4
    by_hand = ((change**2 * p).sum(-1) - (change * p).sum(-1) ** 2).mean() / 1e-4
    assert inner(step, rise) == pytest.approx(float(by_hand), rel=1e-3), "Δ·(diag p − ppᵀ)·Δ, the Fisher norm"
    assert cosine(step, step) == pytest.approx(1) and cosine(step, {"weight": torch.zeros(3, 5)}) == 0
    assert set(first_adam_step(step)["weight"].unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert weight_length(model) == pytest.approx(float(before.norm())) and length(step) > 0
    for p_ in model.parameters():
        p_.requires_grad_(False)
    with pytest.raises(SublimError, match="no weight of this model requires a gradient"):
        descent(model, lambda m: m(x).sum())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": [0.0]}, "steps=0 is no length"),
        ({"seeds": [1, 1]}, "seeds names something twice"),
        ({"bases": ["lab-small-0"]}, "at least 2 items"),
    ],
)
def test_what_it_may_not_hold_is_one_line(small: Theorem, changes: dict[str, object], said: str) -> None:
    with pytest.raises(SublimError) as raised:
        small.set(changes)
    assert said in str(raised.value) and "\n" not in str(raised.value)
