"""A tiny random model of every causal type that the installed transformers registers. Shrinks by names of fields.

A type that a new version of transformers brings is tried by itself: its configuration's fields are named like others'.
"""

import re
import warnings
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 53
_LARGEST = 3_000_000
"""Parameters of a tiny model at most: with more, some field was not shrunk, and the type is reported as not built."""

_RULES: list[tuple[str, int]] = [
    (r"vocab_size|unpadded_vocab_size|decoder_vocab_size|vocab_size_per_layer_input", VOCABULARY),
    (r"(hidden|embedding|input_embedding|output_embedding|attention_hidden)_size|d_model|n_embd|emb_dim", 16),
    (r"embedding_dim|word_embed_proj_dim|lru_width|router_hidden_size|mamba_d_ssm", 16),
    (r"hidden_size_per_layer_input|.*_embed_dim", 8),
    (r".*intermediate_size(_mlp)?|.*ffn_dim|.*ffn_hidden_size|dff|dim_ff|d_inner|feed_forward_size", 32),
    (r"num_hidden_layers|n_layers?|num_(encoder_|decoder_)?layers|(de|en)coder_layers|num_blocks", 2),
    (r"num_layers_per_stack", 1),
    (r"(num_)?((en|de)coder_|swa_)?attention_heads|n_heads?|num_heads|(swa_)?num_attention_heads", 2),
    (r"linear_num_(key|value)_heads|linear_num_heads|index_n_heads|n_mamba_heads", 2),
    (r"(swa_|global_)?(num_key_value|num_global_key_value|num_kv)_heads|num_query_groups", 1),
    (r"mamba_n(_)?groups|n_groups?", 1),
    (r".*head_dim|d_head|kv_channels|dim_head|.*attention_head_(dim|size)|mamba_d_head|mamba_headdim", 8),
    (r"(mamba_)?n_heads|mamba_num_heads|mamba_n_heads", 4),
    (r".*_lora_rank|.*lowrank|laurel_rank|gated_norm_rank|adapter_rank|d_rel|rank", 4),
    (r"num_experts|n_routed_experts|(moe_)?num_local_experts|moe_num_experts|num_expert", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|moe_top_k", 2),
    (r"topk_group|num_expert_group|n_shared_experts|num_shared_experts|moe_num_shared_experts|zero_expert_num", 1),
    (r"(mamba_)?d_state|state_size|ssm_state_size|(mamba_)?(d|time_step)_rank|mamba_dt_rank", 4),
    (r"(mamba_)?chunk_size", 4),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length", 64),
    (r"max_(target|source)_positions|rel_extent", 64),
    (r".*sliding_window(_size)?|attention_window_size|window_size|attention_chunk_size", 8),
    (r"local_attention(_window_len)?", 8),
    (r"rotary_dim|mem_len|index_topk(_blocks)?|block_multiple_of|embedding_multiple_of|ffn_round_up_to_multiple_of", 4),
    (r"index_block_size", 8),
    (r"index_(head_)?dim|dim_model_base|query_pre_attn_scalar", 8),
    (r"max_window_layers|first_k_dense_replace|num_dense_layers|moe_layer_start_index|n_layers_per_attn_res_block", 1),
    (r"num_kv_shared_layers|num_nextn_predict_layers|altup_active_idx", 0),
    (r"(layer_group|global_attn_every_n_layers|attn_layer_period|expert_layer_period|.*sliding_window_pattern)", 2),
    (r"layer_group_size|full_attention_interval|no_rope_layer_interval", 2),
    (r"attn_layer_offset|expert_layer_offset", 1),
    (r"moe_layer_end_index|o_groups", 1),
    (r"encoder_hash_byte_group_vocab|ngram_vocab_size_base|.*shape_vocab_size|pronunciation_vocab_size", VOCABULARY),
    (r"split_ngram_parts|make_ngram_vocab_size_divisible_by|heads_per_ngram", 2),
    (r"prompt_length|prompt_types|segment_types|prompt_mid_dim|position_bias_num_buckets", 8),
    (r"log_scaling_n_floor|floor_scale", 8),
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id", 2),
]  # fmt: skip
_SCALES = {"initializer_range": 0.3, "init_std": 0.3, "init_method_std": 0.3}


def _rule(name: str) -> int | None:
    """The small value of a field, if its name says what it counts."""
    return next((value for pattern, value in _RULES if re.fullmatch(pattern, name)), None)


def _picks(kinds: list[Any]) -> list[int]:
    """Two layers or more, such that each kind of layer is there: the first of each kind, in order."""
    first = sorted({repr(kind): i for i, kind in reversed([*enumerate(kinds)])}.values())[:4]
    return first if len(first) > 1 else [0, 1]


def shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    """What differs from a type's defaults in its tiny configuration."""
    own = config.to_dict()
    depth = next((own[k] for k in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if own.get(k)), 0)
    by_layer = {k: v for k, v in own.items() if isinstance(v, list) and len(v) == depth and depth > 2}
    kinds = [
        *zip(*(own[k] for k in ("layer_types", "layers_block_type", "mlp_layer_types") if k in by_layer), strict=True)
    ]
    picks = _picks(kinds) if kinds else [0, 1]
    small: dict[str, Any] = {}
    for name, value in own.items():
        kind = type(vars(config).get(name))
        if name in by_layer:
            small[name] = [value[i] for i in picks]
        elif issubclass(kind, PreTrainedConfig):
            small[name] = kind(**shrunk(vars(config)[name]))
        elif name in _SCALES:
            small[name] = _SCALES[name]
        elif (new := _rule(name)) is not None and isinstance(value, int) and not isinstance(value, bool):
            heads = new == 1 and "heads" in name and value == own.get("num_attention_heads", own.get("n_head"))
            small[name] = 2 if heads else new
        elif name in ("eos_token_id", "bos_token_id") and isinstance(value, list):
            small[name] = _rule(name)
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if name in small and by_layer:
            small[name] = len(picks)
    return small


# What a rule by name cannot know: fields that must agree with each other, one line a type.
_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
_BY_HAND: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 8},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "gemma3n_text": {"intermediate_size": 32},
    "granite": {"residual_multiplier": 0.5},
    "granitemoe": {"residual_multiplier": 0.5},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_hidden_layers": 1, "num_layers_per_stack": None},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"qk_head_dim": 16},
    "mamba2": {"num_heads": 4, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "mixtral": {"router_jitter_noise": 0.1},
    "nemotron": {"num_key_value_heads": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 8],
    },
    "xlstm": {"chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "n_mamba_heads": 2,
        "attention_hidden_size": 32,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "n_mamba_heads": 4,
        "mamba_headdim": 8,
        "attention_hidden_size": 32,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def types() -> list[str]:
    """Every model type that transformers registers as causal."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(kind: str, seed: int = 1, **changes: Any) -> PreTrainedModel:
    """A tiny model of a type, in eval mode; raises whatever transformers does, and ValueError where it is not tiny.

    changes: of its configuration
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = CONFIG_MAPPING[kind]
        config = made(**{**shrunk(made()), **_BY_HAND.get(kind, {}), **changes})
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > _LARGEST:
            raise ValueError(f"{size:,} parameters: a size of its configuration is not known by name")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for p in model.parameters():  # biases of zero and norms of one would hide mistakes
            if p.is_floating_point():
                p.add_(0.05 * torch.randn(p.shape))
    return model
