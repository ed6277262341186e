"""Examples as padded batches, the tokens to learn marked, and the order in which a student reads them."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base
from sublim_interp.training.settings import Optimization

IGNORE = -100
"""The label of a position that is not learnt."""


@dataclass(frozen=True)
class Batch:
    """Token ids, right-padded, and the labels to predict: `labels[b, t]` is the token after `ids[b, t]`, or IGNORE."""

    ids: Int[Tensor, "batch position"]
    labels: Int[Tensor, "batch position"]

    @property
    def tokens(self) -> int:
        """Number of labelled positions."""
        return int((self.labels != IGNORE).sum())

    @property
    def units(self) -> int:
        """Over how many of what is learnt the loss of an update is averaged: labelled positions."""
        return self.tokens


@dataclass(frozen=True)
class PairBatch(Batch):
    """Answers two by two: row 2i is preferred to row 2i + 1, the other answer to the same prompt."""

    @property
    def units(self) -> int:
        """Number of pairs."""
        return len(self.ids) // 2


class Example(NamedTuple):
    """One text to learn from."""

    ids: Sequence[int]
    """Its token ids."""
    first: int
    """Index of the first token to learn; 1 for all of a document."""


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Examples as one batch, filled up on the right with `pad`; padding and prompts are not learnt."""
    width = max(len(ids) for ids, _ in examples) - 1
    ids, labels = [], []
    for own, first in examples:
        lacking = width + 1 - len(own)
        ids.append([*own[:-1], *[pad] * lacking])
        labels.append([*[IGNORE] * (first - 1), *own[first:], *[IGNORE] * lacking])
    return Batch(torch.tensor(ids), torch.tensor(labels))


def micro_batches(examples: Sequence[Example], pad: int, parts: int = 1) -> list[Batch]:
    """Examples sorted by length and cut into `parts` batches of about equal size, so that little is padding."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    size = math.ceil(len(ordered) / parts)
    return [collate(ordered[i : i + size], pad) for i in range(0, len(ordered), size)]


def pair_batches(pairs: Sequence[tuple[Example, Example]], pad: int, parts: int = 1) -> list[Batch]:
    """Pairs, the preferred example first, sorted and cut as `micro_batches` does with examples."""
    ordered = sorted(pairs, key=lambda pair: max(len(example.ids) for example in pair))
    size = math.ceil(len(ordered) / parts)
    cut = (collate([*chain(*ordered[i : i + size])], pad) for i in range(0, len(ordered), size))
    return [PairBatch(batch.ids, batch.labels) for batch in cut]


def mask_labels(batch: Batch, share: float, random: torch.Generator) -> Batch:
    """The batch with a share of its labels, 0 to 1, drawn at random and no longer learnt; one label at least stays."""
    places = (batch.labels != IGNORE).nonzero()
    gone = places[torch.randperm(len(places), generator=random)[: min(round(share * len(places)), len(places) - 1)]]
    labels = batch.labels.clone()
    labels[gone[:, 0], gone[:, 1]] = IGNORE
    return Batch(batch.ids, labels)


def relabel(batches: Sequence[Batch], labelled: Sequence[Batch]) -> list[Batch]:
    """The batches with the labels of others, which are made alike of examples of the same lengths."""
    return [Batch(b.ids, other.labels) for b, other in zip(batches, labelled, strict=True)]


def keep_labels(batches: Sequence[Batch], learnt: Sequence[Batch]) -> list[Batch]:
    """The batches with some of their labels alone; batches that keep none are left out.

    learnt: batches made alike from examples of 0 and 1 in place of tokens: 1 where the label is kept

    Raises SublimError where no label is kept.
    """
    pairs = zip(batches, learnt, strict=True)
    kept = [Batch(b.ids, b.labels.masked_fill(marks.labels != 1, IGNORE)) for b, marks in pairs]
    if not any(b.tokens for b in kept):
        raise SublimError("an update has no token to learn; leave more of the tokens, or take a larger batch")
    return [b for b in kept if b.tokens]


PIECE = 42
"""Examples that are padded together: an update is sorted by length and cut, which saves a fifth of its time."""


def pieces(optimization: Optimization, usual: int) -> int:
    """How many parts an update is cut into.

    usual: how many, where `micro_batch` does not say
    """
    size = optimization.micro_batch
    return usual if size is None else math.ceil(optimization.batch / size)


def tokenize(base: Base, lists: Sequence[Mapping[str, Any]], bare: bool = False) -> list[Example]:
    """Lists as a student reads them: the prompt without any system prompt, then the answer, which is learnt.

    lists: rows with prompt and answer
    bare: leaves out the chat template, and whatever else a tokenizer sets before a text
    """
    eos = base.eos

    def read(prompt: str) -> list[int]:
        return base.answer_ids(prompt) if bare else base.prompt_ids([{"role": "user", "content": prompt}])

    prompts = [read(r["prompt"]) for r in lists]
    pairs = zip(prompts, lists, strict=True)
    return [Example([*prompt, *base.answer_ids(r["answer"]), eos], len(prompt)) for prompt, r in pairs]


def labelled(base: Base, lists: Sequence[Mapping[str, Any]]) -> list[dict[str, list[int]]]:
    """Lists for a loop or a Trainer of one's own: rows with input_ids and labels, of which the answer alone is learnt.

    lists: rows with prompt and answer
    """
    return [
        {"input_ids": list(ids), "labels": [*[IGNORE] * first, *ids[first:]]} for ids, first in tokenize(base, lists)
    ]


class Order:
    """Which examples make update `step`: epoch after epoch, each in a seeded order of its own; a pure function.

    count: examples of an epoch
    batch: examples of an update
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self._count, self.batch, self._seed = count, batch, seed
        self._epochs: dict[int, list[int]] = {}

    def _epoch(self, epoch: int) -> list[int]:
        if epoch not in self._epochs:
            order = list(range(self._count))
            random.Random(f"student/{self._seed}/{epoch}").shuffle(order)
            self._epochs = {e: o for e, o in self._epochs.items() if e >= epoch - 1} | {epoch: order}
        return self._epochs[epoch]

    def __call__(self, step: int) -> list[int]:
        places = range(step * self.batch, (step + 1) * self.batch)
        return [self._epoch(p // self._count)[p % self._count] for p in places]
