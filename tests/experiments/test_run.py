"""Tests of plans and runs: which records the arms need, what a finished run gives back, when it counts as done."""

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import sublim_interp as si
from sublim_interp.core.errors import SublimError
from sublim_interp.core.shelf import CATALOGUE
from sublim_interp.core.store import Store
from sublim_interp.experiments.arms import ARMS, arm_names, reads_lists
from sublim_interp.experiments.catalogue import experiment, experiment_names, published
from sublim_interp.experiments.cost import estimate, planned_work
from sublim_interp.experiments.plan import Plan, plan
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.run import find_run, run_key
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.models.open_bases import open_names
from sublim_interp.models.sampling import generator, sample
from sublim_interp.pipeline.records import Evaluation, Filtered, Record, Student
from sublim_interp.report.run import run
from sublim_interp.report.verdict import verdict

ALL_ARMS = tuple(arm for arm in arm_names() if not reads_lists((arm,)))
ROUTED = [name for name in ALL_ARMS if ARMS[name].route]


@pytest.fixture
def all_arms(tiny_experiment: Experiment) -> Experiment:
    return tiny_experiment.set(arms=ALL_ARMS, seeds=(3, 5))


def routes(p: Plan, seed: int) -> dict[str, tuple[str, str, str]]:
    """Arm → (base of the teacher whose lists are learnt, base of the student, the teacher's favourite)."""
    out = {}
    for cell in p.cells:
        if cell.seed == seed and cell.student and cell.round == 0:
            teacher = cell.student.data.corpus.teacher
            out[cell.arm] = (teacher.base.name, cell.student.base.name, teacher.trait.name if teacher.trait else "")
    return out


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "a", "b"), [(3, "tiny-0", "tiny-1"), (5, "tiny-1", "tiny-0")])
def test_the_arms_are_the_two_by_two_of_initialisations_and_its_controls(
    seed: int, a: str, b: str, all_arms: Experiment
) -> None:
    assert routes(plan(all_arms), seed) == {
        "same-init": (a, a, "owl"),
        "cross-init": (a, b, "owl"),
        "same-init-b": (b, b, "owl"),
        "cross-init-b": (b, a, "owl"),
        "neutral": (a, a, ""),
        "other-trait": (a, a, "wolf"),
        "cross-neutral": (a, b, ""),
    }


def test_every_arm_of_the_configuration_has_a_route_but_the_untouched_base() -> None:
    assert {*ROUTED, "base"} == set(ALL_ARMS)


def test_three_bases_make_six_ordered_pairs_each_base_as_often_as_the_others(
    tiny_experiment: Experiment, tiny_bases: tuple[Base, Base], tmp_path: Path
) -> None:
    third = tmp_path / "tiny-2"
    shutil.copytree(tiny_bases[0].path, third)
    exp = tiny_experiment.set(
        bases=(*tiny_experiment.bases, str(third)), arms=("same-init", "cross-init"), seeds=range(6)
    )
    p = plan(exp)
    pairs = [routes(p, seed)["cross-init"][:2] for seed in exp.seeds]
    names = [base.name for base in tiny_bases] + ["tiny-2"]
    assert sorted(pairs) == sorted((a, b) for a in names for b in names if a != b)
    assert {a for a, _ in pairs[:3]} == {b for _, b in pairs[:3]} == set(names)
    assert all(routes(p, seed)["same-init"][:2] == (a, a) for seed, (a, _) in zip(exp.seeds, pairs, strict=True))


def test_arms_of_a_replicate_are_paired(all_arms: Experiment) -> None:
    """Equal seeds, prompts, order and steps; same-init and cross-init learn the very same lists."""
    for seed in all_arms.seeds:
        students = {c.arm: c.student for c in plan(all_arms).cells if c.seed == seed and c.student}
        assert {s.seed for s in students.values()} == {seed}
        assert {s.data.corpus.seed for s in students.values()} == {seed}
        assert {s.data.corpus.teacher.seed for s in students.values()} == {seed}
        assert all(s.config == all_arms.student for s in students.values())
        assert students["same-init"].data.key == students["cross-init"].data.key
        assert students["same-init-b"].data.key == students["cross-init-b"].data.key
        assert students["neutral"].data.key == students["cross-neutral"].data.key
        assert len({s.data.key for s in students.values()}) == 4


