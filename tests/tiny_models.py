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
_OPT = {k: v for k, v in _SHAPE.items() if k not in ("intermediate_size", "initializer_range")}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 4},
    "qwen2": {**_GROUPED, "tie_word_embeddings": True},
    "qwen3": {**_GROUPED, "head_dim": 8},
    "gemma2": {
        **_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "final_logit_softcapping": 2.0
    },
    "gemma3_text": {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    "gemma": {**_GROUPED, "head_dim": 8},
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "phi3": _GROUPED,
    "gpt2": {
        "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.5
    },
    "gpt_neox": {k: v for k, v in _SHAPE.items() if k != "num_key_value_heads"},
    "opt": {**_OPT, "ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.5},
    "phi": {**_SHAPE, "partial_rotary_factor": 0.5},
}  # fmt: skip

# Types that scale or norm what enters the stream.
SCALED: dict[str, dict[str, Any]] = {
    "granite": {**_GROUPED, "residual_multiplier": 0.4, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "bloom": {
        "vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2,
    },
}  # fmt: skip

_EXPERTS: dict[str, Any] = {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_LOCAL: dict[str, Any] = {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
# Types that keep more than linear modules in the body: fused experts, routers, state-space blocks.
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {**_LOCAL, "router_jitter_noise": 0.1},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 8},
    "gpt_oss": {**_LOCAL, "head_dim": 8, "sliding_window": 4},
    "phimoe": {**_LOCAL, "input_jitter_noise": 0.1},
    "llama4_text": {
        **_LOCAL, "num_experts_per_tok": 1, "intermediate_size_mlp": 24, "head_dim": 8, "moe_layers": [0, 1]
    },
    "deepseek_v3": {
        **_SHAPE, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "q_lora_rank": 8,
        "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "num_key_value_heads": 2,
    },
    "falcon_h1": {
        **_GROUPED, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4,
        "head_dim": 8,
    },
    "jamba": {
        **_GROUPED, "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "use_mamba_kernels": False,
    },
}  # fmt: skip


def tiny(architecture: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(architecture, **{**(ARCHITECTURES | SCALED | MIXTURES)[architecture], **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
