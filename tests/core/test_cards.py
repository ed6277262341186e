"""Tests of cards that several processes share, on cards of the CPU: real processes, real tensors, real limits."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_card import FakeCard, hold, most_at_once, run_full, stays
from sublim_interp.core.cards import Filling
from sublim_interp.core.errors import OutOfMemory, SublimError
from sublim_interp.core.journal import Journal
from sublim_interp.core.workers import Task, run_tasks

MIB = 1 << 20


def holds(directory: Path, size: int, name: str, *others: str, shape: str = "", needs: tuple[str, ...] = ()) -> Task:
    return Task(name, hold, (directory, size * MIB, name, others), needs, shape or f"{size} MiB")


def card(directory: Path, name: str = "0", memory: int = 100) -> FakeCard:
    return FakeCard(name, 0, memory * MIB, directory / "log")


def known(directory: Path, *sizes: int) -> Journal:
    peaks = Journal(directory / "peaks")
    for size in sizes:
        peaks.add(f"{size} MiB", size * MIB)
    return peaks


def quiet(_name: str, _fraction: float) -> None:
    pass


def test_as_many_share_a_card_as_fit_and_no_more(tmp_path: Path) -> None:
    # Three of 30 MiB may take 1.25 times as much each: two fit into 100 MiB, and wait for each other there.
    tasks = [holds(tmp_path, 30, "a", "b"), holds(tmp_path, 30, "b", "a"), holds(tmp_path, 30, "c")]
    run_tasks(tasks, 3, quiet, cards=[card(tmp_path)], peaks=known(tmp_path, 30))
    found = stays(tmp_path / "log")
    assert len(found) == 3 and {stay.peak for stay in found} == {30 * MIB}
    assert most_at_once(found) == 2 * int(37.5 * MIB)


def test_what_was_never_measured_has_its_card_alone_and_is_remembered(tmp_path: Path) -> None:
    tasks = [holds(tmp_path, 10, name) for name in "abcd"]
    run_tasks(tasks, 4, quiet, cards=[card(tmp_path)], peaks=Journal(tmp_path / "peaks"))
    first, *rest = sorted(stays(tmp_path / "log"), key=lambda stay: stay.began)
    assert first.most == 100 * MIB and all(first.ended <= stay.began for stay in rest)
    assert {stay.most for stay in rest} == {int(12.5 * MIB)}
    assert Journal(tmp_path / "peaks")["10 MiB"] == 10 * MIB, "the next run knows it"


def test_cards_are_filled_side_by_side(tmp_path: Path) -> None:
    names = "abcd"
    tasks = [holds(tmp_path, 30, name, *names) for name in names]  # all at one time
    run_tasks(tasks, 4, quiet, cards=[card(tmp_path, "0"), card(tmp_path, "1")], peaks=known(tmp_path, 30))
    found = stays(tmp_path / "log")
    assert sorted(stay.card for stay in found) == ["0", "0", "1", "1"]


def test_what_runs_out_of_memory_beside_others_is_done_again_alone(tmp_path: Path) -> None:
    peaks = known(tmp_path, 30)
    tasks = [holds(tmp_path, 60, "large", shape="30 MiB"), holds(tmp_path, 30, "small")]
    run_tasks(tasks, 2, quiet, cards=[card(tmp_path)], peaks=peaks)
    found = sorted(stays(tmp_path / "log"), key=lambda stay: stay.began)
    assert [stay.most for stay in found if stay.peak == 60 * MIB] == [int(37.5 * MIB), 100 * MIB]
    last = found[-1]
    assert last.most == 100 * MIB and all(stay.ended <= last.began for stay in found[:-1])
    assert peaks["30 MiB"] == 60 * MIB, "what is like it gets more from now on"


def test_what_does_not_fit_a_card_alone_is_named(tmp_path: Path) -> None:
    tasks = [holds(tmp_path, 60, "too large", shape="30 MiB"), holds(tmp_path, 10, "other")]
    one = [card(tmp_path, memory=50)]
    with pytest.raises(OutOfMemory) as raised:
        run_tasks(tasks, 2, quiet, cards=one, peaks=known(tmp_path, 30, 10))
    assert f"{60 * MIB} bytes, of {50 * MIB}" in str(raised.value) and isinstance(raised.value, SublimError)
    log = [stay.most for stay in stays(tmp_path / "log") if stay.peak == 60 * MIB]
    assert log == [int(37.5 * MIB), 50 * MIB], "once beside others, once alone"
    lost = run_tasks(tasks, 2, quiet, (OutOfMemory,), one, known(tmp_path, 30, 10))
    assert [*lost] == ["too large"] and (tmp_path / "other").exists()


def test_a_library_without_room_is_a_card_without_room(tmp_path: Path) -> None:
    for cards in ([card(tmp_path)], []):
        with pytest.raises(OutOfMemory, match="ALLOC_FAILED" if cards else "^lab-0 1 does not fit the GPU; try --proc"):
            run_tasks([Task("lab-0 1", run_full, (), (), "large")], 1, quiet, (), cards, Journal(tmp_path / "peaks"))


def test_one_that_waits_for_a_whole_card_is_not_passed_by_for_ever(tmp_path: Path) -> None:
    small = [holds(tmp_path, 10, f"small {i}") for i in range(6)]
    tasks = [*small[:2], holds(tmp_path, 20, "unknown"), *small[2:]]
    run_tasks(tasks, 2, quiet, cards=[card(tmp_path)], peaks=known(tmp_path, 10))
    order = [stay.peak for stay in sorted(stays(tmp_path / "log"), key=lambda stay: stay.began)]
    assert order.index(20 * MIB) == 2


def test_what_takes_no_memory_of_a_card_waits_for_none(tmp_path: Path) -> None:
    beside = Task("beside", hold, (tmp_path, MIB, "beside", ("alone",)))
    tasks = [holds(tmp_path, 90, "alone", "beside"), beside]
    run_tasks(tasks, 2, quiet, cards=[card(tmp_path)], peaks=Journal(tmp_path / "peaks"))
    assert [stay.peak for stay in stays(tmp_path / "log")] == [90 * MIB]


@settings(max_examples=40)
@given(
    free=st.integers(1, 1000).map(lambda n: n * MIB),
    context=st.integers(0, 50).map(lambda n: n * MIB),
    peaks=st.lists(st.one_of(st.none(), st.integers(0, 300).map(lambda n: n * MIB)), max_size=12),
    leave=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_shares_and_contexts_never_exceed_a_card(
    free: int, context: int, peaks: list[int | None], leave: list[bool]
) -> None:
    filling, there, processes = Filling(free, context), dict[str, int | None](), 1
    for i, (peak, goes) in enumerate(zip(peaks, leave, strict=False)):
        if filling.takes(peak):
            share = filling.granted(peak)
            filling.add(str(i), share)
            there[str(i)] = share
            processes = max(processes, len(there))
            assert len(there) == 1 or None not in there.values()
            taken = sum(share or 0 for share in there.values())
            assert len(there) == 1 or taken + context * (processes - 1) <= free
        if goes and there:
            name, share = there.popitem()
            assert filling.remove(name) == share
