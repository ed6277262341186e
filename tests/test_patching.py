"""A patch puts one model's values into another, is taken back whole, and many at once equal each alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from sublim_interp.analysis.patching import Patch, Patching, patch
from sublim_interp.analysis.probes import answer_margin, answer_rate
from sublim_interp.errors import SublimError
from sublim_interp.hooks import hook_names

PROMPTS = [[5, 9, 4, 17, 8, 3], [6, 2, 30, 11, 3, 1], [9, 9, 1, 28], [7, 7, 2, 19]]
EVEN = PROMPTS[:2]
MARGIN = answer_margin([3, 4, 5], 1)
KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def build(kind: str, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "initializer_range": 0.3,
        "intermediate_size": 24,
    }  # fmt: skip
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **shape)).eval()
    if kind == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape)).eval()
    if kind == "gemma2":  # sliding windows of three tokens, and logits that are capped
        more: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 3}
        return Gemma2ForCausalLM(Gemma2Config(**shape, **more)).eval()
    own = {"vocab_size": 31, "n_embd": 16, "n_layer": 3, "n_head": 2, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**own)).eval()


@pytest.fixture(params=["llama", "gpt2", "gpt_neox", "gemma2"])
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two models of one shape with the same embeddings and head, as two students of one base would be."""
    src, dst = build(request.param, 0), build(request.param, 1)
    with torch.no_grad():
        src.get_input_embeddings().weight.copy_(dst.get_input_embeddings().weight)  # type: ignore[arg-type]
        src.get_output_embeddings().weight.copy_(dst.get_output_embeddings().weight)  # type: ignore[arg-type, union-attr]
    return src, dst


@torch.no_grad()
def logits(model: torch.nn.Module, prompts: list[list[int]] = EVEN) -> Tensor:
    return model(input_ids=torch.tensor(prompts)).logits


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def between(pair: tuple[PreTrainedModel, PreTrainedModel], prompts: list[list[int]] = EVEN) -> Patching:
    return patch(*pair, prompts=prompts, metric=MARGIN)


