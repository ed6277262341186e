"""Hook points are recorded at the updates that are asked for, as plain forwards show them, and change no weight."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import capture, hook_names
from sublim_interp.training.recording.inside import Inside
from sublim_interp.training.recording.probe import Probe
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.settings import Recording
from sublim_interp.training.recording.trace import Trace
from sublim_interp.training.recording.volume import planned_volume
from tiny_models import tiny

PROBE = Probe(
    rows=((5, 9, 4), (6, 2, 30, 11), (7, 8, 9, 10, 11, 12), (20, 21, 22, 23)),
    questions=2, learnt=(3, 1), members=("owl", "wolf", "fox"), tokens=(40, 41, 42), trait=0,
)  # fmt: skip
IDS = torch.tensor([[5, 9, 4, 17, 8, 12]])
STEPS = 5


def record(path: Path, hooks: dict[str, Any], architecture: str = "llama", **options: Any) -> PreTrainedModel:
    """A short recorded training; the model at its end."""
    model = tiny(architecture)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    given = {"steps": STEPS, "probe": PROBE, **options}
    with Recorder(model, optimizer, path, recording=Recording(hooks=hooks), **given) as recorder:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = model(input_ids=IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_every_hook_point_of_a_model_is_recorded_as_a_plain_forward_shows_it(architecture: str, tmp_path: Path) -> None:
    model = record(tmp_path / "t", {"*": [STEPS]}, architecture)
    trace = Trace.open(tmp_path / "t")
    assert set(hook_names(model)) <= set(trace.names())
    with torch.no_grad():
        for place, row in enumerate(PROBE.rows):
            with capture(model, "*") as acts:
                model(input_ids=torch.tensor([row]), use_cache=False)
            for name, seen in acts.items():
                size, value = len(row), trace.read(name)[place]
                if name.endswith(("pattern", "attn_scores")):
                    assert not value[:, size:].any() and not value[:, :, size:].any()
                    value, seen = value[:, :size, :size].clamp(min=-1e9), seen.clamp(min=-1e9)
                else:
                    assert not value[size:].any()
                    value = value[:size]
                torch.testing.assert_close(value, seen[0], rtol=1e-4, atol=1e-4, msg=name)
    axes = trace.xarray("blocks.1.attn.hook_q").dims
    assert axes == ("step", "example", "position", "head", "d_head")
    assert trace.xarray("blocks.1.attn.hook_pattern").dims == ("step", "example", "head", "query", "key")


def test_each_entry_has_its_own_updates(tmp_path: Path) -> None:
    record(
        tmp_path / "t",
        {"blocks.0.attn.*": "every", "blocks.*.mlp.hook_post": "log", "hook_embed": 2, "blocks.1.ln?.*": [0, 3]},
    )
    trace = Trace.open(tmp_path / "t")
    assert not trace.verify()
    assert trace.steps("blocks.0.attn.hook_result") == [0, 1, 2, 3, 4, 5]
    assert trace.steps("blocks.1.mlp.hook_post") == [0, 1, 2, 4, 5]
    assert trace.steps("hook_embed") == [0, 2, 4]
    assert trace.steps("blocks.1.ln2.hook_scale") == [0, 3]
    assert trace.steps("blocks.1.hook_resid_post") == [0, 1, 2, 4, 5], "the close looks stay as they are"


def test_looks_in_many_shards_are_those_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: dict[str, Any] = {"blocks.0.*": "every", "blocks.1.attn.hook_pattern": [1, 2, 5], "hook_embed": 2}
    record(tmp_path / "one", hooks)
    monkeypatch.setattr(Inside, "BYTES", 100_000)
    record(tmp_path / "many", hooks)
    one, many = Trace.open(tmp_path / "one"), Trace.open(tmp_path / "many")
    count = [sum(entry["sort"].startswith("hooks") for entry in trace.shards) for trace in (one, many)]
    assert count[0] == 3 < count[1] and not many.verify()
    for name in one.names():
        assert one.steps(name) == many.steps(name)
        assert all(torch.equal(one.read(name, step), many.read(name, step)) for step in one.steps(name)), name


def test_a_training_of_unknown_length_has_its_end_and_one_that_breaks_off_has_all_that_was_seen(tmp_path: Path) -> None:
    hooks: dict[str, Any] = {"blocks.0.hook_mlp_out": "log", "blocks.1.attn.hook_z": "every"}
    record(tmp_path / "t", hooks, steps=None)
    trace = Trace.open(tmp_path / "t")
    assert trace.steps("blocks.0.hook_mlp_out") == [0, 1, 2, 4, 5]
    assert trace.steps("blocks.1.attn.hook_z") == [0, 1, 2, 3, 4, 5]
    model = tiny("llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    given: dict[str, Any] = {"probe": PROBE, "recording": Recording(hooks=hooks)}
    with pytest.raises(KeyboardInterrupt), Recorder(model, optimizer, tmp_path / "b", **given) as recorder:
        recorder.step(1.0)
        raise KeyboardInterrupt
    assert Trace.open(tmp_path / "b").steps("blocks.1.attn.hook_z") == [0, 1]


def test_gradients_are_those_of_margin_and_loss(tmp_path: Path) -> None:
    model = record(tmp_path / "t", {"blocks.1.attn.hook_*.grad": [STEPS], "blocks.0.ln2.hook_normalized.grad": "log"})
    trace = Trace.open(tmp_path / "t")
    texts = PROBE.rows[2:]
    ids = torch.tensor([[*row, *[0] * (6 - len(row))] for row in texts])
    labels = torch.tensor([[-100] * 3 + list(texts[0][3:]), [-100, *texts[1][1:], -100, -100]])
    with capture(model, ["blocks.1.attn.*", "blocks.0.ln2.hook_normalized"], gradients=True) as acts:
        logits = model(input_ids=ids, use_cache=False).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    for name, slope in acts.gradients.items():
        found = trace.read(f"{name}.grad")[2:]
        if name.endswith(("pattern", "attn_scores")):  # nothing is kept beyond the end of the shorter text
            slope[1, :, 4:], slope[1, :, :, 4:] = 0, 0
        scale = slope.abs().max().item()
        torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-4 * scale, msg=name)
    assert "blocks.1.attn.hook_q" not in trace.names(), "only what is asked for is kept"


def test_recording_hook_points_changes_no_bit_of_a_training_nor_of_the_rest_of_its_trace(tmp_path: Path) -> None:
    plain = record(tmp_path / "plain", {})
    seen = record(tmp_path / "seen", {"*": "every", "blocks.*.grad": "log"})
    for (name, a), b in zip(plain.named_parameters(), seen.parameters(), strict=True):
        assert torch.equal(a, b), name
    files = {p.name: p.read_bytes() for p in (tmp_path / "plain").iterdir() if p.suffix == ".safetensors"}
    for name, content in files.items():
        assert (tmp_path / "seen" / name).read_bytes() == content, name
    assert "hooks" not in (tmp_path / "plain" / "trace.jsonl").read_text()
    assert plain.config._attn_implementation == seen.config._attn_implementation


def test_a_name_that_the_model_lacks_and_hooks_without_a_probe_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SublimError, match=r"no hook 'blocks\.7\.\*' on LlamaForCausalLM of 2 layers"):
        record(tmp_path / "t", {"blocks.7.*": "log"})
    with pytest.raises(SublimError, match=r"recording\.hooks are seen on a probe"):
        record(tmp_path / "t", {"hook_embed": "log"}, probe=None)
    assert not (tmp_path / "t").exists()
    for wrong in ("often", 0, [-1], 1.5):
        with pytest.raises(ValueError, match="hooks"):
            Recording(hooks={"hook_embed": wrong})  # type: ignore[dict-item]


def test_what_is_planned_is_what_is_written(tmp_path: Path) -> None:
    hooks = {"blocks.1.*": "every", "hook_embed": [0, 3], "blocks.0.attn.hook_v.grad": "log"}
    model = record(tmp_path / "t", hooks)
    lengths = [len(row) for row in PROBE.rows]
    given: dict[str, Any] = {"tokens": sum(lengths), "lengths": lengths}
    rows = planned_volume(model, STEPS, recording=Recording(hooks=hooks), **given).iloc[5:]
    assert list(rows["times"]) == [6, 2, 5]
    written = {}
    for shard in Trace.open(tmp_path / "t").shards:
        written[shard["sort"]] = written.get(shard["sort"], 0) + shard["bytes"]
    for number, planned in enumerate(rows["bytes"]):
        assert planned <= written[f"hooks{number}"] <= planned + 8000, "and a header"


def test_the_default_is_written_as_it_was_before_there_was_the_field() -> None:
    assert "hooks" not in Recording(shard=7).model_dump(mode="json")
    assert Recording().model_dump(mode="json") == "default"
    hooks: dict[str, Any] = {"hook_embed": [0, 1], "ln_final.*": "log", "blocks.0.*": 3}
    asked = Recording(hooks=hooks)
    assert Recording.model_validate(asked.model_dump(mode="json")) == asked
