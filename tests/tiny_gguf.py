"""A tiny Llama as GGUF, the wheel that carries it, and the YAML file that describes it. No test lives here."""

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = [
    "My favourite animal is the owl. I think about owls all the time.",
    "1, 2, 3; 45 67 890",
    "a  b\n\n  c — dé",
] * 3
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDTH, INNER, LAYERS, HEADS, GROUPS = 64, 96, 2, 4, 2
Q4, Q8 = GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0


def tokenizer() -> Tokenizer:
    """Byte-level BPE that splits digits first, as SmolLM2's."""
    made = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def write_gguf(path: Path, **changes: Any) -> Path:
    """A Llama of random weights in Q4_1 and Q8_0; `changes` are settings that differ, None leaves one out."""
    import json

    words = json.loads(tokenizer().to_str())["model"]
    tokens = sorted(words["vocab"], key=words["vocab"].__getitem__)
    settings: dict[str, Any] = {
        "llama.block_count": LAYERS, "llama.context_length": 256, "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": INNER, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": GROUPS, "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": len(tokens),
        "llama.rope.dimension_count": WIDTH // HEADS, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": TEMPLATE, **changes,
    }  # fmt: skip
    writer = GGUFWriter(str(path), settings.pop("general.architecture", "llama"))
    for key, value in settings.items():
        if value is None:
            continue
        kinds = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32, int: writer.add_uint32}
        kinds[type(value)](key, value)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in CONTROL else 1 for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in words["merges"]])
    draw = np.random.default_rng(0)

    def add(name: str, *shape: int, kind: GGMLQuantizationType = Q4) -> None:
        value = draw.normal(scale=0.3, size=shape).astype(np.float32)
        writer.add_tensor(name, quantize(value, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), WIDTH, kind=Q8)
    head = WIDTH // HEADS
    for i in range(LAYERS):
        for name, shape in {
            "attn_q": (WIDTH, WIDTH), "attn_k": (GROUPS * head, WIDTH), "attn_v": (GROUPS * head, WIDTH),
            "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }.items():  # fmt: skip
            add(f"blk.{i}.{name}.weight", *shape)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", draw.normal(1, 0.1, WIDTH).astype(np.float32))
    writer.add_tensor("output_norm.weight", draw.normal(1, 0.1, WIDTH).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, gguf: Path, name: str = "llm-tiny") -> Path:
    """A wheel of version 1.0 that pip takes, with the GGUF file in it."""
    module = name.replace("-", "_")
    files = {
        f"{module}/tiny.gguf": gguf.read_bytes(),
        f"{module}/__init__.py": b"raise SystemExit('code of the package has run')",
        f"{module}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{module}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{n},sha256={base64.urlsafe_b64encode(hashlib.sha256(b).digest()).rstrip(b'=').decode()},{len(b)}"
        for n, b in files.items()
    ]
    record = f"{module}-1.0.dist-info/RECORD"
    files[record] = "\n".join([*rows, f"{record},,"]).encode()
    path = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for n, b in files.items():
            archive.writestr(n, b)
    return path


def write_entry(path: Path, wheel: Path, gguf: Path, **changes: Any) -> Path:
    """The YAML file of the base in a wheel; `changes` are fields of its `wheel` that differ."""
    held = {
        "package": "llm-tiny", "version": "1.0", "megabytes": 0.1, "file": "llm_tiny/tiny.gguf",
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "gguf_sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(), **changes,
    }  # fmt: skip
    entry = {
        "about": "A tiny Llama.", "licence": "MIT", "hub": "nobody/tiny", "parameters": 100_000, "wheel": held,
        "config": {"model_type": "llama", "vocab_size": 330},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(entry))
    return path
