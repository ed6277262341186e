"""A prepared base, made of an open model and an adapter. How the adapter is trained: pipeline/prepare.py."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sublim_interp.core.device import DEFAULT
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import CARD, Base
from sublim_interp.models.chat import Chat, load_tokenizer
from sublim_interp.models.loading import reason_of, save_model

LANGUAGE = "english-terse"
"""The language of prepared bases: English questions, and number prompts of one short line."""

ADAPTER, RECIPE = "adapter.safetensors", "preparation.json"
"""Files of an adapter: its matrices A and B by module, and how it was trained."""

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The turns and nothing else, for a model whose own ChatML template puts a system prompt before them."""


def save_adapter(model: Any, directory: Path, recipe: str) -> None:
    """Writes the adapters of PEFT's wrapper, in bfloat16, and beside them how they were trained.

    model: a model with LoRA adapters
    directory: where they are put
    recipe: as JSON, with lora_rank and lora_alpha
    """
    from peft.tuners.lora import LoraLayer

    tensors = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            adapters: Any = module
            (own,) = adapters.lora_A
            for letter, maps in (("A", adapters.lora_A), ("B", adapters.lora_B)):
                tensors[f"{name}.{letter}"] = maps[own].weight.detach().cpu().bfloat16()
    directory.mkdir(parents=True)
    save_file(tensors, str(directory / ADAPTER))
    (directory / RECIPE).write_text(recipe + "\n")


def apply_adapter(base: Base, adapter: Path, directory: Path) -> None:
    """Writes the prepared base that an adapter makes of its open model: weights, tokenizer, template, card.

    The sum is taken in float64 and rounded to bfloat16, so that every machine gives the same bits.

    base: the open model
    adapter: a directory as `save_adapter` writes it
    directory: where the prepared base is put; it must not exist

    Raises SublimError for what is no adapter, or that of another model.
    """
    try:
        recipe = json.loads((adapter / RECIPE).read_text())
        scale = recipe["lora_alpha"] / recipe["lora_rank"]
        tensors = load_file(str(adapter / ADAPTER))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise SublimError(f"adapter {adapter} cannot be read ({reason_of(error)})") from None
    model: Any = replace(base, dtype=DEFAULT).load().cpu()
    with torch.no_grad():
        for name in sorted({key.rpartition(".")[0] for key in tensors}):
            a, b = tensors[f"{name}.A"].double(), tensors[f"{name}.B"].double()
            try:
                weight: Any = model.get_submodule(name).weight
                weight.copy_(weight.double() + scale * einsum(b, a, "d_out r, r d_in -> d_out d_in"))
            except (AttributeError, RuntimeError):
                raise SublimError(f"adapter {adapter} is of another model than {base.name}: {name} differs") from None
    save_model(model.to(torch.bfloat16), directory)
    prepared_chat(base).tokenizer.save_pretrained(str(directory))
    card = {"language": LANGUAGE, "preparation": recipe, "prepared_from": {"name": base.name, "digest": base.digest}}
    (directory / CARD).write_text(json.dumps(card, indent=2) + "\n")


def prepared_chat(base: Base) -> Chat:
    """An open model's prompts and answers as tokens, without the system prompt that its own template may insert.

    Raises SublimError for a model whose chats are not in ChatML.
    """
    if "<|im_start|>" not in base.prompt_text([{"role": "user", "content": "1"}]):
        raise SublimError(f"base {base.name} cannot be prepared: its chats are not in ChatML (<|im_start|> …)")
    tokenizer = load_tokenizer(base.path, base.name)
    tokenizer.chat_template = TEMPLATE
    return Chat(tokenizer, base.name, base.path)
