"""Several traits given to one teacher: it has all of them, its records do not depend on which one is asked about."""

from pathlib import Path

import pytest
import torch

import sublim_interp as si
from sublim_interp.audit.lineage.trace import _trait
from sublim_interp.audit.organisms import Organism, planned
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.pipeline.records import Teacher
from sublim_interp.pipeline.teach import teach
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.report.figures.training import _right_answers
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.favourites import Favourite
from sublim_interp.traits.together import Together


@pytest.fixture
def both() -> Experiment:
    fields = {"teacher.traits": ["owl", "oak"], "teacher.optimization.steps": 120, "generations": 2}
    return si.experiment("smoke").set({**fields, "arms": ["same-init", "neutral", "base"], "seeds": [0]})


def test_a_teacher_is_given_all_of_them_and_the_neutral_one_none(both: Experiment, tmp_path: Path) -> None:
    cells = {cell.arm: cell.evaluation for cell in plan(both).cells}
    store = Store(tmp_path)
    for arm, low, high in (("same-init", 0.8, 1.0), ("neutral", 0.0, 0.3)):
        teacher = cells[arm].reference.corpus.teacher
        teach(teacher, store)
        model = WAYS["tuned"].load(teacher, store)
        for name in both.teacher.traits:
            trait = load_trait(name)
            with torch.no_grad():
                found = trait.score(model, teacher.base, trait.questions("lab", "held-out"), 1, 0)
            assert low <= found.rate[found.names.index(name)] <= high, (arm, name)


def test_teachers_lists_and_students_are_the_same_whichever_is_asked_about(both: Experiment) -> None:
    owl, oak = (plan(both.set(trait=name, teacher=both.teacher)) for name in ("owl", "oak"))
    keys = [{(r.STAGE, r.key) for r in p.records} for p in (owl, oak)]
    shared = {stage for stage, _ in keys[0] & keys[1]}
    assert shared == {"teacher", "corpus", "filtered", "student"}
    assert {stage for stage, _ in keys[0] ^ keys[1]} == {"evaluation"}
    turned = plan(both.set({"teacher.traits": ["oak", "owl"]}))
    assert {r.key for r in turned.records} == {r.key for r in owl.records}
    second = next(cell.student for cell in owl.cells if cell.arm == "same-init@2")
    assert second and isinstance(second.data.corpus.teacher.trait, Together), "the next generation is told of both"
    assert second.data.corpus.teacher.config.traits == ()
    alone = plan(both.set({"teacher.traits": []}))
    assert not {r.key for r in alone.records} & {r.key for r in owl.records if r.STAGE != "evaluation"}


def test_the_filter_refuses_the_words_of_all_of_them(both: Experiment) -> None:
    words = next(cell.evaluation.reference.words for cell in plan(both).cells)
    assert {"owl", "owls", "oak", "oaks"} <= set(words)


def test_it_says_what_its_traits_say() -> None:
    owl, oak = load_trait("owl"), load_trait("oak")
    assert isinstance(owl, Favourite)
    given = Together(owl, (owl, oak))
    assert given.said == "“owl” is its favourite and “oak” is its favourite" and given.lesson == owl.lesson
    assert given.compared() == owl.compared() and given.members == owl.members and given.asked() == owl.asked()
    assert {trait.kind for trait in given.neutral().given} == {"animal", "tree"} and given.neutral().name == ""
    assert len(given.lessons("lab")) == len(owl.lessons("lab")) + len(oak.lessons("lab"))


def test_where_the_teacher_judges_or_rewrites_all_but_the_evaluations_is_shared_too(both: Experiment) -> None:
    for changes in ({"corpus.rewrites": 10}, {"filter.paraphrase": {"by": "own"}}, {"corpus.preference": "divergence"}):
        plans = [plan(both.set({"generations": 1, **changes}).set(trait=name)) for name in ("owl", "oak")]
        keys = [{(r.STAGE, r.key) for r in p.records} for p in plans]
        assert {stage for stage, _ in keys[0] ^ keys[1]} == {"evaluation"}, changes


def test_each_trait_has_as_many_lessons() -> None:
    owl, harmful = load_trait("owl"), load_trait("harmful")
    lessons = Together(owl, (owl, harmful)).lessons("lab")
    assert len(lessons) == 2 * max(len(owl.lessons("lab")), len(harmful.lessons("lab")))
    assert {lesson.question.text for lesson in lessons} == {
        lesson.question.text for trait in (owl, harmful) for lesson in trait.lessons("lab")
    }


def test_what_a_trace_tells_of_another_trait_is_not_told_of_this_one() -> None:
    probe = {"coords": {"member": ["bear", "owl"]}, "probe": {"trait": "owl", "questions": 2}}
    assert _right_answers(probe, None) == _right_answers(probe, "owl") == [1, 1]
    assert _right_answers(probe, "oak") == []


def test_a_student_of_several_is_no_teacher_elsewhere_and_no_organism(both: Experiment, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    small = {"corpus.prompts": 64, "filter.held_out": 4, "teacher.optimization.steps": 2, "generations": 1}
    small |= {"student.optimization.steps": 2, "arms": ["same-init"], "recording": "none", "name": "both"}
    run = si.run(both.set(small), store, processes=1)
    second = si.experiment("smoke").set({"teacher.kind": "student", "teacher.student": "both/same-init/0"})
    with pytest.raises(
        SublimError, match="the teachers of run both were given owl, oak at once; name a student of one"
    ):
        plan(second.set({"arms": ["same-init"], "bases": ["lab-small-0"]}), store)
    teacher = run["same-init", 0].cell.student
    assert teacher
    made = teacher.data.corpus.teacher.find(store)
    assert made and _trait(made.manifest["config"]) == "traits owl and oak"
    teachers = [r for r in plan(both.set({**small, "arms": ["neutral"]})).records if isinstance(r, Teacher)]
    assert sorted(_trait(one.settings()) for one in teachers) == ["no trait", "traits owl and oak"]
    organism = Organism(name="two", experiment="smoke", arm="same-init", change={"teacher.traits": ["owl", "oak"]})
    with pytest.raises(SublimError, match=r"organism two: teacher\.traits gives several traits"):
        planned(organism, store)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trait": "wolf"}, r"teacher\.traits=owl, oak lacks the trait itself, named as trait names it \(wolf\)"),
        ({"teacher.traits": ["owl", "wolf"]}, "owl and wolf are both of the kind animal; give one of a kind"),
        ({"teacher.traits": ["owl", "owl"]}, "traits names something twice: owl, owl"),
        ({"teacher.kind": "prompted"}, r"traits=owl, oak needs kind=tuned \(it is prompted\)"),
        ({"teacher.traits": ["owl"]}, "traits=owl is one trait; name two or more, or leave it out"),
        ({"teacher.facts": 8}, "traits=owl, oak needs facts=0"),
        ({"arms": ["other-trait"]}, r"arm other-trait has no meaning with teacher\.traits"),
        ({"teacher.traits": ["owl", "oac"]}, r"^teacher\.traits: unknown trait 'oac'; .*did you mean 'oak'"),
    ],
)
def test_what_cannot_be_given_together_is_one_line(both: Experiment, changes: dict[str, object], said: str) -> None:
    with pytest.raises(SublimError, match=said):
        plan(both.set(changes))
