"""Tests of the worker processes: order, progress, failures, kills. The tasks are functions of this module."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sublim_interp.core.cards import Card
from sublim_interp.core.errors import DeadEnd, SublimError
from sublim_interp.core.workers import Task, prepare_process, run_tasks

Progress = Callable[[float], None]
PATIENCE = 60.0
"""Seconds after which a test gives up waiting; never reached where all is well."""


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about yet does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def add(directory: Path, name: str, needs: tuple[str, ...], progress: Progress) -> None:
    """One more than the sum of what it needs; fails where a need is not there yet."""
    os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C reaches all of a terminal's processes; workers leave it to the parent
    total = 1 + sum(int((directory / need).read_text()) for need in needs)
    for i in range(4):
        time.sleep(0.07)
        progress((i + 1) / 4)
    (directory / name).write_text(str(total))


def meet(directory: Path, own: str, other: str, _progress: Progress) -> None:
    (directory / own).touch()
    wait_for((directory / other).exists, f"{other} to run at the same time as {own}")


def fail(error: Exception, _progress: Progress) -> None:
    raise error


def kill_itself(_progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def linger(directory: Path, progress: Progress) -> None:
    whole = directory / "lingers.part"
    whole.write_text(str(os.getpid()))
    whole.rename(directory / "lingers")  # who sees the file reads the whole number
    progress(0.5)
    time.sleep(10 * PATIENCE)


def fail_beside(directory: Path, _progress: Progress) -> None:
    wait_for((directory / "lingers").exists, "the other task")
    raise SublimError("this is\u2028one line")


class Watch:
    """Every report, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def __call__(self, name: str, fraction: float) -> None:
        self.seen.append((name, fraction))


GRAPH: dict[str, tuple[str, ...]] = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": (), "f": ("d", "e", "a")}
SUMS = {"a": 1, "b": 2, "c": 2, "d": 5, "e": 1, "f": 8}


@pytest.mark.parametrize("processes", [1, 2])
def test_needs_come_first_and_progress_ends_at_one_in_one_process_as_in_two(processes: int, tmp_path: Path) -> None:
    watch = Watch()
    # Named in the wrong order: what is needed decides.
    tasks = [Task(name, add, (tmp_path, name, needs), needs) for name, needs in reversed(GRAPH.items())]
    run_tasks(tasks, processes, watch)
    assert {p.name: int(p.read_text()) for p in tmp_path.iterdir()} == SUMS
    for name in GRAPH:
        fractions = [fraction for n, fraction in watch.seen if n == name]
        assert fractions == sorted(fractions) and fractions[-1] == 1.0 and fractions.count(1.0) == 1
        assert all(0 < f <= 1 for f in fractions)
    ended = [name for name, fraction in watch.seen if fraction == 1.0]
    assert all(ended.index(need) < ended.index(name) for name, needs in GRAPH.items() for need in needs)
    assert len(watch.seen) > len(GRAPH), "a task is heard of before it has ended"


def test_two_processes_work_at_the_same_time_and_what_is_not_a_task_counts_as_done(tmp_path: Path) -> None:
    tasks = [Task("a", meet, (tmp_path, "a", "b"), ("made long ago",)), Task("b", meet, (tmp_path, "b", "a"))]
    run_tasks(tasks, 2, Watch())


def test_nothing_to_do_starts_nothing() -> None:
    run_tasks([], 2, Watch())


def test_a_failure_is_the_original_error_and_stops_the_others(tmp_path: Path) -> None:
    tasks = [
        Task("lingers", linger, (tmp_path,)),
        Task("fails", fail_beside, (tmp_path,)),
        Task("never", add, (tmp_path, "never", ()), ("fails",)),
    ]
    watch = Watch()
    with pytest.raises(SublimError) as raised:
        run_tasks(tasks, 2, watch)
    assert type(raised.value) is SublimError and str(raised.value) == "this is\u2028one line"
    pid = int((tmp_path / "lingers").read_text())
    wait_for(lambda: not alive(pid), "the other worker to be stopped")
    assert not (tmp_path / "never").exists()
    assert 1.0 not in [fraction for _, fraction in watch.seen]


def test_a_failure_that_may_be_skipped_takes_along_only_what_needs_it(tmp_path: Path) -> None:
    watch = Watch()
    tasks = [
        Task("far", add, (tmp_path, "far", ()), ("near", "a")),
        Task("near", add, (tmp_path, "near", ()), ("fails",)),
        Task("fails", fail, (DeadEnd("nothing came of it"),)),
        *(Task(name, add, (tmp_path, name, needs), needs) for name, needs in GRAPH.items()),
    ]
    lost = run_tasks(tasks, 2, watch, skip=(DeadEnd,))
    assert {name: str(failure) for name, failure in lost.items()} == dict.fromkeys(
        ("fails", "near", "far"), "nothing came of it"
    )
    assert {p.name: int(p.read_text()) for p in tmp_path.iterdir()} == SUMS
    ended = [name for name, fraction in watch.seen if fraction == 1.0]
    assert sorted(ended) == sorted([*GRAPH, "far", "near", "fails"]), "each is heard of once, at the end"
    with pytest.raises(SublimError, match="another kind"):
        run_tasks([Task("fails", fail, (SublimError("another kind"),))], 1, Watch(), skip=(DeadEnd,))


