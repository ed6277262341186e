"""Tests of executors: groups of pieces, what jobs do and say, and the whole path on jobs of this machine."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fake_card import FakeCard, most_at_once, stays
from sublim_interp.cli.main import app
from sublim_interp.core.errors import DeadEnd, OutOfMemory, SublimError
from sublim_interp.core.keys import sha256_of
from sublim_interp.core.store import Store
from sublim_interp.core.yaml import dump_yaml
from sublim_interp.experiments.cost import Needs, needs
from sublim_interp.experiments.executors.groups import grouped
from sublim_interp.experiments.executors.jobs import Background, Slurm
from sublim_interp.experiments.executors.ledger import Entry, Ledger, find_ledger, ledgers
from sublim_interp.experiments.executors.local import Local
from sublim_interp.experiments.executors.pieces import Piece, Work, peaks_of, pieces_of
from sublim_interp.experiments.executors.site import Site, site_of
from sublim_interp.experiments.executors.worker import Job, make_piece
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.schema import Experiment
from sublim_interp.pipeline.records import Evaluation
from sublim_interp.report.run import run_work
from sublim_interp.sweeps.grid import Grid
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.run import run_grid, sweep_work

PATIENCE = 500


def said(*words: object) -> str:
    """What the command prints, exit codes 0 and 1; or the error of one line that it ends with."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        assert isinstance(done.exception, SublimError), repr(done.exception)
        return f"refused: {done.exception}"
    return done.output


def key(name: object) -> str:
    return sha256_of(str(name))


def publish(root: Path, stage: str, name: str) -> None:
    """An artefact under the key that `key` names, as far as executors look at it."""
    (root / stage / key(name)[:16]).mkdir(parents=True)


def make(root: Path, name: str, inputs: tuple[str, ...], progress: Any) -> None:
    assert all((root / "stage" / key(i)[:16]).is_dir() for i in inputs)
    progress(0.5)
    publish(root, "stage", name)


def fail(why: Exception, _progress: Any) -> None:
    raise why


def tell(root: Path, dead: dict[str, str], progress: Any) -> None:
    (root / "told").write_text("; ".join(dead.values()))
    publish(root, "stage", "table")


def piece(root: Path, name: str, inputs: tuple[str, ...] = (), seconds: float = 1.0, memory: float = 1.0) -> Piece:
    needed = tuple(key(i) for i in inputs)
    return Piece("stage", key(name), make, (root, name, inputs), needed, Needs(seconds, memory))


# --- groups -----------------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> list[Piece]:
    """Pieces in an order in which they can be made."""
    count = draw(st.integers(1, 40))
    pieces = []
    for i in range(count):
        before = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        cost = draw(st.sampled_from([1.0, 60.0, 600.0, 5000.0])), draw(st.sampled_from([1.0, 1.5, 20.0]))
        pieces.append(piece(Path("none"), str(i), tuple(map(str, sorted(before))), *cost))
    return pieces


@given(graphs(), st.sampled_from([0.0, 0.05, 1.0, 100.0]))
def test_groups_hold_every_piece_once_and_wait_for_lower_levels_alone(pieces: list[Piece], hours: float) -> None:
    groups = grouped(pieces, hours)
    assert sorted(p.key for g in groups for p in g.pieces) == sorted(p.key for p in pieces)
    assert [g.level for g in groups] == sorted(g.level for g in groups)
    level = {p.key: g.level for g in groups for p in g.pieces}
    for group in groups:
        assert len(group.pieces) == 1 or group.seconds <= hours * 3600
        assert all(level[outer] < group.level for outer in group.outer)
        seen = set(group.outer)
        for p in group.pieces:
            assert set(p.inputs) <= seen
            seen.add(p.key)
    if hours == 0:
        assert len(groups) == len(pieces)


def test_a_thousand_small_pieces_are_few_jobs() -> None:
    chains = [
        piece(Path("none"), f"{i}-{n}", (f"{i}-{n - 1}",) if n else (), 20.0) for i in range(200) for n in range(5)
    ]
    groups = grouped(chains, hours=1.0)
    assert len(groups) == 6  # 20,000 s by the hour
    assert all(not group.outer for group in groups), "replicates stay together"


