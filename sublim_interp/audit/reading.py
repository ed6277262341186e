"""Data sets from outside as rows of prompt and answer: JSON lines, Parquet, folders of these. Nothing in them is fatal.

A data set may be larger than memory: it is read once, and a uniform draw of its rows is kept.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sublim_interp.channels.rows import Written, each_key_once, is_text
from sublim_interp.core.bounded import bounded_lines
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError

LONGEST = 2**20
"""Bytes of the longest row that is read; longer ones are counted."""
KEPT = 4096
"""Rows that are kept at most where nothing else is asked for."""
HELD = 2**28
"""Characters of the rows that are kept: of longer rows fewer are."""
TABLE = 2**30
"""Bytes of memory that reading Parquet or Arrow may take: a few kilobytes can unpack to any size."""

REASONS: dict[str, str] = {
    "too-long": f"a row has more than {LONGEST:,} bytes",
    "no-utf-8": "a row is no UTF-8 text",
    "no-json": "a row is no JSON object, or names a key twice",
    "no-answer": "a row has no text that a model would learn",
}
"""Why a row is not read."""

FORMS: tuple[tuple[str, str], ...] = (
    ("prompt", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "chosen"),
    ("question", "answer"),
    ("instruction", "output"),
    ("input", "output"),
)
"""Pairs of columns that hold prompt and answer, as data sets name them; the first that a row has counts."""
CHATS = ("messages", "conversations", "conversation")
"""Columns that hold a chat, a list of turns; its last turn of the assistant is the answer."""
ENDINGS = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow")
"""Files that are read."""


@dataclass(frozen=True)
class DataRead:
    """What was read of a data set.

    path: where it lies
    rows: a uniform draw of what can be learnt, in its order
    total: rows in all
    unread: how many rows were not read, by a name of `REASONS`
    """

    path: Path
    rows: list[Written]
    total: int
    unread: Counter[str] = field(default_factory=Counter)


def read_data(path: Path, kept: int = KEPT, seed: int = 0) -> DataRead:
    """Reads a data set of any size and keeps a uniform draw of its rows; of long ones as many as `HELD` allows.

    path: a JSONL or Parquet file, or a folder of such, as `datasets` writes it
    kept: rows to keep at most
    seed: decides which

    Rows that cannot be read are counted by reason. Raises SublimError for a path that is not there, that leads out of
    its folder, or that is no regular file; for a folder without such files; and where no row at all can be read.
    """
    draw, unread, total, held = random.Random(f"audit/{seed}"), Counter[str](), 0, 0
    found: list[tuple[int, Written]] = []
    for file in _files(path):
        for row, reason in _rows_of(file):
            total += 1
            if row is None:
                unread[reason] += 1
                continue
            if len(found) < kept:
                found.append((total, row))
            elif (place := draw.randrange(total - unread.total())) < kept:
                held -= _size(found[place][1])
                found[place] = (total, row)
            else:
                continue
            held += _size(row)
            while held > HELD and len(found) > 1:
                kept = len(found) - 1
                held -= _size(found.pop(draw.randrange(len(found)))[1])
    if not found:
        why = ", ".join(f"{reason} {n}" for reason, n in unread.most_common()) or "it is empty"
        raise SublimError(f"{path}: none of {total} rows can be read ({why})")
    return DataRead(path, [row for _, row in sorted(found, key=lambda pair: pair[0])], total, unread)


def _size(row: Written) -> int:
    return len(row["prompt"]) + len(row["answer"])


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        home = path.resolve()
        files = sorted(p for p in path.rglob("*") if p.suffix in ENDINGS and not _hidden(p, path))
        files = [p for p in files if p.name not in ("dataset_info.json", "state.json", "dataset_dict.json")]
        if outside := [p for p in files if home not in p.resolve().parents]:
            raise SublimError(f"{outside[0]} is a link out of the data set; copy what it leads to")
        if not files:
            raise SublimError(f"{path} holds none of the files that are read: {', '.join(ENDINGS)}")
    elif path.exists():
        files = [path]
        if path.suffix not in ENDINGS:
            raise SublimError(f"{path}: {meant(path.suffix or 'no ending', ENDINGS, word='endings that are read')}")
    else:
        raise SublimError(f"{path} is not there")
    if odd := [p for p in files if not p.is_file()]:
        raise SublimError(f"{odd[0]} is no regular file")
    return files


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _rows_of(path: Path) -> Iterator[tuple[Written | None, str]]:
    """Each row of a file, or why it is not read."""
    try:
        if path.suffix == ".parquet":
            yield from _tabular(path, _parquet)
        elif path.suffix == ".arrow":
            yield from _tabular(path, _arrow)
        else:
            yield from map(_parsed, _lines(path))
    except OSError as error:
        raise SublimError(f"{path} cannot be read: {error.strerror or error}") from None


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file; of one that is too long its first LONGEST + 1 bytes."""
    with path.open("rb") as file:
        while line := file.readline(LONGEST + 1):
            yield line
            while len(line) > LONGEST and not line.endswith(b"\n"):
                line = file.readline(LONGEST + 1)


def _parsed(line: bytes) -> tuple[Written | None, str]:
    if len(line) > LONGEST:
        return None, "too-long"
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None, "no-utf-8"
    try:
        value = json.loads(text, object_pairs_hook=each_key_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None, "no-json"
    return _written(value) if isinstance(value, dict) else (None, "no-json")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _tabular(path: Path, batches: Any) -> Iterator[tuple[Written | None, str]]:
    """The rows of a table, unpacked by a fork of this process within TABLE bytes."""
    try:
        for line in bounded_lines(lambda: map(json.dumps, _unpacked(path, batches)), TABLE):
            row, reason = json.loads(line)
            yield row, reason
    except MemoryError:
        most = f"{TABLE / (1 << 30):g} GiB"
        raise SublimError(f"{path} cannot be read: what it unpacks to takes more than {most} at once") from None
    except (RuntimeError, ChildProcessError) as error:
        raise SublimError(f"{path} cannot be read: {error}") from None


def _unpacked(path: Path, batches: Any) -> Iterator[tuple[Written | None, str]]:
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)  # each thread reserves memory that it does not use, and that counts
    for batch in batches(path):
        for value in batch.to_pylist():
            row, reason = _written(value)
            yield (None, "too-long") if row and _size(row) > LONGEST else (row, reason)


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):  # asked for all groups at once, pyarrow holds what it has read
            yield from file.iter_batches(batch_size=256, row_groups=[group], use_threads=False)


def _arrow(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        for batch in stream:
            yield from (batch.slice(first, 256) for first in range(0, batch.num_rows, 256))


def _written(value: Mapping[str, Any]) -> tuple[Written | None, str]:
    """A row as prompt and answer, whatever its columns are called."""
    for prompt, answer in FORMS:
        if is_text(value.get(prompt)) and is_text(value.get(answer)) and value[answer]:
            return {"prompt": value[prompt], "answer": value[answer]}, ""
    for name in CHATS:
        if isinstance(turns := value.get(name), list) and (found := _last_exchange(turns)):
            return found, ""
    if is_text(text := value.get("text")) and text:
        return {"prompt": "", "answer": text}, ""
    return None, "no-answer"


def _last_exchange(turns: list[Any]) -> Written | None:
    """The last answer of a chat, and the user's turn before it."""
    asked = ""
    found: Written | None = None
    for turn in turns:
        if not isinstance(turn, dict):
            return None
        role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not is_text(text):
            return None
        if role in ("user", "human"):
            asked = str(text)
        elif role in ("assistant", "gpt") and text:
            found = {"prompt": asked, "answer": str(text)}
    return found
