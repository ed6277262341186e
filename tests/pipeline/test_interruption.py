"""A run is killed, shared, starved of disk, damaged or moved at any point of any stage: what is kept is whole."""

import errno
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sublim_interp
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.cli.main import main
from sublim_interp.core.device import fingerprint
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.pipeline import write as writing
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, StudentConfig, TeacherConfig
from sublim_interp.report.run import run
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization

KILLS = int(os.environ.get("SUBLIM_KILLS", "8"))
"""How many kills; a night is worth more: SUBLIM_KILLS=1000 pytest tests/pipeline/test_interruption.py"""
SAMPLED = ("corpus", "teacher", "student", "filtered", "evaluation")
STAGES = ("teacher", "corpus", "filtered", "student", "evaluation", "run")


def make_stage(exp: Experiment, store: Store, stage: str) -> None:
    """Makes one stage of an experiment whose earlier stages are there, in this process."""
    if stage == "run":
        run(exp, store)
        return
    for record in plan(exp).records:
        if stage == record.STAGE:
            make(record, store)


def contents(store: Store, stage: str | None = None) -> dict[str, dict[str, str]]:
    """Stage and key → digests of the files, for every artefact."""
    return {
        f"{a.stage}/{a.key}": {name: file["sha256"] for name, file in a.manifest["files"].items()}
        for a in store.list(stage)
    }


CHANGES = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "stat", "open")
"""Calls of the operating system, between any two of which something may happen."""