def test_a_large_model_needs_more_memory_than_a_small_one(tiny_experiment: Experiment) -> None:
    records = plan(tiny_experiment).records
    assert all(1 <= needs(record).memory < 1.2 and needs(record).seconds > 0 for record in records)
    large = plan(tiny_experiment.set(bases=("lab-main-0", "lab-main-1"))).records
    assert max(needs(r).memory for r in large) > max(needs(r).memory for r in records)


# --- what a job does --------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    found = Ledger(tmp_path / ".jobs" / "0123456789abcdef", "owls", "0123456789abcdef" * 4, "background")
    found.write()
    return found


def states(ledger: Ledger, alive: dict[str, tuple[bool, str]] | None = None) -> dict[str, str]:
    store = Store(ledger.folder.parents[1])
    return {s.stage: s.state for s in ledger.standings(store, alive or {})}


def schedule(ledger: Ledger, *pieces: Piece, job: str = "7") -> None:
    for p in pieces:
        ledger.entries[p.key] = Entry(p.arguments[1] if len(p.arguments) > 1 else p.stage, p.inputs, 1.0, job)
    ledger.write()


def test_a_piece_is_done_when_the_store_holds_it(ledger: Ledger, tmp_path: Path) -> None:
    one, two = piece(tmp_path, "one"), piece(tmp_path, "two", ("one",))
    schedule(ledger, one, two)
    assert states(ledger, {"7": (False, "pending: Priority")}) == {"one": "waits", "two": "waits"}
    make_piece(two, tmp_path, ledger.folder, "7", lambda _: None)  # its input is not made: it is left alone
    assert not Store(tmp_path).holds(two.key)
    for p in (one, two):
        make_piece(p, tmp_path, ledger.folder, "7", lambda _: None)
    assert states(ledger) == {"one": "done", "two": "done"}
    assert list((ledger.folder / "said").iterdir()) == []


def test_a_failure_blocks_what_needs_it_and_nothing_else(ledger: Ledger, tmp_path: Path) -> None:
    bad = Piece("bad", key("bad"), fail, (ValueError("a defect"),), (), Needs(1, 1))
    then, other = piece(tmp_path, "then", ("bad",)), piece(tmp_path, "other")
    schedule(ledger, bad, then, other)
    for p in (bad, then, other):
        make_piece(p, tmp_path, ledger.folder, "7", lambda _: None)
    assert states(ledger) == {"bad": "failed", "then": "blocked", "other": "done"}
    (why,) = [s.why for s in ledger.standings(Store(tmp_path), {}) if s.state == "failed"]
    assert why == "ValueError a defect"
    schedule(ledger, bad, then, job="8")  # scheduled again: what another job said of it counts no more
    assert states(ledger, {"8": (False, "pending: Priority")}) == {"bad": "waits", "then": "waits", "other": "done"}


def test_what_runs_out_of_memory_says_so_to_whoever_shares_out_the_card(ledger: Ledger, tmp_path: Path) -> None:
    large = Piece("large", key("large"), fail, (OutOfMemory("it does not fit"),), (), Needs(1, 1))
    schedule(ledger, large)
    with pytest.raises(OutOfMemory):
        make_piece(large, tmp_path, ledger.folder, "7", lambda _: None)
    assert [(s.state, s.why) for s in ledger.standings(Store(tmp_path), {})] == [("failed", "it does not fit")]


def test_a_job_that_ended_in_the_middle_has_lost_its_pieces(ledger: Ledger, tmp_path: Path) -> None:
    one, two = piece(tmp_path, "one"), piece(tmp_path, "two", ("one",))
    schedule(ledger, one, two)
    ledger.words.say(one.key, "7", "runs", 0.25)
    running = ledger.standings(Store(tmp_path), {"7": (True, "node2")})
    assert next((s.state, s.why) for s in running) == ("runs", "node2, 25%")
    assert states(ledger) == {"one": "lost", "two": "blocked"}
    ledger.cancelled.add("7")
    assert states(ledger) == {"one": "cancelled", "two": "cancelled"}


