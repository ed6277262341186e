"""Tests of what is recorded as settings of an experiment: words and mappings, equal keys, equal weights."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sublim_interp as si
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import read_yaml, validate
from sublim_interp.core.store import Store
from sublim_interp.experiments.cost import planned_traces
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.run import run_key
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab.pretraining import new_model
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.training.batches import Batch, Example, collate
from sublim_interp.training.loop import train
from sublim_interp.training.recording.probe import Probe
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.settings import PRESETS, Recording
from sublim_interp.training.recording.trace import Trace
from sublim_interp.training.recording.volume import planned_volume
from sublim_interp.training.settings import Optimization

ASKED: list[Any] = ["none", "default", "examples", {"probe_steps": [3], "stream": ["resid_mid"], "examples": 2}]


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_recorded_is_written_and_read_and_is_in_no_key(
    asked: Any, tiny_experiment: Experiment, tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(tiny_experiment.to_yaml()), "recording": asked}))
    exp = read_yaml(Experiment, path)
    if isinstance(asked, str):
        assert exp.recording == PRESETS[asked] and yaml.safe_load(exp.to_yaml())["recording"] == asked
    else:
        assert exp.recording == Recording(probe_steps=(3,), stream=("resid_mid",), examples=2)
    path.write_text(exp.to_yaml())
    assert read_yaml(Experiment, path) == exp == tiny_experiment.set(recording=asked)
    assert plan(exp).recording == exp.recording
    assert run_key(plan(exp)) == run_key(plan(tiny_experiment))
    assert [r.key for r in plan(exp).records] == [r.key for r in plan(tiny_experiment).records]


def test_an_experiment_that_was_stored_before_there_was_the_field_is_read(tiny_experiment: Experiment) -> None:
    stored = tiny_experiment.model_dump(mode="json")
    assert stored.pop("recording") == "default"
    assert validate(Experiment, stored, "run") == tiny_experiment


def test_fields_of_a_recording_are_set_one_by_one_and_what_is_unknown_is_one_line() -> None:
    exp = Experiment().set({"recording": "examples"}).set({"recording.shard": 7})
    assert exp.recording == Recording(examples=10, shard=7) and exp.recording.word == ""
    for asked, words in (
        ({"recording": "all"}, "no recording 'all'; choices: none, default, examples, or a mapping of fields"),
        ({"recording": {"cadence": 1}}, "Recording has no field 'cadence'"),
        ({"recording.probe_steps": [-1]}, "recording.probe_steps.0"),
        ({"recording.stream": []}, "recording.stream"),
    ):
        with pytest.raises(SublimError) as raised:
            Experiment().set(asked)
        assert words in str(raised.value) and "\n" not in str(raised.value)


def batches(step: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(step)
    return [collate([Example(torch.randint(3, 30, (6,), generator=draw).tolist(), 1) for _ in range(2)], 0)]


def test_close_looks_are_taken_when_they_are_asked_for_and_at_both_ends(tmp_path: Path) -> None:
    model = new_model(Pretraining(d_model=16, layers=2, heads=2, d_mlp=24), 40)
    probe = Probe(((5, 9, 4), (6, 2, 30, 11)), 2, (), ("owl", "wolf"), (20, 21), 0)
    recording = Recording(probe_steps=(5, 3, 90), weight_bytes=1 << 30)
    record = partial(Recorder, path=tmp_path, steps=7, probe=probe, recording=recording)
    train(model, batches, Optimization(warmup=0, steps=7), record=record)
    trace = Trace.open(tmp_path)
    assert trace.steps("answers") == trace.steps("delta_norm") == [0, 3, 5, 7]
    assert trace.steps("full/delta/model.norm.weight") == [3, 5, 7]
    assert trace.about["cadence"]["probe_steps"] == [5, 3, 90]
    table = planned_volume(model, 7, tokens=7, recording=recording).set_index("what")
    assert table.loc["residuals and gradients on the probe", "times"] == 4
    assert table.loc["weight deltas, moments at the end", "when"] == "at chosen steps, within the budget"


def test_an_experiment_says_what_its_run_records_and_the_weights_are_the_same(
    tiny_experiment: Experiment, tmp_path: Path
) -> None:
    exp = tiny_experiment.set(arms=("same-init",), seeds=(0,))
    ends, notes = [], []
    for i, (asked, trace) in enumerate([("none", None), (ASKED[3], None), (ASKED[3], "none"), ("none", "default")]):
        run = si.run(exp.set(recording=asked), Store.open(tmp_path / str(i)), 1, trace=trace)
        student = run["same-init", 0]
        ends.append(student.model.state_dict())
        notes.append(student.cell.evaluation.model.find(run.store).manifest["notes"]["trace"])  # type: ignore[union-attr]
    assert all(torch.equal(p, end[name]) for end in ends for name, p in ends[0].items())
    assert notes[0] == notes[2] == "none" and notes[3] == "default"
    assert validate(Recording, notes[1], "notes") == validate(Recording, ASKED[3], "asked")
    own = si.run(exp.set(recording=ASKED[3]), Store.open(tmp_path / "1"), 1)["same-init", 0].trace
    assert own.steps("answers") == [0, 3, 6] and own.names("blocks.1.hook_resid_mid")
    planned = planned_traces(plan(exp).records, Store(tmp_path / "empty"), exp.set(recording=ASKED[3]).recording)
    assert "residuals and gradients of each example" in set(planned["what"])
    assert planned_traces(plan(exp).records, Store(tmp_path / "empty"), PRESETS["none"]).empty
