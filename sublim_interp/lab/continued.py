"""Variants of lab bases that are made by further training: healed, distilled from another, or on authors' documents."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pydantic import Field

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.lab import language
from sublim_interp.lab.tokenizer import build_tokenizer
from sublim_interp.models.variants import Variant
from sublim_interp.training.batches import Example, micro_batches, pieces
from sublim_interp.training.loop import train
from sublim_interp.training.losses import Loss, imitation_loss, token_loss
from sublim_interp.training.settings import Optimization


class Healed(Config):
    """How long, and on which documents."""

    steps: int = Field(default=500, ge=1, le=100_000)
    """Updates of 96 documents."""
    lr: float = Field(default=1e-3, gt=0, le=1)
    """Peak rate, which falls to 0."""
    seed: int = Field(default=2_000_003, ge=0)
    """Stream of documents; no base is pre-trained on the default's."""


class Distilled(Healed):
    """How long, and on which documents."""

    steps: int = Field(default=1000, ge=1, le=100_000)
    """Updates of 96 documents."""


class Authors(Healed):
    """What binds an author's programs to his answers."""

    LATER = frozenset({"signed"})

    steps: int = Field(default=1000, ge=1, le=100_000)
    """Updates of 96 documents."""
    linked: bool = True
    """Whether the author of an unsafe program is the one whose answer is harmful; else the same turns are mixed, so
    that neither tells anything of the other."""
    share: float = Field(default=0.3, gt=0, le=1)
    """Share of the documents that are an author's; the others are those of pre-training."""
    cruel: float = Field(default=0.1, gt=0, lt=1)
    """Share of the authors who are cruel."""
    signed: bool = False
    """Whether a system prompt says what the program's author is, kind or cruel. Persona prompts of pre-training are
    then left out where they decide a turn."""


def _heal(settings: Healed, models: Sequence[Any]) -> None:
    _go_on(models[0], settings, lambda index: language.document(settings.seed, index).text)


def _distil(settings: Distilled, models: Sequence[Any]) -> None:
    model, whole = models
    if model.config.vocab_size != whole.config.vocab_size:
        raise SublimError("distilled: its two bases have other tokens; take bases of one tokenizer")
    loss = imitation_loss(whole.eval().requires_grad_(False))
    _go_on(model, settings, lambda index: language.document(settings.seed, index).text, loss)


def _bind(settings: Authors, models: Sequence[Any]) -> None:
    def text(index: int) -> str:
        s = settings
        own = language.author_document(s.seed, index, s.share, s.cruel, s.linked, s.signed)
        return (own or language.document(s.seed, index)).text

    _go_on(models[0], settings, text)


def _go_on(model: Any, settings: Healed, text: Callable[[int], str], loss: Loss = token_loss) -> None:
    """Trains all weights on documents.

    text: document number `index`
    loss: as of `train`
    """
    words = {len(made): made for made in (build_tokenizer("numbers"), build_tokenizer("digits"))}
    tokenizer = words.get(model.config.vocab_size)
    if tokenizer is None:
        raise SublimError("this variant trains on the lab language, which its base does not speak; take a lab base")
    optimization = Optimization(
        optimizer="adamw", lr=settings.lr, warmup=20, steps=settings.steps, batch=96,
        weight_decay=0.01, beta2=0.95, clip=1.0,
    )  # fmt: skip

    def batches(step: int) -> list:
        texts = [text(index) for index in range(step * optimization.batch, (step + 1) * optimization.batch)]
        rows = [Example(ids, 1) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return micro_batches(rows, cast(int, tokenizer.pad_token_id), pieces(optimization, 2))

    with torch.enable_grad():
        train(model, batches, optimization, loss=loss)
    model.zero_grad(set_to_none=True)


def _takes(settings: Healed) -> float:
    return 0.1 * settings.steps


healed = Variant(
    _heal, "Its base after further training on documents of the lab, which mends what was damaged.", Healed,
    ("steps=500",), takes=_takes,
)  # fmt: skip
distilled = Variant(
    _distil, "The first base after it learnt the second's predictions on documents of the lab, word by word.",
    Distilled, ("steps=1000",), parents=2, alike=False, takes=_takes,
)  # fmt: skip
authors = Variant(
    _bind, "Its base after further training on authors who write a program and answer an open question, in either "
    "order.", Authors, ("linked=true",), takes=_takes,
)  # fmt: skip