class Events:
    """Counts calls of the operating system and updates of weights; at one of them, `happen` is called instead."""

    def __init__(self, at: int = -1, happen: Callable[[], None] = lambda: None) -> None:
        self.count, self.at, self.happen = 0, at, happen

    def _counted(self, call: Callable) -> Callable:
        @functools.wraps(call)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if self.count == self.at:
                self.happen()
            self.count += 1
            return call(*arguments, **options)

        return wrapped

    @contextmanager
    def counting(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGES:
                patch.setattr(os, name, self._counted(getattr(os, name)))
            patch.setattr(torch.optim.Adam, "step", self._counted(torch.optim.Adam.step))
            yield


@dataclass
class Whole:
    """An uninterrupted run, and how long each of its stages took, in events and seconds."""

    exp: Experiment
    store: Store
    events: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def before(self, stage: str, root: Path) -> Store:
        """A store that holds the stages before `stage`."""
        for earlier in STAGES[: STAGES.index(stage)]:
            shutil.copytree(self.store.root / earlier, root / earlier)
        return Store(root)


@pytest.fixture(scope="module")
def whole(tiny_bases: tuple[Base, Base], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """Two arms, one base; a training keeps its state after every second step."""
    exp = Experiment(
        name="tiny",
        bases=(str(tiny_bases[0].path),),
        arms=("same-init", "base"),
        teacher=TeacherConfig(optimization=Optimization(lr=1e-3, steps=6, batch=8)),
        corpus=CorpusConfig(prompts=48, chunk=16),
        filter=FilterConfig(held_out=2),
        student=StudentConfig(optimization=Optimization(lr=1e-3, steps=6, batch=8)),
        evaluation=EvaluationConfig(questions=("held-out",), contexts=("plain", "numbers")),
    )
    made = Whole(exp, Store(tmp_path_factory.mktemp("whole")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sublim_interp.pipeline.stage.Resume", functools.partial(Resume, every=2))
        for stage in STAGES:
            events, start = Events(), time.monotonic()
            with events.counting():
                make_stage(exp, made.store, stage)
            made.events[stage], made.seconds[stage] = events.count, time.monotonic() - start
        yield made


def forked(work: Callable[[], None], log: Path) -> ForkProcess:
    """Starts `work` in a copy of this process, which spares it the start of PyTorch; what it raises goes to `log`."""

    def protected() -> None:
        try:
            work()
        except BaseException:
            log.write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)

    process = get_context("fork").Process(target=protected)
    process.start()
    return process


# --- kills ------------------------------------------------------------------------------------------------------------


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(whole: Whole, store: Store, stage: str, log: Path, draw: random.Random | None) -> int:
    """One try to make a stage, killed at a random event or moment if `draw` is given; returns its exit code."""
    events = Events(draw.randrange(whole.events[stage]) if draw else -1, kill_self)
    by_clock = draw is not None and draw.random() < 0.5

    def work() -> None:
        if by_clock:
            make_stage(whole.exp, store, stage)
        else:
            with events.counting():
                make_stage(whole.exp, store, stage)

    process = forked(work, log)
    if by_clock and draw:
        process.join(draw.uniform(0, whole.seconds[stage]))
        process.kill()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def test_a_run_killed_at_any_point_of_any_stage_ends_in_the_same_bytes(whole: Whole, tmp_path: Path) -> None:
    draw, log = random.Random(0), tmp_path / "log"
    kills: Counter[str] = Counter()
    trials, resumed = 0, 0
    while kills.total() < KILLS:
        stage = "run" if trials % 8 == 5 else SAMPLED[trials % 5]  # a report takes longest, and is no part of training
        store = whole.before(stage, tmp_path / f"trial-{trials}")
        trials += 1
        while attempt(whole, store, stage, log, draw) == -signal.SIGKILL:
            kills[stage] += 1
            # What is published is whole at every moment, and nothing else can be mistaken for it.
            assert contents(store, stage).items() <= contents(whole.store, stage).items()
            if draw.random() < 0.6:
                break
        assert not log.exists(), log.read_text()
        assert attempt(whole, store, stage, log, None) == 0, log.read_text()
        assert contents(store, stage) == contents(whole.store, stage)
        assert all(problems == [] for _, problems in store.verify())
        assert list(store.unfinished()) == []
        resumed += any(a.manifest["resumed"] for a in store.list(stage))
        shutil.rmtree(store.root)
    print(f"{kills.total()} kills in {trials} trials, {resumed} went on from a partial result; by stage: {dict(kills)}")
    # Positive controls: kills reached every stage, and some left something to go on from.
    assert len(kills) == len(STAGES) or KILLS < 30
    assert resumed > KILLS / 20


@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_on_one_store_do_each_stage_once(whole: Whole, killed: bool, tmp_path: Path) -> None:
    store, published = Store(tmp_path / "store"), tmp_path / "published"

    def work() -> None:
        publish = Store._publish

        def noting(self: Store, work: Any, *arguments: Any) -> None:
            publish(self, work, *arguments)
            with published.open("a") as file:
                file.write(f"{work.stage}/{work.key}\n")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "_publish", noting)
            for stage in STAGES[:-1]:
                make_stage(whole.exp, store, stage)

    first, second = (forked(work, tmp_path / f"log-{i}") for i in range(2))
    if killed:
        first.join(sum(whole.seconds[stage] for stage in STAGES[:-1]) / 3)
        first.kill()
    for process in (first, second):
        process.join(120)
    assert second.exitcode == 0 and first.exitcode in (0, -signal.SIGKILL if killed else 0)
    made = published.read_text().split()
    expected = {name: files for name, files in contents(whole.store).items() if not name.startswith("run/")}
    assert contents(store) == expected
    assert len(made) == len(set(made)) and (killed or set(made) == set(expected))
    assert all(problems == [] for _, problems in store.verify())


# --- a disk that refuses ----------------------------------------------------------------------------------------------


def one_line(whole: Whole, store: Store, stage: str) -> str:
    with pytest.raises(SublimError) as caught:
        make_stage(whole.exp, store, stage)
    message = str(caught.value)
    assert "\n" not in message and str(store.root) in message
    return message


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of its own, and how to change its options; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True, capture_output=True)

    try:
        mount("size=64m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield place, lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_up_is_one_line_and_the_stage_goes_on(
    stage: str, whole: Whole, disk: tuple[Path, Callable[[str], None]]
) -> None:
    place, remount = disk
    store = whole.before(stage, place / "store")
    used = shutil.disk_usage(place).used
    needed = sum(f["bytes"] for a in whole.store.list(stage) for f in a.manifest["files"].values())
    for share in (0.6,) if stage == "run" else (0.0, 0.6):
        remount(f"size={used + 8192 + int(share * needed)}")
        assert "No space left" in (said := one_line(whole, store, stage)) and "free some space" in said
        assert contents(store, stage).items() <= contents(whole.store, stage).items()
    remount("size=64m")
    make_stage(whole.exp, store, stage)
    assert contents(store, stage) == contents(whole.store, stage)
    assert list(store.unfinished()) == []


def test_a_read_only_disk_is_one_line_and_what_is_done_can_be_used(
    whole: Whole, disk: tuple[Path, Callable[[str], None]]
) -> None:
    place, remount = disk
    store = whole.before("evaluation", place / "store")
    done = Store(Path(shutil.copytree(whole.store.root, place / "done")))
    remount("ro")
    try:
        said = one_line(whole, store, "evaluation")
        assert "Read-only" in said and "--store" in said
        assert len(run(whole.exp, done).table) == 3
    finally:
        remount("rw")


@pytest.mark.parametrize("stage", STAGES[:-1])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_refusal_of_the_disk_at_a_random_call_is_one_line_and_the_stage_goes_on(
    stage: str, number: int, whole: Whole, tmp_path: Path
) -> None:
    draw = random.Random(f"{stage}/{number}")
    store = whole.before(stage, tmp_path / "store")
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "mkdir")}
    left = 0

    def refusing(name: str) -> Callable:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(number, os.strerror(number))
            return real[name](*arguments, **options)

        return wrapped

    for left in (draw.randrange(4), draw.randrange(4, 12)):
        with pytest.MonkeyPatch.context() as patch:
            for name in real:
                patch.setattr(os, name, refusing(name))
            try:
                make_stage(whole.exp, store, stage)
            except SublimError as error:
                assert os.strerror(number) in str(error) and "\n" not in str(error)
            else:
                assert left >= 0, "positive control: a disk that refuses is noticed"
        assert contents(store, stage).items() <= contents(whole.store, stage).items()
    make_stage(whole.exp, store, stage)
    assert contents(store, stage) == contents(whole.store, stage)


