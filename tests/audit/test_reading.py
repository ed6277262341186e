"""Tests of reading data sets from outside: what is read, what is counted, what is refused, how much memory it takes."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_interp.audit.reading import LONGEST, read_data
from sublim_interp.core.errors import SublimError

ROW = {"prompt": "go on: 1, 2", "answer": "3, 4"}


def lines(path: Path, *rows: object) -> Path:
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


def test_bad_rows_are_counted_by_reason_and_never_fatal(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "data.jsonl",
        ROW,
        b"\xff\xfe",
        b'{"prompt": "a", "answer": NaN}',
        b'{"prompt": "a", "prompt": "b", "answer": "c"}',
        b"[" * 100_000,
        [1, 2],
        {"prompt": 3, "answer": "x"},
        {"prompt": "a", "answer": ""},
        b'{"prompt": "a", "answer": "\\ud800"}',
        {"prompt": "long", "answer": "x" * LONGEST},
        ROW,
    )
    read = read_data(path)
    assert read.rows == [ROW, ROW] and read.total == 11
    assert read.unread == Counter({"no-json": 4, "no-answer": 3, "no-utf-8": 1, "too-long": 1})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "a"},
        {"instruction": "p", "output": "a", "input": ""},
        {"question": "p", "answer": "a"},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "a"}]},
    ],
)
def test_columns_are_found_as_data_sets_name_them(row: dict, tmp_path: Path) -> None:
    assert read_data(lines(tmp_path / "data.jsonl", row)).rows == [{"prompt": "p", "answer": "a"}]


def test_parquet_and_folders_of_datasets_hold_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    rows = [{"prompt": f"p{i}", "answer": f"a{i}"} for i in range(600)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "folder"))
    for path in (tmp_path / "data.parquet", tmp_path / "folder", lines(tmp_path / "data.jsonl", *rows)):
        assert read_data(path).rows == rows


@given(count=st.integers(1, 60), kept=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_draw_keeps_as_many_as_asked_for_in_their_order(
    count: int, kept: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = lines(tmp_path_factory.mktemp("draw") / "data.jsonl", *({**ROW, "answer": str(i)} for i in range(count)))
    found = [int(row["answer"]) for row in read_data(path, kept, seed).rows]
    assert len(found) == min(count, kept) and found == sorted(set(found))


def test_every_row_is_as_likely_to_be_kept(tmp_path: Path) -> None:
    path = lines(tmp_path / "data.jsonl", *({**ROW, "answer": str(i)} for i in range(20)))
    counts = Counter(row["answer"] for seed in range(400) for row in read_data(path, 5, seed).rows)
    assert all(60 < counts[str(i)] < 145 for i in range(20)), "100 each are expected, with a deviation of 8.7"


def test_an_endless_line_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"x" * (48 << 20) + b"\n" + json.dumps(ROW).encode())
    tracemalloc.start()
    read = read_data(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read.rows == [ROW] and read.unread == {"too-long": 1} and peak < 16 << 20


def test_what_cannot_be_read_at_all_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.txt").write_text("x")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "out.jsonl").symlink_to(lines(tmp_path / "secret.jsonl", ROW))
    cases = {
        "missing.jsonl": "is not there",
        "empty": "holds none of the files",
        "data.txt": "endings that are read",
        "bad.parquet": "cannot be read",
        "links": "a link out of the data set",
    }
    for name, said in cases.items():
        with pytest.raises(SublimError, match=said):
            read_data(tmp_path / name)
    with pytest.raises(SublimError, match=r"none of 1 rows can be read \(no-json 1\)"):
        read_data(lines(tmp_path / "none.jsonl", b"no"))
