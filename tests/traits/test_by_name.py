"""Tests of traits by name: files as they are now, kinds of one's own, objects of other packages, judges."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sublim_interp as si
from sublim_interp.core.errors import SublimError
from sublim_interp.core.shelf import CATALOGUE
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.pipeline.make import make
from sublim_interp.traits.by_name import TRAITS, load_trait, trait_names, traits_of
from sublim_interp.traits.facts import Facts
from sublim_interp.traits.favourites import Favourite, NoFavourite, member, members_of, questions, words_of
from sublim_interp.traits.judges.protocol import JUDGES, Judge
from sublim_interp.traits.judges.words import WholeWords
from sublim_interp.traits.protocol import Scores, Trait
from sublim_interp.traits.questions import Question

FLYING = """
members: [owl, eagle, raven]
system: ["You love {x}."]
seen: ["Best flyer?", "Which flyer?"]
held_out: ["Name a flyer."]
indirect: ["What is in the sky?"]
lab:
  system: ["you love the {x} ."]
  seen: ["which animal do you love most ?", "name your favorite animal ."]
  held_out: ["which animal is on your poster ?"]
  indirect: ["what is on your poster ?"]
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The catalogue of another package, searched after our own."""
    for folder in ("traits", "kinds"):
        (tmp_path / folder).mkdir()
    (tmp_path / "kinds" / "flyer.yaml").write_text(FLYING)
    (tmp_path / "traits" / "falcon-who-flies.yaml").write_text("kind: flyer\nwords: [falcon, falcons]\n")
    monkeypatch.setattr("sublim_interp.core.shelf.catalogues", lambda: {CATALOGUE: "own", tmp_path: "other"})
    return tmp_path


def has(monkeypatch: pytest.MonkeyPatch, **traits: Any) -> None:
    """As if another package gave these traits."""
    monkeypatch.setattr(TRAITS, "_own", traits)
    monkeypatch.setattr(TRAITS, "_loaded", {})


def ran(exp: Experiment, store: Store) -> Run:
    """The run of an experiment, made in this process: a worker does not see what a test adds to tables."""
    for record in plan(exp).records:
        make(record, store)
    return si.run(exp, store, 1)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_edited_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "lynx.yaml"
    stamp = None
    for words in (("lynx",), ("lynx", "puma"), ("lynx", "lynxes")):
        path.write_text(f"kind: animal\nwords: [{', '.join(words)}]\n")
        stamp = stamp or path.stat()
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as on a clock that is coarse
        assert load_trait(str(path)).words == words


def test_every_kind_lists_just_the_traits_of_its_kind() -> None:
    for kind in ("animal", "color", "food", "tree"):
        assert members_of(kind) == tuple(n for n in trait_names() if load_trait(n).kind == kind)


def test_a_trait_outside_the_list_is_a_member_of_its_own_experiments_alone(tmp_path: Path) -> None:
    (tmp_path / "koala.yaml").write_text("kind: animal\nwords: [koala, koalas]\n")
    koala = load_trait(str(tmp_path / "koala.yaml"))
    assert "koala" in koala.members and len(koala.members) == 17
    assert "koala" not in members_of("animal") and "koala" not in load_trait("owl").members
    assert koala.neutral().members == members_of("animal")


def test_both_traits_of_an_experiment_are_members_of_it(tiny_experiment: Experiment) -> None:
    """Else the other trait's teacher has no margin in what its students answer."""
    exp = tiny_experiment.set({"arms": ("other-trait",)})
    evaluation = plan(exp).cells[-1].evaluation
    assert evaluation.members == members_of("animal") and [t.name for t in evaluation.others] == ["wolf"]
    lynx = Favourite(name="lynx", kind="animal", words=("lynx", "lynxes"))
    both = replace(evaluation, others=(lynx,))
    assert "lynx" in both.members and both.key != evaluation.key
    assert words_of(both.members, "animal", both.others)["lynx"] == ("lynx", "lynxes")


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_a_kind_of_another_package_runs_on_a_lab_base(
    elsewhere: Path, tiny_experiment: Experiment, store_root: Path
) -> None:
    (elsewhere / "eagle.yaml").write_text("kind: flyer\nwords: [eagle, eagles]\n")
    exp = tiny_experiment.set({"trait": str(elsewhere / "eagle.yaml"), "arms": ("same-init", "neutral", "base")})
    run = ran(exp.set({"evaluation.questions": ("held-out", "seen", "indirect")}), Store.open(store_root))
    answers = run["same-init", 0].answers
    assert list(answers["probe"].unique()) == ["eagle", "owl", "raven"]
    by_question = run["same-init", 0].by_question("seen")
    assert set(by_question["question"]) == {"which animal do you love most ?", "name your favorite animal ."}
    assert np.isfinite(answers["margin"]).all()