def test_a_dead_end_explains_nothing_but_what_is_made_from_it(ledger: Ledger, tmp_path: Path) -> None:
    dead = Piece("dead", key("dead"), fail, (DeadEnd("no list passes"),), (), Needs(1, 1))
    then, lost = piece(tmp_path, "then", ("dead",)), piece(tmp_path, "lost")
    inputs = (key("then"), key("lost"))
    table = Piece("stage", key("table"), tell, (tmp_path,), inputs, Needs(1, 1), tells_dead_ends=True)
    schedule(ledger, dead, then, lost, table)
    for p in (dead, then, table):
        make_piece(p, tmp_path, ledger.folder, "7", lambda _: None)
    assert not (tmp_path / "told").exists(), "the lost one is yet to be made"
    make_piece(lost, tmp_path, ledger.folder, "8", lambda _: None)
    make_piece(table, tmp_path, ledger.folder, "8", lambda _: None)
    assert states(ledger)["stage"] == "done" and (tmp_path / "told").read_text() == "no list passes"


class Asked(Background):
    """Jobs that live until they are ended, and are begun nowhere."""

    name = "background"
    living: ClassVar[set[str]] = set()

    def submit(self, ledger: Ledger, jobs: Sequence[Job], after: Sequence[str], asked: Mapping[str, Any]) -> list[str]:
        ids = [str(100 + len(self.living) + i) for i in range(len(jobs))]
        self.living.update(ids)
        return ids

    def alive(self, jobs: Sequence[str]) -> dict[str, tuple[bool, str]]:
        return {job: (True, "here") for job in jobs if job in self.living}

    def stop(self, jobs: Sequence[str]) -> None:
        self.living.difference_update(jobs)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(Asked, "living", set())
    return Asked(Site(pack=0.0))


def test_what_was_scheduled_while_a_cancel_waited_is_ended_too(asked: Asked, tmp_path: Path) -> None:
    store, watch = Store(tmp_path), lambda _name, _share: None
    asked.start(Work("owls", key("owls"), (piece(tmp_path, "one"),)), store, watch)
    known = find_ledger(store, "owls")
    asked.start(Work("owls", key("owls"), (piece(tmp_path, "one"), piece(tmp_path, "two"))), store, watch)
    assert asked.cancel(known) == 2 and not asked.living
    assert len(find_ledger(store, "owls").entries) == 2


def test_no_executor_takes_over_while_another_has_jobs(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, watch = Store(tmp_path), lambda _name, _share: None
    work = Work("owls", key("owls"), (piece(tmp_path, "one"),))
    asked.start(work, store, watch)
    monkeypatch.setattr("sublim_interp.experiments.executors.jobs.jobs_of", lambda _ledger: asked)
    other = type("Other", (Asked,), {"name": "slurm"})(Site())
    with pytest.raises(SublimError, match=r"owls is scheduled on background.*\(1\).*sublim cancel owls"):
        other.start(work, store, watch)
    assert find_ledger(store, "owls").executor == "background"
    asked.living.clear()
    other.start(work, store, watch)
    kept = find_ledger(store, "owls")
    assert kept.executor == "slurm" and kept.jobs == [*asked.living]


def test_a_dead_end_is_told_by_what_tells_it(ledger: Ledger, tmp_path: Path) -> None:
    dead = Piece("dead", key("dead"), fail, (DeadEnd("no list passes"),), (), Needs(1, 1))
    then = piece(tmp_path, "then", ("dead",))
    table = Piece("stage", key("table"), tell, (tmp_path,), (key("then"),), Needs(1, 1), tells_dead_ends=True)
    schedule(ledger, dead, then, table)
    for p in (dead, then, table):
        make_piece(p, tmp_path, ledger.folder, "7", lambda _: None)
    assert states(ledger) == {"dead": "dead end", "then": "dead end", "stage": "done"}
    assert (tmp_path / "told").read_text() == "no list passes"


def test_a_store_that_is_away_is_not_begun_anew(ledger: Ledger, tmp_path: Path) -> None:
    one = piece(tmp_path, "one")
    away = tmp_path.with_name("away")
    tmp_path.rename(away)
    try:
        with pytest.raises((SublimError, OSError)):
            make_piece(one, tmp_path, ledger.folder, "7", lambda _: None)
        assert not tmp_path.exists()
    finally:
        away.rename(tmp_path)


def test_a_damaged_ledger_is_one_line(ledger: Ledger, tmp_path: Path) -> None:
    (ledger.folder / "ledger.json").write_text("{")
    with pytest.raises(SublimError, match="no result is lost"):
        ledgers(Store(tmp_path))


# --- sites and refusals -----------------------------------------------------------------------------------------------


def test_a_site_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("partition: cpu\nmodules: [python/3.12]\nsbatch: {constraint: avx512}\n")
    assert site_of(str(path)).partition == "cpu" and site_of(None) == Site(**{**site_of("plain").model_dump()})
    monkeypatch.setenv("SUBLIM_SITE", str(path))
    assert site_of(None).modules == ("python/3.12",)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["run", "smoke", "--on", "moon"], ["unknown executor 'moon'", "local, slurm, background"]),
        (["run", "smoke", "--site", "plain"], ["--site goes with jobs"]),
        (["run", "smoke", "--on", "slurm", "--site", "nowhere"], ["unknown site 'nowhere'", "plain"]),
        (["run", "smoke", "--on", "slurm", "--device", "cuda"], ["device: cuda"]),
        (["status", "owl"], ["nothing is scheduled as 'owl'"]),
        (["cancel", "owl"], ["nothing is scheduled as 'owl'"]),
    ],
)
def test_what_cannot_be_scheduled_is_one_line(words: list[str], parts: list[str], store_root: Path) -> None:
    line = said(*words, "--store", store_root)
    assert line.startswith("refused: ") and all(part in line for part in parts), line
    assert not store_root.exists()


