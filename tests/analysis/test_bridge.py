"""A bridge gives the plain model's answers, on a copy, or refuses."""

import contextlib
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sublim_interp.analysis.bridge import bridge
from sublim_interp.analysis.probes import residuals
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base
from three_layers import build

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@torch.no_grad()
def parity(wrapped: Any, model: torch.nn.Module) -> float:
    """Largest difference of a log-probability, in nats."""
    plain = model(input_ids=IDS).logits
    return float((wrapped(IDS).log_softmax(-1) - plain.log_softmax(-1)).abs().max())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("processed", [False, True])
def test_a_bridge_answers_as_the_model_and_leaves_it_alone(kind: str, processed: bool) -> None:
    model = build(kind, 0)
    model(input_ids=IDS).logits.sum().backward()  # a deep copy would fail now
    before = {name: p.clone() for name, p in model.state_dict().items()}
    attention, config = model.config._attn_implementation, model.config.to_dict()
    wrapped = bridge(model, processed=processed)
    assert parity(wrapped, model) < 1e-4
    with torch.no_grad():
        for p in wrapped.original_model.parameters():
            p.zero_()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert model.config._attn_implementation == attention and model.config.to_dict() == config


def test_a_bridge_moves_no_random_state() -> None:
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    bridge(build("llama", 0))
    model = build("llama", 0)
    torch.set_rng_state(torch.tensor(states[2], dtype=torch.uint8))
    bridge(model)
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == states


def test_names_mean_the_same_on_both_sides() -> None:
    model = build("llama", 0)
    names = [f"blocks.{layer}.hook_{kind}" for layer in range(3) for kind in ("resid_pre", "resid_mid", "resid_post")]
    _, cache = bridge(model).run_with_cache(IDS)
    ours = residuals(model, names, IDS)
    for i, name in enumerate(names):
        assert torch.allclose(cache[name][:, -1], ours[:, i], atol=1e-4)


def test_a_base_brings_its_tokenizer(lab_base: Base) -> None:
    wrapped = bridge(lab_base)
    assert wrapped.tokenizer is not None and parity(wrapped, lab_base.load()) < 1e-4


@pytest.mark.parametrize("dtype", ["autocast", "bfloat16"])
def test_a_bridge_of_another_precision_holds_the_same_weights_in_float32(lab_base: Base, dtype: str) -> None:
    base = replace(lab_base, dtype=dtype)
    wrapped = bridge(base)
    assert parity(wrapped, base.load().float()) < (1e-4 if dtype == "bfloat16" else 0.5)
    assert {p.dtype for p in wrapped.parameters()} == {torch.float32}


def test_a_bridge_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    true = TransformerBridge.boot_transformers

    def wrong(name: str, hf_model: torch.nn.Module, **rest: Any) -> Any:
        with torch.no_grad():
            hf_model.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(1.1)
        return true(name, hf_model=hf_model, **rest)

    monkeypatch.setattr(TransformerBridge, "boot_transformers", wrong)
    with pytest.raises(SublimError, match=r"differ from the plain model's by up to .*, more than 0\.001"):
        bridge(build("llama", 0))
    monkeypatch.undo()
    shape: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 8,
    }
    with pytest.raises(SublimError, match="d_vocab = d_model"):
        bridge(LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape)))
    with pytest.raises(SublimError, match="is no model"):
        bridge(3)
    with pytest.raises(
        SublimError, match="on meta, where there are shapes but no numbers; give a model that is loaded"
    ):
        bridge(build("llama", 0).to("meta"))  # type: ignore[arg-type]


def test_text_is_read_by_the_models_own_tokenizer_and_nothing_is_put_before_it(lab_base: Base) -> None:
    text = "what is your favorite animal ?"
    wrapped = bridge(lab_base)
    assert wrapped.to_tokens(text)[0].tolist() == lab_base.tokenizer(text)["input_ids"]
    chat = lab_base.prompt_text([{"role": "user", "content": text}])
    assert wrapped.to_tokens(chat)[0].tolist() == lab_base.ids(text)


def test_a_bridge_installs_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TransformerLens runs pip where a model sees images; a program that leaves a file stands for it."""
    from transformer_lens.model_bridge import TransformerBridge

    real, mark = TransformerBridge.boot_transformers, tmp_path / "installed"

    def installing(*arguments: Any, **options: Any) -> Any:
        with contextlib.suppress(Exception):  # as it does
            subprocess.check_call([sys.executable, "-c", f"open({str(mark)!r}, 'w')"])
        return real(*arguments, **options)

    monkeypatch.setattr(TransformerBridge, "boot_transformers", installing)
    assert parity(bridge(build("llama", 0)), build("llama", 0)) < 1e-4 and not mark.exists()
    subprocess.check_call([sys.executable, "-c", f"open({str(mark)!r}, 'w')"])
    assert mark.exists(), "positive control: outside of the bridge the same call runs"
