"""Tests of what is asked of a student while it trains: about the trait that it is compared on, whoever taught it."""

from dataclasses import replace
from pathlib import Path

import pytest

from chains import OWL, chain
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Replicate
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.observe import fixed_probe
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.facts import Facts


def asked(exp: Experiment, arm: str, store: Store) -> tuple[str | None, list[str]]:
    """Which trait the trace of an arm's student says that it asked for, and its directions."""
    cell = next(cell for cell in plan(exp).cells if cell.arm == arm)
    assert cell.student
    make(cell.student, store)
    about = Replicate(cell, store).trace.about
    return about["probe"]["trait"], about["directions"]


def test_a_neutral_students_gradient_is_that_of_the_experiments_trait(
    tiny_experiment: Experiment, store_root: Path
) -> None:
    """Both traits are refused by the filter; the first of them in the alphabet is not what is asked for."""
    exp = tiny_experiment.set({"trait": "wolf", "other_trait": "owl", "arms": ("neutral", "other-trait", "same-init")})
    store = Store.open(store_root)
    assert asked(exp, "neutral", store) == ("wolf", ["teacher-shift", "trait-gradient"])
    assert asked(exp, "same-init", store)[0] == "wolf"
    assert asked(exp, "other-trait", store)[0] == "owl"


def test_a_neutral_students_gradient_is_that_of_a_trait_of_ones_own(
    tiny_experiment: Experiment, store_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "owl.yaml").write_text("kind: animal\nwords: [owl]\n")  # not the words of the catalogue's
    exp = tiny_experiment.set({"trait": str(tmp_path / "owl.yaml"), "arms": ("neutral",)})
    assert asked(exp, "neutral", Store.open(store_root)) == ("owl", ["teacher-shift", "trait-gradient"])


def test_what_a_probe_asks_about_is_no_part_of_a_students_key(tiny_bases: tuple[Base, Base]) -> None:
    student = chain(tiny_bases[0]).student
    other = replace(student, about=load_trait("wolf"))
    assert (student.probed, other.probed) == (OWL, load_trait("wolf"))
    assert student.key == other.key and student == other


@pytest.mark.parametrize("told", [True, False])
def test_a_probe_has_the_right_answer_of_each_fact(told: bool, tiny_bases: tuple[Base, Base]) -> None:
    facts = Facts("animal", 12, 5, told)
    probe = fixed_probe(tiny_bases[0], facts, ())
    assert probe.trait is None and probe.right == probe.truth == facts.truth[:8]


def test_a_probe_without_a_trait_asks_for_nothing(tiny_bases: tuple[Base, Base]) -> None:
    neutral, owl = (fixed_probe(tiny_bases[0], trait, ()) for trait in (OWL.neutral(), OWL))
    assert neutral.right == () and owl.right == (owl.members.index("owl"),) * 8
    assert neutral.rows == owl.rows and neutral.members == owl.members


# --- names that begin alike -------------------------------------------------------------------------------------------


@pytest.fixture
def alike(tiny_bases: tuple[Base, Base], monkeypatch: pytest.MonkeyPatch) -> Base:
    """A base that cuts penguin into the token of panda and another, as SmolLM2 does."""
    whole, panda = Base.answer_ids, tiny_bases[0].answer_ids("panda")

    def answer_ids(self: Base, answer: str) -> list[int]:
        return [*panda, 9] if answer == "penguin" else whole(self, answer)

    monkeypatch.setattr(Base, "answer_ids", answer_ids)
    return tiny_bases[0]


@pytest.mark.parametrize(("trait", "lost"), [("owl", "penguin"), ("panda", "penguin"), ("penguin", "panda")])
def test_of_members_that_begin_alike_one_is_probed_and_the_trait_stays(trait: str, lost: str, alike: Base) -> None:
    found = fixed_probe(alike, load_trait(trait), ())
    assert found.members == tuple(m for m in OWL.members if m != lost) and len(set(found.tokens)) == 15
    assert found.trait is not None and found.members[found.trait] == trait


def test_a_base_that_tells_no_member_apart_is_probed_on_all(tiny_bases: tuple[Base, Base]) -> None:
    """The lab's tokenizer knows none of these words; traces of such trainings keep their shape."""
    found = fixed_probe(tiny_bases[0], load_trait("harmful"), ())
    assert len(found.members) == len(found.tokens) == 3 and len(set(found.tokens)) == 1


@pytest.mark.parametrize("trait", ["owl", "penguin"])
@pytest.mark.parametrize("where", ["filter.selection", "student.interventions"])
def test_lists_are_selected_by_a_trait_that_begins_as_no_other_member(
    where: str, trait: str, alike: Base, tiny_experiment: Experiment, store_root: Path
) -> None:
    asked = {"by": "gradient", "trait": trait, "share": 0.5}
    value = asked if where == "filter.selection" else [{"kind": "mask-tokens", "selection": asked}]
    exp = tiny_experiment.set({where: value, "arms": ("same-init",)})
    if trait == "penguin":
        with pytest.raises(SublimError, match="'penguin' and 'panda' begin with the same token"):
            plan(exp)
    else:
        (cell,) = [cell for cell in plan(exp).cells if cell.student]
        assert cell.student
        make(cell.student, Store.open(store_root))
        assert isinstance(Replicate(cell, Store.open(store_root)).value(), float)