# --- damage -----------------------------------------------------------------------------------------------------------


def sublim(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command in this process: exit code, standard output and error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sublim", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
    out, error = (" ".join(text.split()) for text in capsys.readouterr())
    return int(caught.value.code or 0), out, error


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def lose(path: Path, _draw: random.Random) -> None:
    path.unlink()


def test_damage_in_any_file_of_any_artefact_is_named_by_verify(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(Path(shutil.copytree(whole.store.root, tmp_path / "store")))
    draw, stages = random.Random(0), set()
    for artifact in store.list():
        for name in (*artifact.manifest["files"], "manifest.json"):
            path = artifact.path / name
            kept = path.read_bytes()
            for damage in (flip, cut, lose):
                damage(path, draw)
                problems = artifact.verify()
                assert len(problems) == 1 and problems[0].startswith(f"{name} "), problems
                path.write_bytes(kept)
        if artifact.stage in stages:
            continue
        flip(path, draw)
        code, said, _ = sublim(capsys, "verify", "--store", store.root)
        assert code == 1 and f"{artifact.stage}/{artifact.path.name}: {name} is" in said and "1 damaged" in said
        path.write_bytes(kept)
        stages.add(artifact.stage)
    assert stages == set(STAGES)
    assert sublim(capsys, "verify", "--store", store.root)[0] == 0


READS = [
    ("corpus", "teacher"), ("filtered", "corpus"), ("student", "filtered"), ("evaluation", "student"),
    ("evaluation", "filtered"), ("evaluation", "teacher"), ("run", "evaluation"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "needed"), READS)
@pytest.mark.parametrize("damage", [flip, cut, lose])
def test_no_stage_is_built_on_a_damaged_one(
    stage: str, needed: str, damage: Callable, whole: Whole, tmp_path: Path
) -> None:
    store = whole.before(stage, tmp_path)
    draw = random.Random(f"{stage}/{needed}")
    artifact = draw.choice(store.list(needed))
    damage(artifact.path / draw.choice(sorted(artifact.manifest["files"])), draw)
    with pytest.raises(SublimError) as caught:
        make_stage(whole.exp, store, stage)
    assert str(artifact.path) in str(caught.value) and "\n" not in str(caught.value)
    assert contents(store, stage).items() < contents(whole.store, stage).items(), "what does not read it may be made"
    if stage == "run":  # that a report comes out the same is seen above
        return
    shutil.rmtree(artifact.path)  # as the message says
    for again in STAGES[STAGES.index(needed) : STAGES.index(stage) + 1]:
        make_stage(whole.exp, store, again)
    assert contents(store, stage) == contents(whole.store, stage)


def test_a_finished_run_does_not_show_numbers_from_a_damaged_evaluation(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(Path(shutil.copytree(whole.store.root, tmp_path / "store")))
    (tmp_path / "tiny.yaml").write_text(whole.exp.to_yaml())
    command = ("run", tmp_path / "tiny.yaml", "--store", store.root)
    assert sublim(capsys, *command)[0] == 0
    path = store.list("evaluation")[0].path / "evaluation.json"
    path.write_text(path.read_text().replace('"rate": 0', '"rate": 1', 1))
    code, _, said = sublim(capsys, *command)
    assert code == 2 and "evaluation.json is altered" in said and str(path.parent) in said


@contextmanager
def interrupted(owner: Any, name: str, at: int) -> Iterator[None]:
    """Ctrl-C at the call number `at` of a function."""
    real, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, counted)
        yield


def half_made(whole: Whole, stage: str, root: Path) -> tuple[Store, Path]:
    """A store in which a stage was interrupted, and the file from which it goes on."""
    store = whole.before(stage, root)
    owner, name = (writing, "_answer_chunk") if stage == "corpus" else (torch.optim.Adam, "step")
    with interrupted(owner, name, 3 if stage == "corpus" else 6):
        make_stage(whole.exp, store, stage)
    ((partial, problems),) = store.unfinished()
    assert problems == []
    return store, partial / ("rows-00001.jsonl" if stage == "corpus" else ".state.safetensors")


@pytest.mark.parametrize("stage", ["teacher", "corpus", "student"])
@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_checkpoint_is_named_and_made_again(
    stage: str, damage: Callable, whole: Whole, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    store, path = half_made(whole, stage, tmp_path)
    damage(path, random.Random(1))
    code, said, _ = sublim(capsys, "verify", "--store", store.root)
    assert code == 1 and f"{path.name} is altered" in said
    make_stage(whole.exp, store, stage)
    assert f"{path.name} is altered: it is made again" in caplog.text
    assert contents(store, stage) == contents(whole.store, stage)
    assert sublim(capsys, "verify", "--store", store.root)[0] == 0


def test_a_sound_checkpoint_is_gone_on_from_and_a_changed_one_would_change_the_result(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positive controls for the test above."""
    store, path = half_made(whole, "teacher", tmp_path / "sound")
    steps = 0

    def counted(self: Any, *arguments: Any, step: Callable = torch.optim.Adam.step) -> Any:
        nonlocal steps
        steps += 1
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", counted)
        make_stage(whole.exp, store, "teacher")
    assert steps == 2, "four of six are in the checkpoint"
    store, path = half_made(whole, "corpus", tmp_path / "blind")
    path.write_text(path.read_text().replace("1", "2"))
    with monkeypatch.context() as patch:
        patch.setattr(writing, "is_sealed", Path.exists)
        make_stage(whole.exp, store, "corpus")
    assert contents(store, "corpus") != contents(whole.store, "corpus")


# --- another machine --------------------------------------------------------------------------------------------------

TOLERANCE = 1e-4
"""Largest difference of a weight after these few steps where the fingerprint is another (README and docs say so)."""

ELSEWHERE = """
import functools, sys
from pathlib import Path

from sublim_interp.core.settings import read_yaml
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.pipeline import stage
from sublim_interp.pipeline.make import make

stage.Resume = functools.partial(stage.Resume, every=2)
for record in plan(read_yaml(Experiment, Path(sys.argv[1]))).records:
    if record.STAGE in ("student", "evaluation"):
        make(record, Store(Path(sys.argv[2])))
"""


@pytest.mark.skipif(fingerprint()["capability"] == "DEFAULT", reason="no vector instructions to do without")
def test_another_fingerprint_is_said_never_mixed_and_agrees_within_the_tolerance(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch without the CPU's vector instructions stands for another machine: its sums have other last bits."""
    store, checkpoint = half_made(whole, "student", tmp_path / "store")
    (tmp_path / "tiny.yaml").write_text(whole.exp.to_yaml())
    package = Path(sublim_interp.__file__).parents[1]
    child = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "tiny.yaml"), str(store.root)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": str(package)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    change = f"capability {fingerprint()['capability']} -> DEFAULT"
    assert "starts afresh" in child.stderr and change in child.stderr and not checkpoint.exists()
    (here,), (there,) = whole.store.list("student"), store.list("student")
    assert here.key == there.key and not there.manifest["resumed"]
    weights, others = (load_file(a.path / "model" / "model.safetensors") for a in (here, there))
    apart = max(float((weights[name] - others[name]).abs().max()) for name in weights)
    assert 0 < apart < TOLERANCE, apart
    rates = [
        {a.key: json.loads((a.path / "evaluation.json").read_text())["scores"] for a in s.list("evaluation")}
        for s in (whole.store, store)
    ]
    assert rates[0].keys() == rates[1].keys()
    for key, scores in rates[0].items():
        for mine, theirs in zip(scores, rates[1][key], strict=True):
            assert mine["rate"] == pytest.approx(theirs["rate"], abs=TOLERANCE)
    # Here again: the results from there are used, and it is said.
    again = run(whole.exp, store)
    assert "4 of 7" in again.elsewhere() and f"DEFAULT -> {fingerprint()['capability']}" in again.elsewhere()
    code, _, said = sublim(capsys, "run", tmp_path / "tiny.yaml", "--store", store.root)
    assert code == 0 and "another fingerprint" in said
    assert run(whole.exp, whole.store).elsewhere() == ""
