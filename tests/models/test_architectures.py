"""The table of architectures is true of every model type in it; one more row is all that one more needs."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sublim_interp.analysis.directions.core import directions
from sublim_interp.analysis.directions.effects import logit_lens
from sublim_interp.analysis.patching.cells import sites_of
from sublim_interp.analysis.patching.grid import patch
from sublim_interp.analysis.probes import answer_margin
from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import (
    ARCHITECTURES,
    Architecture,
    architecture_of,
    decoder_layers,
    final_norm,
    has_middle,
    output_map,
)
from sublim_interp.models.hooks import capture, hook_names, kind_of, names_of
from sublim_interp.models.points import STREAM
from tiny_models import ARCHITECTURES as SHAPES
from tiny_models import tiny
from zoo import builder

IDS = torch.tensor([[5, 9, 4, 17, 8], [6, 2, 30, 11, 3]])
PROMPTS = IDS.tolist()


ELSEWHERE = {**dict.fromkeys(("qwen2_moe", "qwen3_moe"), ("pre", "pre_linear", "post")), "falcon": ("ln2",)}
"""What only other configurations of a type have than the tiny one: layers without experts, a residual in sequence."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_row_is_true_of_its_model(name: str) -> None:
    model, row = tiny(name) if name in SHAPES else builder.build(name), ARCHITECTURES[name]
    assert architecture_of(model) is row
    layer = decoder_layers(model)[0]
    mid = row.mid if has_middle(model) else ""
    for part in filter(None, (row.attention, row.attn_out, mid, row.mlp, row.mlp_out)):
        assert layer.get_submodule(part) is not layer, part
    for part in ("ln1", "ln2", "ln1_post", "ln2_post", "q", "k", "v", "pre", "pre_linear", "post"):
        if part not in ELSEWHERE.get(name, ()):
            assert layer.get_submodule(getattr(row, part)) is not None, part
    modules = dict(layer.named_modules())
    assert output_map(model, 0) is modules[row.output_map]
    assert final_norm(model) is model.base_model.get_submodule(row.final_norm)
    if row.plain_head:
        with torch.no_grad():
            hidden = model.base_model(input_ids=IDS).last_hidden_state
            assert torch.equal(model.get_output_embeddings()(hidden), model(input_ids=IDS).logits)  # type: ignore[operator, reportOptionalCall]


def test_every_row_is_tested() -> None:
    assert set(SHAPES) < set(ARCHITECTURES) <= {*builder.types()}


def test_a_head_that_is_not_plain_is_not_called_plain() -> None:
    capped = tiny("gemma2")
    with torch.no_grad():
        hidden = capped.base_model(input_ids=IDS).last_hidden_state
        plain = capped.get_output_embeddings()(hidden)  # type: ignore[operator, reportOptionalCall]
        assert (plain - capped(input_ids=IDS).logits).abs().max() > 0.1
    assert not ARCHITECTURES["gemma2"].plain_head


def test_a_parallel_residual_is_read_from_the_configuration_or_goes_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_middle(tiny("gpt_neox")) and has_middle(tiny("gpt_neox", use_parallel_residual=False))
    row = ARCHITECTURES["llama"]
    always = Architecture(**{**vars(row), "parallel_residual": True})
    monkeypatch.setitem(ARCHITECTURES._loaded, "llama", always)
    assert not has_middle(tiny("llama"))
    with pytest.raises(SublimError, match="LlamaForCausalLM has no 'resid_mid'; valid: resid_pre, attn_out, mlp_out"):
        names_of(tiny("llama"), "resid_mid")


# --- a type without a row, and with one more --------------------------------------------------------------------------


def without_a_row() -> PreTrainedModel:
    """A type that the table does not know, built as Llama is."""
    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "vocab_size": 53, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "initializer_range": 0.5, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = AutoConfig.for_model("cwm", **shape)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def test_a_type_without_a_row_has_its_stream_and_what_is_found_by_name() -> None:
    model = without_a_row()
    assert architecture_of(model) is None and not has_middle(model)
    assert {kind_of(name) for name in hook_names(model, STREAM)} == {"resid_pre", "resid_post"}
    assert {"blocks.1.attn.hook_z", "ln_final.hook_scale"} <= set(hook_names(model))
    assert output_map(model, 1) is decoder_layers(model)[1].get_submodule("self_attn.o_proj")
    assert final_norm(model) is model.base_model.norm
    with pytest.raises(SublimError, match=r"CwmForCausalLM has no 'mlp_out'; valid: resid_pre, resid_post$"):
        names_of(model, "mlp_out")
    with pytest.raises(SublimError, match="CwmForCausalLM has no 'mlp_out'; valid: resid_pre, resid_post, heads, z, "):
        sites_of(model, "mlp_out")
    decoder_layers(model)[1].self_attn = torch.nn.Identity()
    with pytest.raises(SublimError, match=r"no attention output map found; known: self_attn\.o_proj, attn\.c_proj"):
        output_map(model, 1)


def test_a_row_is_all_that_a_new_architecture_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES._own, "cwm", ARCHITECTURES["llama"])
    model = without_a_row()
    row = architecture_of(model)
    assert row and row.mlp == "mlp" and "cwm" in [*ARCHITECTURES]
    with torch.no_grad(), capture(model, hook_names(model)) as acts:
        model(input_ids=IDS)
    at = "blocks.1.hook_"
    torch.testing.assert_close(acts[at + "resid_pre"] + acts[at + "attn_out"], acts[at + "resid_mid"])
    torch.testing.assert_close(acts[at + "resid_mid"] + acts[at + "mlp_out"], acts[at + "resid_post"])
    assert acts["blocks.1.attn.hook_pattern"].shape == (2, 2, 5, 5)
    other = without_a_row()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    both = patch(other, model, PROMPTS, answer_margin([3, 4, 5], 1))
    for kind in (*STREAM, "heads"):
        assert both.grid(kind).each.isfinite().all(), kind
    torch.testing.assert_close(both.grid("mlp_out").each, both.grid("mlp_out", positions_at_once=1).each)
    lens = logit_lens(model, directions(other, model, PROMPTS), PROMPTS, k=3)
    assert len(lens) == 2 * 3