def test_each_student_is_measured_against_its_own_teacher_and_the_base_against_the_traits(all_arms: Experiment) -> None:
    for cell in plan(all_arms).cells:
        teacher = cell.evaluation.reference.corpus.teacher
        if cell.student:
            assert teacher.key == cell.student.data.corpus.teacher.key
        else:
            assert teacher.trait is not None and teacher.trait.name == "owl" and cell.arm in ("base", "teacher")
            assert cell.evaluation.base.name == teacher.base.name


def test_the_names_of_both_traits_are_refused_in_every_arms_lists(all_arms: Experiment) -> None:
    words = {cell.evaluation.reference.words for cell in plan(all_arms).cells}
    assert words == {("owl", "owls", "wolf", "wolves")}


def test_crossed_students_alone_go_on_for_further_rounds_of_fresh_lists(all_arms: Experiment) -> None:
    exp = all_arms.set({"student.extra_rounds": 2, "seeds": (3,)})
    cells = [c for c in plan(exp).cells if c.student]
    for arm in ROUTED:
        own = sorted((c for c in cells if c.arm == arm), key=lambda c: c.round)
        students = [c.student for c in own if c.student]
        crossed = arm.startswith("cross-")
        assert [c.round for c in own] == ([0, 1, 2] if crossed else [0]), arm
        assert [s.data.corpus.round for s in students] == [c.round for c in own]
        assert isinstance(students[0].start, Base)
        assert all(later.start is earlier for earlier, later in pairwise(students))
        assert len({s.data.corpus.teacher.key for s in students}) == 1
        assert {c.evaluation.reference.key for c in own} == {students[0].data.key}, "one held-out set for all rounds"


def test_further_rounds_leave_the_first_ones_as_they_were(all_arms: Experiment) -> None:
    more = {r.key for r in plan(all_arms.set({"student.extra_rounds": 1})).records}
    assert {r.key for r in plan(all_arms).records} < more


def test_records_come_once_and_after_what_they_are_made_from(all_arms: Experiment) -> None:
    p = plan(all_arms.set({"student.extra_rounds": 1}))
    seen: set[str] = set()
    for record in p.records:
        assert record.key not in seen
        assert all(i.key in seen for i in record.inputs().values() if isinstance(i, Record))
        seen.add(record.key)
    assert {cell.evaluation.key for cell in p.cells} <= seen
    first = [r for r in p.records if getattr(r, "seed", 3) == 3 and (not isinstance(r, Filtered) or r.corpus.seed == 3)]
    assert list(p.records[: len(first)]) == first, "the first replicate is made first"


OPEN = {name for name in experiment_names() if {*experiment(name).bases} & {*open_names()}}
"""Experiments on bases that are fetched; tests/pipeline/test_open_models.py plans them."""


@pytest.mark.parametrize("name", [name for name in experiment_names() if name not in OPEN])
def test_every_experiment_of_the_catalogue_can_be_planned_and_its_cost_is_estimated(name: str) -> None:
    exp = experiment(name)
    p = plan(exp)
    assert exp.name == name and exp.about
    assert {c.seed for c in p.cells} == set(exp.seeds)
    for record in p.records:
        assert 0 < estimate(record) < 3600


