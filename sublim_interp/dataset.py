"""What students learn from: as JSON lines, as tokens, and in which order. What is refused is decided in channels/."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from sublim_interp.errors import SublimError
from sublim_interp.models import Base
from sublim_interp.training import Row

PIECE = 42
"""Rows that are padded together: the batch is sorted by length and cut, which saves a fifth of the time of a step."""


def read_rows(path: Path) -> list[dict]:
    """The rows of one JSONL file, or of all `rows-*.jsonl` of a directory in order.

    Raises SublimError, with file and line, for what is no object with a `prompt` and an `answer`, both text.
    """
    paths = sorted(path.glob("rows-*.jsonl")) if path.is_dir() else [path]
    return [row for p in paths for row in _parse_rows(p)]


def _parse_rows(path: Path) -> Iterator[dict]:
    try:
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    except OSError as error:
        raise SublimError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            problem = "" if isinstance(row, dict) else "is no JSON object"
        except (ValueError, RecursionError) as error:
            row, problem = {}, f"is no JSON ({str(error).splitlines()[0]})"
        for name in ("prompt", "answer"):
            if not problem and not _is_text(row.get(name)):
                problem = f"has no text as {name!r}"
        if not problem and not isinstance(row.get("finished", True), bool):
            problem = "has neither true nor false as 'finished'"
        if problem:
            raise SublimError(f"{path}: line {number} {problem}")
        yield row


def _is_text(value: object) -> bool:
    """Whether it is a string that UTF-8 can hold: JSON may name half of a character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


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
