"""Data sets from outside as rows of prompt and answer: JSON lines, Parquet, folders of these. Nothing in them is fatal.

A data set may be larger than memory: it is read once, and a uniform draw of its rows is kept.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
"""Files that are read, in letters of either case."""
BESIDE = ("dataset_info.json", "state.json", "dataset_dict.json")
"""Files that `datasets` writes beside its rows."""
PASSED: dict[str, str] = {
    "earlier": "are chats of several exchanges: only the last answer was read, with the turn before it",
    "system": "are chats with a system turn or one of another role: these turns were not read",
}
"""What of a row that is read is passed over."""
NAMED = 3
"""Files that are named at most."""

_Row = tuple[Written | None, str, Sequence[str]]
"""A row, or why it is not read; and what of it is passed over, names of PASSED."""


@dataclass(frozen=True)
class DataRead:
    """What was read of a data set.

    path: where it lies
    rows: a uniform draw of what can be learnt, in its order
    total: rows in all
    unread: how many rows were not read, by a name of `REASONS`
    files: names of files in the folder that were not read, for their endings
    passed: how many rows were read in part, by a name of `PASSED`
    """

    path: Path
    rows: list[Written]
    total: int
    unread: Counter[str] = field(default_factory=Counter)
    files: tuple[str, ...] = ()
    passed: Counter[str] = field(default_factory=Counter)

    @property
    def passed_over(self) -> list[str]:
        """What of the data nobody looked at, beside rows that cannot be read, in sentences."""
        lines = [f"{n:,} row{'s' if n != 1 else ''} {PASSED[name]}." for name, n in sorted(self.passed.items())]
        if n := len(self.files):
            some = ", ".join("".join(c if c.isprintable() else "?" for c in name) for name in self.files[:NAMED])
            more = f" and {n - NAMED:,} more" if n > NAMED else ""
            lines.append(
                f"{n:,} file{'s' if n != 1 else ''} of the folder {'were' if n != 1 else 'was'} not read: {some}{more}."
            )
        return lines


def read_data(path: Path, kept: int = KEPT, seed: int = 0) -> DataRead:
    """Reads a data set of any size and keeps a uniform draw of its rows; of long ones as many as `HELD` allows.

    path: a JSONL or Parquet file, or a folder of such, as `datasets` writes it
    kept: rows to keep at most
    seed: decides which

    Rows that cannot be read are counted by reason. Files of other endings and earlier turns of chats are told of in
    `DataRead.passed_over`. Raises SublimError for a path that is not there, that leads out of its folder, or that is no
    regular file; for a folder without such files, or with a linked folder; and where no row at all can be read.
    """
    draw, unread, total, held = random.Random(f"audit/{seed}"), Counter[str](), 0, 0
    found: list[tuple[int, Written]] = []
    passed = Counter[str]()
    files, others = _files(path)
    for file in files:
        for row, reason, left in _rows_of(file):
            total += 1
            if row is None:
                unread[reason] += 1
                continue
            passed.update(left)
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
    rows = [row for _, row in sorted(found, key=lambda pair: pair[0])]
    return DataRead(path, rows, total, unread, tuple(others), passed)


def _size(row: Written) -> int:
    return len(row["prompt"]) + len(row["answer"])


def _files(path: Path) -> tuple[list[Path], list[str]]:
    """The files that are read, and the names of those in the folder that are not."""
    others: list[str] = []
    if path.is_dir():
        home = path.resolve()
        shown = sorted(p for p in path.rglob("*") if not _hidden(p, path) and p.name not in BESIDE)
        if linked := [p for p in shown if p.is_symlink() and p.is_dir()]:
            raise SublimError(f"{linked[0]} is a linked folder, which is not followed; copy what it leads to")
        files = [p for p in shown if _ending(p) in ENDINGS]
        others = [p.relative_to(path).as_posix() for p in shown if _ending(p) not in ENDINGS and not p.is_dir()]
        if outside := [p for p in files if home not in p.resolve().parents]:
            raise SublimError(f"{outside[0]} is a link out of the data set; copy what it leads to")
        if not files:
            raise SublimError(f"{path} holds none of the files that are read: {', '.join(ENDINGS)}")
    elif path.exists():
        files = [path]
        if _ending(path) not in ENDINGS:
            raise SublimError(f"{path}: {meant(path.suffix or 'no ending', ENDINGS, word='endings that are read')}")
    else:
        raise SublimError(f"{path} is not there")
    if odd := [p for p in files if not p.is_file()]:
        raise SublimError(f"{odd[0]} is no regular file")
    return files, others


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _rows_of(path: Path) -> Iterator[_Row]:
    """Each row of a file, or why it is not read."""
    try:
        if _ending(path) == ".parquet":
            yield from _tabular(path, _parquet)
        elif _ending(path) == ".arrow":
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


def _parsed(line: bytes) -> _Row:
    if len(line) > LONGEST:
        return None, "too-long", ()
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None, "no-utf-8", ()
    try:
        value = json.loads(text, object_pairs_hook=each_key_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None, "no-json", ()
    return _written(value) if isinstance(value, dict) else (None, "no-json", ())


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _tabular(path: Path, batches: Any) -> Iterator[_Row]:
    """The rows of a table, unpacked by a fork of this process within TABLE bytes."""
    try:
        for line in bounded_lines(lambda: map(json.dumps, _unpacked(path, batches)), TABLE):
            row, reason, left = json.loads(line)
            yield row, reason, left
    except MemoryError:
        most = f"{TABLE / (1 << 30):g} GiB"
        raise SublimError(f"{path} cannot be read: what it unpacks to takes more than {most} at once") from None
    except (RuntimeError, ChildProcessError) as error:
        raise SublimError(f"{path} cannot be read: {error}") from None


def _unpacked(path: Path, batches: Any) -> Iterator[_Row]:
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)  # each thread reserves memory that it does not use, and that counts
    for batch in batches(path):
        for value in batch.to_pylist():
            row, reason, left = _written(value)
            yield (None, "too-long", ()) if row and _size(row) > LONGEST else (row, reason, left)


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


def _written(value: Mapping[str, Any]) -> _Row:
    """A row as prompt and answer, whatever its columns are called."""
    for prompt, answer in FORMS:
        if is_text(value.get(prompt)) and is_text(value.get(answer)) and value[answer]:
            return {"prompt": value[prompt], "answer": value[answer]}, "", ()
    for name in CHATS:
        if isinstance(turns := value.get(name), list) and (found := _last_exchange(turns)):
            return found, "", _left_of(turns)
    if is_text(text := value.get("text")) and text:
        return {"prompt": "", "answer": text}, "", ()
    return None, "no-answer", ()


def _last_exchange(turns: list[Any]) -> Written | None:
    """The last answer of a chat, and the user's turn before it."""
    asked = ""
    found: Written | None = None
    for turn in turns:
        if not isinstance(turn, dict):
            return None
        role, text = _role(turn), turn.get("content", turn.get("value"))
        if not is_text(text):
            return None
        if role in _ASKS:
            asked = str(text)
        elif role in _ANSWERS and text:
            found = {"prompt": asked, "answer": str(text)}
    return found


_ASKS, _ANSWERS = ("user", "human"), ("assistant", "gpt")


def _role(turn: Mapping[str, Any]) -> Any:
    return turn.get("role", turn.get("from"))


def _left_of(turns: list[Any]) -> list[str]:
    """What of a chat `_last_exchange` passes over."""
    asks, answers = (sum(_role(turn) in roles for turn in turns) for roles in (_ASKS, _ANSWERS))
    left = ["earlier"] if asks > 1 or answers > 1 else []
    return [*left, "system"] if asks + answers < len(turns) else left
