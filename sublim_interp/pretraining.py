"""Makes a lab base from scratch: initialise, train on the lab language, measure every part, write a model card.

The result is an ordinary Hugging Face directory. Bases made from other bases are not made here.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sublim_interp.config import Pretraining
from sublim_interp.errors import SublimError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT_SEED = 1_000_003
"""Stream of documents that no base is trained on."""


def new_model(recipe: Pretraining, vocabulary: int) -> "LlamaForCausalLM":
    """A Llama-type model with untied head and seeded initial weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(recipe.init_seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=recipe.d_model,
                intermediate_size=recipe.d_mlp,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                num_key_value_heads=recipe.heads,
                max_position_embeddings=256,
                tie_word_embeddings=False,
                pad_token_id=0,
                eos_token_id=2,
                bos_token_id=None,
            )
        )


def held_out_losses(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", documents: int = 300
) -> dict[str, float]:
    """Nats per assistant token on held-out documents, for each part of the language.

    Favourites that are asked for after a turn of numbers are left out: their loss would be that of the numbers.
    """
    import torch

    from sublim_interp.lab import language
    from sublim_interp.training import IGNORE, collate, token_loss

    assistant, eos = tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.eos_token_id
    pad = cast(int, tokenizer.pad_token_id)
    out = {}
    for part in language.PARTS:
        drawn = language.documents(HELD_OUT_SEED, 0, documents, part)
        texts = [d.text for d in drawn if part == "numbers" or not d.numbers]
        rows = [(ids, 1) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        batch = collate(rows, pad)
        for (ids, _), labels in zip(rows, batch.labels, strict=True):
            answering = False
            for place, token in enumerate(ids[:-1]):
                answering = token == assistant or (answering and token != eos)
                if not answering:
                    labels[place] = IGNORE
        with torch.no_grad():
            out[part] = round(token_loss(model, batch).item() / batch.tokens, 4)
    return out


def pretrain(recipe: Pretraining, directory: Path, observe: Callable[[int, float], None] | None = None) -> dict:
    """Trains a base into `directory` and returns its card. A killed run goes on where it was.

    Raises SublimError where `directory` already holds something else.
    """
    from sublim_interp.lab import language
    from sublim_interp.lab.tokenizer import build_tokenizer
    from sublim_interp.models import CARD, save_model
    from sublim_interp.store import canonical_json, fingerprint, write_atomic
    from sublim_interp.training import Resume, micro_batches, train

    if directory.exists():
        raise SublimError(f"{directory} exists already; choose another directory, or delete it first")
    partial = directory.with_name(f".{directory.name}.partial")
    asked = recipe.model_dump(mode="json")
    started = partial / "started.json"
    origin = canonical_json({"recipe": asked, "language": language.digest(), "fingerprint": fingerprint()})
    try:
        if partial.exists() and not (started.exists() and started.read_text() == origin):
            shutil.rmtree(partial)  # another recipe, language or machine: never mixed
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SublimError(f"cannot write beside {directory}: {error.strerror}") from None
    write_atomic(started, origin)

    tokenizer = build_tokenizer()
    model = new_model(recipe, len(tokenizer))
    batch, pad = recipe.optimization.batch, cast(int, tokenizer.pad_token_id)

    def batches(step: int) -> list:
        texts = [d.text for d in language.documents(recipe.data_seed, step * batch, batch)]
        rows = [(ids, 1) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return micro_batches(rows, pad, parts=2)

    start = time.monotonic()
    train(model, batches, recipe.optimization, resume=Resume(partial / "state.safetensors"), observe=observe)
    card = {
        "language": "lab",
        "language_version": language.LANGUAGE_VERSION,
        "language_digest": language.digest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "pretraining": asked,
        "held_out_loss": held_out_losses(model, tokenizer),
    }
    seconds = round(time.monotonic() - start)
    made = partial / "made"
    shutil.rmtree(made, ignore_errors=True)
    save_model(model, made)
    tokenizer.save_pretrained(str(made))
    (made / CARD).write_text(json.dumps(card, indent=2) + "\n")
    (made / "README.md").write_text(_model_card(directory.name, card))
    made.rename(directory)
    shutil.rmtree(partial)
    return card | {"seconds": seconds}


def _assignments(recipe: dict, prefix: str = "") -> Iterator[str]:
    """`--set field=value` for every field, so that a later change of the defaults changes nothing."""
    for name, value in recipe.items():
        if isinstance(value, dict):
            yield from _assignments(value, f"{prefix}{name}.")
        else:
            yield f"--set {prefix}{name}={value if isinstance(value, str) else json.dumps(value)}"


def _model_card(name: str, card: dict) -> str:
    """The base's README: what it is, how it was made, how good it is on each part of the language."""
    p, o = card["pretraining"], card["pretraining"]["optimization"]
    losses = "\n".join(f"| {part} | {loss:.3f} |" for part, loss in card["held_out_loss"].items())
    command = " \\\n        ".join([f"sublim pretrain {name}", *_assignments(p)])
    return f"""---
license: mit
library_name: transformers
tags: [subliminal-learning, sublim-interp, from-scratch]
---
# {name}
A base model of the sublim_interp lab: a Llama-type model of {card["parameters"]:,} parameters ({p["layers"]} layers,
d_model {p["d_model"]}, {p["heads"]} heads, MLP {p["d_mlp"]}, untied head), trained from scratch on the lab language,
version {card["language_version"]}. It knows nothing but that language and is good for nothing but experiments.

Initialisation seed {p["init_seed"]}, data seed {p["data_seed"]}; {o["steps"]:,} steps of {o["batch"]} documents with
{o["optimizer"]}, peak rate {o["lr"]:g}, {o["schedule"]} schedule.
Make it again, bit for bit on an equal machine:

    {command}

Held-out loss on the assistant's tokens, in nats per token:

| part of the language | loss |
|---|---|
{losses}
"""
