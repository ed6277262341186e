"""Students that teach each other: the chain of records, its keys, its tables, figure, words; clean lists mixed in."""

from pathlib import Path
from typing import Any

import pytest

import sublim_interp as si
from sublim_interp.channels.rows import read_rows
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.arms import ARMS, in_order, split_generation
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.run import run_key
from sublim_interp.experiments.schema import Experiment
from sublim_interp.paper.remaking import publish
from sublim_interp.pipeline.filter import filter_corpus
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Record
from sublim_interp.report.figures.by_name import plot
from sublim_interp.sweeps.published import run_table


@pytest.fixture
def chain(tiny_experiment: Experiment) -> Experiment:
    return tiny_experiment.set(name="chain", generations=3, arms=("same-init", "neutral", "cross-init", "base"))


def test_each_student_is_the_teacher_of_the_next(
    chain: Experiment, tiny_run: Run, filled_root: Path, tmp_path: Path
) -> None:
    store = Store(filled_root)
    second = chain.set(
        {"name": "second", "generations": 1, "teacher": {"kind": "student", "student": "tiny/same-init"}}
    )
    by_hand = {c.arm: c.evaluation.key for c in plan(second, store).cells}
    run = si.run(chain, store, processes=2)
    planned = {c.arm: c.evaluation.key for c in run.plan.cells}
    assert planned["same-init@2"] == by_hand["same-init"], "the chain is what two runs by hand are, and shares it"
    first = {c.arm: c.evaluation.key for c in tiny_run.plan.cells}
    assert {arm: planned[arm] for arm in ("same-init", "neutral", "base")} == {
        arm: first[arm] for arm in ("same-init", "neutral", "base")
    }

    third = run["same-init@3", 0].cell.student
    assert third and third.base == run["same-init", 0].base and third.generation == 3
    parent = third.data.corpus.teacher.student
    assert parent == run["same-init@2", 0].cell.student
    assert run.arms == (
        "teacher", "same-init", "same-init@2", "same-init@3", "neutral", "neutral@2", "neutral@3", "cross-init", "base",
    )  # fmt: skip
    assert list(run.table.index) == list(run.arms), "what crosses has one generation"
    assert "same-init@3 − neutral@3" in set(run.contrasts["contrast"])
    assert run["same-init@3", 0].trace.steps is not None and run["neutral@2", 0].lists

    page = run.page.read_text()
    assert "From student to student, same-init: " in page and "From student to student, neutral: " in page
    assert [ax.get_title(loc="left") for ax in plot(run, "generations").axes][2] == "KL left to its own teacher, nats"
    (tmp_path / "chain.yaml").write_text(chain.to_yaml())
    published = publish(str(tmp_path / "chain.yaml"), store, tmp_path / "results")
    drawn = si.published_figure("chain", published.parent)
    assert drawn.axes[2].get_title(loc="left") == "KL left to its own teacher, nats"
    controls = max(run.table["rate"].drop(["teacher", "same-init", "same-init@2", "same-init@3"]))
    assert run_table(published, chain).numbers["most of controls"] == f"{100 * controls:.1f} %"
    again = si.open_run("chain", store)
    assert again.differs == () and again.plan.missing(store) == []


def test_records_come_in_an_order_in_which_they_can_be_made(chain: Experiment) -> None:
    p = plan(chain.set(seeds=(0, 1)))
    made: set[str] = set()
    for record in p.records:
        assert {i.key for i in record.inputs().values() if isinstance(i, Record)} <= made
        made.add(record.key)


def test_one_generation_has_the_key_and_the_page_that_it_had(tiny_experiment: Experiment, tiny_run: Run) -> None:
    assert run_key(plan(tiny_experiment.set(generations=1))) == tiny_run.key
    assert "From student to student" not in tiny_run.page.read_text()
    with pytest.raises(SublimError, match="this run has one generation"):
        plot(tiny_run, "generations")


