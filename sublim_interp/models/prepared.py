"""A prepared base, made of an open model and an adapter. How the adapter is trained: pipeline/prepare.py."""

import json
from pathlib import Path
from typing import Any

import torch
from einops import einsum

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import one_line
from sublim_interp.models.base import CARD, Base
from sublim_interp.models.chat import Chat, load_tokenizer
from sublim_interp.models.loading import save_model

LANGUAGE = "english-terse"
"""The language of prepared bases: English questions, and number prompts of one short line."""

RECIPE = "preparation.json"
"""The recipe, inside the adapter's directory."""

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The turns and nothing else, for a model whose own ChatML template puts a system prompt before them."""


def apply_adapter(base: Base, adapter: Path, directory: Path) -> None:
    """Writes the prepared base that an adapter makes of its open model: weights, tokenizer, template, card.

    The sum is taken in float64 and rounded to bfloat16, so that every machine gives the same bits.

    base: the open model
    adapter: a directory as `prepare` leaves it beside its base
    directory: where the prepared base is put; it must not exist
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    with one_line(f"adapter {adapter} cannot be read"):
        recipe = json.loads((adapter / RECIPE).read_text())
    model: Any = PeftModel.from_pretrained(base.load(), str(adapter))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLayer):
                (name,) = module.lora_A
                a, b = (part[name].weight.double() for part in (module.lora_A, module.lora_B))
                weight: Any = module.get_base_layer().weight
                weight.copy_(weight.double() + module.scaling[name] * einsum(b, a, "d_out r, r d_in -> d_out d_in"))
    save_model(model.unload().to(torch.bfloat16), directory)
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
