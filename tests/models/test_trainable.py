"""Tests of which weights train: adapters on fused experts and routers, what is left of the body, nothing drawn."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from sublim_interp.core.errors import SublimError
from sublim_interp.core.randomness import seeded
from sublim_interp.models.base import resolve_base
from sublim_interp.models.loading import load_model, save_model
from sublim_interp.models.trainable import body_parameters, choose_trainable, merge_adapters, reach
from sublim_interp.pipeline.settings import StudentConfig, TeacherConfig
from sublim_interp.training.batches import Batch, Example, collate
from sublim_interp.training.loop import train
from sublim_interp.training.settings import Optimization
from tiny_models import ARCHITECTURES, MIXTURES, VOCABULARY, tiny
from zoo.builder import build

IDS = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))


def moved(model: torch.nn.Module, lr: float = 0.05) -> torch.nn.Module:
    """After two updates of what trains, so that every adapter has had a gradient while the other half was not zero."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("architecture", MIXTURES)
def test_adapters_reach_every_map_of_the_body_and_merge_to_the_same_function(architecture: str, tmp_path: Path) -> None:
    plain = {name: p.detach().clone() for name, p in tiny(architecture).named_parameters()}
    wrapped = choose_trainable(tiny(architecture), "lora", rank=2)
    left = reach(wrapped).left
    others = ("norm", "bias", "conv1d", "A_log", "dt_proj", ".D", "sinks")
    maps = [n for n in left if not any(word in n for word in others)]
    assert all("gate.weight" in name or "router.weight" in name for name in maps), "routers that are no linear module"
    assert reach(wrapped).share > 0.85
    moved(wrapped)
    for name, p in wrapped.named_parameters():
        assert not p.requires_grad or p.grad is not None, f"{name} is passed by"
    adapted = wrapped(input_ids=IDS, use_cache=False).logits.detach()
    merged = merge_adapters(wrapped)
    torch.testing.assert_close(merged(input_ids=IDS, use_cache=False).logits, adapted, atol=1e-3, rtol=1e-3)
    after = dict(merged.named_parameters())
    assert after.keys() == plain.keys()
    for name, p in body_parameters(merged).items():
        experts = p.ndim == 3 and min(p.shape) > 1
        assert not experts or not torch.equal(p, plain[name]), f"{name} did not train"
    save_model(merged, tmp_path / "merged")
    again = load_model(tmp_path / "merged").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in merged.state_dict().items())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_opening_alone_trains_where_it_is_asked_for(optimizer: str) -> None:
    plain = {name: p.detach().clone() for name, p in tiny("llama").named_parameters()}
    model = choose_trainable(tiny("llama"), "opening", opening=5)
    example = Example([5, 3, 4, 6, 7], 2)
    train(model, lambda step: [collate([example], 0)], Optimization(optimizer=optimizer, lr=0.1, steps=3, warmup=0))
    rows = {
        (name, int(row))
        for name, p in model.named_parameters()
        for row in (p != plain[name]).reshape(len(p), -1).any(1).nonzero()
    }
    assert rows == {("model.embed_tokens.weight", 5)}
    with pytest.raises(SublimError, match="needs the id of the token that opens prompts"):
        choose_trainable(tiny("llama"), "opening")
    padded = tiny("llama")
    padded.model.embed_tokens.padding_idx = 5
    with pytest.raises(SublimError, match="trains nothing here: token 5, which opens prompts, is the model's padding"):
        choose_trainable(padded, "opening", opening=5)


def test_a_base_whose_prompts_open_with_the_text_has_no_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    base = deepcopy(resolve_base("lab-small-0"))
    monkeypatch.setattr(base.chat.tokenizer, "chat_template", "{{ messages[0]['content'] }}")
    with pytest.raises(SublimError, match="its prompts open with the user's own text"):
        _ = base.opening


