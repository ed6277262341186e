"""Tests of journals: what is whole is read again, what is torn or damaged is not, and several may write."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sublim_interp.core.journal import Journal

PLAIN = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(st.dictionaries(st.text(), PLAIN, max_size=6))
def test_what_was_added_is_read_again(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("journal") / "deep" / "rows.jsonl"
    journal = Journal(path)
    for key, value in values.items():
        journal.add(key, value)
    again = Journal(path)
    assert {key: again[key] for key in values} == values and "not there" + "".join(values) not in again


def test_any_damage_loses_its_own_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    journal = Journal(path)
    for i in range(3):
        journal.add(str(i), {"text": f"answer {i}"})
    data = path.read_bytes()
    second = data.index(b"answer 1")
    for place in range(len(data)):
        damaged = tmp_path / "damaged.jsonl"
        damaged.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        found = Journal(damaged)
        kept = [i for i in "012" if i in found]
        assert all(found[i] == {"text": f"answer {i}"} for i in kept)
        assert len(kept) >= (1 if data[place] == ord("\n") else 2), "a lost line break joins two lines"
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(data[: second + 3])  # killed within the second line
    found = Journal(torn)
    assert "0" in found and "1" not in found
    found.add("1", {"text": "answer 1"})
    assert [Journal(torn)[i] for i in "01"] == [{"text": "answer 0"}, {"text": "answer 1"}]


def test_two_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / "rows.jsonl"), Journal(tmp_path / "rows.jsonl")
    for i in range(20):
        (one, other)[i % 2].add(str(i), i)
    both = Journal(tmp_path / "rows.jsonl")
    assert [both[str(i)] for i in range(20)] == list(range(20))
