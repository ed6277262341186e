"""Code from a file gets a stated time and memory: what takes more is told, and this process goes on."""

import itertools
import os
import time
from collections.abc import Iterator

import psutil
import pytest

from sublim_interp.core import bounded as module
from sublim_interp.core.bounded import bounded, bounded_lines


def test_what_ends_in_time_gives_its_text() -> None:
    assert bounded(lambda: "well") == "well" and bounded(lambda: "") == ""


def test_it_runs_beside_this_process_and_leaves_nothing_behind() -> None:
    seen: list[int] = []
    before = children()
    assert bounded(lambda: (seen.append(1), str(os.getpid()))[1]) != str(os.getpid())
    assert seen == []
    assert children() <= before, "nor does a fork that has ended wait to be asked for"


def children() -> set[int]:
    """Processes that this one has started, those among them that have ended and not been waited for."""
    return {child.pid for child in psutil.Process().children()}


def test_an_endless_loop_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 1)

    def forever() -> str:
        while True:
            pass

    with pytest.raises(TimeoutError, match="more than 1 seconds"):
        bounded(forever)


def test_one_that_waits_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 1)
    monkeypatch.setattr(module, "_PATIENCE", 1)
    with pytest.raises(TimeoutError):
        bounded(lambda: str(time.sleep(60)))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is bounded on Linux only")
def test_more_memory_than_is_allowed_is_told() -> None:
    with pytest.raises(MemoryError, match="more than 2 GiB"):
        bounded(lambda: "x" * (1 << 33))


def test_an_exception_comes_back_by_its_words_and_a_crash_as_a_crash() -> None:
    with pytest.raises(RuntimeError, match="by zero"):
        bounded(lambda: str(1 // 0))
    with pytest.raises(ChildProcessError):
        bounded(lambda: str(os.kill(os.getpid(), 9)))


def test_lines_come_one_by_one_and_a_fork_that_is_left_ends() -> None:
    before = children()
    assert list(bounded_lines(lambda: iter(["a\nb", "", "ü"]))) == ["a\nb", "", "ü"]
    endless = bounded_lines(lambda: map(str, itertools.count()))
    assert [next(endless), next(endless)] == ["0", "1"]
    endless.close()
    assert children() <= before


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is bounded on Linux only")
def test_lines_that_take_too_much_memory_are_told_after_those_before() -> None:
    def work() -> Iterator[str]:
        yield "well"
        yield "x" * (1 << 31)

    lines = bounded_lines(work, 1 << 30)
    assert next(lines) == "well"
    with pytest.raises(MemoryError, match="more than 1 GiB"):
        next(lines)


def test_exceptions_and_crashes_of_lines_come_back() -> None:
    with pytest.raises(RuntimeError, match="by zero"):
        list(bounded_lines(lambda: iter([str(1 // 0)])))
    with pytest.raises(ChildProcessError):
        list(bounded_lines(lambda: iter([str(os.kill(os.getpid(), 9))])))
