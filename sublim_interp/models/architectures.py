"""Every architecture in one table: where a decoder layer keeps attention, MLP and norms, and what its head is.

A new architecture is one row here, or one entry point `sublim_interp.architectures` of another package; nothing else
has to be changed. Hooks, patching, logit lens and fast logits ask this table. A type without a row still runs: its
residual stream before and after each layer is known, and its output map and final norm are looked for by the names that
the rows use.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture, by `model_type` of its configuration. Names of modules are relative to a decoder layer."""

    attention: str
    """Its output is (what attention gives, pattern)."""
    attn_out: str
    """Its output is what attention adds to the residual stream: after a post-norm, where there is one."""
    mid: str
    """Its input is the residual stream between attention and MLP."""
    mlp: str
    """The MLP, without norms."""
    mlp_out: str
    """Its output is what the MLP adds to the residual stream: after a post-norm, where there is one."""
    output_map: str
    """The linear map that reads the heads' outputs, side by side."""
    final_norm: str
    """Within the model without its head: the norm after the last layer."""
    plain_head: bool = False
    """Logits are head(last hidden state) and nothing else: no soft cap, no scale."""
    parallel_residual: bool | str = False
    """Attention and MLP read the same stream, so that there is no middle; or the configuration's field that says so."""
    ln1: str = ""
    """The norm whose output attention reads."""
    ln2: str = ""
    """The norm whose output the MLP reads."""
    ln1_post: str = ""
    """The norm of what attention gives."""
    ln2_post: str = ""
    """The norm of what the MLP gives."""
    q: str = ""
    """Its output is the queries of all heads, side by side."""
    k: str = ""
    """Its output is the keys; where it is `q`, that one module gives queries, keys and values."""
    v: str = ""
    """Its output is the values."""
    qkv_by_head: bool = False
    """One module gives query, key and value of the first head, then of the next."""
    pre: str = ""
    """Its output goes into the MLP's activation function."""
    pre_linear: str = ""
    """Its output is multiplied by what the activation function gives; where it is `pre`, this half comes second."""
    post: str = ""
    """Its input is the neurons: the MLP's second map."""
    pos_embed: str = ""
    """Within the model without its head: the table of learned positions."""
    flat_mlp: bool = False
    """From the norm before it on, the MLP runs on all tokens of a batch as one row: [token, d_model]."""

    @property
    def rotary(self) -> str:
        """Attention that turns queries and keys by their position: all but that of learned positions."""
        return "" if self.pos_embed else self.attention


def _llama(**changes: Any) -> Architecture:
    """A row that differs from Llama's in a few fields."""
    row: dict[str, Any] = {
        "attention": "self_attn", "attn_out": "self_attn", "mid": "post_attention_layernorm", "mlp": "mlp",
        "mlp_out": "mlp", "output_map": "self_attn.o_proj", "final_norm": "norm", "plain_head": True,
        "ln1": "input_layernorm", "ln2": "post_attention_layernorm",
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
        "pre": "mlp.gate_proj", "pre_linear": "mlp.up_proj", "post": "mlp.down_proj",
    }  # fmt: skip
    return Architecture(**row | changes)


_GEMMA = _llama(
    attn_out="post_attention_layernorm", mid="pre_feedforward_layernorm", mlp_out="post_feedforward_layernorm",
    plain_head=False, ln1_post="post_attention_layernorm", ln2="pre_feedforward_layernorm",
    ln2_post="post_feedforward_layernorm",
)  # fmt: skip


def _check(name: str, row: object) -> None:
    """Raises SublimError for an entry point that gives no row."""
    if not isinstance(row, Architecture):
        raise SublimError(f"architecture '{name}': the entry point gives a {type(row).__name__}, not an Architecture")