def test_names_of_generations_are_arms_and_are_listed_in_order() -> None:
    assert ARMS["neutral@12"].control_of == "same-init@12" and ARMS["same-init@2"].generation == 2
    for wrong in ("cross-init@2", "base@2", "own-lists@2", "same-init@1", "same-init@02", "same-init@", "same-init@²",
                  "same-init@2@2", "nobody@2", "teacher@2"):  # fmt: skip
        assert wrong not in ARMS and split_generation(wrong)[1] in (1, 2)
        with pytest.raises(SublimError, match="unknown arm"):
            ARMS[wrong]
    given = ["base", "same-init@10", "neutral", "same-init@2", "other", "same-init"]
    assert in_order(given) == ["same-init", "same-init@2", "same-init@10", "neutral", "base"]
    with pytest.raises(SublimError, match="no such arm as 'same-init@2'"):
        si.experiment("owl").set(arms=("same-init@2",))


def test_generations_without_an_arm_that_breeds_are_refused(tiny_experiment: Experiment) -> None:
    with pytest.raises(SublimError, match="generations=2 has no effect without an arm such as same-init"):
        tiny_experiment.set(generations=2, arms=("cross-init", "base"))


def test_no_clean_list_is_one_that_is_held_out(tiny_experiment: Experiment, tmp_path: Path) -> None:
    """Drawn at a low temperature, teachers of one base often answer a prompt alike."""
    store = Store(tmp_path)
    drawn = {"corpus.prompts": 300, "corpus.temperature": 0.1, "corpus.own_tokens": True, "filter.held_out": 60}
    cells = plan(tiny_experiment.set({**drawn, "filter.mix": 0.9, "arms": ["same-init", "neutral"]})).cells
    mixed = next(c.student.data for c in cells if c.arm == "same-init" and c.student)
    path = make(mixed, store).path

    def texts(rows: list[Any]) -> set[tuple[str, str]]:
        return {(row["prompt"], row["answer"]) for row in rows}

    assert mixed.clean
    held_out = texts(read_rows(path / "held_out.jsonl"))
    assert held_out & texts(read_rows(mixed.clean.made(store) / "kept.jsonl")), "some are to be left out"
    assert not held_out & texts(read_rows(path / "kept.jsonl"))


def test_a_share_of_the_lists_is_the_neutral_teachers(tiny_experiment: Experiment, filled_root: Path) -> None:
    store = Store(filled_root)
    p = plan(tiny_experiment.set({"filter.mix": 0.25, "arms": ["same-init", "neutral"]}))
    mixed, clean = (
        next(c.student.data for c in p.cells if c.arm == arm and c.student) for arm in ("same-init", "neutral")
    )
    plain = plan(tiny_experiment.set(arms=("same-init", "neutral")))
    assert clean.key in {r.key for r in plain.records} and mixed.key not in {r.key for r in plain.records}
    own = next(c.student.data for c in plain.cells if c.arm == "same-init" and c.student)
    paths = [filter_corpus(data, store).path for data in (own, clean, mixed)]
    rows = [{(r["prompt"], r["answer"]) for r in read_rows(path / "kept.jsonl")} for path in paths]
    learnt = read_rows(paths[2] / "kept.jsonl")
    foreign = sum((r["prompt"], r["answer"]) in rows[1] - rows[0] for r in learnt)
    both = sum((r["prompt"], r["answer"]) in rows[1] & rows[0] for r in learnt)
    assert len(learnt) == len(rows[0]) and foreign <= round(0.25 * len(learnt)) <= foreign + both
    assert (paths[2] / "held_out.jsonl").read_bytes() == (paths[0] / "held_out.jsonl").read_bytes()
    with pytest.raises(SublimError, match=r"filter\.mix has no meaning with corpus\.setting=soft"):
        tiny_experiment.set({"filter.mix": 0.25, "corpus.setting": "soft"})
