"""A precision is one row of a table: it enters every key of an experiment, and every stage runs in it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sublim_interp.analysis import attribution
from sublim_interp.analysis.directions.core import directions
from sublim_interp.analysis.directions.effects import ablate, logit_lens, steer, steering
from sublim_interp.analysis.patching.grid import patch
from sublim_interp.analysis.probes import answer_margin, measure
from sublim_interp.core.device import (
    PRECISIONS,
    Precision,
    changes,
    compute_device,
    device_of,
    fingerprint,
    torch_dtype,
)
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.run import run_config, run_key
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.loading import load_model
from sublim_interp.models.sampling import generator, sample
from sublim_interp.pipeline.make import make
from sublim_interp.training.batches import Example


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> str:
    """A second precision, by its row alone."""
    monkeypatch.setitem(PRECISIONS, "bfloat16", Precision(rounding=0.2))
    return "bfloat16"


def test_the_default_precision_is_in_no_key(tiny_experiment: Experiment, tiny_bases: tuple[Base, Base]) -> None:
    assert tiny_bases[0].key == tiny_bases[0].digest and tiny_bases[0].dtype == "float32"
    assert "dtype" not in tiny_experiment.model_dump() and "dtype" not in run_config(plan(tiny_experiment))
    assert run_key(plan(tiny_experiment)) == run_key(plan(tiny_experiment.set(dtype="float32")))


def test_another_precision_changes_the_key_of_every_record(tiny_experiment: Experiment, half: str) -> None:
    single, other = plan(tiny_experiment), plan(tiny_experiment.set(dtype=half))
    keys = [{record.key for record in p.records} for p in (single, other)]
    assert len(keys[0]) == len(keys[1]) == len(single.records) and not keys[0] & keys[1]
    assert run_key(single) != run_key(other)
    assert {record.dtype for record in other.records} == {half}
    assert Experiment.model_validate(other.experiment.model_dump(mode="json")) == other.experiment


def test_a_precision_that_the_table_lacks_is_one_line(tiny_experiment: Experiment) -> None:
    with pytest.raises(SublimError, match=r"dtype: no precision 'float8'; valid: float32 \(got 'float8'\)"):
        tiny_experiment.set(dtype="float8")
    with pytest.raises(ValueError, match="no precision 'half'"):
        torch_dtype("half")


def test_models_load_in_the_precision_of_their_base_and_are_asked_in_it(
    tiny_bases: tuple[Base, Base], half: str
) -> None:
    base = resolve_base(str(tiny_bases[0].path), half)
    base.check()
    assert base.key != base.digest == tiny_bases[0].digest
    model, single = base.load(), tiny_bases[0].load()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    prompts = [[5, 9, 4, 17, 8], [6, 2, 30, 11, 3]]
    metric = answer_margin([3, 4, 5], 1)
    near = measure(single, prompts, metric)
    torch.testing.assert_close(measure(model, prompts, metric), near, atol=0.3, rtol=0.1)
    assert not torch.equal(measure(model, prompts, metric), near)
    assert directions(model, model, prompts).vectors.dtype == torch.float32
    both = patch(resolve_base(str(tiny_bases[1].path), half), model, prompts, metric, across_bases=True)
    assert both.grid("resid_pre").each.isfinite().all() and both.attribution("heads").each.isfinite().all()
    found = directions(both.src, model, prompts, across_bases=True)
    with ablate(model, found), steer(model, found, at="blocks.0.hook_resid_post"):
        assert measure(model, prompts, metric).isfinite().all()
    with both.at("blocks.0.hook_resid_post", positions=[-1]).on(model):
        assert measure(model, prompts, metric).isfinite().all()
    assert len(steering(model, found, "blocks.0.hook_resid_post", [0, 1], {"margin": metric}, prompts)) == 2
    assert len(logit_lens(model, found, prompts, k=2)) == 2 * len(found)
    rows = [Example([*prompt, 1], 3) for prompt in prompts]
    along = attribution.margin_gradient(model, prompts, metric)
    divergence = attribution.divergence(both.src, model, rows, across_bases=True)
    for scores in (divergence, attribution.influence(model, rows, along)):
        assert np.isfinite(scores.values).all()
    answers = sample(model, prompts, eos=base.eos, max_new_tokens=5, random=generator("a"))
    assert answers == sample(model, prompts, eos=base.eos, max_new_tokens=5, random=generator("a"))


def test_every_stage_runs_in_another_precision_and_says_so(
    tiny_experiment: Experiment, half: str, store_root: Path
) -> None:
    store = Store(store_root)
    p = plan(tiny_experiment.set(dtype=half, arms=("same-init",)))
    for record in p.records:
        artifact = make(record, store)
        assert artifact.manifest["fingerprint"]["dtype"] == half
    said = changes(fingerprint(), fingerprint(dtype=half))
    assert said == "dtype float32 -> bfloat16"


def test_everything_is_computed_on_the_cpu_unless_a_device_is_asked_for() -> None:
    assert compute_device() == "cpu" and compute_device("cuda:1") == "cuda:1"
    assert fingerprint()["device"] == fingerprint("cpu")["device"] == "cpu"
    assert device_of(torch.nn.Identity()).type == "cpu"
    assert device_of(torch.nn.Linear(2, 2, device="meta")).type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_model_on_a_gpu_is_asked_as_on_the_cpu(tiny_bases: tuple[Base, Base]) -> None:
    base, other = tiny_bases
    prompts, metric = [[5, 9, 4, 17, 8], [6, 2, 30, 11, 3], [7, 7]], answer_margin([3, 4, 5], 1)
    here, there = [(load_model(base.path, device=d), load_model(other.path, device=d)) for d in ("cpu", "cuda")]
    for pair in (here, there):
        assert all(device_of(model) == device_of(pair[0]) for model in pair)
    grids = [patch(*pair, prompts, metric, across_bases=True).grid("resid_pre").each for pair in (here, there)]
    torch.testing.assert_close(*grids, atol=1e-3, rtol=1e-3, equal_nan=True)
    found = [directions(*pair, prompts, across_bases=True).vectors for pair in (here, there)]
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
    drawn = [sample(pair[0], prompts, eos=base.eos, max_new_tokens=6, random=generator("a")) for pair in (here, there)]
    assert drawn[0] == drawn[1]
    with pytest.raises(SublimError, match="the models are on cpu and cuda"):
        patch(here[0], there[0], prompts, metric)


def test_a_base_of_another_precision_is_another_base(tiny_bases: tuple[Base, Base], half: str) -> None:
    assert replace(tiny_bases[0], dtype=half).key == resolve_base(str(tiny_bases[0].path), half).key