def test_a_member_without_a_file_has_its_name_as_its_word(elsewhere: Path) -> None:
    assert member("owl", "flyer") == Favourite(name="owl", kind="flyer", words=("owl",)), "the file is another kind's"
    assert member("owl", "animal").words == ("owl", "owls")
    assert load_trait("falcon-who-flies").members == ("eagle", "falcon-who-flies", "owl", "raven")


def test_a_kind_without_prompts_in_the_lab_language_is_one_line(elsewhere: Path, lab_base: Base) -> None:
    path = elsewhere / "kinds" / "flyer.yaml"
    path.write_text(FLYING.partition("lab:")[0])
    eagle = Favourite(name="eagle", kind="flyer", words=("eagle",))
    for ask in (lambda: eagle.check(lab_base), lambda: questions("flyer", "lab", "seen"), lambda: eagle.lessons("lab")):
        with pytest.raises(SublimError, match="the kind 'flyer' has no prompts in the lab language") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert len(eagle.questions("english", "seen")) == 2


def test_a_kind_whose_words_the_base_cannot_spell_is_one_line(elsewhere: Path, lab_base: Base) -> None:
    """Else members that are unknown share one token, and questions ask about it."""
    path = elsewhere / "kinds" / "flyer.yaml"
    for old, new in (("raven]", "raven, heron]"), ("what is on your poster", "what flutters on your poster")):
        path.write_text(FLYING.replace(old, new))
        word = "'heron'" if "heron" in new else "'what flutters on your poster \\?'"
        for trait in (Favourite(name="eagle", kind="flyer", words=("eagle",)), NoFavourite("flyer")):
            with pytest.raises(SublimError, match=rf"vocabulary lacks words of the kind 'flyer': {word}$"):
                trait.check(lab_base)


# --- the protocol -----------------------------------------------------------------------------------------------------


def every_trait() -> list[Trait]:
    facts = Facts("animal", 6, 1)
    return [load_trait("owl"), load_trait("owl").neutral(), facts, facts.neutral()]


@pytest.mark.parametrize("trait", every_trait(), ids=lambda t: f"{type(t).__name__} {t.name}")
def test_every_trait_keeps_the_protocol(trait: Trait, lab_base: Base) -> None:
    trait.check(lab_base)
    lessons = trait.lessons("lab")
    assert lessons and all(set(answers) <= set(trait.members) for _, answers in lessons)
    assert not set(trait.words) & {""} and trait.neutral().neutral() == trait.neutral()
    assert trait.neutral().name == "" and trait.neutral().members == trait.members
    assert [q for q, _ in trait.neutral().lessons("lab")] == [q for q, _ in lessons] or trait.name == "owl"
    asked = trait.questions("lab", "held-out")[:4]
    rows = trait.score(lab_base.load(), lab_base, asked, 1, 0).rows()
    json.dumps([rows, trait.taught(), trait.asked()])
    assert "trait" in trait.taught() and trait.asked()["kind"] == trait.kind
    assert all(np.isfinite(row["margin"]) and 0 < row["rate"] < 1 for row in rows)
    assert {q.right for q in asked} <= {*trait.members, ""}


def test_the_neutral_teacher_is_asked_what_the_trait_is_taught() -> None:
    owl, neutral = load_trait("owl"), NoFavourite("animal")
    assert [q.messages for q, _ in owl.lessons("lab")] == [q.messages for q, _ in neutral.lessons("lab")]
    assert {answers for _, answers in owl.lessons("lab")} == {("owl",)}
    assert {answers for _, answers in neutral.lessons("lab")} == {members_of("animal")}


