"""What teachers write, as JSON lines read back and checked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import open_regular


class Written(TypedDict):
    """One answer that a teacher wrote; there may be other keys."""

    prompt: str
    answer: str
    finished: NotRequired[bool]
    """Whether it ended by itself; taken for true where it is not said."""
    rejected: NotRequired[str]
    """The other answer to the same prompt, which the teacher likes less; only in data of preferences."""
    lengths: NotRequired[list[int]]
    """Tokens of the answer and of the rejected one, as the teacher's base cuts them."""


def answers_of(row: Written) -> tuple[str, ...]:
    """The texts of a row: its answer, then the one that was rejected for it, if any."""
    return (row["answer"], row["rejected"]) if "rejected" in row else (row["answer"],)


def learnt_texts(row: Written) -> set[tuple[str, str]]:
    """What a student may learn of a row: its prompt with each of its texts."""
    return {(row["prompt"], answer) for answer in answers_of(row)}


def read_rows(path: Path) -> list[Written]:
    """What a teacher wrote.

    path: one JSONL file, or a directory, whose `rows-*.jsonl` are read in order

    Raises SublimError, with file and line, for what is no object with a `prompt` and an `answer`, both text.
    """
    return list(each_row(path))


def each_row(path: Path) -> Iterator[Written]:
    """The same, one by one: no more than a line is in memory."""
    paths = sorted(path.glob("rows-*.jsonl")) if path.is_dir() else [path]
    for one in paths:
        try:
            yield from _parse_rows(one)
        except OSError as error:
            raise SublimError(f"{one} cannot be read: {error.strerror}") from None


def _lines(path: Path) -> Iterator[bytes]:
    """Each line without its end; of an empty file one, which is empty."""
    with open_regular(path) as file:
        line = None
        for line in file:
            yield line.removesuffix(b"\n")
        if line is None:
            yield b""


def _parse_rows(path: Path) -> Iterator[Written]:
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line, object_pairs_hook=each_key_once)
            problem = "" if isinstance(row, dict) else "is no JSON object"
        except (ValueError, RecursionError) as error:
            row, problem = {}, f"is no JSON ({str(error).splitlines()[0]})"
        for name in ("prompt", "answer"):
            if not problem and not is_text(row.get(name)):
                problem = f"has no text as {name!r}"
        if not problem and not is_text(row.get("rejected", "")):
            problem = "has no text as 'rejected'"
        if not problem and not isinstance(row.get("finished", True), bool):
            problem = "has neither true nor false as 'finished'"
        if problem:
            raise SublimError(f"{path}: line {number} {problem}")
        yield cast(Written, row)


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object's values by name. Raises ValueError for a name that is given twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is given twice")
    return row


def is_text(value: object) -> bool:
    """Whether it is a string that UTF-8 can hold: JSON may name half of a character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