def test_without_slurm_it_says_where_to_run(
    tiny_experiment: Experiment, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    p, store = plan(tiny_experiment), Store(store_root)
    with pytest.raises(SublimError, match="there is no sbatch here"):
        Slurm(Site()).start(run_work(p, store), store, lambda _n, _f: None)


# --- the whole path ---------------------------------------------------------------------------------------------------


def test_local_makes_pieces_in_order(store_root: Path) -> None:
    store_root.mkdir()
    pieces = tuple(piece(store_root, str(i), (str(i - 1),) if i else ()) for i in range(4))
    assert Local(Site(), 2).start(Work("four", key("run"), pieces), Store(store_root), lambda _n, _f: None) == {}
    assert all(Store(store_root).holds(p.key) for p in pieces)


class OnFakeCards(Local):
    """Processes of this machine on cards of the CPU."""

    fakes: tuple[FakeCard, ...] = ()

    def cards(self) -> tuple[FakeCard, ...]:
        return self.fakes


def on_fake_cards(work: Work, root: Path, log: Path, *memory: int) -> None:
    """Does some work on cards of so many bytes."""
    executor = OnFakeCards(Site(), 3)
    executor.fakes = tuple(FakeCard(str(i), 0, size, log) for i, size in enumerate(memory))
    executor.start(work, Store(root), lambda _n, _f: None)


def test_trainings_share_cards_by_measured_memory_and_nothing_changes(
    tiny_run: Run, store_root: Path, tmp_path: Path
) -> None:
    p, log = tiny_run.plan, tmp_path / "log"
    records = [r for r in p.records if not isinstance(r, Evaluation)]
    on_fake_cards(Work("", "", tuple(pieces_of(records, Store(store_root), p.recording))), store_root, log, 1 << 28)
    made = sorted(digests(store_root))
    assert made == [row for row in sorted(digests(tiny_run.store.root)) if row[0] != "evaluation"]
    found = stays(log)
    whole = [stay for stay in found if stay.most == 1 << 28]
    assert {r.STAGE: needs(r).shape in peaks_of(Store(store_root)) for r in records} == {
        "teacher": True, "corpus": True, "filtered": False, "student": True
    }  # fmt: skip
    assert all(stay is one or stay.ended <= one.began or stay.began >= one.ended for one in whole for stay in found), (
        "what nobody measured has its card alone"
    )
    assert len(whole) == 3 and len({stay.process for stay in found}) > 1 and most_at_once(found) <= 1 << 28


def test_a_training_that_no_card_holds_is_named(tiny_run: Run, store_root: Path, tmp_path: Path) -> None:
    teacher = next(r for r in tiny_run.plan.records if r.STAGE == "teacher")
    work = Work("", "", tuple(pieces_of([teacher], Store(store_root), tiny_run.plan.recording)))
    with pytest.raises(OutOfMemory, match=rf"teacher {teacher.key[:16]} does not fit the GPU .*teacher.part=lora"):
        on_fake_cards(work, store_root, tmp_path / "log", 1 << 17, 1 << 17)
    assert not Store(store_root).holds(teacher.key) and len(stays(tmp_path / "log")) == 1


def wait_for_end(name: str, root: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while True:
        shown = said("status", name, "--store", root)
        if "nothing goes on" in shown:
            return shown
        assert time.monotonic() < deadline, shown
        time.sleep(1)


def digests(root: Path) -> Iterator[tuple[str, str, str]]:
    """Stage, key, and digest of all files, of everything but runs, whose page names the place of the store."""
    for artifact in Store(root).list():
        if artifact.stage != "run":
            yield artifact.stage, artifact.key, str(sorted(artifact.manifest["files"].items()))


def test_jobs_in_the_background_end_in_the_run_that_processes_make(
    tiny_run: Run, tmp_path: Path, store_root: Path
) -> None:
    exp, site = tmp_path / "tiny.yaml", tmp_path / "two-jobs.yaml"
    exp.write_text(dump_yaml(tiny_run.experiment.model_dump(mode="json")))
    site.write_text("pack: 0.008\n")
    words = ("run", exp, "--on", "background", "--site", site, "--processes", "1", "--store", store_root)
    assert "waits" in said(*words)
    scheduled = find_ledger(Store(store_root), "tiny")
    assert "waits" in said(*words) and find_ledger(Store(store_root), "tiny").jobs == scheduled.jobs, "not twice"
    assert len(scheduled.jobs) == 2
    shown = wait_for_end("tiny", store_root)
    assert "failed" not in shown and "lost" not in shown
    assert sorted(digests(store_root)) == sorted(digests(tiny_run.store.root))
    assert [a.key for a in Store(store_root).list("run")] == [tiny_run.key]
    assert "nothing to do" in said(*words)


def test_what_is_cancelled_ends_and_may_be_scheduled_again(tiny_experiment: Experiment, store_root: Path) -> None:
    store = Store(store_root)
    work = run_work(plan(tiny_experiment), store)
    Background(Site(), 1).start(work, store, lambda _n, _f: None)
    found = find_ledger(store, "tiny")
    assert "1 jobs ended" in said("cancel", "tiny", "--store", store_root)
    deadline = time.monotonic() + PATIENCE
    while Background(Site()).alive(found.jobs):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    shown = said("status", "tiny", "--store", store_root)
    assert "cancelled" in shown and "nothing goes on" in shown
    assert "no job was left to end" in said("cancel", found.key[:8], "--store", store_root)


def test_a_sweep_tells_of_dead_ends_that_jobs_met(tiny_run: Run, filled_root: Path) -> None:
    exp = tiny_run.experiment
    g = Grid(
        name="rates",
        experiment="smoke",
        change=exp.model_dump(mode="json", exclude={"name", "about"}),
        axes={"student.optimization.lr": (exp.student.optimization.lr, 7.0)},
    )
    p, store = plan_grid(g), Store(filled_root)
    work = sweep_work(p, store)
    assert work.pieces[-1].tells_dead_ends and {x.stage for x in work.pieces} == {"student", "evaluation", "sweep"}
    dead = {x.key[:16]: "training diverged" for x in work.pieces if x.stage == "student"}
    made = run_grid(p, store, known=dead)
    assert (made.path / "dead_ends.csv").read_text().count("training diverged") >= 1
    assert made.key == work.key


def test_pieces_know_what_they_are_made_from(tiny_experiment: Experiment, store_root: Path) -> None:
    p = plan(tiny_experiment)
    pieces = {x.key: x for x in pieces_of(p.records, Store(store_root), p.recording)}
    stages = {x.stage: {pieces[i].stage for i in x.inputs} for x in pieces.values()}
    assert stages["student"] == {"filtered"} and stages["corpus"] == {"teacher"}
    assert os.path.commonpath([str(store_root), str(next(iter(pieces.values())).arguments[1])]) == str(store_root)