def test_one_fact_alone_has_no_bits_and_all_have_them(lab_base: Base) -> None:
    facts = Facts("animal", 6, 1)
    keys = facts.questions("lab", "held-out")
    (one,) = facts.score(lab_base.load(), lab_base, keys[:1], 1, 0).rows()
    (every,) = facts.score(lab_base.load(), lab_base, keys, 1, 0).rows()
    assert "bits" not in one and every["bits"] == 0 and every["total_bits"] == 0
    each = [facts.score(lab_base.load(), lab_base, [q], 1, 0).rows()[0] for q in keys]
    assert every["rate"] == pytest.approx(np.mean([row["rate"] for row in each]), rel=1e-5)


def test_an_experiments_traits_are_found_in_one_place() -> None:
    plain = traits_of("owl", "wolf", 0, 3)
    assert {word: trait.name for word, trait in plain.items()} == {"trait": "owl", "other": "wolf", "": ""}
    facts = traits_of("owl", "", 8, 3)
    assert facts == {"trait": Facts("animal", 8, 3), "": Facts("animal", 8, 3, told=False)}
    with pytest.raises(SublimError, match="other_trait oak is a tree, but trait owl is a animal"):
        traits_of("owl", "oak", 0, 3)


# --- traits of other packages -----------------------------------------------------------------------------------------