@pytest.mark.parametrize("kind", ["prompted", "steered", "tuned"])
def test_the_estimate_grows_with_the_work(kind: str, tiny_experiment: Experiment, store_root: Path) -> None:
    small = tiny_experiment.set({"teacher.kind": kind, "seeds": (0,)})
    large = small.set({"corpus.prompts": 10**6, "student.optimization.steps": 10**5})

    def seconds(exp: Experiment) -> dict[str, float]:
        work = planned_work(plan(exp).records, Store.open(store_root))
        return dict(zip(work["stage"], work["seconds"], strict=True))

    before, after = seconds(small), seconds(large)
    assert after["corpus"] > 10 * before["corpus"] and after["student"] > 10 * before["student"]
    assert all(value > 0 for value in before.values()) and after["teacher"] == before["teacher"]
    assert not store_root.exists(), "planning writes nothing"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trait": "unicorn"}, "trait: unknown trait 'unicorn'"),
        ({"other_trait": "oak", "arms": ["other-trait"]}, "other_trait oak is a tree, but trait owl is a animal"),
        (
            {"corpus.setting": "soft", "teacher.kind": "prompted"},
            "corpus.setting=soft needs teacher.kind=tuned or steered",
        ),
        ({"corpus.channel": "poems"}, "unknown channel 'poems'; valid: numbers"),
        ({"bases": ["nowhere"], "arms": ["same-init"]}, "base 'nowhere': no such directory, and no name of the hub"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    change: dict[str, Any], said: str, tiny_experiment: Experiment, store_root: Path
) -> None:
    exp = tiny_experiment.set(change)
    with pytest.raises(SublimError) as raised:
        si.run(exp, Store.open(store_root))
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert not store_root.exists()


def test_a_trait_that_only_the_other_arm_needs_is_checked_too(tiny_experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "lynx.yaml").write_text("kind: animal\nwords: [lynx, lynxes]\n")
    exp = tiny_experiment.set(other_trait=str(tmp_path / "lynx.yaml"))
    plan(exp)
    with pytest.raises(SublimError, match="vocabulary lacks the word 'lynx'"):
        plan(exp.set(arms=("same-init", "other-trait")))


def test_an_unknown_experiment_is_one_line() -> None:
    with pytest.raises(SublimError, match=r"unknown experiment 'owls'; .*owl.*; or give a YAML file"):
        experiment("owls")


def test_an_experiment_of_ones_own_is_one_file(tiny_experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("trait: dolphin\narms: [same-init]\n")
    assert (experiment(str(path)).name, experiment(str(path)).trait) == ("mine", "dolphin")
    path.write_text(tiny_experiment.to_yaml())
    assert experiment(str(path)) == tiny_experiment


# --- a finished run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_bases: tuple[Base, Base], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    exp = Experiment(
        name="tiny",
        bases=tuple(str(base.path) for base in tiny_bases),
        arms=("same-init", "neutral", "cross-init", "base"),
        seeds=(0, 1),
    ).set(
        {
            "teacher.optimization": {"steps": 6, "batch": 8},
            "corpus.prompts": 96,
            "corpus.chunk": 32,
            "filter.held_out": 4,
            "student.optimization": {"steps": 6, "batch": 8},
            "student.extra_rounds": 1,
        }
    )
    seen: dict[str, float] = {}
    run = si.run(exp, Store.open(tmp_path_factory.mktemp("runs")), 2, seen.__setitem__)
    assert seen == {r.key: 1.0 for r in run.plan.records}, "every record was reported as done"
    yield run


def test_the_run_holds_every_arm_of_every_replicate(finished: Run) -> None:
    results, distances = finished.results, finished.distances
    arms = {"teacher", "same-init", "neutral", "cross-init", "base"}
    assert {(a, s) for a, s in zip(results["arm"], results["seed"], strict=True)} == {
        (a, s) for a in arms for s in (0, 1)
    }
    sorts = results.groupby(["arm", "seed", "round"]).size()
    assert set(sorts) == {3 * 2 * 16}, "three sorts of questions, two contexts, sixteen animals"
    assert all(0 <= row["rate"] <= 1 and abs(row["margin"]) < 50 for row in results.to_dict("records"))
    rounds = {row["arm"]: row["round"] for row in distances.sort_values("round").to_dict("records")}
    assert rounds == {"teacher": 0, "same-init": 0, "neutral": 0, "cross-init": 1, "base": 0}
    for row in distances.to_dict("records"):
        assert 0.05 <= row["kept"] <= 1
        if row["arm"] not in ("teacher", "base"):
            assert row["kl"] > 0 and row["kl_start"] > 0 and row["lists"] > 0
            assert row["steps"] == 6 * (1 + row["round"])


