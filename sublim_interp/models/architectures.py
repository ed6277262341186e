"""Every architecture in one table: where its layers keep attention, MLP, norms and head. A new one is one row."""

from typing import Any, NamedTuple

import torch

from sublim_interp.core.errors import SublimError


class Architecture(NamedTuple):
    """Names of a decoder layer's submodules, for one architecture."""

    attention: str
    """Gives (output, pattern)."""
    attn_out: str
    """Its output is what attention adds to the residual stream: after a post-norm, where there is one."""
    mlp_out: str
    """Its output is what the MLP adds to the residual stream."""
    mid: str
    """Its input is the residual stream between the two."""


_LLAMA = Architecture("self_attn", "self_attn", "mlp", "post_attention_layernorm")


_GEMMA = Architecture(
    "self_attn", "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm"
)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": Architecture("self_attn", "resid_attn_dropout", "resid_mlp_dropout", "post_attention_layernorm"),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": Architecture("self_attn", "post_attention_layernorm", "post_feedforward_layernorm", "mlp"),
    "gpt2": Architecture("attn", "attn", "mlp", "ln_2"),
    "gpt_neox": Architecture("attention", "post_attention_dropout", "post_mlp_dropout", "post_attention_layernorm"),
}


def text_config(model: torch.nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config()


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The list of decoder layers, whatever the architecture calls it. Raises SublimError where there is none."""
    depth = text_config(model).num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module
    raise SublimError(f"{type(model).__name__}: no list of {depth} decoder layers found")