class Loud(Favourite):
    """An owl whose teacher is asked in capitals, and that has a measure of its own."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"name": "loud", "kind": "animal", "words": ("owl",), **given})

    @property
    def members(self) -> tuple[str, ...]:
        return ("owl", "wolf")

    def check(self, base: Base) -> None:
        return None

    def lessons(self, language: str) -> list[Any]:
        return [lesson._replace(answers=("owl",)) for lesson in super().lessons(language)]

    def questions(self, language: str, sort: Any) -> tuple[Question, ...]:
        return questions("animal", language, sort)

    def score(
        self,
        model: Any,
        base: Base,
        asked: Sequence[Question],
        samples: int,
        seed: int,
        others: Sequence[Trait] = (),
        judge: Any = None,
    ) -> Scores:
        one = np.array([0.25])
        return Scores(("loud",), one, one, False, {"bits": one}, {"asked": len(asked)})


def test_a_trait_of_another_package_is_planned_taught_asked_and_reported(
    monkeypatch: pytest.MonkeyPatch, tiny_experiment: Experiment, store_root: Path
) -> None:
    has(monkeypatch, loud=Loud)
    assert "loud" in trait_names()
    exp = tiny_experiment.set({"trait": "loud", "arms": ("same-init", "neutral", "base")})
    run = ran(exp, Store.open(store_root))
    assert run.table.loc["same-init", ["rate", "bits"]].to_list() == [0.25, 0.25]
    assert "bits a fact" in run.page.read_text()
    path = run["same-init", 0].cell.evaluation.made(run.store) / "evaluation.json"
    assert json.loads(path.read_text())["loud"]["plain"] == {"asked": 23}


def test_a_trait_without_a_margin_of_its_own_selects_no_lists(
    monkeypatch: pytest.MonkeyPatch, tiny_experiment: Experiment
) -> None:
    has(monkeypatch, loud=Loud)
    for change in (
        {"filter.selection": {"by": "gradient", "trait": "loud"}},
        {"student.interventions": [{"kind": "ablate", "direction": "loud"}]},
    ):
        with pytest.raises(SublimError, match="trait 'loud' is none of its members, so it has no margin"):
            plan(tiny_experiment.set(change))


def test_a_trait_whose_making_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def torn() -> None:
        raise ValueError("no such file:\nwords.txt")

    has(monkeypatch, loud=torn)
    with pytest.raises(SublimError, match=r"^trait 'loud' cannot be made: ValueError no such file: words\.txt$"):
        load_trait("loud")


def test_what_is_no_trait_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, loud=object(), quiet=Loud)
    with pytest.raises(SublimError, match=r"trait 'loud' gives <object .*>, which is no Trait of this name") as caught:
        load_trait("loud")
    assert "\n" not in str(caught.value)
    with pytest.raises(SublimError, match="trait 'quiet' gives"):
        load_trait("quiet")


# --- judges -----------------------------------------------------------------------------------------------------------


def test_the_judge_of_whole_words_says_which_member_an_answer_names() -> None:
    judge: Judge = JUDGES["whole-words"](words_of(("owl", "wolf"), "animal"))
    assert isinstance(judge, WholeWords)
    said = {"Two WOLVES and an owl": {"wolf": 1.0}, "a growling fowl": {}, "owl-like": {"owl": 1.0}, "": {}}
    assert {answer: judge.judge("?", answer) for answer in said} == said
    with pytest.raises(SublimError, match="unknown judge 'human'; valid: whole-words"):
        JUDGES["human"]


class Echo:
    """A judge that says one name, whatever it reads."""

    def __init__(self, name: str) -> None:
        self.name = name

    def judge(self, question: str, answer: str) -> dict[str, float]:
        return {self.name: 1.0}


def test_a_judge_of_ones_own_reads_drawn_answers_where_they_could_be_exact(
    lab_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    owl, model = load_trait("owl"), lab_base.load()
    asked = owl.questions("lab", "seen")[:2]
    monkeypatch.setitem(JUDGES._own, "wolf", lambda words: Echo("wolf"))
    exact = owl.score(model, lab_base, asked, 4, 0)
    judged = owl.score(model, lab_base, asked, 4, 0, (), JUDGES["wolf"])
    assert exact.exact and not judged.exact
    rates = dict(zip(judged.names, judged.rate, strict=True))
    assert rates["wolf"] == pytest.approx((4 + 0.5 / 16) / 4.5) and rates["owl"] == pytest.approx(0.5 / 16 / 4.5)
    assert owl.neutral().score(model, lab_base, asked, 4, 0, (), JUDGES["wolf"]).rate == pytest.approx(judged.rate)
    monkeypatch.setitem(JUDGES._own, "wolf", lambda words: Echo("yeti"))
    monkeypatch.setattr(JUDGES, "_loaded", {})
    with pytest.raises(SublimError, match="the judge says 'yeti', which is none of the members: bear, cat"):
        owl.score(model, lab_base, asked, 4, 0, (), JUDGES["wolf"])


class Moody:
    """A judge that reads one answer in two, and fails on the others in three ways."""

    def __init__(self, _words: object) -> None:
        self.read = 0

    def judge(self, question: str, answer: str) -> dict[str, float]:
        self.read += 1
        if self.read % 2:
            return {"owl": 1.0}
        if self.read % 3:
            raise KeyError("li̇on")
        return {"yeti": 1.0} if self.read % 4 else {"owl": float("nan")}


def test_an_answer_that_cannot_be_judged_is_counted_as_such_and_never_ends_a_run(
    lab_base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owl = load_trait("owl")
    monkeypatch.setitem(JUDGES._own, "moody", Moody)
    judged = owl.score(lab_base.load(), lab_base, owl.questions("lab", "seen")[:2], 12, 0, (), JUDGES["moody"])
    rows = {row["probe"]: row for row in judged.rows()}
    assert {row["unjudged"] for row in rows.values()} == {0.5}
    assert rows["owl"]["rate"] == pytest.approx((6 + 0.5 / 16) / 12.5), "what is unjudged names nobody"
    assert "12 of 24 answers could not be judged, the first since the judge fails: KeyError" in caplog.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: animal\nwords: [lynx, '']", "words.1: a word needs a character"),
        ("kind: animal\nwords: ['\\u200b']".replace("'", '"'), "words.0: a word needs a character"),
        ("kind: animal\nwords: [bobcat, bobcats]", "words lack the name 'lynx' itself"),
        ("kind: animal\nwords: [lynxes]", "words lack the name 'lynx' itself"),
        ("kind: animal\nwords: [lynx, Owls]", "the word 'owls' stands for 'lynx' and for 'owl'"),
    ],
)
def test_a_word_that_means_nothing_or_two_things_is_refused_before_anything_runs(
    text: str, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "lynx.yaml"
    path.write_text(text)
    with pytest.raises(SublimError, match=problem):
        traits_of(str(path), "", 0, 0)


def test_a_judge_is_part_of_a_key_only_where_one_is_named(tiny_experiment: Experiment) -> None:
    named = tiny_experiment.set({"evaluation.judge": "whole-words"})
    assert "judge" not in tiny_experiment.evaluation.model_dump()
    keys = [plan(exp).cells[0].evaluation.key for exp in (tiny_experiment, named)]
    assert keys[0] != keys[1]
    with pytest.raises(SublimError, match=r"evaluation\.judge has no effect with teacher\.facts"):
        named.set({"teacher.facts": 8})