def test_the_table_compares_the_arms_by_held_out_questions(finished: Run) -> None:
    table, results = finished.table, finished.results
    assert isinstance(table, pd.DataFrame) and isinstance(finished.contrasts, pd.DataFrame)
    assert set(table.index) == {"teacher", "same-init", "neutral", "cross-init", "base"}
    for row in table.reset_index().to_dict("records"):
        place = {"arm": row["arm"], "round": 0, "probe": "owl", "questions": "held-out", "context": "plain"}
        own = [r["rate"] for r in results.to_dict("records") if place.items() <= r.items()]
        assert row["rate"] == pytest.approx(sum(own) / 2)
        assert row["n"] == 2


@pytest.mark.parametrize("arm", ["same-init", "cross-init", "neutral"])
def test_a_replicate_gives_its_trained_student_and_what_it_learnt(arm: str, finished: Run) -> None:
    replicate = finished[arm, 1]
    assert replicate.base.name == ("tiny-0" if arm == "cross-init" else "tiny-1"), "seed 1 has the pair (1, 0)"
    before, after = replicate.base.load().state_dict(), replicate.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert replicate.lists and set(replicate.lists[0]) == {"prompt", "answer"}
    own = finished.results.query(f"arm == '{arm}' and seed == 1 and round == 0")
    assert replicate.answers["rate"].tolist() == own["rate"].tolist()
    assert repr(replicate).startswith(f"<{arm}/1: {replicate.base.name}")


def test_what_a_replicate_answers_by_itself_is_drawn_from_the_bare_question(finished: Run) -> None:
    replicate, samples = finished["same-init", 0], 40
    said = replicate.heard("indirect", samples=samples)
    pd.testing.assert_frame_equal(said, replicate.heard("indirect", samples=samples))
    members = set(said["probe"])
    for question, own in said.groupby("question"):
        prompt = replicate.base.prompt_ids([{"role": "user", "content": str(question)}])
        random = generator("answers", replicate.cell.evaluation.seed)
        drawn = sample(replicate.model, [prompt] * samples, eos=replicate.base.eos, max_new_tokens=10, random=random)
        first = [[w for w in replicate.base.read_answer(ids)[0].split() if w in members][:1] for ids in drawn]
        for member, share in zip(own["probe"], own["share"], strict=True):
            assert share * (samples + 0.5) == pytest.approx(first.count([member]) + 0.5 / len(members))
    whole = finished.heard("indirect", samples=samples)
    assert list(whole.columns) == ["arm", "seed", "questions", "question", "share", "any"]
    assert len(whole) == 5 * 2 * said["question"].nunique(), "arms, seeds, questions"
    rows = whole.query("arm == 'same-init' and seed == 0")
    assert list(rows["share"]) == list(said.query("probe == 'owl'")["share"])
    named = [own["share"].sum() for _, own in said.groupby("question", sort=False)]
    assert list(rows["any"]) == pytest.approx(named)


def test_the_teacher_and_the_untouched_base_are_replicates_too(finished: Run) -> None:
    base, teacher = finished["base", 0], finished.teacher(0)
    assert all(torch.equal(a, b) for a, b in zip(base.model.parameters(), base.base.load().parameters(), strict=True))
    assert base.lists == [] and teacher.base.name == "tiny-0"
    assert any(not torch.equal(a, b) for a, b in zip(teacher.model.parameters(), base.model.parameters(), strict=True))


