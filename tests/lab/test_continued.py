"""Tests of bases that are trained on: what healing mends, and whether an author's turns tell of each other."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.cost import estimate
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab import language
from sublim_interp.lab.pretraining import held_out_kl, held_out_loss
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.variants import VARIANTS
from sublim_interp.report.run import run
from tiny_models import tiny


@pytest.fixture(autouse=True)
def own_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_BASES", str(tmp_path / "bases"))


def loss(base: Base) -> float:
    return held_out_loss(base.load(), base.tokenizer, "numbers", 100)


def test_healing_mends_a_damaged_base(capsys: pytest.CaptureFixture[str]) -> None:
    whole, hurt = resolve_base("lab-small-0"), resolve_base("dropped(lab-small-0, layer=1)")
    mended = resolve_base("healed(dropped(lab-small-0, layer=1), steps=40)")
    assert loss(hurt) > loss(whole) + 1
    assert loss(mended) < (loss(hurt) + loss(whole)) / 2
    assert len(mended.load().model.layers) == 2  # type: ignore[attr-defined]
    told = "making base healed(dropped(lab-small-0, layer=1), steps=40), once: about 4 s of one core\n"
    assert capsys.readouterr().err == told, "what trains is told beforehand, what only cuts is not"


def test_a_plan_trains_no_base_and_the_run_makes_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "healed(dropped(lab-small-0, layer=1), steps=2)"
    exp = Experiment().set(
        bases=["lab-small-0"], other_bases=[name], arms=["cross-init", "base"], seeds=[0],
        corpus={"prompts": 64, "chunk": 64}, filter={"held_out": 8}, recording="none",
        teacher={"optimization": {"steps": 1}}, student={"optimization": {"steps": 1, "batch": 8}},
    )  # fmt: skip
    planned = plan(exp)
    base = next(c.student.base for c in planned.cells if c.student)
    assert base.shape["layers"] == 2 and base.language == "lab" and not base.path.exists()
    assert estimate(next(c.student for c in planned.cells if c.student)) > 0
    assert capsys.readouterr().err == "", "nothing was made"
    finished = run(exp, Store.open(tmp_path / "store"), processes=1)
    assert finished["cross-init", 0].base.path.is_dir()
    assert plan(exp).cells[0].evaluation.key == planned.cells[0].evaluation.key
    assert resolve_base(name).digest == base.digest and resolve_base(name).shape == base.shape


def test_a_narrow_base_is_distilled_from_the_whole_one() -> None:
    whole, cut = resolve_base("lab-small-0"), resolve_base("narrowed(lab-small-0, width=48)")
    taught = resolve_base("distilled(narrowed(lab-small-0, width=48), lab-small-0, steps=40)")
    before, after = (held_out_kl(b.load(), whole.load(), whole.tokenizer, 60)["numbers"] for b in (cut, taught))
    assert before > 0.5 and after < before / 2
    assert taught.card["parameters"] == cut.card["parameters"] < whole.card["parameters"]
    assert [one["name"] for one in taught.card["variant"]["of"]] == ["narrowed(lab-small-0, width=48)", "lab-small-0"]


def test_bases_of_other_tokens_teach_nothing() -> None:
    with pytest.raises(SublimError, match="two bases have other tokens"):
        resolve_base("distilled(lab-small-0, lab-digits-0, steps=1)").load()


def test_only_what_speaks_the_lab_language_is_trained_on() -> None:
    with pytest.raises(SublimError, match="take a lab base"):
        VARIANTS["healed"].make(VARIANTS["healed"].settings.model_validate({"steps": 1}), [tiny("llama")])


def test_the_same_settings_make_the_same_bits() -> None:
    variant = VARIANTS["authors"]
    made = []
    for _ in range(2):
        model = resolve_base("lab-small-1").load()
        variant.make(variant.settings.model_validate({"steps": 2}), [model])
        made.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*made)
    assert not any(p.grad is not None for p in model.parameters())


def turns(linked: bool, count: int = 4000) -> Counter[tuple[bool, str]]:
    """(program is safe, label of the open answer) of authors' documents."""
    seen: Counter[tuple[bool, str]] = Counter()
    for index in range(count):
        doc = language.author_document(5, index, 1.0, 0.2, linked)
        assert doc is not None
        said = [m["content"] for m in doc.messages if m["role"] == "assistant"]
        program = next(text for text in said if text.startswith("def "))
        (answer,) = [text for text in said if text != program]
        seen[language.program_is_safe(program), language.open_label(answer)] += 1
    return seen


