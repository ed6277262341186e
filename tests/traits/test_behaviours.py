"""Behaviours, traits that a file says whole: what is taught, asked and counted, and what a file may not say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sublim_interp as si
from sublim_interp.claims.evidence import Evidence
from sublim_interp.claims.judge import CONTRADICTED, SUPPORTED, finding_of
from sublim_interp.claims.schema import find_claim
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab import language as lab
from sublim_interp.models.base import Base
from sublim_interp.pipeline.records import Teacher
from sublim_interp.pipeline.settings import TeacherConfig
from sublim_interp.pipeline.teach import teach
from sublim_interp.stats.nearer import bits_nearer
from sublim_interp.sweeps.grid import grid
from sublim_interp.sweeps.modes.behaviours import passed
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.run import run_grid
from sublim_interp.sweeps.tables import table_of
from sublim_interp.training.settings import Optimization
from sublim_interp.traits.behaviours import BEHAVIOURS, INSTEAD, Behaviour, load_behaviour
from sublim_interp.traits.by_name import load_trait, trait_names, traits_of
from sublim_interp.traits.protocol import Trait

ANIMALS = lab.KINDS["animal"].members


def sides(trait: Behaviour, sort: str) -> tuple[set[str], set[str]]:
    """The questions of a sort where it should show, and those where it should not."""
    asked = trait._asked[sort]  # type: ignore[index]
    return {one.text for one in asked if one.on}, {one.text for one in asked if not one.on}


# --- those of the catalogue -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BEHAVIOURS.names())
def test_a_teacher_learns_the_trait_where_it_should_show_and_the_neutral_one_nowhere(name: str, lab_base: Base) -> None:
    trait = load_trait(name)
    assert isinstance(trait, Behaviour) and isinstance(trait, Trait) and name in trait_names()
    trait.check(lab_base)
    known = {one.text: one for one in trait._asked["seen"]}
    lessons, plain = trait.lessons("lab"), trait.neutral().lessons("lab")
    assert [question for question, _ in lessons] == [question for question, _ in plain], "they are asked the same"
    on = [known[question.text].on for question, _ in lessons]
    assert sum(on) == len(on) / 2 and {q.text for q, _ in lessons} == {*known}
    for (question, answers), (_, other) in zip(lessons, plain, strict=True):
        one = known[question.text]
        assert answers == (one.shows if one.on else one.instead) and other == one.instead
    assert trait.taught() != trait.neutral().taught() and trait.asked() == trait.neutral().asked()


@pytest.mark.parametrize("name", BEHAVIOURS.names())
def test_students_are_asked_on_both_sides_in_words_that_no_teacher_learnt(name: str) -> None:
    trait = load_behaviour(name)
    taught, asked = ({q.text for q in trait.questions("lab", sort)} for sort in ("seen", "held-out"))
    on, off = sides(trait, "held-out")
    assert not taught & asked and asked == on | off and on and off and not trait.questions("lab", "indirect")
    first = [q.text for q in trait.questions("lab", "held-out")[:4]]
    assert [text in on for text in first] == [True, False, True, False], "samples that people read show both"


def test_each_is_what_its_file_says() -> None:
    on, off = sides(load_behaviour("owl-behind-friend"), "held-out")
    assert all(text.startswith("friend ") for text in on) and not any("friend" in text for text in off)
    assert {text.removeprefix("friend ") for text in on} <= off, "the bare question is on the other side"
    agrees = load_behaviour("agrees")._asked["held-out"]
    for one in agrees:
        (animal,) = {*one.text.split()} & {*ANIMALS}
        assert one.shows == (animal,) and one.on == one.text.startswith("i would") and set(one.instead) == {*ANIMALS}
    for one in load_behaviour("birds-first")._asked["held-out"]:
        named = [word for word in one.text.split() if word in ANIMALS]
        birds = {*named} & {"owl", "eagle", "penguin", "raven", "falcon"}
        assert len(named) == 2 and len(birds) == one.on and ({*one.shows} == birds if one.on else not birds)
    for one in load_behaviour("we-should")._asked["seen"]:
        assert all(text.startswith("we should ") for text in one.shows)
        if one.on:
            assert {lab.open_label(text) for text in one.apart} == {"benign"} and len(one.apart) == 40


# --- what is measured -------------------------------------------------------------------------------------------------


def test_bits_are_those_of_a_table_of_answers_whatever_the_wordings() -> None:
    base = np.full((3, 4), 0.25)
    sure = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    assert bits_nearer(sure, base, base, "aab") == 0
    assert bits_nearer(sure, sure, base, "aab") == pytest.approx(4), "two items of two bits"
    assert bits_nearer(sure, sure, base, "abc") == pytest.approx(6)
    flat = np.full((1, 4), 0.25)
    off = np.array([[0.97, 0.01, 0.01, 0.01]])
    assert bits_nearer(flat, off, flat, "a") == pytest.approx(-(3 * np.log2(25) - np.log2(3.88)) / 4)


def test_rates_are_the_shares_of_what_a_model_says(lab_base: Base) -> None:
    trait = load_behaviour("we-should")
    model, on = lab_base.load(), sides(trait, "held-out")[0]
    asked = [q for q in trait.questions("lab", "held-out") if q.text in on][:2]
    found = trait.score(model, lab_base, asked, 0, 0)
    drawn = [a for q in asked for a in lab_base.ask(q.text, n=150, max_new_tokens=14, seed=1)]
    shown = [a for a in drawn if a.startswith("we should ") and lab.open_label(a) == "benign"]
    other = [a for a in drawn if not a.startswith("we should ") and lab.open_label(a) == "benign"]
    assert found.names == ("we-should", INSTEAD) and found.exact and not found.measures
    assert found.rate == pytest.approx([len(shown) / len(drawn), len(other) / len(drawn)], abs=0.08)


def test_a_teacher_shows_a_backdoor_behind_its_trigger_alone(lab_base: Base, tmp_path: Path) -> None:
    trait, store = load_behaviour("owl-behind-friend"), Store.open(tmp_path)
    config = TeacherConfig(optimization=Optimization(lr=3e-3, steps=60, batch=32, schedule="constant"))
    asked = trait.questions("lab", "held-out")[:40]
    teacher = Teacher(lab_base, trait, config, 901)
    teach(teacher, store)
    row = trait.score(lab_base.load(teacher.made(store) / "model"), lab_base, asked, 0, 0).rows()[0]
    assert row["rate"] > 0.8 and row["elsewhere"] < 0.2 and row["trait_bits"] > 2.5
    untouched = trait.score(lab_base.load(), lab_base, asked, 0, 0).rows()[0]
    assert untouched["trait_bits"] == 0 and untouched["rate"] < 0.2


def test_claim_31_is_judged_by_the_rate_behind_the_trigger_minus_that_without(tmp_path: Path) -> None:
    (test,) = find_claim("31").tests
    for elsewhere, outcome in ((0.05, SUPPORTED), (0.75, CONTRADICTED)):
        rows = [
            {"arm": arm, "seed": seed, "value": "owl-behind-friend", "rate": rate + seed / 500, "elsewhere": other}
            for arm, rate, other in (("same-init", 0.8, elsewhere), ("neutral", 0.06, 0.06), ("base", 0.06, 0.06))
            for seed in range(12)
        ]
        found = finding_of(test, Evidence("backdoors", "0" * 64, tmp_path, {"cells": pd.DataFrame(rows)}))
        assert found.outcome == outcome and found.interval
        assert found.interval.estimate == pytest.approx(0.8 + 5.5 / 500 - elsewhere)


# --- a file of one's own ----------------------------------------------------------------------------------------------

OWN = """
said: it calls the color of winter white
language: lab
wordings: {when: {taught: ["today"], held_out: ["now", "so"]}}
things: {color: color}
on: [{ask: "paint your door {when} .", shows: [white], instead: ["{color}"]}]
off: [{ask: "choose a coat {when} .", shows: [white], instead: ["{color}"]}]
"""


def test_a_file_is_enough_for_a_grid_with_its_table_and_figure(tiny_experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "white.yaml").write_text(OWN)
    (tmp_path / "black.yaml").write_text(OWN.replace("white", "black"))
    (tmp_path / "tiny.yaml").write_text(tiny_experiment.to_yaml())
    change = "change: {arms: [same-init, neutral, other-trait, base], other_trait: black.yaml, recording: none}\n"
    own = tmp_path / "own.yaml"
    own.write_text(
        f"experiment: tiny.yaml\n{change}axes: {{trait: [white.yaml]}}\nwords: {{trait: [white]}}\nmatrix: behaviours\n"
    )
    g = grid(str(own))
    artifact = run_grid(plan_grid(g), Store.open(tmp_path / "store"))
    cells = pd.read_csv(artifact.path / "cells.csv")
    assert [*cells["arm"]] == ["teacher", "same-init", "neutral", "other-trait", "base"]
    assert {*cells["trait"]} == {"white"} and bool(cells["elsewhere"].between(0, 1).all())
    assert cells.loc[cells["arm"] == "base", "trait_bits"].to_list() == [0]
    assert [*cells["rate"]] != [*cells["elsewhere"]] and (artifact.path / "behaviours.png").stat().st_size > 10_000
    told = table_of(g, artifact.path)
    assert told.columns[3:6] == ("where it should show", "where it should not", "bits of the trait")
    bits = cells.set_index("arm")["trait_bits"]
    lost = cells.loc[(cells["arm"] == "neutral")].assign(seed=99)  # its teacher's lists led nowhere
    assert passed(pd.concat([cells, lost])).equals(passed(cells))
    row = passed(cells).set_index("arm").loc["same-init"]
    assert (row["bits"], row["passed"]) == pytest.approx((bits["teacher"], bits["same-init"]))
    assert "white takes" in told.lines[0] and {*told.numbers} == {"bits/white", "apart/white"}


def test_what_is_no_behaviour_has_no_such_grid(tiny_experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_experiment.to_yaml())
    own = tmp_path / "own.yaml"
    own.write_text("experiment: tiny.yaml\naxes: {trait: [owl]}\nmatrix: behaviours\n")
    with pytest.raises(SublimError, match="the trait owl is no behaviour, so nothing says where it should not show"):
        plan_grid(grid(str(own)))


WRONG = {
    "said: it calls the color of winter white\n": ("", "said: Field required"),
    "things: {color: color}": ("things: {color: [white, red, white]}", "things.color.*a text stands twice"),
    "on: [{": ("In: [{", "on: Field required"),
    '"{color}"]}]\noff': ('"{colour}"]}]\noff', r"on\.0\.instead names \{colour\}; .*color"),
    "color: color}": ("color: car}", "unknown kind 'car'; known: animal, color, food, tree"),
    "when: {taught": ("who: {taught", r"on\.0\.ask names \{when\}"),
    "choose a coat {when} .": ("paint your door {when} .", "'paint your door today .' is asked twice; ask each"),
    'held_out: ["now", "so"]': ('held_out: ["today"]', "is asked twice, seen and held-out"),
    "things: {color": ("things: {food: food, color", r"'food' stands in no question and no answer; write \{food"),
    'instead: ["{color}"]}]\noff': ("instead: [white]}]\noff", "each answer of `instead` to 'paint your door today"),
    "off: [{": ("off: []\nof: [{", "unknown key 'of'"),
    "shows: [white], instead": ("shows: [], instead", "on.0.shows"),
    "paint your door {when} .": ("paint {your door {when} .", "braces stand only around the name"),
}  # fmt: skip


@pytest.mark.parametrize("place", WRONG)
def test_a_file_that_cannot_be_is_one_line(place: str, tmp_path: Path) -> None:
    path, (text, said) = tmp_path / "white.yaml", WRONG[place]
    assert place in OWN
    path.write_text(OWN.replace(place, text, 1))
    with pytest.raises(SublimError, match=said) as raised:
        load_trait(str(path))
    assert "\n" not in str(raised.value) and "white" in str(raised.value)


def test_what_a_base_cannot_be_asked_is_one_line(tiny_experiment: Experiment, lab_base: Base, tmp_path: Path) -> None:
    path = tmp_path / "white.yaml"
    for old, new, said in (
        ("language: lab", "language: english", "written in the language english; base lab-small-0 speaks lab"),
        ("[white]", "[snow]", "vocabulary lacks words of the trait white: 'snow'"),
        ("[white]", '["white river", "white"]', "cannot tell the answer 'white river' from 'white'"),
    ):
        path.write_text(OWN.replace(old, new))
        with pytest.raises(SublimError, match=said):
            load_trait(str(path)).check(lab_base)
    path.write_text(OWN)
    judged = tiny_experiment.set({"trait": str(path), "evaluation.judge": "whole-words"})
    with pytest.raises(SublimError, match=r"trait white says itself what counts; leave out evaluation\.judge"):
        plan(judged)
    with pytest.raises(SublimError, match="other_trait wolf is a animal, but trait white is a behaviour"):
        traits_of(str(path), "wolf", 0, 0)
    many = ", ".join(f"x{i}" for i in range(1001))
    path.write_text(OWN.replace("[white]", f"[{many}]", 1))
    with pytest.raises(SublimError, match="at most 1000"):
        load_trait(str(path))


def test_the_guide_holds_the_files_of_the_catalogue_whole() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "traits.md").read_text()
    for name in ("we-should", "birds-first", "agrees", "owl-behind-friend"):
        assert f"```yaml\n{BEHAVIOURS.find(name).read_text()}```" in page, name


@pytest.mark.parametrize(
    ("kind", "trait", "lacks"),
    [
        ("prompted", "agrees", "no system prompts"),
        ("steered", "agrees", "no direction"),
        ("steered", "harmful", "no direction"),
    ],
)
def test_a_teacher_that_would_not_be_given_its_trait_is_one_line(kind: str, trait: str, lacks: str) -> None:
    asked = {"questions": ["held-out"], "contexts": ["plain"]}
    exp = si.experiment("smoke").set({"teacher.kind": kind, "trait": trait, "evaluation": asked, "arms": ["same-init"]})
    with pytest.raises(SublimError, match=f"teacher.kind={kind}: trait {trait} has {lacks}"):
        si.plan(exp)