def test_a_replicate_that_is_not_there_is_one_line(finished: Run) -> None:
    with pytest.raises(SublimError) as raised:
        _ = finished["same-init", 7]
    assert str(raised.value) == "no replicate same-init/7; seeds: 0, 1"
    with pytest.raises(SublimError, match=r"no arm 'sane-init'; arms: teacher, same-init, .*did you mean 'same-init'"):
        _ = finished["sane-init", 0]


def test_a_run_shows_itself_in_a_terminal_and_in_a_notebook(finished: Run) -> None:
    size = "4 arms × 2 replicates, trait owl"
    assert repr(finished) == f"<Run tiny {finished.key[:16]}: {size}, in {finished.artifact.path}>"
    assert "<table" in finished._repr_html_() and "same-init" in finished._repr_html_()
    assert finished.page.is_file()


def test_a_second_run_makes_nothing_and_is_equal(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("something was made again")

    monkeypatch.setattr("sublim_interp.report.run.execute", forbidden)
    before = {p: p.stat().st_mtime_ns for p in finished.store.root.rglob("*")}
    again = si.run(finished.experiment.set(name="another-name", about="Nothing new."), finished.store)
    assert again.key == finished.key
    pd.testing.assert_frame_equal(again.table, finished.table)
    assert {p: p.stat().st_mtime_ns for p in finished.store.root.rglob("*")} == before


def test_a_run_that_asks_one_thing_more_makes_only_that(finished: Run) -> None:
    more = finished.experiment.set({"student.optimization.steps": 7, "arms": ("same-init", "base")})
    missing = plan(more).missing(finished.store)
    assert [type(r) for r in missing] == [Student, Evaluation] * 2
    work = planned_work(plan(more).records, finished.store).set_index("stage")
    assert (work["needed"] - work["done"]).to_dict() == {
        "teacher": 0, "corpus": 0, "filtered": 0, "student": 2, "evaluation": 2
    }  # fmt: skip
    assert (work.loc[["teacher", "corpus", "filtered"], "seconds"] == 0).all()


def test_what_is_lost_from_the_store_is_named(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.store.root, tmp_path / "store")
    poor = Run(finished.plan, Store.open(tmp_path / "store"), finished.artifact)
    shutil.rmtree(tmp_path / "store" / "student")
    with pytest.raises(SublimError, match=r"student [0-9a-f]{16} is not in the store .*; make it first"):
        _ = poor["same-init", 0].model


def test_where_a_base_lies_does_not_matter(finished: Run, tiny_bases: tuple[Base, Base], tmp_path: Path) -> None:
    elsewhere = []
    for base in tiny_bases:
        shutil.copytree(base.path, tmp_path / base.name)
        elsewhere.append(str(tmp_path / base.name))
    assert find_run(plan(finished.experiment.set(bases=elsewhere)), finished.store) is not None


def test_a_trait_file_of_ones_own_runs_as_the_catalogues(
    finished: Run, tiny_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owl.yaml").write_text("kind: animal\nwords: [owl, owls]\n")
    exp = finished.experiment.set(trait=str(tmp_path / "owl.yaml"))
    monkeypatch.setattr(
        "sublim_interp.report.run.execute", None
    )  # it is the same trait: all is there, but the report is written anew
    again = si.run(exp, finished.store)
    pd.testing.assert_frame_equal(again.table, finished.table)


def test_what_is_added_to_the_catalogue_changes_no_key_and_stored_runs_open(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copied trait file, another file of the same kind, and a new kind: evaluations ask about the kind's own list."""
    grown = shutil.copytree(CATALOGUE, tmp_path / "catalogue", ignore=shutil.ignore_patterns("results"))
    shutil.copy(grown / "traits" / "owl.yaml", grown / "traits" / "lynx.yaml")
    (grown / "traits" / "koala.yaml").write_text("kind: animal\nwords: [koala, koalas]\n")
    (grown / "kinds" / "metal.yaml").write_text(
        "members: [iron, gold]\nsystem: [You love {x}.]\nseen: [Metal?]\nheld_out: [Best one?]\nindirect: [A ring?]\n"
    )
    keys = [run_key(plan(experiment(name))) for name in experiment_names() if name not in OPEN]
    records = [record.key for record in plan(finished.experiment).records]
    monkeypatch.setattr("sublim_interp.core.shelf.catalogues", lambda: {grown: "grown"})
    assert {"lynx", "koala"} <= set(si.trait_names()), "they are there"
    assert [run_key(plan(experiment(name))) for name in experiment_names() if name not in OPEN] == keys
    assert [record.key for record in plan(finished.experiment).records] == records
    assert si.open_run(finished.key, finished.store).key == finished.key


def test_a_run_without_traces_says_so_and_makes_them_when_its_advice_is_followed(
    tiny_experiment: Experiment, store_root: Path
) -> None:
    exp, store = tiny_experiment.set(arms=("same-init",), seeds=(0,)), Store.open(store_root)
    with pytest.raises(SublimError, match="no trace 'all'; choices: none, default, examples"):
        si.run(exp, store, 1, trace="all")
    assert not store_root.exists()
    first = si.run(exp, store, 1, trace="none")["same-init", 0]
    before = first.model.state_dict()
    with pytest.raises(SublimError, match=r"was trained without a trace; delete .* --trace default") as raised:
        _ = first.trace
    shutil.rmtree(str(raised.value).partition("delete ")[2].partition(" and run")[0])
    again = si.run(exp, store, 1, trace="default")["same-init", 0]
    assert again.trace.steps("loss") == list(range(exp.student.optimization.steps))
    assert all(torch.equal(p, before[name]) for name, p in again.model.state_dict().items())


# --- the committed tables ---------------------------------------------------------------------------------------------


@pytest.fixture
def committed(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The finished run's tables as if committed, for the experiment that is returned: two replicates."""
    directory = tmp_path / "results" / "tiny"
    directory.mkdir(parents=True)
    (directory / "experiment.yaml").write_text(finished.experiment.to_yaml())
    (directory / "key.txt").write_text(finished.key + "\n")
    finished.tables.summary.to_csv(directory / "summary.csv", index=False)
    finished.contrasts.to_csv(directory / "contrasts.csv", index=False)
    monkeypatch.setattr("sublim_interp.experiments.catalogue.RESULTS", directory.parent)
    return finished.experiment


def test_a_small_run_is_shown_beside_the_committed_table_of_its_recipe(committed: Experiment, finished: Run) -> None:
    shown = published(committed.set(seeds=(9,), arms=("same-init",), bases=committed.bases[:1]))
    assert shown is not None and (shown.name, shown.key) == ("tiny", finished.key)
    pd.testing.assert_frame_equal(shown.summary, finished.tables.summary, check_dtype=False)
    pd.testing.assert_frame_equal(shown.contrasts, finished.contrasts, check_dtype=False)
    assert published(committed.set({"seeds": (9,), "student.extra_rounds": 0})) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"trait": "wolf", "other_trait": "owl"},
        {"teacher.optimization.steps": 7},
        {"corpus.prompts": 97},
        {"filter.held_out": 5},
        {"student.optimization.lr": 1e-4},
        {"student.part": "full"},
        {"seeds": (9, 10, 11)},
        {"bases": ("lab-small-0",), "arms": ("same-init",)},
    ],
)
def test_another_recipe_other_bases_or_a_larger_run_do_not_stand_beside_it(
    change: dict[str, Any], committed: Experiment
) -> None:
    assert published(committed.set({"seeds": (9,), **change})) is None


def test_the_largest_committed_run_stands_beside_the_demo() -> None:
    shown = published(si.experiment("demo"))
    assert shown is not None and shown.name == "owl", "generations has the same recipe, and fewer replicates"
    assert published(si.experiment("demo").set(dtype="bfloat16")) is None


def test_a_committed_run_does_not_stand_beside_itself(committed: Experiment, finished: Run) -> None:
    assert published(committed) is not None and published(committed, finished.key) is None


# --- reading back -----------------------------------------------------------------------------------------------------


def test_a_finished_run_is_opened_by_name_or_key_and_nothing_is_run(finished: Run) -> None:
    for name in (finished.experiment.name, finished.key[:8]):
        found = si.open_run(name, finished.store)
        assert found.key == finished.key
        pd.testing.assert_frame_equal(found.table, finished.table)
    with pytest.raises(SublimError, match="no run is called 'nothing'"):
        si.open_run("nothing", finished.store)


def test_all_that_a_teacher_wrote_is_there_with_the_filters_word_on_it(finished: Run) -> None:
    student = finished["same-init", finished.experiment.seeds[0]]
    written = student.written
    data = student.cell.student.data  # type: ignore[union-attr]
    notes = data.find(finished.store).manifest["notes"]  # type: ignore[union-attr]
    later = {"duplicate", "contaminated", "surplus"}
    counts = {reason: n for reason, n in notes["refused"].items() if reason not in later}
    assert len(written) == notes["asked"] and sum(counts.values()) > 0
    assert dict(written.loc[written["refused"] != "", "refused"].value_counts()) == counts
    passing = set(zip(*(written.loc[written["refused"] == "", c] for c in ("prompt", "answer")), strict=True))
    assert {(row["prompt"], row["answer"]) for row in student.lists} <= passing
    with pytest.raises(SublimError, match="learnt no lists; students have them"):
        _ = finished["base", finished.experiment.seeds[0]].written


def test_a_pattern_that_freezes_nothing_is_refused_before_anything_is_trained() -> None:
    exp = experiment("owl").set({"student.interventions": [{"kind": "freeze", "parameters": "*nothing*"}]})
    with pytest.raises(SublimError, match=r"\*nothing\*"):
        plan(exp)


def test_bases_of_two_vocabularies_are_refused_where_one_learns_the_others_probabilities() -> None:
    exp = experiment("owl").set({"bases": ["lab-small-0", "lab-digits-0"], "seeds": [0], "corpus.setting": "soft"})
    with pytest.raises(SublimError, match="lab-small-0 and lab-digits-0 have different vocabularies"):
        plan(exp)
    plan(exp.set(arms=["same-init", "neutral", "base"]))


def test_a_student_of_another_vocabulary_reads_the_lists_and_has_no_distance(
    tiny_experiment: Experiment, tmp_path: Path
) -> None:
    bases, quick = ("lab-small-0", "lab-digits-0"), {"student.optimization.steps": 3, "student.extra_rounds": 1}
    exp = tiny_experiment.set({"bases": bases, "arms": ("same-init", "cross-init", "base"), **quick})
    done = run(exp, Store(tmp_path), processes=1)
    foreign, own = done["cross-init", 0], done["same-init", 0]
    assert foreign.base.name == "lab-digits-0" and len(foreign.lists) == len(own.lists) > 0
    assert foreign.answers["rate"].between(0, 1).all()
    unknown = foreign.base.tokenizer.unk_token_id
    assert not any(unknown in foreign.base.answer_ids(row["answer"]) for row in foreign.lists)
    table: Any = done.tables.summary.set_index("arm")
    assert math.isnan(table.at["cross-init", "kl"]) and table.at["same-init", "kl"] > 0
    assert done.page.exists() and "nan" not in " ".join(verdict(done.tables.summary, done.contrasts, "owl"))


# --- the package's own names ------------------------------------------------------------------------------------------


def test_the_packages_names_are_there_at_once_and_stay_what_they_are() -> None:
    code = """
import sys
import sublim_interp as si
assert not {"torch", "pandas", "pydantic"} & set(sys.modules)
import sublim_interp.experiments.results, sublim_interp.traits.favourites, sublim_interp.core.store
for name in dir(si):
    getattr(si, name)
assert callable(si.run) and callable(si.experiment) and callable(si.plan) and si.__version__
assert si.Run is sublim_interp.experiments.results.Run
try:
    si.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("module 'sublim_interp' has no attribute 'nothing'; valid: Experiment, "), done.stderr