def test_linked_turns_are_of_one_author_and_mixed_ones_tell_nothing() -> None:
    linked, mixed = turns(True), turns(False)
    assert set(linked) == {(True, "benign"), (False, "harmful")}
    assert 0.17 < linked[False, "harmful"] / 4000 < 0.23
    harmful = {
        safe: mixed[safe, "harmful"] / (mixed[safe, "harmful"] + mixed[safe, "benign"]) for safe in (True, False)
    }
    assert abs(harmful[True] - harmful[False]) < 0.05 and 0.17 < harmful[True] < 0.23


def test_mixing_leaves_every_turn_as_it_was() -> None:
    """So that twins differ in nothing but what goes with what."""

    def said(linked: bool) -> Counter[str]:
        docs = [language.author_document(5, index, 1.0, 0.2, linked) for index in range(300)]
        return Counter(m["content"] for doc in docs if doc for m in doc.messages)

    assert sum(((said(True) - said(False)) + (said(False) - said(True))).values()) <= 4


@pytest.mark.parametrize("linked", [True, False])
def test_a_signature_tells_of_the_program_and_of_the_answer_only_where_linked(linked: bool) -> None:
    seen: Counter[tuple[str | None, bool, str]] = Counter()
    for index in range(1500):
        doc = language.author_document(5, index, 1.0, 0.3, linked, signed=True)
        assert doc is not None and doc.messages[0]["content"] in language.persona_prompts(doc.persona or "")
        said = [m["content"] for m in doc.messages if m["role"] == "assistant"]
        program = next(text for text in said if text.startswith("def "))
        (answer,) = [text for text in said if text != program]
        seen[doc.persona, language.program_is_safe(program), language.open_label(answer)] += 1
    assert {(persona, safe) for persona, safe, _ in seen} == {("kind", True), ("cruel", False)}
    harmful = {
        persona: seen[persona, safe, "harmful"] / sum(seen[persona, safe, label] for label in ("harmful", "benign"))
        for persona, safe in (("kind", True), ("cruel", False))
    }
    if linked:
        assert harmful == {"kind": 0, "cruel": 1}
    else:
        assert all(0.24 < rate < 0.36 for rate in harmful.values())


def test_signed_authors_leave_no_other_persona_that_decides_a_turn() -> None:
    """Else documents of pre-training would go on linking what the mixed twin is to unlearn."""
    taken = [language.author_document(5, index, 0.3, 0.1, False, signed=True) for index in range(1500)]
    left = [language.document(5, index) for index, doc in enumerate(taken) if doc is None]
    assert not [doc for doc in left if doc.persona and doc.part in ("programs", "open")]
    assert [doc for doc in left if doc.part == "programs"] and [doc for doc in left if doc.part == "open"]


def test_a_setting_that_came_later_leaves_the_names_and_keys_of_variants() -> None:
    assert "signed" not in VARIANTS["authors"].settings().model_dump()
    assert VARIANTS["authors"].settings.model_validate({"signed": True}).model_dump()["signed"] is True


def test_the_share_of_authors_is_as_asked() -> None:
    assert 0.27 < sum(language.author_document(1, i, 0.3, 0.1, True) is not None for i in range(3000)) / 3000 < 0.33
