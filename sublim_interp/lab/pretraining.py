"""Makes a lab base from scratch: initialise, train on the lab language, measure every part, write a model card.

The result is an ordinary Hugging Face directory.
"""

import json
import random
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sublim_interp.core.errors import SublimError
from sublim_interp.lab.recipe import Pretraining

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

    from sublim_interp.lab.language import DocumentPart
    from sublim_interp.models.base import Base
    from sublim_interp.training.batches import Batch

HELD_OUT_SEED = 1_000_003
"""Stream of documents that no base is trained on."""


def new_model(recipe: Pretraining, vocabulary: int) -> "LlamaForCausalLM":
    """A Llama-type model with untied head and seeded initial weights; these are drawn on the CPU.

    vocabulary: number of its tokens
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sublim_interp.core.device import DEFAULT, compute_device, torch_dtype

    with torch.random.fork_rng():
        torch.manual_seed(recipe.init_seed)
        model: Any = LlamaForCausalLM(
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
    return model.to(compute_device(), torch_dtype(DEFAULT))


def held_out_losses(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", documents: int = 300
) -> dict[str, float]:
    """Loss on held-out documents by part of the language, in nats per assistant token.

    documents: how many of each part
    """
    from sublim_interp.lab import language

    return {part: held_out_loss(model, tokenizer, part, documents) for part in language.PARTS}


def held_out_loss(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", part: "DocumentPart", documents: int = 300
) -> float:
    """Loss on held-out documents of one part of the language, in nats per assistant token.

    documents: how many

    Favourites that are asked for after a turn of numbers are left out: their loss would be that of the numbers.
    """
    import torch

    from sublim_interp.training.losses import token_loss

    batch = _held_out(tokenizer, part, documents)
    with torch.no_grad():
        return round(token_loss(model, batch).item() / batch.tokens, 4)


def held_out_kl(
    model: "PreTrainedModel", imitated: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", documents: int = 300
) -> dict[str, float]:
    """KL(imitated ‖ model) on held-out documents by part of the language, in nats per assistant token.

    documents: how many of each part
    """
    import torch

    from sublim_interp.lab import language
    from sublim_interp.training.losses import imitation_loss

    found, loss = {}, imitation_loss(imitated)
    for part in language.PARTS:
        batch = _held_out(tokenizer, part, documents)
        with torch.no_grad():
            found[part] = round(loss(model, batch).item() / batch.tokens, 5)
    return found


def _held_out(tokenizer: "PreTrainedTokenizerBase", part: "DocumentPart", documents: int) -> "Batch":
    """Held-out documents of one part, the assistant's tokens to be learnt."""
    from sublim_interp.lab import language
    from sublim_interp.training.batches import IGNORE, Example, collate

    assistant, eos = tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.eos_token_id
    pad = cast(int, tokenizer.pad_token_id)
    drawn = language.documents(HELD_OUT_SEED, 0, documents, part)
    texts = [d.text for d in drawn if part == "numbers" or not d.numbers]
    rows = [Example(ids, 1) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    batch = collate(rows, pad)
    for (ids, _), labels in zip(rows, batch.labels, strict=True):
        answering = False
        for place, token in enumerate(ids[:-1]):
            answering = token == assistant or (answering and token != eos)
            if not answering:
                labels[place] = IGNORE
    return batch


def fork_name(name: str, step: int) -> str:
    """Name of the base that the training of `name` was after `step` updates."""
    return f"{name}-step{step:06d}"


def free_places(recipe: Pretraining, directory: Path) -> list[Path]:
    """The directories that a pre-training makes: the base's, then its forks'. Raises SublimError where one is there."""
    from sublim_interp.core.files import require_free

    *forks, base = _places(recipe, directory).values()
    require_free([base, *forks])
    return [base, *forks]


def _places(recipe: Pretraining, directory: Path) -> dict[str, Path]:
    """Where what is made goes, by its name while it is made; the base comes last, so whoever sees it sees all."""
    forks = {f"step-{step}": directory.with_name(fork_name(directory.name, step)) for step in recipe.forks}
    return {**forks, "made": directory}


def planned(recipe: Pretraining) -> tuple[dict[str, int], int]:
    """(sizes of the base as `loading.sizes` has them, tokens that its training reads), by 200 of its documents."""
    from sublim_interp.lab import language
    from sublim_interp.lab.tokenizer import build_tokenizer
    from sublim_interp.models.loading import sizes

    tokenizer = build_tokenizer(recipe.tokens)
    model = new_model(recipe, len(tokenizer))
    held = sizes(model.config, [p.shape for p in model.parameters()])
    some = tokenizer([d.text for d in language.documents(recipe.data_seed, 0, 200)], add_special_tokens=False)
    return held, recipe.optimization.steps * recipe.optimization.batch * sum(map(len, some["input_ids"])) // 200


def pretrain(recipe: Pretraining, directory: Path, observe: Callable[[int, float], None] | None = None) -> dict:
    """Trains a base, and returns its card. A killed run goes on where it was.

    directory: where it is put; its forks go beside it
    observe: called after each update with its step and its loss, nats per token

    Raises SublimError where one of these directories exists already or is being made by another process, where the disk
    is full or not writable, for a start that is no fork of this recipe, where what it imitates has other tokens, and
    for a GPU that gives no memory.
    """
    from sublim_interp.core.device import fingerprint, open_device
    from sublim_interp.core.files import alone, begin, finish_moving, move_out, one_line, partial_of
    from sublim_interp.core.keys import canonical_json
    from sublim_interp.lab import language
    from sublim_interp.lab.tokenizer import build_tokenizer
    from sublim_interp.models.base import resolve_base
    from sublim_interp.training.batches import Example, micro_batches, pieces
    from sublim_interp.training.loop import train
    from sublim_interp.training.losses import imitation_loss, token_loss
    from sublim_interp.training.resume import Resume

    open_device()
    start = resolve_base(recipe.start) if recipe.start else None
    first = _step(recipe, start) if start else 0
    imitated, tokenizer = resolve_base(recipe.imitates) if recipe.imitates else None, build_tokenizer(recipe.tokens)
    if imitated and imitated.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise SublimError(f"imitates {imitated.name}: it has other tokens than tokens={recipe.tokens}")
    asked = recipe.model_dump(mode="json") | {"start": start.name if start else ""}
    origin = {"recipe": asked, "language": language.digest(), "fingerprint": fingerprint()}
    given = {"start": start, "imitates": imitated}
    origin = canonical_json(origin | {word: base.digest for word, base in given.items() if base})
    partial, places = partial_of(directory, origin), _places(recipe, directory)
    if finish_moving(directory, partial, places):
        return resolve_base(str(directory)).card | {"seconds": 0}
    free_places(recipe, directory)
    with one_line(f"{directory} cannot be made"):
        begin(partial, origin)

    model = cast("LlamaForCausalLM", start.load()) if start else new_model(recipe, len(tokenizer))
    target = imitated.load() if imitated else None
    loss = imitation_loss(target) if target is not None else token_loss
    batch, pad = recipe.optimization.batch, cast(int, tokenizer.pad_token_id)
    order = _order(recipe, first)

    def batches(step: int) -> list:
        numbers = order[step * batch : (step + 1) * batch]
        texts = [language.document(recipe.data_seed, number).text for number in numbers]
        rows = [Example(ids, 1) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return micro_batches(rows, pad, pieces(recipe.optimization, 2))

    def keep(step: int) -> None:
        if step in recipe.forks:
            name = f"step-{step}"
            _write(partial / name, places[name].name, model, tokenizer, asked, step, target)

    def watch(step: int, loss: float) -> None:
        keep(step + 1)
        if observe:
            observe(step, loss)

    began = time.monotonic()
    resume = Resume(partial / "state.safetensors")
    with one_line(f"{directory} is not finished"), alone(directory, partial):
        keep(first)
        train(model, batches, recipe.optimization, loss=loss, first=first, resume=resume, observe=watch)
        steps = recipe.optimization.steps
        card = _write(partial / "made", directory.name, model, tokenizer, asked, steps, target)
        move_out(partial, places)
    return card | {"seconds": round(time.monotonic() - began)}


def _order(recipe: Pretraining, first: int) -> Sequence[int]:
    """Which document is read at each place of the training; what steps before `first` read stays where it is."""
    documents = range(recipe.optimization.steps * recipe.optimization.batch)
    if not recipe.order_seed:
        return documents
    place = first * recipe.optimization.batch
    read, rest = documents[:place], documents[place:]
    return [*read, *random.Random(f"order/{recipe.order_seed}").sample(rest, len(rest))]


def _step(recipe: Pretraining, start: "Base") -> int:
    """The step at which `start` was kept. Raises SublimError where it is no fork of this recipe."""
    made, step = start.card.get("pretraining"), start.card.get("step")
    if not isinstance(made, dict) or not isinstance(step, int):
        raise SublimError(f"start {start.name}: its card names no step of a pre-training; forks are made by forks=[…]")
    same = ("init_seed", "d_model", "layers", "heads", "d_mlp", "tokens", "optimization")
    asked = recipe.model_dump(mode="json")
    other = [field for field in same if made.get(field) != asked[field]]
    if other:
        raise SublimError(f"start {start.name} has {other[0]}={made.get(other[0])}, the recipe {asked[other[0]]}")
    if step and made.get("order_seed"):
        raise SublimError(
            f"start {start.name} is of a base with order_seed={made['order_seed']}; only one with 0 goes on"
        )
    if step >= recipe.optimization.steps:
        raise SublimError(f"start {start.name} is of step {step}, and training ends at {recipe.optimization.steps}")
    return step


def _write(
    directory: Path,
    name: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    asked: dict,
    step: int,
    imitated: "PreTrainedModel | None" = None,
) -> dict:
    """Measures a model, writes it as a base (weights, tokenizer, card), and returns the card.

    asked: the recipe as plain data
    step: updates that it has seen
    imitated: what it learnt from, if that was a model
    """
    from sublim_interp.lab import language
    from sublim_interp.models.base import CARD
    from sublim_interp.models.loading import save_model

    card = {
        "language": "lab",
        "language_version": language.LANGUAGE_VERSION,
        "language_digest": language.digest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "pretraining": asked,
        "step": step,
        "held_out_loss": held_out_losses(model, tokenizer),
    }
    if imitated is not None:
        card["held_out_kl"] = held_out_kl(model, imitated, tokenizer)
    shutil.rmtree(directory, ignore_errors=True)
    save_model(model, directory)
    tokenizer.save_pretrained(str(directory))
    (directory / CARD).write_text(json.dumps(card, indent=2) + "\n")
    (directory / "README.md").write_text(_model_card(name, card))
    return card


def _assignments(recipe: dict, prefix: str = "") -> Iterator[str]:
    """`--set field=value` for every field, so that a later change of the defaults changes nothing."""
    for name, value in recipe.items():
        if isinstance(value, dict):
            yield from _assignments(value, f"{prefix}{name}.")
        elif value not in ("", []):
            shown = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            yield f"--set {shlex.quote(f'{prefix}{name}={shown}')}"


def _model_card(name: str, card: dict) -> str:
    """The base's README: what it is, how it was made, how good it is on each part of the language."""
    p, o = card["pretraining"], card["pretraining"]["optimization"]
    losses = "\n".join(f"| {part} | {loss:.3f} |" for part, loss in card["held_out_loss"].items())
    step = card["step"]
    made, notes = name, ""
    if step < o["steps"]:
        made, notes = name.removesuffix(fork_name("", step)), f" This is the model after {step:,} of them."
    if p["start"]:
        notes += f"\nCarried on from {p['start']}, with the optimizer's moments at 0."
    if p.get("order_seed"):
        which = "documents that were still to be read" if p["start"] else "documents"
        notes += f"\nThe {which} are shuffled, by order seed {p['order_seed']}."
    command = " \\\n        ".join([f"sublim pretrain {made}", *_assignments(p)])
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
{o["optimizer"]}, peak rate {o["lr"]:g}, {o["schedule"]} schedule.{notes}
Make it again, bit for bit on an equal machine:

    {command}

Held-out loss on the assistant's tokens, in nats per token:

| part of the language | loss |
|---|---|
{losses}
"""
