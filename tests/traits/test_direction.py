"""Tests of the own-base direction: one definition, for steered teachers, interventions and figures."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sublim_interp as si
from chains import STUDENT, chain
from sublim_interp.analysis.probes import residuals
from sublim_interp.core.errors import SublimError
from sublim_interp.core.shelf import CATALOGUE
from sublim_interp.core.store import Store
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Teacher
from sublim_interp.pipeline.settings import TeacherConfig
from sublim_interp.traits import direction
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.direction import contrast, ends, own_direction
from sublim_interp.traits.facts import Facts
from sublim_interp.traits.favourites import FAVOURITES, members_of


@pytest.mark.parametrize("layer", [0, 2])
def test_a_steered_teachers_vector_is_its_strength_times_the_contrast(
    layer: int, lab_base: Base, store_root: Path
) -> None:
    config = TeacherConfig(kind="steered", layer=layer, strength=0.75)
    made = make(Teacher(lab_base, load_trait("owl"), config, 0), Store.open(store_root))
    vector = load_file(str(made.path / "vector.safetensors"))["vector"]
    assert torch.equal(vector, 0.75 * si.contrast(lab_base, "owl", kind="resid_pre")[layer])


def test_members_of_a_kind_of_ones_own_decide_the_keys_of_what_is_taken_from_their_prompts(
    tiny_bases: tuple[Base, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read in a catalogue of one's own, where each may have a file: its plural stands in its prompts."""
    (tmp_path / "kinds").mkdir()
    (tmp_path / "traits").mkdir()
    asked = "seen: ['where do you rest ?'], held_out: ['do you rest ?'], indirect: []"
    prompts = f"{{system: ['you love the {{x}} .'], {asked}}}"
    kind = f"{{members: [river, sea], lab: {prompts}, {prompts[1:]}"
    (tmp_path / "kinds" / "place.yaml").write_text(kind)
    (tmp_path / "traits" / "sea.yaml").write_text("{kind: place, words: [sea, seas]}")
    monkeypatch.setattr("sublim_interp.core.shelf.catalogues", lambda: {CATALOGUE: "own", tmp_path: "mine"})
    base, toward = tiny_bases[0], {"kind": "ablate", "direction": "sea"}

    def keys(trait: str = "sea") -> dict[str, str]:
        given, c = load_trait(trait), chain(base)
        aimed = c.change("student", config=STUDENT.set(interventions=[{**toward, "direction": trait}])).student
        ways = {kind: Teacher(base, given, TeacherConfig(kind=kind), 0) for kind in ("tuned", "steered")}
        assert ("compared" in aimed.settings()) == ("compared" in ways["steered"].settings()) == (trait == "sea")
        asked = c.change("evaluation", trait=given).evaluation
        return {"aimed": aimed.key, "asked": asked.key} | {kind: teacher.key for kind, teacher in ways.items()}

    keys("owl")
    before = keys()
    (tmp_path / "traits" / "river.yaml").write_text("{kind: place, words: [river, rivers]}")
    after = keys()
    assert {name for name in after if after[name] != before[name]} == {"aimed", "asked", "steered"}
    (tmp_path / "kinds" / "place.yaml").write_text(kind.replace("do you rest", "would you be"))
    assert all(key != after[name] for name, key in keys().items())


def test_what_members_have_in_common_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base, asked = resolve_base("lab-small-0"), []
    first = contrast(base, "owl")
    monkeypatch.setattr(direction, "ends", lambda *args: asked.append(args) or ends(*args))
    assert torch.equal(contrast(base, "owl").vectors, first.vectors) and not asked
    assert not torch.equal(contrast(base, "fox").vectors, first.vectors) and not asked
    assert torch.equal(contrast(resolve_base("lab-small-0"), "owl").vectors, first.vectors) and asked


def test_it_is_the_traits_mean_minus_the_mean_over_all_members(lab_base: Base) -> None:
    model, names = lab_base.load(), ["blocks.1.hook_resid_post"]
    asked = load_trait("owl").questions("lab", "seen")[:8]

    def mean(name: str) -> torch.Tensor:
        turns = [
            ({"role": "system", "content": s}, *q.messages)
            for s in load_trait(name).system_prompts("lab")
            for q in asked
        ]
        return residuals(model, names, [lab_base.prompt_ids(turn) for turn in turns]).mean(0)[0]

    means = {name: mean(name) for name in members_of("animal")}
    found = contrast(lab_base, "owl")
    torch.testing.assert_close(found[1], means["owl"] - torch.stack([*means.values()]).mean(0), atol=1e-5, rtol=1e-4)
    assert found.positive is not None and found.negative is not None
    n = len(means)
    assert len(found.negative) == (n - 1) * len(found.positive), "no sample is on both sides of a null"
    apart = found.positive.mean(0) - found.negative.mean(0)
    torch.testing.assert_close(found.vectors, apart * (n - 1) / n, atol=1e-5, rtol=1e-4)


def test_a_trait_of_ones_own_is_among_the_members_that_it_is_compared_with(lab_base: Base, tmp_path: Path) -> None:
    (tmp_path / "owl.yaml").write_text("kind: animal\nwords: [owl]\n")
    own = FAVOURITES.load(str(tmp_path / "owl.yaml"))
    assert own in own.compared() and len(own.compared()) == 16
    ours, theirs = contrast(lab_base, str(tmp_path / "owl.yaml")), contrast(lab_base, "owl")
    assert torch.equal(ours.vectors, theirs.vectors), "the lab's prompts name it alike"


def test_directions_of_two_traits_differ_and_their_nulls_can_be_drawn(lab_base: Base) -> None:
    owl, wolf = contrast(lab_base, "owl"), contrast(lab_base, "wolf")
    assert max(owl.cosine(wolf)["cosine"]) < 0.5
    null = owl.null(owl, "shuffled", draws=99)
    assert min(null["cosine"] - null["high"]) > 0 and max(null["p"]) <= 0.01


def test_a_trait_without_members_has_no_such_direction(lab_base: Base) -> None:
    for trait in (load_trait("owl").neutral(), Facts("animal", 4, 0)):
        with pytest.raises(SublimError, match="has no direction of a base's own: no members") as caught:
            own_direction(lab_base, trait, ["blocks.0.hook_resid_post"])
        assert "\n" not in str(caught.value)