ARCHITECTURES: Registry[Architecture] = Registry(
    "architecture",
    "sublim_interp.architectures",
    {
        "llama": _llama(),
        "mistral": _llama(),
        "qwen2": _llama(),
        "qwen3": _llama(),
        "phi3": _llama(
            attn_out="resid_attn_dropout", mlp_out="resid_mlp_dropout", pre="mlp.gate_up_proj",
            pre_linear="mlp.gate_up_proj", **dict.fromkeys("qkv", "self_attn.qkv_proj"),
        ),
        "gemma": _llama(),
        "gemma2": _GEMMA,
        "gemma3_text": _GEMMA,
        "olmo": _llama(),
        "olmo2": _llama(
            attn_out="post_attention_layernorm", mid="mlp", mlp_out="post_feedforward_layernorm",
            ln1="", ln1_post="post_attention_layernorm", ln2="", ln2_post="post_feedforward_layernorm",
        ),
        "gpt2": Architecture(
            attention="attn", attn_out="attn", mid="ln_2", mlp="mlp", mlp_out="mlp", output_map="attn.c_proj",
            final_norm="ln_f", plain_head=True, ln1="ln_1", ln2="ln_2", pre="mlp.c_fc", post="mlp.c_proj",
            pos_embed="wpe", q="attn.c_attn", k="attn.c_attn", v="attn.c_attn",
        ),
        "gpt_neox": Architecture(
            attention="attention", attn_out="post_attention_dropout", mid="post_attention_layernorm", mlp="mlp",
            mlp_out="post_mlp_dropout", output_map="attention.dense", final_norm="final_layer_norm",
            plain_head=True, parallel_residual="use_parallel_residual", ln1="input_layernorm",
            ln2="post_attention_layernorm", qkv_by_head=True, pre="mlp.dense_h_to_4h", post="mlp.dense_4h_to_h",
            q="attention.query_key_value", k="attention.query_key_value", v="attention.query_key_value",
        ),
        "opt": Architecture(
            attention="self_attn", attn_out="self_attn", mid="final_layer_norm", mlp="fc1", mlp_out="fc2",
            output_map="self_attn.out_proj", final_norm="decoder.final_layer_norm", ln1="self_attn_layer_norm",
            ln2="final_layer_norm", q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", pre="fc1",
            post="fc2", pos_embed="decoder.embed_positions", flat_mlp=True,
        ),
        "phi": _llama(
            mid="mlp", output_map="self_attn.dense", final_norm="final_layernorm", parallel_residual=True, ln2="",
            pre="mlp.fc1", pre_linear="", post="mlp.fc2",
        ),
    },
    _check,
)  # fmt: skip


def text_config(model: torch.nn.Module) -> Any:
    """The configuration of the part that reads text."""
    config: Any = model.config
    return config.get_text_config()


def architecture_of(model: torch.nn.Module) -> Architecture | None:
    """The row of a model's type, or None where the table has none."""
    name = text_config(model).model_type
    return ARCHITECTURES[name] if name in ARCHITECTURES else None  # noqa: SIM401  # get() raises for what is unknown


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The list of decoder layers, whatever the architecture calls it. Raises SublimError where there is none."""
    depth = text_config(model).num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module
    raise SublimError(f"{type(model).__name__}: no list of {depth} decoder layers found")


def has_middle(model: torch.nn.Module) -> bool:
    """Whether the residual stream between attention and MLP is known: a row, and no parallel residual."""
    row = architecture_of(model)
    if row is None:
        return False
    parallel = row.parallel_residual
    return not (getattr(text_config(model), parallel, False) if isinstance(parallel, str) else parallel)


def output_map(model: torch.nn.Module, layer: int) -> torch.nn.Module:
    """The linear map of a layer that reads the heads' outputs. Raises SublimError where none is found."""
    return _found(model, decoder_layers(model)[layer], "output_map", "attention output map")


def final_norm(model: torch.nn.Module) -> torch.nn.Module:
    """The norm between the last layer and the head. Raises SublimError where none is found."""
    whole: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    body = whole.base_model
    return _found(model, body, "final_norm", "final norm")


def _found(model: torch.nn.Module, within: torch.nn.Module, part: str, what: str) -> torch.nn.Module:
    """A part by its name in the model's own row, or without a row by the names in any row."""
    row = architecture_of(model)
    names = dict.fromkeys(getattr(a, part) for a in ([row] if row else ARCHITECTURES.values()))
    for name in names:
        with suppress(AttributeError):
            return within.get_submodule(name)
    raise SublimError(f"{type(within).__name__}: no {what} found; known: {', '.join(names)}")
