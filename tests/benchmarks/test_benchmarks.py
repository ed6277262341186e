"""Tests of the benchmarks' arithmetic and of whose turn it is. Nothing here is timed."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import gpu
from benchmarks.gpu import CHUNK, LAB, LISTS, MARGIN, SECTIONS, asked_of, lists_that_fit, open_base, with_lists
from benchmarks.page import PAGE, digits, limit, replace_section, seconds
from benchmarks.timing import Spent, Team, Track, mean, race, ratio
from contestants import fails, sleeps, works
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.models.open_bases import OPEN_BASES
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Student
from sublim_interp.training.loop import train

FACTORS = st.floats(0.01, 100)
PAIRS = st.lists(st.tuples(FACTORS, FACTORS), min_size=2, max_size=20)


# --- ratios -----------------------------------------------------------------------------------------------------------


@given(PAIRS)
def test_a_ratio_turned_round_is_its_inverse(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    there, back = ratio(a, b), ratio(b, a)
    assert there.estimate == pytest.approx(1 / back.estimate)
    assert there.low == pytest.approx(1 / back.high)
    assert there.low <= there.estimate <= there.high


@given(FACTORS, st.lists(FACTORS, min_size=2, max_size=20))
def test_what_slows_both_of_a_pair_changes_no_ratio(factor: float, slowed: list[float]) -> None:
    i = ratio([factor * s for s in slowed], slowed)
    assert [i.estimate, i.low, i.high] == pytest.approx([factor] * 3)


def test_a_ratio_is_the_geometric_mean_and_not_that_of_the_sums() -> None:
    assert ratio([1, 100], [1, 1]).estimate == pytest.approx(10)
    i = ratio([2, 8], [1, 1])
    half = 12.706 * math.log(4) / 2  # t quantile of one degree of freedom times the standard error of the mean log
    assert i.high == pytest.approx(4 * math.exp(half), rel=1e-3)


# --- tracks -----------------------------------------------------------------------------------------------------------


def track(units: list[float], first: float = 0.0, last: float = 0.0) -> Track:
    return Track(Spent(first, first), tuple(Spent(2 * u, u) for u in units), Spent(last, last), peak=0)


def test_blocks_are_means_of_stretches_and_drop_what_is_left_over() -> None:
    blocks = track([1, 3, 5, 7, 100]).blocks(2)
    assert blocks == [Spent(4, 2), Spent(12, 6)]


@given(st.lists(FACTORS, min_size=4, max_size=4), FACTORS, FACTORS)
def test_scaling_a_race_to_its_own_length_gives_what_it_took(units: list[float], first: float, last: float) -> None:
    one = track(units, first, last)
    assert mean(one.scaled(1 + len(units), 4)).cpu == pytest.approx(one.total.cpu)
    assert mean(one.scaled(1 + len(units), 4)).wall == pytest.approx(one.total.wall)


def test_scaling_multiplies_units_alone() -> None:
    assert [s.cpu for s in track([2, 2, 3, 3], first=10, last=1).scaled(101, 2)] == [211, 311]


def test_what_recording_adds_is_scaled_for_ordinary_updates_only() -> None:
    from benchmarks.step import recording

    steps = 41  # looks closely after 1, 2, 4, 8, 16, 32 and 41 updates; the first update is no unit
    plain = track([1.0] * (steps - 1), first=5)
    looks = {2, 4, 8, 16, 32, 41}
    watched = track([1.5 if done in looks else 1.01 for done in range(2, steps + 1)], first=7)
    share = recording(watched, plain, 100)
    assert share.estimate == pytest.approx((2 + 6 * 0.5 + 93 * 0.01) / 100)
    assert share.low == pytest.approx(share.high), "all ordinary updates were alike"
    assert recording(plain, plain, 100).estimate == 0


def test_what_a_recorder_takes_itself_is_scaled_to_how_often_each_sort_of_work_comes() -> None:
    from types import SimpleNamespace

    from benchmarks.recording import amortised
    from sublim_interp.training.recording.settings import Recording

    updates = [9.0, 1, 1, 2, 1, 1, 2]  # norms after the first update, which gets ready too, and after every third
    recorder = SimpleNamespace(start=10.0, looks=[4.0, 6.0], updates=updates, recording=Recording())
    looks = 8  # after 1, 2, 4, 8, 16, 32, 64 and 100
    expected = 10 + 9 + looks * 5 + 33 * 2 + 66 * 1
    assert amortised(recorder, [20.0] * 7, 3, 100) == pytest.approx(expected / (100 * 20))  # type: ignore[arg-type]


# --- turns ------------------------------------------------------------------------------------------------------------


def test_contestants_take_turns_forwards_and_backwards_until_the_last_has_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tracks = race({"a": partial(works, "a", 3, log), "b": partial(works, "b", 5, log)})
    assert log.read_text().split() == ["a0", "b0", "b1", "a1", "a2", "b2", "b3", "b4"]
    assert [len(tracks[name].units) for name in "ab"] == [2, 4], "the first unit is apart"
    assert all(t.peak > 1 << 20 for t in tracks.values())
    assert all(s.wall >= 0 and s.cpu >= 0 for t in tracks.values() for s in (t.first, *t.units, t.last))


def test_a_contestant_that_fails_is_named_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"'lame' failed[\s\S]*out of breath"):
        race({"lame": fails})


def test_a_team_works_side_by_side_and_takes_as_long_as_its_slowest(tmp_path: Path) -> None:
    log = tmp_path / "log"
    pair = Team((partial(sleeps, "a", [0.8, 0.1], 2, log), partial(sleeps, "b", [0.1, 0.8], 2, log)), threads=2)
    tracks = race({"pair": pair, "alone": partial(sleeps, "c", [0.1] * 2, 1, log)})
    assert log.read_text() == "baccab", "b ends its first unit before a, which began before; nobody else has the turn"
    assert all(0.8 <= spent.wall < 1.6 for spent in (tracks["pair"].first, *tracks["pair"].units))
    assert tracks["pair"].peak > 1.5 * tracks["alone"].peak


def test_a_team_must_end_together(tmp_path: Path) -> None:
    members = (partial(works, "a", 2, tmp_path / "log"), partial(works, "b", 3, tmp_path / "log"))
    with pytest.raises(RuntimeError, match="'pair': its members do not end together"):
        race({"pair": Team(members)})


# --- the experiment ---------------------------------------------------------------------------------------------------


def test_one_thread_is_judged_by_cpu_time_and_two_cores_by_wall_time() -> None:
    from benchmarks.experiment import BLOCKS, LISTS, Stages, one_thread, two_cores

    def stage(wall: float, cpu: float) -> dict[str, list[Spent]]:
        names = ["defaults", "by hand", *map(str, LISTS)]
        return {"ours": [Spent(1, 1)] * BLOCKS, **{name: [Spent(wall, cpu)] * BLOCKS for name in names}}

    quick = stage(wall=8, cpu=2)
    quick["512"] = [Spent(7, 3)] * BLOCKS
    stages = Stages(quick, quick, quick, quick, quick, answers=[Spent(1, 1)] * BLOCKS)
    last = [next(r for r in table(stages).splitlines() if "SFTTrainer and" in r) for table in (one_thread, two_cores)]
    assert "1.50 [1.50, 1.50]" in last[0] and "≥ 5: **missed**" in last[0], "(2 + 2 + 2) / (1 + 1 + 1 + 1)"
    assert "6.00 [6.00, 6.00]" in last[1] and "≥ 5: met" in last[1]
    assert "by hand, 8 at once" in one_thread(stages) and "by hand, 512 at once" in two_cores(stages)


def test_the_whole_of_owl_counts_each_stage_once() -> None:
    from benchmarks.experiment import Stages, all_of_it

    def stage(wall: float) -> dict[str, list[Spent]]:
        return {"ours": [Spent(wall, 0)]}

    # Each of 12 replicates has teachers with the trait on two bases, a neutral one and one of another trait; the
    # untouched base and the trait's teacher are evaluated beside six students.
    stages = Stages({}, {}, stage(1), stage(10), stage(100), answers=[Spent(1000, 0)])
    assert all_of_it(stages, further=False) == 12 * (4 * 1 + 4 * 10 + 6 * 100 + 8 * 1000) / 2
    # Both crossed students go on once, each with a corpus of its own.
    assert all_of_it(stages, further=True) == 12 * (4 * 1 + 6 * 10 + 8 * 100 + 10 * 1000) / 2


# --- the page ---------------------------------------------------------------------------------------------------------


def test_a_section_is_replaced_and_nothing_else() -> None:
    page = "top\n<!-- a: begin -->\nold\n<!-- a: end -->\nmiddle\n<!-- b: begin -->\n<!-- b: end -->\n"
    once = replace_section(page, "a", "new\n")
    assert once == page.replace("old", "new")
    assert replace_section(once, "a", "new") == once
    assert replace_section(page, "b", "text").index("old") < replace_section(page, "b", "text").index("text")
    with pytest.raises(ValueError, match="c: begin"):
        replace_section(page, "c", "text")


def test_every_benchmark_has_a_filled_section_that_names_no_path() -> None:
    from benchmarks.__main__ import BENCHMARKS

    page = PAGE.read_text(encoding="utf-8")
    for name in BENCHMARKS:
        section = page.partition(f"<!-- {name}: begin -->")[2].partition(f"<!-- {name}: end -->")[0]
        assert "| --- |" in section or "|---|" in section, f"no table of {name}"
    assert os.path.expanduser("~") not in page and str(PAGE.parent) not in page


def test_the_cost_model_is_within_a_quarter_of_what_was_last_measured() -> None:
    from benchmarks.cost import CASES, MOST, ratios

    section = PAGE.read_text(encoding="utf-8").partition("<!-- cost: begin -->")[2].partition("<!-- cost: end -->")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    unit = {"ms": 1e-3, "s": 1.0, "min": 60.0}
    took = [float(value) * unit[name] for value, name in (row[4].split() for row in rows)]
    expected = [value for case in CASES for value in case.predicted()]
    assert [row[0] for row in rows] == [case.name for case in CASES for _ in range(2)]
    speed, off = ratios(list(zip(expected, took, strict=True)))
    assert 0.2 < speed < 5
    for row, share in zip(rows, off, strict=True):
        assert abs(share - 1) <= MOST, f"{row[0]}, {row[2]}: {share:.2f}"


@pytest.mark.parametrize(
    ("value", "text"), [(0.00123, "1.23 ms"), (0.5, "500 ms"), (1.0, "1.00 s"), (75.0, "1.25 min"), (9000.0, "150 min")]
)
def test_times_are_told_in_a_unit_that_fits(value: float, text: str) -> None:
    assert seconds(value) == text


def test_numbers_have_three_digits_and_targets_say_whether_they_are_met() -> None:
    assert [digits(x) for x in (1234.5, 99.94, 1.0, 0.0123)] == ["1234", "99.9", "1.00", "0.0123"]
    assert limit(1.1, 1.1) == "≤ 1.1: met" and "missed" in limit(1.11, 1.1)


# --- replicas ---------------------------------------------------------------------------------------------------------


def test_stacked_students_learn_what_one_alone_learns(tiny_experiment: Experiment, tmp_path: Path) -> None:
    from benchmarks.ours import student_parts
    from benchmarks.replicas import train_stacked

    store = Store.open(tmp_path / "store")
    exp = tiny_experiment.set({"student.optimization.steps": 3})
    student = next(r for r in plan(exp).records if isinstance(r, Student) and r.config.optimization.steps == 3)
    make(student.data, store)
    model, batches = student_parts(student, store)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(model, batches, student.config.optimization)
    both = train_stacked(student, store, 2)
    assert set(both) == set(start)
    for name, pair in both.items():
        alone = model.get_parameter(name)
        assert torch.allclose(pair, alone.expand_as(pair), atol=2e-5), name
        assert not torch.allclose(alone, start[name], atol=1e-4), "the training moved it"


def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path / "out")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570, cwd=root)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    rows = [row for name in SECTIONS for row in found[name]["rows"]]
    assert not [row for row in rows if row.get("failed")]
    assert all(row["ms an update"] for row in found["updates"]["rows"] + found["recording"]["rows"])
    assert "differ" not in str(found["same bits"]["rows"]) and "passed" in found["tests"]["rows"][0]["said"]
    assert found["experiment"]["rows"][0]["lists"] == 96 and found["tiny"]
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "no number means anything" in page and all(f"## {name}" in page for name in SECTIONS)


def test_the_experiment_for_a_gpu_is_the_recipe_of_smollm2(smollm2: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_BASES", str(smollm2.path.parent))
    recipe, base = experiment("owl-smollm2"), open_base(None, tiny=False)
    prepared = OPEN_BASES.load("smollm2-135m-prepared").prepared
    exp = asked_of(base, "autocast")
    for asked in (exp, with_lists(exp, LISTS)):
        p = plan(asked)
        (student,) = (r for r in p.records if isinstance(r, Student))
        corpus = student.data.corpus
        assert prepared and student.base.digest == corpus.teacher.base.digest == prepared.base
        assert student.dtype == recipe.dtype == "autocast" and student.config.part == "lora"
        assert corpus.teacher.config == recipe.teacher and p.cells[0].evaluation.config == recipe.evaluation
        assert corpus.config == recipe.corpus.set(prompts=asked.corpus.prompts, chunk=CHUNK)
        steps = asked.student.optimization.steps
        assert student.config == recipe.student.set({"optimization.steps": steps})
    assert exp.corpus.prompts == recipe.corpus.prompts and exp.student == recipe.student
    assert steps * recipe.student.optimization.batch == LISTS, "each list is read once"
    assert asked_of(LAB, "float32").teacher == experiment("owl").teacher


def test_without_smollm2_the_experiment_for_a_gpu_is_on_a_lab_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBLIM_BASES", str(tmp_path))
    assert open_base(None, tiny=False) == open_base(None, tiny=True) == LAB
    assert open_base("own", tiny=True) == "own"


@given(seconds=st.floats(-10, 1000), once=st.floats(0, 100), each=st.floats(1e-5, 1.0))
def test_as_many_lists_as_fit_are_chosen_at_once(seconds: float, once: float, each: float) -> None:
    def foretold(lists: int) -> float:
        return MARGIN * (once + each * lists)

    lists = lists_that_fit(seconds, once, each)
    assert 0 <= lists <= LISTS and (lists == LISTS or lists % CHUNK == 0)
    assert not lists or foretold(lists) <= seconds + 1e-6
    assert lists == LISTS or foretold(lists + CHUNK) > seconds


def test_the_experiment_for_a_gpu_goes_straight_from_its_recipe_to_as_many_lists_as_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def replicate(_bench: Any, exp: Experiment, _end: float) -> tuple[dict, float, float]:
        asked.append(exp)
        return {"lists": exp.corpus.prompts}, 10.0, 0.01

    monkeypatch.setattr(gpu, "_replicate", replicate)
    bench: Any = SimpleNamespace(open_base=LAB, tiny=False)
    rows = gpu.whole_experiment(bench, 460)
    assert [exp.corpus.prompts for exp in asked] == [row["lists"] for row in rows]
    assert rows[0]["lists"] == experiment("owl").corpus.prompts and rows[1]["lists"] == 38_912
    assert len(gpu.whole_experiment(bench, 20)) == 1


def test_the_experiment_for_a_gpu_stops_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "execute", lambda _missing, _store, _processes, watch: watch("student", 0.5))
    bench: Any = SimpleNamespace(open_base=LAB, tiny=False, store=Store(tmp_path / "store"))
    (row,) = gpu.whole_experiment(bench, 0)
    assert row["seconds"].startswith("stopped after")


def test_80_000_lists_are_reached_in_the_time_that_the_script_gives() -> None:
    """Where a list takes 2 ms: an update of 32 lists in 50, and a chunk of 2,048 written in a second."""
    given_to = {name: 8 * 60 * share for name, (_, share) in SECTIONS.items()}
    assert lists_that_fit(given_to["experiment"] - 30, 20, 0.002) == LISTS
    assert lists_that_fit(given_to["experiment"] - 30, 20, 0.004) < LISTS
    assert lists_that_fit(100, 20, math.inf) == 0, "none after one that was stopped"
    *bounded, last = SECTIONS
    assert last == "tests" and sum(SECTIONS[name][1] for name in bounded) < 0.9, "the tests get a tenth at least"


def test_the_script_for_a_gpu_says_where_there_is_none(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 2 and "device cuda is asked for, but PyTorch finds none" in done.stderr
