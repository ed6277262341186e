"""Lists by how far their numbers belong to a favourite: read off the untouched base, left out, compared with chance."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sublim_interp as si
from sublim_interp.channels import numbers
from sublim_interp.channels.rows import read_rows
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.pipeline import entangled as module
from sublim_interp.pipeline.entangled import behind, entangled, heard_numbers, number_tokens, own_part, told_by
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.select import _selected
from sublim_interp.training.batches import Example, tokenize
from sublim_interp.traits.by_name import load_trait


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUMBERS", 60)
    monkeypatch.setattr(module, "PROMPTS", 4)


@pytest.fixture(scope="module")
def base() -> Base:
    return resolve_base("lab-small-0")


def test_a_number_scores_what_the_favourites_prompt_adds_to_it_alone(few: None, base: Base) -> None:
    trait, words = load_trait("owl"), number_tokens(base)
    ids = [*words.values()]
    comma = base.answer_ids(",")[0]
    found = entangled(base, trait, [Example([comma, *ids], 1), Example([comma, ids[0], comma], 1)])
    table = own_part(heard_numbers(base, trait.compared(), ids, module.PROMPTS, 0))
    np.testing.assert_allclose(table.sum(0), 0, atol=1e-9)
    np.testing.assert_allclose(table.sum(1), 0, atol=1e-9)
    place = [one.name for one in trait.compared()].index("owl")
    np.testing.assert_allclose(found.values, [*table[place], table[place, 0], 0.0])


def test_what_is_heard_is_the_bases_own_log_probability(few: None, base: Base) -> None:
    """One favourite, one prompt, against the model's own answer."""
    trait, ids = load_trait("owl"), [*number_tokens(base).values()]
    (heard,) = heard_numbers(base, [trait], ids, 1, 3)
    (text,) = numbers.prompts(base.language, 3, 0, 1)
    asked = torch.tensor([behind(base, trait.system_prompts(base.language)[0], text)])
    with torch.no_grad():
        own = base.load()(asked).logits[0, -1].double().log_softmax(-1)[ids]
    np.testing.assert_allclose(heard, own.numpy(), atol=1e-5)


def test_the_half_that_is_left_has_the_less_entangled_numbers(few: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    exp = si.experiment("smoke").set(
        {"arms": ["same-init"], "bases": ["lab-small-0"], "teacher.optimization.steps": 5, "corpus.prompts": 300}
    )
    trait, kept = load_trait("owl"), {}
    for by in ("entangled", "random"):
        asked = {"by": by, "share": 0.5, "keep": "rest"} | ({"trait": "owl"} if by == "entangled" else {})
        (cell,) = [c for c in plan(exp.set({"filter.selection": asked, "filter.held_out": 10})).cells if c.student]
        assert cell.student
        rows = make(cell.student.data, store).path / "kept.jsonl"
        lists = read_rows(rows)
        scores = entangled(cell.student.base, trait, tokenize(cell.student.base, lists))
        kept[by] = len(lists), scores.values.mean()
    assert abs(kept["entangled"][0] - kept["random"][0]) <= 1
    assert kept["entangled"][1] < kept["random"][1] < 0.5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"trait": "harmful"},
            "selection.by=entangled needs a favourite with system prompts as its trait, such as owl",
        ),
        ({"corpus.channel": "code"}, "selection.by=entangled needs lists of the channel numbers, not of code"),
        ({"bases": ["lab-digits-0"]}, "lab-digits-0 does not so 10"),
    ],
)
@pytest.mark.parametrize("where", ["filter.selection", "student.interventions"])
def test_what_it_cannot_go_by_is_told_before_anything_runs(where: str, changes: dict[str, Any], said: str) -> None:
    asked = {"by": "entangled", "share": 0.5, "trait": changes.get("trait", "owl"), "keep": "rest"}
    value: Any = asked if where == "filter.selection" else [{"kind": "mask-tokens", "selection": asked}]
    others = {key: one for key, one in changes.items() if key != "trait"}
    exp = si.experiment("smoke").set({"arms": ["same-init"], "bases": ["lab-small-0"]}).set(others)
    with pytest.raises(SublimError, match=said):
        plan(exp.set({where: value}))


def test_without_a_trait_it_means_nothing() -> None:
    with pytest.raises(SublimError, match="by=entangled needs trait, for instance owl"):
        si.experiment("owl").set({"filter.selection": {"by": "entangled"}})


def test_the_favourites_beside_it_are_part_of_the_key(base: Base) -> None:
    told = told_by(base, load_trait("owl"))
    assert len(told) == len(load_trait("owl").compared()) and "you love the owl" in str(told)
    exp = si.experiment("smoke").set({"arms": ["same-init"], "bases": ["lab-small-0"]})
    selected = exp.set({"filter.selection": {"by": "entangled", "trait": "owl", "share": 0.5}})
    (data,) = [c.student.data for c in plan(selected).cells if c.student]
    assert data.settings()["among"] == told


def test_tokens_that_it_flags_are_the_likelier_ones_alone(few: None, base: Base, tmp_path: Path) -> None:
    """What is far below 0 belongs to the favourite least."""
    asked = {"by": "entangled", "trait": "owl", "share": 0.2, "keep": "rest"}
    changes = {"student.interventions": [{"kind": "mask-tokens", "selection": asked}], "corpus.prompts": 64}
    changes |= {"arms": ["same-init"], "bases": ["lab-small-0"], "filter.held_out": 4, "teacher.optimization.steps": 2}
    monkey = si.experiment("smoke").set(changes)
    (student,) = [c.student for c in plan(monkey).cells if c.student]
    store = Store(tmp_path)
    make(student.data, store)
    lists = read_rows(student.data.made(store) / "kept.jsonl")
    rows = tokenize(base, lists)
    flagged, chosen = _selected(0, student, rows, lists, store)
    values = entangled(base, load_trait("owl"), rows).values
    assert values[flagged].min() >= values[~flagged].max() and (flagged == ~chosen).all()
