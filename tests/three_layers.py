"""Tiny random models of three layers, prompts for them, and what a test asks of both. No test lives here."""

from typing import Any

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

from sublim_interp.analysis.probes import answer_margin

PROMPTS = [[5, 9, 4, 17, 8, 3], [6, 2, 30, 11, 3, 1], [9, 9, 1, 28], [7, 7, 2, 19]]
EVEN = PROMPTS[:2]
MARGIN = answer_margin([3, 4, 5], 1)


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


@torch.no_grad()
def logits(model: torch.nn.Module, prompts: list[list[int]] = EVEN) -> Tensor:
    return model(input_ids=torch.tensor(prompts)).logits


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
