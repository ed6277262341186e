"""Every architecture in one table: where a decoder layer keeps attention, MLP and norms, and what its head is.

A new architecture is one row here, or one entry point `sublim_interp.architectures` of another package; nothing else
has to be changed. Hooks, patching, logit lens and fast logits ask this table. A type without a row still runs: its
residual stream before and after each layer is tried out, and its output map and final norm are looked for by the names
that the rows use.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch

from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture, by `model_type` of its configuration. Names of modules are relative to a decoder layer."""

    attention: str
    """Attention itself, which has the pattern; "" where it gives none."""
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
    residual_scale: str = ""
    """The configuration's field by which both are multiplied before they are added; "" where they are not."""
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
    """Within the model without its head: the table of positions that are added to the embeddings."""
    flat: bool = False
    """From the norm before it on, the MLP runs on all tokens of a batch as one row: [token, d_model]."""
    in_place: bool = False
    """The layer writes into what the MLP gives."""
    grows: bool = True
    """A layer takes a wider batch than the layer before it, so that the cells of a patching grid share a forward."""
    packs: bool = True
    """A mask and positions that are given say all of what a token sees, so that several texts share a row."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """What the configuration must say for this row to hold; where it says otherwise, the type is as without a row."""

    @property
    def rotary(self) -> str:
        """Attention that turns queries and keys by their position: all but that of positions that are added."""
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


_POST: dict[str, Any] = {
    "attn_out": "post_attention_layernorm", "mid": "mlp", "mlp_out": "post_feedforward_layernorm",
    "ln1": "", "ln1_post": "post_attention_layernorm", "ln2": "", "ln2_post": "post_feedforward_layernorm",
}  # fmt: skip
"""As in OLMo 2: no norm before attention and MLP, one behind each."""

_PARALLEL = _llama(mid="mlp", parallel_residual=True, plain_head=False, ln2="")

_MIXTURE: dict[str, Any] = dict.fromkeys(("pre", "pre_linear", "post"), "")
"""Every MLP is a mixture of experts, which have their neurons to themselves."""


def _plain(first: str, second: str) -> dict[str, Any]:
    """An MLP of two maps, without a gate."""
    return {"pre": first, "pre_linear": "", "post": second}


def _fused(module: str) -> dict[str, Any]:
    """One module that gives queries, keys and values."""
    return dict.fromkeys("qkv", module)


def _apart(within: str) -> dict[str, Any]:
    """A module each for queries, keys and values."""
    return {part: f"{within}.{part}_proj" for part in "qkv"}


_FUSED_GATE: dict[str, Any] = {"pre": "mlp.gate_up_proj", "pre_linear": "mlp.gate_up_proj"}

_GPT2 = Architecture(
    attention="attn", attn_out="attn", mid="ln_2", mlp="mlp", mlp_out="mlp", output_map="attn.c_proj",
    final_norm="ln_f", plain_head=True, ln1="ln_1", ln2="ln_2", pos_embed="wpe", **_plain("mlp.c_fc", "mlp.c_proj"),
    **_fused("attn.c_attn"),
)  # fmt: skip

_GPTJ = replace(
    _GPT2, mid="mlp", output_map="attn.out_proj", parallel_residual=True, ln2="", pos_embed="",
    **_plain("mlp.fc_in", "mlp.fc_out"), **_apart("attn"),
)  # fmt: skip

_DECODER = _llama(
    mid="final_layer_norm", mlp="fc1", mlp_out="fc2", output_map="self_attn.out_proj", final_norm="layer_norm",
    grows=False, ln1="self_attn_layer_norm", ln2="final_layer_norm", pos_embed="embed_positions",
    **_plain("fc1", "fc2"),
)  # fmt: skip
"""As in OPT and XGLM: the MLP is two maps of the layer itself."""

_FALCON = _llama(
    attention="", attn_out="self_attention", output_map="self_attention.dense", final_norm="ln_f",
    parallel_residual="parallel_attn", in_place=True, grows=False,
    only={"apply_residual_connection_post_layernorm": False},
    **_plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), **_fused(""),  # whose order depends on the configuration
)  # fmt: skip

ARCHITECTURES: Registry[Architecture] = Registry(
    "architecture",
    "sublim_interp.architectures",
    {
        "llama": _llama(),
        "mistral": _llama(),
        "qwen2": _llama(),
        "qwen3": _llama(),
        "phi3": _llama(
            attn_out="resid_attn_dropout", mlp_out="resid_mlp_dropout", **_FUSED_GATE, **_fused("self_attn.qkv_proj"),
        ),
        "gemma2": _GEMMA,
        "gemma3_text": _GEMMA,
        "olmo2": _llama(**_POST),
        "gpt2": _GPT2,
        "gpt_neox": Architecture(
            attention="attention", attn_out="post_attention_dropout", mid="post_attention_layernorm", mlp="mlp",
            mlp_out="post_mlp_dropout", output_map="attention.dense", final_norm="final_layer_norm",
            plain_head=True, parallel_residual="use_parallel_residual", ln1="input_layernorm",
            ln2="post_attention_layernorm", qkv_by_head=True, **_fused("attention.query_key_value"),
            **_plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        ),
        **dict.fromkeys(
            ("bitnet", "dots1", "ernie4_5", "exaone_moe", "gemma", "glm4_moe", "helium", "hunyuan_v1_dense",
             "ministral", "ministral3", "olmo", "qwen2_moe", "qwen3_moe", "seed_oss", "smollm3"),
            _llama(),
        ),
        **dict.fromkeys(("gpt_oss", "mixtral", "olmoe", "phimoe", "solar_open"), _llama(**_MIXTURE)),
        **dict.fromkeys(("arcee", "nemotron"), _llama(**_plain("mlp.up_proj", "mlp.down_proj"))),
        **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _llama(**_fused(""))),  # queries and keys of two parts each
        "starcoder2": _llama(**_plain("mlp.c_fc", "mlp.c_proj")),
        "glm": _llama(**_FUSED_GATE),
        "apertus": _llama(
            mid="feedforward_layernorm", ln1="attention_layernorm", ln2="feedforward_layernorm",
            **_plain("mlp.up_proj", "mlp.down_proj"),
        ),
        "olmo3": _llama(**_POST),
        "flex_olmo": _llama(**_POST, **_MIXTURE),
        "exaone4": _llama(**_POST),
        "glm4": _llama(
            attn_out="post_self_attn_layernorm", mlp_out="post_mlp_layernorm", ln1_post="post_self_attn_layernorm",
            ln2_post="post_mlp_layernorm", **_FUSED_GATE,
        ),
        "granite": _llama(residual_scale="residual_multiplier", plain_head=False),
        "granitemoe": _llama(
            mlp="block_sparse_moe", mlp_out="block_sparse_moe", residual_scale="residual_multiplier", plain_head=False,
            **_MIXTURE,
        ),
        "persimmon": _llama(
            output_map="self_attn.dense", final_norm="final_layernorm", qkv_by_head=True,
            **_fused("self_attn.query_key_value"), **_plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        ),
        "stablelm": _llama(parallel_residual="use_parallel_residual"),
        "cohere": _PARALLEL,
        "cohere2": _PARALLEL,
        "phi": replace(
            _PARALLEL, attn_out="self_attn", mlp_out="mlp", output_map="self_attn.dense", final_norm="final_layernorm",
            plain_head=True, **_plain("mlp.fc1", "mlp.fc2"),
        ),
        "gptj": _GPTJ,
        "codegen": replace(_GPTJ, **_fused("")),  # its order is of four parts
        "gpt_neo": replace(
            _GPT2, attention="attn.attention", output_map="attn.attention.out_proj", packs=False,
            **_apart("attn.attention"),
        ),
        "gpt_bigcode": replace(_GPT2, grows=False, **_fused("")),  # whose order depends on the configuration
        "falcon": _FALCON,
        "bloom": replace(  # its attention and its MLP add the stream themselves
            _FALCON, attention="self_attention", attn_out="self_attention.dense", mlp_out="mlp.dense_4h_to_h",
            parallel_residual=False, in_place=False, qkv_by_head=True, **_fused("self_attention.query_key_value"),
        ),
        "opt": replace(
            _DECODER, final_norm="decoder.final_layer_norm", pos_embed="decoder.embed_positions", flat=True,
            only={"do_layer_norm_before": True},
        ),
        "xglm": _DECODER,
    },
    _check,
)  # fmt: skip


_PLAIN: "WeakKeyDictionary[torch.nn.Module, Any]" = WeakKeyDictionary()
"""The configuration of models that have no part but that which reads text: transformers looks for others each time."""


def text_config(model: torch.nn.Module) -> Any:
    """The configuration of the part that reads text."""
    config: Any = model.config
    if _PLAIN.get(model) is config:
        return config
    found = config.get_text_config()
    if found is config:
        _PLAIN[model] = config
    return found


def architecture_of(model: torch.nn.Module) -> Architecture | None:
    """The row of a model's type, or None where the table has none that holds for its configuration."""
    config = text_config(model)
    if config.model_type not in ARCHITECTURES:
        return None
    row = ARCHITECTURES[config.model_type]
    return row if all(getattr(config, name, value) == value for name, value in row.only.items()) else None