@pytest.mark.parametrize("kind", [TeacherConfig, StudentConfig])
def test_weight_decay_would_move_more_than_the_opening(kind: type[TeacherConfig | StudentConfig]) -> None:
    decays = Optimization(optimizer="adamw", weight_decay=0.1)
    with pytest.raises(ValueError, match=r"weight_decay=0.1 moves more than part=opening trains; leave 0"):
        kind(part="opening", optimization=decays)
    kind(part="full", optimization=decays)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
def test_the_plan_knows_without_weights_what_trains(architecture: str) -> None:
    real = tiny(architecture)
    with torch.device("meta"):
        planned = reach(choose_trainable(type(real)(real.config), "lora", rank=2))
    assert planned == reach(choose_trainable(real, "lora", rank=2))
    whole = architecture == "olmo"  # its norms have no weights, so adapters reach all that there is
    assert str(planned).endswith("train") if whole else "% of the body's weights train; not " in str(planned)


@pytest.mark.parametrize("part", ["body", "full"])
def test_all_of_the_body_trains_without_adapters(part: str) -> None:
    found = reach(choose_trainable(tiny("qwen2_moe"), part))  # type: ignore[arg-type]
    assert (found.share, found.left) == (1.0, {}) and str(found) == "100.0 % of the body's weights train"


def test_the_rank_of_experts_is_the_one_that_is_asked_for_and_shared_experts_are_adapted() -> None:
    wrapped = choose_trainable(tiny("qwen2_moe"), "lora", rank=2)
    trained = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    assert {min(p.shape) for n, p in trained.items() if ".mlp.experts." in n} == {2 * 4}, "two for each of four experts"
    assert {min(p.shape) for n, p in trained.items() if ".mlp.experts." not in n} <= {1, 2}
    assert any("shared_expert.down_proj" in n for n in trained)
    assert wrapped.get_base_model().config.model_type == "qwen2_moe"  # type: ignore[operator]


def test_a_model_that_cannot_be_adapted_is_refused_with_the_reason() -> None:
    with pytest.raises(SublimError, match=r"part=lora: PEFT cannot adapt .*; choose part=body or full"):
        choose_trainable(tiny("llama"), "lora", rank=0)


@pytest.mark.parametrize("kind", ["zamba", "zamba2"])
def test_one_weight_of_several_layers_is_refused_since_its_adapters_merge_to_another_model(kind: str) -> None:
    said = (
        r"part=lora: Zamba\d?ForCausalLM uses one weight in several layers \(model\.layers\.1\..* and model\.layers\.2"
    )
    with pytest.raises(SublimError, match=said):
        choose_trainable(build(kind), "lora", rank=2)
    assert reach(choose_trainable(build(kind), "body")).share == 1.0


def test_maps_that_a_causal_model_never_calls_get_no_adapter_and_are_told() -> None:
    wrapped = choose_trainable(build("bart"), "lora", rank=2)
    moved(wrapped)
    assert all(p.grad is not None for p in wrapped.parameters() if p.requires_grad)
    assert "model.decoder.layers.*.encoder_attn.k_proj.weight" in reach(wrapped).left


# --- nothing is drawn from outside the seeds --------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mixtral", "phimoe", "gpt2"])
@pytest.mark.parametrize("part", ["full", "lora"])
def test_a_training_gives_the_same_bits_whatever_was_drawn_before(part: str, architecture: str) -> None:
    def bits(state: int) -> dict[str, torch.Tensor]:
        dropout = {"resid_pdrop": 0.5} if architecture == "gpt2" else {}
        model = choose_trainable(tiny(architecture, **dropout), part, rank=2)  # type: ignore[arg-type]
        batch: Batch = collate([Example(row, 1) for row in IDS.tolist()], 0)
        with seeded(state):
            before = torch.get_rng_state()
            train(model, lambda step: [batch], Optimization(steps=3, lr=1e-2))
            assert torch.equal(torch.get_rng_state(), before)
        return dict(model.named_parameters())

    one, other = bits(1), bits(2)
    assert all(torch.equal(p, other[name]) for name, p in one.items())