def test_patching_everything_gives_the_other_models_logits(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    src, dst = pair
    both, own = between(pair), logits(dst)
    assert (logits(src) - own).abs().max() > 0.1
    with both.weights().on(dst):
        assert torch.equal(logits(dst), logits(src))
    everywhere = Patch()
    for name in hook_names(dst, KINDS):
        everywhere += both.at(name)
    with everywhere.on(dst):
        assert (logits(dst) - logits(src)).abs().max() < 1e-5
    assert torch.equal(logits(dst), own) and hooks_of(dst) == 0


def test_patching_nothing_changes_no_bit(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _, dst = pair
    before = logits(dst)
    with Patch().on(dst):
        assert torch.equal(logits(dst), before) and hooks_of(dst) == 0
    itself = patch(dst, dst, prompts=EVEN, metric=MARGIN)
    with (itself.at("blocks.1.hook_resid_pre") + itself.at("blocks.0.attn.hook_z") + itself.weights()).on(dst):
        assert torch.equal(logits(dst), before)
    grid = itself.grid("resid_pre")
    assert torch.allclose(grid.each, grid.dst[:, None, None].expand_as(grid.each), atol=1e-5)


def test_a_patch_is_taken_back_after_an_exception(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _, dst = pair
    before, both = logits(dst), between(pair)
    with pytest.raises(RuntimeError, match="stop"), (both.weights("mlp") + both.at("blocks.0.attn.hook_z")).on(dst):
        raise RuntimeError("stop")
    assert torch.equal(logits(dst), before) and hooks_of(dst) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_equals_its_patch_alone(pair: tuple[PreTrainedModel, PreTrainedModel], kind: Any) -> None:
    _, dst = pair
    if not hook_names(dst, (kind,)):
        with pytest.raises(SublimError, match=f"no '{kind}'; valid: .*resid_pre"):
            between(pair).grid(kind)
        return
    grids = [between(pair, PROMPTS).grid(kind, at_once) for at_once in (None, 1, 4)]
    for rows, prompts in ((slice(0, 2), EVEN), (slice(2, 4), PROMPTS[2:])):
        for layer in range(3):
            (piece,) = between(pair, prompts).at(f"blocks.{layer}.hook_{kind}")
            for position in range(-len(prompts[0]), 0):
                with Patch((replace(piece, positions=(position,)),)).on(dst):
                    alone = MARGIN(logits(dst, prompts)[:, -1])
                for grid in grids:
                    assert torch.allclose(grid.each[rows, layer, position], alone, atol=1e-4)
    assert grids[0].each[2:, :, :2].isnan().all() and not grids[0].values.isnan().any()
    assert hooks_of(dst) == 0


def test_grids_of_heads_and_weights_equal_each_patch_alone(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _src, dst = pair
    both = between(pair)
    heads, weights = both.grid("heads"), both.grid("weights")
    for layer in range(3):
        for head in range(2):
            with both.at(f"blocks.{layer}.attn.hook_z", heads=[head]).on(dst):
                assert torch.allclose(heads.each[:, layer, head], MARGIN(logits(dst)[:, -1]), atol=1e-4)
        for i, module in enumerate(weights.places):
            with both.weights(f".{layer}.{module}.").on(dst):
                assert torch.allclose(weights.each[:, layer, i], MARGIN(logits(dst)[:, -1]), atol=1e-4)


def test_all_heads_together_are_the_attention_output(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _src, dst = pair
    both = between(pair)
    with both.weights("layers.1.self_attn.o_proj").on(dst) if "Llama" in type(dst).__name__ else Patch().on(dst):
        with both.at("blocks.1.attn.hook_z").on(dst):
            whole = logits(dst)
        each = both.at("blocks.1.attn.hook_z", heads=[0]) + both.at("blocks.1.attn.hook_z", heads=[1])
        with each.on(dst):
            assert torch.equal(logits(dst), whole)
        if "Llama" in type(dst).__name__:  # of equal output maps, equal heads make equal outputs
            with both.at("blocks.1.hook_attn_out").on(dst):
                assert torch.allclose(logits(dst), whole, atol=1e-4)


@pytest.mark.parametrize("kind", ["resid_pre", "mlp_out", "heads"])
def test_attribution_is_the_grid_to_first_order(kind: Any) -> None:
    dst, src = build("llama", 1), build("llama", 1)
    torch.manual_seed(2)
    nudges = [torch.randn_like(p) for p in src.parameters()]
    errors = []
    for size in (4e-4, 8e-4):
        src.load_state_dict(dst.state_dict())
        with torch.no_grad():
            for p, nudge in zip(src.parameters(), nudges, strict=True):
                p.add_(size * nudge)
        both = patch(src, dst, prompts=PROMPTS, metric=MARGIN)
        errors.append(both.attribution(kind).error(both.grid(kind)))
    assert errors[0].correlation > 0.999 and errors[0].max_abs < 0.1 * errors[0].largest
    assert 2.5 < errors[1].max_abs / errors[0].max_abs < 6  # what is left out is of second order
    assert all(p.grad is None and p.requires_grad for p in dst.parameters()) and hooks_of(dst) == 0


def test_a_far_model_is_where_attribution_fails(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    error = between(pair).attribution("resid_pre").error(between(pair).grid("resid_pre"))
    assert error.max_abs > 0.05 * error.largest


def test_the_last_position_of_the_last_layer_carries_all(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _src, dst = pair
    norms = between(pair).weights("norm") if not isinstance(dst, GPT2LMHeadModel) else between(pair).weights("ln_f")
    with norms.on(dst):
        grid = between(pair, PROMPTS).grid("resid_post")
    assert torch.allclose(grid.recovered[-1], torch.tensor([0.0] * 5 + [1.0]), atol=1e-4)
    frame = grid.frame
    assert len(frame) == 18 and set(frame["place"]) == set(range(-6, 0))
    assert sorted(frame.query("place == -6")["prompts"].unique()) == [2]


def test_noising_is_denoising_the_other_way_round(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    src, dst = pair
    back = between(pair).swapped().grid("resid_pre")
    forth = patch(dst, src, prompts=EVEN, metric=MARGIN).grid("resid_pre")
    assert torch.equal(back.each, forth.each) and torch.equal(back.src, between(pair).grid("resid_pre").dst)


def test_pieces_are_listed_and_the_later_wins(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _src, dst = pair
    both = between(pair)
    there, back = both.at("blocks.1.hook_resid_pre", [-1]), both.swapped().at("blocks.1.hook_resid_pre", [-1])
    assert [str(piece) for piece in there + back] == ["<blocks.1.hook_resid_pre at -1>"] * 2
    with (there + back).on(dst):
        assert torch.equal(logits(dst), logits(dst, EVEN))
        kept = logits(dst)
    assert torch.allclose(kept, logits(dst), atol=1e-6)


def test_what_cannot_be_patched_is_refused_in_one_line(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    src, dst = pair
    both = between(pair, PROMPTS)
    with pytest.raises(SublimError, match="one length"):
        both.at("blocks.0.hook_resid_pre")
    with pytest.raises(SublimError, match=r"no hook 'blocks\.7\.hook_resid_pre'"):
        between(pair).at("blocks.7.hook_resid_pre")
    with pytest.raises(SublimError, match="run the prompts"), between(pair).at("blocks.0.hook_resid_pre").on(dst):
        logits(dst, PROMPTS[2:])
    with pytest.raises(SublimError, match="training mode"):
        patch(src, build("llama", 0).train() if "Llama" in type(dst).__name__ else dst.train(), EVEN, MARGIN)
    with pytest.raises(SublimError, match="metric="):
        patch(src, src, EVEN)
    with pytest.raises(SublimError, match="no parameter has 'nothing'"):
        both.weights("nothing")
    with pytest.raises(SublimError, match="no attribution of weights; valid kinds: resid_pre"):
        both.attribution("weights")


def test_margin_and_rate_are_those_of_probabilities() -> None:
    rows = torch.randn(4, 9)
    p = rows.double().softmax(-1)
    margin = p[:, 6].log() - ((p[:, 2] + p[:, 8]) / 2).log()
    assert torch.allclose(answer_margin([2, 6, 8], 1)(rows).double(), margin, atol=1e-5)
    assert torch.allclose(answer_rate([2, 6, 8], 1)(rows).double(), p[:, 6], atol=1e-6)
    for members, which in (([2], 0), ([2, 2], 0), ([2, 3], 2)):
        with pytest.raises(SublimError):
            answer_margin(members, which)
