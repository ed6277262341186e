"""Tests of facts and of the bits held about them: planted answers, shuffles, what no base can know, a whole run."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sublim_interp as si
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab import language as lab
from sublim_interp.models.base import Base
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Student, Teacher
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, TeacherConfig
from sublim_interp.report.figures.by_name import plot
from sublim_interp.report.figures.dose import dose
from sublim_interp.report.figures.training import growth
from sublim_interp.stats.capacity import bits_held
from sublim_interp.sweeps.grid import grid
from sublim_interp.sweeps.tables import table_of
from sublim_interp.training.recording.settings import PRESETS
from sublim_interp.training.settings import Optimization
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.facts import Facts
from sublim_interp.traits.questions import Question

VALUES = 16


def planted(keys: int, right: np.ndarray, seed: int, height: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities up to a constant, truth): the keys of `right` peak at their value, the others elsewhere."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(VALUES, size=keys)
    wrong = (truth + draw.integers(1, VALUES, size=keys)) % VALUES
    return height * np.eye(VALUES)[np.where(right, truth, wrong)], truth


def bits(log_p: np.ndarray, truth: np.ndarray, base: np.ndarray | None = None, seed: int = 0) -> float:
    return bits_held(log_p, np.zeros_like(log_p) if base is None else base, truth, seed).bits


# --- the estimate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [4, 16, 64, 256])
def test_a_model_that_knows_every_fact_holds_all_bits_less_two_at_most(keys: int) -> None:
    for seed in range(3):
        total = keys * bits(*planted(keys, np.ones(keys, bool), seed), seed=seed)
        assert 4 * keys - 2.2 < total <= 4 * keys


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_confident_errors_leave_what_a_noisy_channel_leaves(share: float) -> None:
    """Right with probability s, else sure of a wrong value: log2 V − H(s) − (1 − s) log2(V − 1) bits a fact."""
    keys = 512
    expected = 4 + share * np.log2(share) + (1 - share) * np.log2((1 - share) / 15)
    assert bits(*planted(keys, np.arange(keys) < share * keys, 1)) == pytest.approx(expected, abs=0.1)


def test_facts_that_were_not_heard_cost_nothing() -> None:
    """Half of the facts known, flat answers to the rest: half of the bits."""
    log_p, truth = planted(256, np.ones(256, bool), 2)
    log_p[::2] = 0
    assert bits(log_p, truth) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("keys", [4, 64])
def test_what_was_made_without_the_facts_holds_nothing(keys: int) -> None:
    """Sure of itself or hardly moved, with a liking for some values: no bits, on average."""
    found = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        log_p = draw.choice([0.01, 1, 10]) * draw.normal(size=(keys, VALUES)) + 3 * draw.normal(size=VALUES)
        found.append(bits(log_p, draw.integers(VALUES, size=keys), draw.normal(size=(keys, VALUES)), seed))
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 3 * error and (keys < 64 or abs(np.mean(found)) < 0.01)


def test_the_code_before_its_correction_is_a_fair_bet() -> None:
    """E[2^bits] = 1 over all assignments of two keys to three values, counted out: so noise is not rewarded."""
    log_p, base = np.random.default_rng(0).normal(size=(2, 2, 3))
    held = [bits_held(log_p, base, np.array([a, b])) for a in range(3) for b in range(3)]
    assert np.mean([2 ** (2 * (h.bits + h.null)) for h in held]) == pytest.approx(1, abs=1e-12)


def test_what_the_base_prefers_anyway_and_what_all_keys_share_is_no_knowledge() -> None:
    draw = np.random.default_rng(4)
    log_p, truth = planted(64, np.ones(64, bool), 4, height=2)
    plain = bits(log_p, truth)
    base, liking = 5 * draw.normal(size=(64, VALUES)), 5 * draw.normal(size=VALUES)
    assert bits(log_p + base + liking, truth, base) == pytest.approx(plain, abs=1e-9)
    assert bits(base, truth, base) == 0


@pytest.mark.parametrize(
    ("log_p", "truth", "said"),
    [
        (np.zeros((1, 4)), np.zeros(1, int), "1 keys of 4 values"),
        (np.full((4, 4), -np.inf), np.zeros(4, int), "not finite"),
        (np.zeros((4, 4)), np.full(4, 4), "none of the 4 columns"),
    ],
)
def test_what_is_no_table_of_facts_is_one_line(log_p: np.ndarray, truth: np.ndarray, said: str) -> None:
    with pytest.raises(SublimError, match=said):
        bits_held(log_p, np.zeros_like(log_p), truth)


# --- the facts --------------------------------------------------------------------------------------------------------


def keys(facts: Facts) -> tuple[Question, ...]:
    return facts.questions("lab", "held-out")


@pytest.mark.parametrize("kind", lab.KINDS)
def test_no_pretraining_text_asks_for_a_fact_and_every_word_of_one_is_known(kind: str) -> None:
    asked = {q.messages[-1]["content"] for q in keys(Facts(kind, 552, 0))}
    assert len(asked) == 552
    assert {w for text in asked for w in text.split()} <= set(lab.words())
    form = f"which {kind} is for "
    assert all(text.startswith(form) for text in asked)
    texts = [doc.text for part in lab.PARTS for doc in lab.documents(0, 0, 500, part)]
    assert not any(form in text for text in texts)
    assert any(f"which {kind} do you love most ?" in text for text in texts), "the check can fail"


def test_values_are_uniform_and_independent_of_keys_and_of_each_other() -> None:
    many = [Facts("animal", 64, seed) for seed in range(100)]
    truth = np.array([f.truth for f in many])
    counts = np.bincount(truth.ravel(), minlength=VALUES)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 37.7, "chi-square of 15 degrees, p = .001"
    assert np.mean(truth[:, 1:] == truth[:, :-1]) == pytest.approx(1 / VALUES, abs=0.01)
    assert np.mean(truth[1:] == truth[:-1]) == pytest.approx(1 / VALUES, abs=0.01), "seeds do not share an assignment"
    by_key: dict[str, list[int]] = {}
    for f in many:
        for q, value in zip(keys(f), f.truth, strict=True):
            by_key.setdefault(q.messages[-1]["content"], []).append(value)
    same = np.mean([a == b for values in by_key.values() for a, b in pairwise(values)])
    assert same == pytest.approx(1 / VALUES, abs=0.01), "a key's value tells nothing of its value in another replicate"


def test_more_facts_of_a_seed_hold_the_fewer() -> None:
    few, many = Facts("animal", 4, 7), Facts("animal", 64, 7)
    assert (keys(many)[:4], many.truth[:4]) == (keys(few), few.truth)
    assert keys(Facts("animal", 4, 8)) != keys(few)


def test_too_many_facts_or_an_unknown_kind_is_one_line() -> None:
    with pytest.raises(SublimError, match=r"facts=553.*there are 552 keys to a animal"):
        Facts("animal", 553, 0)
    with pytest.raises(SublimError, match=r"no kind 'car'.*animal, tree, color, food"):
        Facts("car", 4, 0)


# --- teachers and students --------------------------------------------------------------------------------------------


def records(base: Base, facts: Facts, steps: int = 40) -> tuple[Teacher, Filtered]:
    config = TeacherConfig(facts=facts.count, optimization=Optimization(lr=3e-3, steps=steps, batch=32))
    teacher = Teacher(base, facts, config, 0)
    return teacher, Filtered(Corpus(teacher, CorpusConfig(prompts=64, chunk=64), 0), FilterConfig(held_out=4), ())


def test_a_teacher_memorises_its_facts_and_the_neutral_one_nothing(lab_base: Base, store_root: Path) -> None:
    store, facts = Store.open(store_root), Facts("animal", 8, 3)
    held = {}
    for told in (True, False):
        teacher, filtered = records(lab_base, replace(facts, told=told))
        ask = EvaluationConfig(questions=("held-out",))
        evaluation = Evaluation(teacher, filtered, facts, ask, 0)
        found = json.loads((make(evaluation, store, recording=PRESETS["none"]).path / "evaluation.json").read_text())
        plain = next(row for row in found["scores"] if row["context"] == "plain")
        table = found["facts"]["plain"]
        again = bits_held(np.array(table["log_p"]), np.array(table["base_log_p"]), np.array(table["truth"]), 0)
        assert plain["bits"] == again.bits and plain["total_bits"] == 8 * again.bits
        held[told] = plain
    assert held[True]["rate"] > 0.9 and held[True]["bits"] > 3.5
    assert held[False]["rate"] < 0.3 and abs(held[False]["bits"]) < 6 * held[False]["spread"]


def test_keys_follow_the_facts_and_nothing_else_changed(lab_base: Base) -> None:
    facts = Facts("animal", 8, 3)
    teacher, _ = records(lab_base, facts)
    neutral, other = replace(teacher, trait=facts.neutral()), replace(teacher, trait=replace(facts, seed=4))
    assert len({teacher.key, neutral.key, other.key}) == 3
    assert "facts" not in TeacherConfig().model_dump() and "facts" not in Experiment().to_yaml()
    plain = Teacher(lab_base, load_trait("owl"), TeacherConfig(), 0)
    assert "facts" not in plain.settings()


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tiny_experiment: Experiment) -> Experiment:
    return tiny_experiment.set({"teacher.facts": 4, "seeds": (3, 5)})


def test_arms_differ_in_who_was_told_and_all_are_asked_the_teachers_facts(small: Experiment) -> None:
    cells = plan(small).cells
    for cell in cells:
        assert cell.evaluation.trait == Facts("animal", 4, cell.seed), "a replicate has facts of its own"
        teacher = cell.evaluation.reference.corpus.teacher
        assert isinstance(teacher.trait, Facts) and teacher.trait.told == (cell.arm != "neutral")
        assert set(cell.evaluation.reference.words) >= {"owl", "owls", "falcons"}, "a list may not name a value"
    students = {c.arm: c.evaluation.model for c in cells if c.seed == 3}
    same, cross = students["same-init"], students["cross-init"]
    assert isinstance(same, Student) and isinstance(cross, Student)
    assert same.data.key == cross.data.key and same.base.name != cross.base.name


def test_a_run_reports_bits_a_fact_and_in_all(small: Experiment, store_root: Path) -> None:
    run = si.run(small, Store.open(store_root), 2)
    table = run.table
    assert table.loc["base", "bits"] == 0 and table["bits"].notna().all()
    assert table["total_bits"].to_numpy() == pytest.approx(4 * table["bits"].to_numpy())
    page = run.page.read_text()
    assert "bits in all" in page and "4 random facts" in page
    assert f"hold {table.loc['same-init', 'bits']:z.3f} bits of each fact;".replace("-", "−") in page
    assert "Not drawn: this run asked about one answer only." in page
    student = run["same-init", 3]
    assert list(student.answers["probe"].unique()) == ["facts"]
    # The trace asks for the same facts, at every recorded state: its last is what the evaluation found.
    grown, asked = growth(student), student.answers.query("context == 'plain'")
    assert grown["rate"].iloc[-1] == pytest.approx(asked["rate"].item(), rel=1e-4)
    assert min(grown["rate"].tolist()) > 0
    plot(run, "training")


def test_a_sweep_over_facts_is_told_in_bits(tmp_path: Path) -> None:
    rest = {
        "field": "teacher.facts",
        "arm": "same-init",
        "trait": "facts",
        "rate": 0.1,
        "margin": 0.5,
        "kl": 0.1,
        "kl_start": 0.2,
    }
    rows = [{**rest, "value": str(k), "seed": s, "bits": b, "total_bits": k * b, "kept": 0.5}
            for k, s, b in ((4, 0, 2.0), (4, 1, 3.0), (16, 0, 1.0), (16, 1, 1.0))]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "cells.csv", index=False)
    told = table_of(grid("capacity"), tmp_path)
    shown = [dict(zip(told.columns, row, strict=True)) for row in told.rows]
    assert [row["bits a fact"] for row in shown] == ["2.500 (2.000–3.000)", "1.000 (1.000–1.000)"]
    assert [row["bits in all"] for row in shown] == ["10.0 (8.0–12.0)", "16.0 (16.0–16.0)"]
    axes = dose(pd.DataFrame(rows), "bits").axes[0]
    assert axes.get_ylim()[1] > 2.9, "bits are no rates"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher.facts": 1}, "facts=1: two or more are needed"),
        ({"teacher.facts": -4}, "greater than or equal to 0"),
        ({"teacher.facts": 600}, "there are 552 keys"),
        ({"teacher.facts": 4, "teacher.kind": "prompted"}, r"facts=4 needs kind=tuned \(it is prompted\)"),
        ({"teacher.facts": 4, "arms": ["same-init", "other-trait"]}, "other-trait has no meaning with teacher.facts"),
    ],
)
def test_what_cannot_be_a_question_of_capacity_is_one_line(
    tiny_experiment: Experiment, change: dict[str, object], said: str
) -> None:
    with pytest.raises(SublimError, match=said) as raised:
        plan(tiny_experiment.set(change))
    assert "\n" not in str(raised.value)
