"""A GGUF file as a Hugging Face directory: weights dequantised to float32, tokenizer, template, configuration.

It reads what SmolLM2's files hold: Llama weights of any quantisation, a byte-level BPE tokenizer. Equal GGUF files give
equal bytes, whatever versions are installed, so that a base's digest can be told beforehand.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einops import rearrange

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import sync

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]},
    "gpt-2": _BYTES,
}
"""How text is split before the merges, as tokenizer.json says it, by the GGUF's `tokenizer.ggml.pre`."""

_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_CONTROL, _OWN = 3, 4
"""Types of tokens: control tokens, and words that were added by hand."""


def convert(gguf: Path, directory: Path) -> dict[str, int]:
    """Writes a GGUF file as a Hugging Face directory: everything but a card.

    gguf: the file
    directory: an empty directory

    Returns how many tensors there are of each quantisation: `{"Q4_1": 210, …}`.
    Raises SublimError for a file that is cut or damaged, and for what is no Llama with a byte-level BPE tokenizer.
    """
    from safetensors.numpy import save_file

    reader = _opened(gguf)
    settings = _Settings(reader, gguf)
    config = _config(settings)
    files = {"config.json": config, "generation_config.json": _ends(settings), **_tokenizer(settings, config)}
    weights, kinds = _weights(reader, config, gguf)
    config["tie_word_embeddings"] = "lm_head.weight" not in weights
    save_file(weights, str(directory / "model.safetensors"), {"format": "pt"})
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8", newline="\n")
    for name in ("model.safetensors", *files):
        (directory / name).chmod(0o644)  # safetensors writes files that only their owner may read
        sync(directory / name)
    return kinds


def _opened(gguf: Path) -> "GGUFReader":
    from gguf import GGUFReader

    try:
        return GGUFReader(str(gguf))
    except Exception as error:  # the package raises whatever its arithmetic on damaged bytes does
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SublimError(f"{gguf.name} is cut or damaged: it cannot be read as GGUF ({reason})") from None


class _Settings:
    """The settings in a GGUF file."""

    def __init__(self, reader: "GGUFReader", gguf: Path) -> None:
        self._reader, self._name = reader, gguf.name

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default` where it is not there; SublimError where neither is."""
        field = self._reader.get_field(key)
        value = default if field is None else field.contents()
        if value is None:
            raise SublimError(f"{self._name} is no such GGUF as is read here: it has no {key}")
        return value

    def require(self, key: str, *known: Any, default: Any = None) -> Any:
        """The value of a key, which must be one of those known; SublimError, which names them, for another."""
        value = self.get(key, default)
        if value not in known:
            raise SublimError(f"{self._name}: {key} is {value}; read here: {', '.join(map(str, known))}")
        return value


def _config(settings: _Settings) -> dict[str, Any]:
    settings.require("general.architecture", "llama")
    settings.require("llama.rope.scaling.type", "none", default="none")
    heads, width = settings.get("llama.attention.head_count"), settings.get("llama.embedding_length")
    theta = float(settings.get("llama.rope.freq_base", 10_000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(settings.get("tokenizer.ggml.tokens")),
        "hidden_size": width,
        "intermediate_size": settings.get("llama.feed_forward_length"),
        "num_hidden_layers": settings.get("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.get("llama.attention.head_count_kv", heads),
        "head_dim": settings.get("llama.attention.key_length", width // heads),
        "max_position_embeddings": settings.get("llama.context_length"),
        "rms_norm_eps": _shortest(settings.get("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
        **_ends(settings),
    }


def _shortest(value: float) -> float:
    """The shortest decimal that is the same in single precision: 1e-05 for 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def _ends(settings: _Settings) -> dict[str, int]:
    """Ids of the tokens that begin, end and fill up."""
    eos = settings.get("tokenizer.ggml.eos_token_id")
    return {
        "bos_token_id": settings.get("tokenizer.ggml.bos_token_id", eos),
        "eos_token_id": eos,
        "pad_token_id": settings.get("tokenizer.ggml.padding_token_id", eos),
    }


def _tokenizer(settings: _Settings, config: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's files by name."""
    settings.require("tokenizer.ggml.model", "gpt2")
    settings.require("tokenizer.ggml.add_bos_token", False, default=False)
    pre = settings.require("tokenizer.ggml.pre", *PRE_TOKENIZERS)
    tokens, kinds = settings.get("tokenizer.ggml.tokens"), settings.get("tokenizer.ggml.token_type")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": token, **plain, "special": kind == _CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _OWN)
    ]
    merges = settings.get("tokenizer.ggml.merges")
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges,
    }  # fmt: skip
    named = {name.removesuffix("_id"): tokens[i] for name, i in _ends(settings).items()}
    unknown = tokens[settings.get("tokenizer.ggml.unknown_token_id", config["bos_token_id"])]
    return {
        "tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": PRE_TOKENIZERS[pre], "post_processor": None, "decoder": _BYTES, "model": model,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", **named, "unk_token": unknown,
            "model_max_length": config["max_position_embeddings"], "clean_up_tokenization_spaces": False,
        },
        "chat_template.jinja": settings.get("tokenizer.chat_template"),
    }  # fmt: skip


def _weights(
    reader: "GGUFReader", config: dict[str, Any], gguf: Path
) -> "tuple[dict[str, np.ndarray], dict[str, int]]":
    """The tensors in float32 by their names in transformers, and how many there are of each quantisation."""
    import numpy as np
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    layers = range(config["num_hidden_layers"])
    names = {f"{name}.weight": (name, f"{to}.weight") for name, to in _ENDS.items()}
    names |= {
        f"blk.{i}.{name}.weight": (name, f"model.layers.{i}.{to}.weight") for i in layers for name, to in _LAYER.items()
    }
    held = {tensor.name: tensor for tensor in reader.tensors}
    if odd := sorted(held.keys() - names.keys()):
        raise SublimError(f"{gguf.name}: a tensor {odd[0]} is nothing that a Llama has, so it is not read")
    if lacking := sorted(names.keys() - held.keys() - {"output.weight"}):  # without it the head is the embedding
        raise SublimError(f"{gguf.name} is cut or damaged: it lacks {len(lacking)} tensors, first {lacking[0]}")
    weights, kinds = {}, {}
    for name, tensor in held.items():
        part, to = names[name]
        try:
            value = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise SublimError(f"{gguf.name}: {name} cannot be dequantised ({error})") from None
        if part in heads:
            value = _in_halves(value, heads[part])
        weights[to] = np.ascontiguousarray(value, dtype=np.float32)
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
    return weights, kinds


def _in_halves(rows: "np.ndarray", heads: int) -> "np.ndarray":
    """Rows of queries or keys as transformers rotates them, half against half; llama.cpp rotates neighbours.

    rows: [heads × head_dim, d_model]
    """
    return rearrange(rows, "(head pair two) d_model -> (head two pair) d_model", head=heads, two=2)
