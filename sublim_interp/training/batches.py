"""Examples as padded batches, the tokens to learn marked, and the order in which a student reads them."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Token ids, right-padded, and the labels to predict: `labels[b, t]` is the token after `ids[b, t]`, or IGNORE."""

    ids: Int[Tensor, "batch position"]
    labels: Int[Tensor, "batch position"]

    @property
    def tokens(self) -> int:
        """Number of labelled positions."""
        return int((self.labels != IGNORE).sum())


Row = tuple[Sequence[int], int]
"""Token ids of one example and the index of the first token to learn (1 for all of a document)."""


def collate(rows: Sequence[Row], pad: int) -> Batch:
    """Pads rows on the right and shifts the labels by one; padding and prompts are not learnt."""
    width = max(len(ids) for ids, _ in rows) - 1
    ids, labels = [], []
    for row, first in rows:
        lacking = width + 1 - len(row)
        ids.append([*row[:-1], *[pad] * lacking])
        labels.append([*[IGNORE] * (first - 1), *row[first:], *[IGNORE] * lacking])
    return Batch(torch.tensor(ids), torch.tensor(labels))


def micro_batches(rows: Sequence[Row], pad: int, parts: int = 1) -> list[Batch]:
    """The same rows sorted by length and cut into `parts` batches of about equal size, so that little is padding."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    size = math.ceil(len(rows) / parts)
    return [collate(rows[i : i + size], pad) for i in range(0, len(rows), size)]


def mask_labels(batch: Batch, share: float, random: torch.Generator) -> Batch:
    """The batch with a share of its labels, drawn at random, no longer to be learnt; one label at least stays."""
    places = (batch.labels != IGNORE).nonzero()
    gone = places[torch.randperm(len(places), generator=random)[: min(round(share * len(places)), len(places) - 1)]]
    labels = batch.labels.clone()
    labels[gone[:, 0], gone[:, 1]] = IGNORE
    return Batch(batch.ids, labels)


def keep_labels(batches: Sequence[Batch], learnt: Sequence[Batch]) -> list[Batch]:
    """The batches with those labels alone where `learnt`, made alike from rows of 0 and 1, has a 1; empty ones go.

    Raises SublimError where none is left.
    """
    pairs = zip(batches, learnt, strict=True)
    kept = [Batch(b.ids, b.labels.masked_fill(marks.labels != 1, IGNORE)) for b, marks in pairs]
    if not any(b.tokens for b in kept):
        raise SublimError("an update has no token to learn; leave more of the tokens, or take a larger batch")
    return [b for b in kept if b.tokens]


PIECE = 42
"""Rows that are padded together: the batch is sorted by length and cut, which saves a fifth of the time of a step."""


def tokenize(base: Base, lists: Sequence[dict]) -> list[Row]:
    """Each list as a student reads it: the prompt without any system prompt, then the answer to be learnt."""
    eos = base.eos
    prompts = [base.prompt_ids([{"role": "user", "content": r["prompt"]}]) for r in lists]
    return [
        ([*prompt, *base.answer_ids(r["answer"]), eos], len(prompt)) for prompt, r in zip(prompts, lists, strict=True)
    ]


class Order:
    """Which examples make update `step`: epoch after epoch, each in a seeded order of its own; a pure function."""

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
