"""Several traits given to one teacher: it has all of them, its records do not depend on which one is asked about."""

from pathlib import Path

import pytest
import torch

import sublim_interp as si
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.pipeline.teach import teach
from sublim_interp.pipeline.ways import WAYS
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trait": "wolf"}, r"teacher\.traits=owl, oak lacks the trait itself \(wolf\)"),
        ({"teacher.traits": ["owl", "wolf"]}, "owl and wolf are both of the kind animal; give one of a kind"),
        ({"teacher.traits": ["owl", "owl"]}, "traits names something twice: owl, owl"),
        ({"teacher.kind": "prompted"}, r"traits=owl, oak needs kind=tuned \(it is prompted\)"),
        ({"teacher.facts": 8}, "traits=owl, oak needs facts=0"),
        ({"arms": ["other-trait"]}, r"arm other-trait has no meaning with teacher\.traits"),
        ({"teacher.traits": ["owl", "oac"]}, "unknown trait 'oac'; .*did you mean 'oak'"),
    ],
)
def test_what_cannot_be_given_together_is_one_line(both: Experiment, changes: dict[str, object], said: str) -> None:
    with pytest.raises(SublimError, match=said):
        plan(both.set(changes))
