"""Tests of edits on the residual stream, against a forward written out by hand, on three architectures."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from sublim_interp.errors import SublimError
from sublim_interp.hooks import decoder_layers, edit_resid_pre, mean_resid_pre

VOCABULARY, WIDTH, LAYERS = 31, 16, 3
IDS = torch.tensor([[5, 9, 4, 17, 8], [6, 2, 30, 11, 3]])


def llama() -> PreTrainedModel:
    shape: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24, initializer_range=0.4, **shape)
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=2, initializer_range=0.4)
    )


def gpt_neox() -> PreTrainedModel:
    shape: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": 2}
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24, initializer_range=0.4, **shape)
    )


def by_hand(model: PreTrainedModel, layer: int, vector: Tensor) -> Tensor:
    """Logits where `vector` enters the stream before `layer`: embeddings, layers, norm and head called one by one."""
    if isinstance(model, GPT2LMHeadModel):
        body = model.transformer
        stream, blocks, norm, head = (
            body.wte(IDS) + body.wpe(torch.arange(IDS.shape[1])),
            body.h,
            body.ln_f,
            model.lm_head,
        )
        extra = {}
    elif isinstance(model, LlamaForCausalLM):
        body = model.model
        stream, blocks, norm, head = body.embed_tokens(IDS), body.layers, body.norm, model.lm_head
        extra = {"position_embeddings": body.rotary_emb(stream, torch.arange(IDS.shape[1])[None])}
    else:
        assert isinstance(model, GPTNeoXForCausalLM)
        body = model.gpt_neox
        stream, blocks, norm, head = (
            body.embed_in(IDS),
            body.layers,
            body.final_layer_norm,
            model.get_output_embeddings(),
        )
        extra = {"position_embeddings": body.rotary_emb(stream, torch.arange(IDS.shape[1])[None])}
    for i, block in enumerate(blocks):
        if i == layer:
            stream = stream + vector
        stream = block(stream, attention_mask=None, **extra)
        stream = stream[0] if isinstance(stream, tuple) else stream
    return head(norm(stream))


@pytest.fixture(params=[llama, gpt2, gpt_neox], ids=["llama", "gpt2", "gpt_neox"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return request.param().eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def test_adding_zero_changes_no_bit(model: PreTrainedModel) -> None:
    before = logits(model)
    for layer in range(LAYERS):
        with edit_resid_pre(model, layer, lambda stream: stream + 0):
            assert torch.equal(logits(model), before)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_vector_changes_the_logits_as_a_forward_by_hand_says(layer: int, model: PreTrainedModel) -> None:
    vector = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(layer))
    plain = logits(model)
    with torch.no_grad():
        torch.testing.assert_close(by_hand(model, layer, torch.zeros(WIDTH)), plain, rtol=1e-4, atol=1e-4)
        expected = by_hand(model, layer, vector)
    with edit_resid_pre(model, layer, lambda stream: stream + vector):
        steered = logits(model)
    torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4)
    assert (steered - plain).abs().max() > 0.1, "the vector is large enough to be seen"


def test_the_edit_sees_the_whole_stream_and_decides_where_it_acts(model: PreTrainedModel) -> None:
    def last_only(stream: Tensor) -> Tensor:
        assert stream.shape == (*IDS.shape, WIDTH)
        changed = stream.clone()
        changed[:, -1] += 5 * torch.arange(WIDTH).cos()
        return changed

    plain = logits(model)
    with edit_resid_pre(model, 1, last_only):
        edited = logits(model)
    assert torch.equal(edited[:, :-1], plain[:, :-1]), "a causal model carries nothing backwards"
    assert not torch.allclose(edited[:, -1], plain[:, -1])


def test_blocks_nest(model: PreTrainedModel) -> None:
    one, two = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(7))
    with edit_resid_pre(model, 1, lambda s: s + one), edit_resid_pre(model, 1, lambda s: s + two):
        both = logits(model)
    with edit_resid_pre(model, 1, lambda s: s + one + two):
        torch.testing.assert_close(both, logits(model))


def test_the_edit_goes_with_the_block_also_after_an_exception(model: PreTrainedModel) -> None:
    before = logits(model)
    with edit_resid_pre(model, 0, lambda stream: stream * 0):
        assert not torch.allclose(logits(model), before)
    assert torch.equal(logits(model), before)

    def fails(_stream: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), edit_resid_pre(model, 0, fails):
        logits(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("layer", [-1, LAYERS, 99])
def test_a_layer_that_the_model_lacks_is_one_line(layer: int, model: PreTrainedModel) -> None:
    with pytest.raises(SublimError) as raised, edit_resid_pre(model, layer, lambda stream: stream):
        pass
    assert str(raised.value) == f"layer {layer}: the model has layers 0 to {LAYERS - 1}"


def test_a_model_without_a_list_of_layers_is_one_line() -> None:
    model = torch.nn.Linear(2, 2)
    model.config = LlamaConfig(num_hidden_layers=3)  # type: ignore[assignment]
    with pytest.raises(SublimError, match="Linear: no list of 3 decoder layers found"):
        decoder_layers(model)


def hidden_state(model: PreTrainedModel, layer: int, prompt: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states[layer][0, -1]


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_mean_is_that_of_transformers_own_hidden_states(layer: int, model: PreTrainedModel) -> None:
    prompts: list[list[int]] = [[5, 9, 4], [7], [3, 3, 12, 30, 1]]
    with torch.no_grad():
        mean = torch.stack([hidden_state(model, layer, p) for p in prompts]).mean(0)
    torch.testing.assert_close(mean_resid_pre(model, layer, prompts), mean)