def test_an_error_that_is_no_bad_input_keeps_its_kind() -> None:
    with pytest.raises(ZeroDivisionError, match="a defect"):
        run_tasks([Task("defect", fail, (ZeroDivisionError("a defect"),))], 1, Watch())


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(SublimError) as raised:
        run_tasks([Task("killed", kill_itself, ())], 1, Watch())
    assert "a worker process died" in str(raised.value) and "\n" not in str(raised.value)


def test_an_interrupted_parent_stops_its_workers(tmp_path: Path) -> None:
    def interrupt(_name: str, _fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks([Task("lingers", linger, (tmp_path,))], 1, interrupt)
    pid = int((tmp_path / "lingers").read_text())
    wait_for(lambda: not alive(pid), "the worker to be stopped")


def test_a_prepared_process_has_the_threads_it_was_given() -> None:
    before = torch.get_num_threads()
    try:
        prepare_process(2)
        assert torch.get_num_threads() == 2
        prepare_process()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def see_gpu(directory: Path, own: str, other: str, progress: Progress) -> None:
    meet(directory, own, other, progress)
    (directory / f"{own}.gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "as it was"))


def test_workers_take_turns_at_the_gpus(tmp_path: Path) -> None:
    tasks = [Task(own, see_gpu, (tmp_path, own, other)) for own, other in ("ab", "ba")]
    run_tasks(tasks, 2, Watch(), cards=(Card("3"), Card("5")))
    assert {(tmp_path / f"{own}.gpu").read_text() for own in "ab"} == {"3", "5"}


def test_workers_share_one_gpu(tmp_path: Path) -> None:
    tasks = [Task(own, see_gpu, (tmp_path, own, other)) for own, other in ("ab", "ba")]
    run_tasks(tasks, 2, Watch(), cards=(Card("GPU-8f2c"),))
    assert {(tmp_path / f"{own}.gpu").read_text() for own in "ab"} == {"GPU-8f2c"}


def test_three_workers_on_two_gpus_are_two_on_one_and_one_on_the_other(tmp_path: Path) -> None:
    tasks = [Task(own, see_gpu, (tmp_path, own, other)) for own, other in ("ab", "bc", "ca")]  # all at one time
    run_tasks(tasks, 3, Watch(), cards=(Card("3"), Card("5")))
    seen = [(tmp_path / f"{own}.gpu").read_text() for own in "abc"]
    assert sorted(map(seen.count, ("3", "5"))) == [1, 2]


def test_after_a_killed_worker_the_gpus_are_shared_out_anew(tmp_path: Path) -> None:
    with pytest.raises(SublimError, match="a worker process died"):
        run_tasks([Task("killed", kill_itself, ())], 2, Watch(), cards=(Card("3"), Card("5")))
    tasks = [Task(own, see_gpu, (tmp_path, own, other)) for own, other in ("ab", "ba")]
    run_tasks(tasks, 2, Watch(), cards=(Card("3"), Card("5")))
    assert {(tmp_path / f"{own}.gpu").read_text() for own in "ab"} == {"3", "5"}


def see_place(directory: Path, progress: Progress) -> None:
    (directory / "seen").write_text(f"{os.environ.get('SUBLIM_BASES', 'nowhere')} {Path.cwd()}")


def test_workers_have_the_environment_and_folder_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their common start is older than they are: what it saw must not be what they see."""
    for shelf in ("one", "two"):
        monkeypatch.setenv("SUBLIM_BASES", shelf)
        monkeypatch.chdir(tmp_path)
        run_tasks([Task("see", see_place, (tmp_path,))], 1, Watch())
        assert (tmp_path / "seen").read_text() == f"{shelf} {tmp_path}"
    monkeypatch.delenv("SUBLIM_BASES")
    run_tasks([Task("see", see_place, (tmp_path,))], 1, Watch())
    assert (tmp_path / "seen").read_text().startswith("nowhere")


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from sublim_interp.core.workers import Task, run_tasks\n"
        "print('begun', __file__, __spec__, flush=True)\n"
        "run_tasks([Task(str(i), print, (f'worked {i}',)) for i in (1, 2)], 2, lambda *_: None)\n"
        "print('ended', __file__, __spec__)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    begun, *worked, ended = done.stdout.splitlines()
    assert begun == f"begun {script} None" and ended == f"ended {script} None", "and its names are as they were"
    assert sorted(line[:8] for line in worked) == ["worked 1", "worked 2"]


def test_what_workers_hold_at_the_end_is_given_back(tmp_path: Path) -> None:
    """As tqdm's lock, which any library may make; Python would complain of it after the last line."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from sublim_interp.core.workers import Task, run_tasks\n"
        "def held(_progress): globals()['lock'] = multiprocessing.RLock()\n"
        "if __name__ == '__main__':\n"
        "    from script import held\n"
        "    run_tasks([Task(str(i), held, ()) for i in (1, 2)], 2, lambda *_: None)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""


def test_other_children_of_the_caller_live_on(tmp_path: Path) -> None:
    own = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(PATIENCE,))
    own.start()
    try:
        run_tasks([Task("one", add, (tmp_path, "one", ()), ())], 1, lambda _name, _fraction: None)
        assert own.is_alive()
    finally:
        own.kill()
        own.join()
