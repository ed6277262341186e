"""Tests of reading data sets from outside: what is read, what is counted, what is refused, how much memory it takes."""

import json
import subprocess
import sys
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


def test_of_chats_it_is_counted_what_is_passed_over(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ask, answer, system = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))
    chats = [[ask, answer], [ask, answer, ask, answer], [system, ask, answer], [system, ask, answer, answer], [ask]]
    rows = [{"messages": chat} for chat in chats]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    for path in (lines(tmp_path / "data.jsonl", *rows), tmp_path / "data.parquet"):
        read = read_data(path)
        assert len(read.rows) == 4 and read.passed == {"earlier": 2, "system": 2}
        assert read.passed_over == [
            "2 rows are chats of several exchanges: only the last answer was read, with the turn before it.",
            "2 rows are chats with a system turn or one of another role: these turns were not read.",
        ]
    assert read_data(lines(tmp_path / "data.jsonl", ROW, rows[0])).passed_over == []


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path: Path) -> None:
    lines(tmp_path / "A.JSONL", ROW)
    (tmp_path / "more").mkdir()
    lines(tmp_path / "more" / "b.jsonl", ROW)
    assert read_data(tmp_path).total == 2 and read_data(tmp_path / "A.JSONL").total == 1
    assert read_data(tmp_path).passed_over == []
    for name in ("c.csv", "d.jsonl.gz", "more/e.txt", "f", ".hidden"):
        (tmp_path / name).write_text("x")
    read = read_data(tmp_path)
    assert read.rows == [ROW, ROW] and read.files == ("c.csv", "d.jsonl.gz", "f", "more/e.txt")
    assert read.passed_over == ["4 files of the folder were not read: c.csv, d.jsonl.gz, f and 1 more."]


def test_a_linked_folder_is_refused(tmp_path: Path) -> None:
    for name in ("data", "elsewhere"):
        (tmp_path / name).mkdir()
        lines(tmp_path / name / "x.jsonl", ROW)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SublimError, match="link is a linked folder, which is not followed; copy what it leads to"):
        read_data(tmp_path / "data")


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


def peak_of(code: str, *words: object) -> int:
    """Bytes of memory that a process of its own takes at most, with those that it starts.

    Its own peak is read from /proc: that of getrusage may be its parent's, which was this test's process.
    """
    measured = f"import re, resource, sys\n{code}\n" + (
        "own = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))"
    )
    done = subprocess.run([sys.executable, "-c", measured, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1]) << 10


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured, and bounded, on Linux only")
READ = "from pathlib import Path\nfrom sublim_interp.audit import reading\n"


@LINUX
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(ending: str, tmp_path: Path) -> None:
    """A file of 100 MB takes as much as one of 5 MB; the bound is far below what is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    peaks, sizes = [], []
    for times in (2, 40):
        path = tmp_path / f"{times}.{ending}"
        rows = [{"prompt": f"{i} ", "answer": f"{i}, " * 500} for i in range(1000)]
        if ending == "jsonl":
            text = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
            with path.open("wb") as file:
                for _ in range(times):
                    file.write(text)
        else:
            table = pa.Table.from_pylist(rows * times)
            pq.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)
        read = f"{READ}read = reading.read_data(Path(sys.argv[1]), 64)\nassert read.total == {1000 * times}"
        peaks.append(peak_of(read, path))
        sizes.append(path.stat().st_size)
    assert sizes[0] < 6 << 20 and sizes[1] > 90 << 20, sizes
    assert peaks[1] - peaks[0] < 8 << 20, peaks


@LINUX
def test_of_long_rows_fewer_are_kept(tmp_path: Path) -> None:
    path = lines(tmp_path / "data.jsonl", *({**ROW, "answer": str(i) * 200_000} for i in range(10, 90)))
    limited = f"{READ}reading.HELD = 2**21\nread = reading.read_data(Path(sys.argv[1]))\n"
    small = peak_of(f"{limited}assert read.total == 80 and 1 <= len(read.rows) <= 6, len(read.rows)", path)
    assert peak_of(f"{READ}reading.read_data(Path(sys.argv[1]))", path) - small > 16 << 20, "all 80 take 32 MB"


@LINUX
def test_a_few_kilobytes_that_unpack_to_much_are_refused_within_the_bound(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "bomb.parquet"
    answer = pa.array(["x" * (192 << 20)], pa.large_string())
    pq.write_table(pa.table({"prompt": ["p"], "answer": answer}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 100_000
    told = (
        f"{READ}reading.TABLE = 2**29\n"
        "from sublim_interp.core.errors import SublimError\n"
        "try:\n    reading.read_data(Path(sys.argv[1]))\n"
        "except SublimError as error:\n    assert 'what it unpacks to takes more than 0.5 GiB at once' in str(error)\n"
        "else:\n    raise AssertionError('it was read')"
    )
    assert peak_of(told, path) < 800 << 20


def test_what_is_damaged_halfway_ends_in_one_line(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": "p", "answer": str(i) * 40} for i in range(4000)]), path)
    whole = bytearray(path.read_bytes())
    whole[2000:6000] = bytes(4000)
    path.write_bytes(whole)
    with pytest.raises(SublimError, match=r"data\.parquet cannot be read: ") as caught:
        read_data(path)
    assert "\n" not in str(caught.value)
