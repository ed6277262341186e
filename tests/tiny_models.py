"""One tiny random model of every architecture. No test lives here."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 53
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,  # large enough that positions and rows differ plainly
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 4},
    "qwen2": {**_GROUPED, "tie_word_embeddings": True},
    "qwen3": {**_GROUPED, "head_dim": 8},
    "gemma2": {
        **_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "final_logit_softcapping": 2.0
    },
    "gemma3_text": {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    "olmo2": _GROUPED,
    "phi3": _GROUPED,
    "gpt2": {
        "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.5
    },
    "gpt_neox": {k: v for k, v in _SHAPE.items() if k != "num_key_value_heads"},
}  # fmt: skip


def tiny(architecture: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(architecture, **{**ARCHITECTURES[architecture], **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
