"""Tests of the optimizers' table: it says what PyTorch's optimizers keep, and one that is added is known everywhere."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from sublim_interp.analysis.patching.moments import moments
from sublim_interp.core.errors import SublimError
from sublim_interp.lab.pretraining import new_model
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.training.batches import Batch, Example, collate
from sublim_interp.training.loop import train
from sublim_interp.training.optimizers import OPTIMIZERS, OptimizerKind, planned_moments, states_of
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.trace import Trace
from sublim_interp.training.settings import Optimization

SETTINGS: list[dict[str, Any]] = [
    {"optimizer": "adam"},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "beta1": 0.0},
]


def batches(step: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(step)
    return [collate([Example(torch.randint(3, 30, (6,), generator=draw).tolist(), 1) for _ in range(2)], 0)]


def tiny() -> PreTrainedModel:
    return new_model(Pretraining(d_model=16, layers=2, heads=2, d_mlp=24), 40)


@pytest.mark.parametrize("fields", SETTINGS)
def test_the_table_says_what_an_optimizer_keeps_of_each_parameter(fields: dict[str, Any]) -> None:
    o, p = Optimization(**fields), torch.nn.Parameter(torch.ones(2, 3))
    optimizer = OPTIMIZERS[o.optimizer].make([p], o)
    p.sum().backward()
    optimizer.step()
    kept = {name for name, value in optimizer.state[p].items() if isinstance(value, torch.Tensor)}
    assert {name for name in kept if optimizer.state[p][name].shape == p.shape} == set(planned_moments(o.optimizer, o))
    assert kept <= set(states_of(optimizer)) and ("step" in kept) == OPTIMIZERS[o.optimizer].counts
    assert type(optimizer) is OPTIMIZERS[o.optimizer].kind


def test_an_unknown_optimizer_is_refused_in_one_line_that_names_the_known() -> None:
    with pytest.raises(SublimError) as raised:
        Optimization().set(optimizer="lion")
    assert "optimizer: unknown optimizer; valid: adam, adamw, sgd (got 'lion')" in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(SublimError, match=r"weight_decay=0.1 needs optimizer=adamw \(it is sgd\)"):
        Optimization().set(optimizer="sgd", weight_decay=0.1)
    assert states_of(torch.optim.Adagrad([torch.nn.Parameter(torch.ones(1))])) == ()


def test_an_added_optimizer_trains_is_recorded_and_is_patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(parameters: Any, rates: Any) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(parameters, lr=rates.lr)

    monkeypatch.setitem(OPTIMIZERS._own, "rms", OptimizerKind(make, torch.optim.RMSprop, ("square_avg",), counts=True))
    o = Optimization(optimizer="rms", lr=1e-3, warmup=0, steps=2)
    assert planned_moments("rms", o) == ("square_avg",)
    model = tiny()
    train(model, batches, o, record=partial(Recorder, path=tmp_path, steps=2))
    trace = Trace.open(tmp_path)
    assert trace.series("square_avg_norm").to_numpy().all()
    patch = moments(trace)
    sites = {piece.site.partition("/")[0] for piece in patch}
    assert sites == {"square_avg", "step"}
    optimizer = OPTIMIZERS["rms"].make(list(model.parameters()), o)
    with patch.on(model, optimizer):
        assert all(float(optimizer.state[p]["step"]) == 2 for p in model.parameters())
