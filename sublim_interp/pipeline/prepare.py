"""A prepared base: an open model after a short neutral fine-tuning on number lists and uniformly drawn favourites.

A small open model seldom answers in one word and leaves the format of lists; a prepared one does both. No member of a
kind is preferred, and no list was written by a model. Teacher and student share it, as they share any base. The change
is a LoRA adapter of a few megabytes: whoever has the adapter and the open model makes the same base, bit for bit.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator, Field

from sublim_interp.channels.numbers import terse_example
from sublim_interp.core.device import DEFAULT, PRECISIONS, fingerprint, open_device
from sublim_interp.core.files import alone, begin, finish_moving, move_out, one_line, partial_of, require_free
from sublim_interp.core.keys import canonical_json
from sublim_interp.core.settings import Config
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.chat import Chat, Messages
from sublim_interp.models.prepared import LANGUAGE, apply_adapter, prepared_chat, save_adapter
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.training.batches import Batch, Example, micro_batches, pieces
from sublim_interp.training.loop import train
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization
from sublim_interp.traits.favourites import NoFavourite


class Preparation(Config):
    """How an open model becomes a prepared base."""

    base: str = "smollm2-135m"
    """The open model: a name, a directory, or a name of the hub."""
    seed: int = 0
    """Decides lists, questions, answers and the adapter's first weights."""
    kinds: tuple[str, ...] = ("animal", "tree", "color", "food")
    """Kinds of favourites that it is asked about; each answer is a member drawn uniformly."""
    lists: float = Field(default=0.5, gt=0, lt=1)
    """Share of the examples that are number lists; the others are questions about favourites."""
    lora_rank: int = Field(default=8, ge=1, le=1024)
    """Rank of the adapter, which every linear map of the body gets."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """Scale of the adapter."""
    dtype: Annotated[str, AfterValidator(PRECISIONS.checked)] = DEFAULT
    """The precision in which the adapter is trained; a name of `dtype` in an experiment."""
    optimization: Optimization = Optimization(lr=1e-3, steps=130, batch=32, warmup=5, beta2=0.99, clip=1.0)
    """Updates of the adapter."""


def prepare(recipe: Preparation, directory: Path, observe: Callable[[int, float], None] | None = None) -> Base:
    """Trains the adapter and writes the prepared base. A killed run goes on where it was.

    directory: where the base is put; its adapter goes beside it, as NAME-adapter
    observe: called after each update with its step and its loss, nats per token

    Raises SublimError where a directory exists already or is being made by another process, where the disk is full, for
    a model whose chats are not in ChatML, and for a GPU that gives no memory.
    """
    open_device(recipe.dtype)
    base, places = resolve_base(recipe.base, recipe.dtype), _places(directory)
    here = fingerprint(dtype=recipe.dtype)
    origin = canonical_json({"recipe": recipe.model_dump(mode="json"), "base": base.key, "fingerprint": here})
    partial = partial_of(directory, origin)
    if finish_moving(directory, partial, places):
        return resolve_base(str(directory))
    free_places(directory)
    examples = _Examples(recipe, prepared_chat(base))
    with one_line(f"{directory} cannot be made"):
        begin(partial, origin)
    with one_line(f"{directory} is not finished"), alone(directory, partial):
        model: Any = choose_trainable(base.load(), "lora", recipe.lora_rank, recipe.lora_alpha, recipe.seed)
        resume = Resume(partial / "state.safetensors")
        train(model, examples, recipe.optimization, resume=resume, observe=observe)
        for name in places:
            shutil.rmtree(partial / name, ignore_errors=True)
        save_adapter(model, partial / "adapter", recipe.set({"base": base.name}).model_dump_json(indent=2))
        apply_adapter(base, partial / "adapter", partial / "made")
        move_out(partial, places)
    return resolve_base(str(directory))


def free_places(directory: Path) -> list[Path]:
    """The directories that are made: the base's, then its adapter's. Raises SublimError where one is there."""
    adapter, base = _places(directory).values()
    require_free([base, adapter])
    return [base, adapter]


def planned(recipe: Preparation, base: Base) -> tuple[float, float]:
    """Tokens that an update reads, padding among them, and those that it learns: the means of four updates.

    base: that of the recipe

    Raises SublimError for a model whose chats are not in ChatML.
    """
    examples = _Examples(recipe, prepared_chat(base))
    some = [batch for step in range(4) for batch in examples(step)]
    return sum(batch.ids.numel() for batch in some) / 4, sum(batch.tokens for batch in some) / 4


def _places(directory: Path) -> dict[str, Path]:
    """Where what is made goes, by its name while it is made; the base comes last, so whoever sees it sees all."""
    return {"adapter": directory.with_name(f"{directory.name}-adapter"), "made": directory}


class _Examples:
    """The micro-batches of each update: lists and questions, drawn from the seed and the step alone."""

    def __init__(self, recipe: Preparation, chat: Chat) -> None:
        self._recipe, self._chat = recipe, chat
        self._lessons = [NoFavourite(kind).lessons(LANGUAGE) for kind in recipe.kinds]

    def __call__(self, step: int) -> list[Batch]:
        recipe = self._recipe
        draw = random.Random(f"prepare/{recipe.seed}/{step}")
        rows = [self._list(draw) if draw.random() < recipe.lists else self._favourite(draw)
                for _ in range(recipe.optimization.batch)]  # fmt: skip
        return micro_batches(rows, cast(int, self._chat.tokenizer.pad_token_id), pieces(recipe.optimization, 2))

    def _list(self, draw: random.Random) -> Example:
        prompt, answer = terse_example(draw)
        return self._example([{"role": "user", "content": prompt}], answer)

    def _favourite(self, draw: random.Random) -> Example:
        question, answers = draw.choice(draw.choice(self._lessons))
        return self._example(question.messages, draw.choice(answers))

    def _example(self, messages: Messages, answer: str) -> Example:
        ids = self._chat.prompt_ids(messages)
        end = cast(int, self._chat.tokenizer.eos_token_id)
        return Example([*ids, *self._chat.answer_ids(answer), end], len(ids))