_PATHS: "WeakKeyDictionary[torch.nn.Module, str]" = WeakKeyDictionary()
"""Where each model's list of layers was found: to search all modules takes longer than a small model's layer."""


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The list of decoder layers, whatever the architecture calls it. Raises SublimError where there is none."""
    depth = getattr(text_config(model), "num_hidden_layers", 0)
    with suppress(KeyError, AttributeError):
        module = model.get_submodule(_PATHS[model])
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module
    reads = getattr(model, "get_decoder", lambda: model)()  # beside it another part may have as many layers
    for module in chain(reads.modules(), model.modules()):
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            paths = (path for path, other in model.named_modules() if other is module)
            if path := next(paths, ""):
                _PATHS[model] = path
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


def without_adapters(model: Any) -> Any:
    """The model that adapters were put into; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def final_norm(model: torch.nn.Module) -> torch.nn.Module:
    """The norm between the last layer and the head. Raises SublimError where none is found."""
    return _found(model, without_adapters(model).base_model, "final_norm", "final norm")


def _found(model: torch.nn.Module, within: torch.nn.Module, part: str, what: str) -> torch.nn.Module:
    """A part by its name in the model's own row, or without a row by the names in any row."""
    row = architecture_of(model)
    names = dict.fromkeys(getattr(a, part) for a in ([row] if row else ARCHITECTURES.values()))
    for name in names:
        with suppress(AttributeError):
            return within.get_submodule(name)
    raise SublimError(f"{type(within).__name__}: no {what} found; known: {', '.join(names)}")
