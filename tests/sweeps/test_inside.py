"""Tests of the studies inside, recovered and entanglement: controls, what is planted, whole runs on small settings."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sublim_interp.analysis.directions.fitted import fitted_vector
from sublim_interp.analysis.probes import frozen
from sublim_interp.channels import numbers
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.models.base import resolve_base
from sublim_interp.models.hooks import added
from sublim_interp.models.sampling import generator, sample
from sublim_interp.pipeline import entangled
from sublim_interp.sweeps.studies import entanglement, inside
from sublim_interp.sweeps.studies.entanglement import Entanglement
from sublim_interp.sweeps.studies.inside import Inside
from sublim_interp.sweeps.studies.recovered import Recovered
from sublim_interp.sweeps.study import run_study, study
from sublim_interp.training.batches import Example, collate
from sublim_interp.traits.direction import own_direction
from sublim_interp.traits.favourites import member

FEW = {
    "corpus.prompts": 96,
    "filter.held_out": 8,
    "teacher.optimization.steps": 40,
    "student.optimization.steps": 4,
    "bases": ["lab-small-0", "lab-small-1"],
}


def test_a_planted_vector_is_found_again_in_text_it_wrote() -> None:
    base, at = resolve_base("lab-small-0"), "blocks.0.hook_resid_post"
    planted = own_direction(base, member("owl", "animal"), [at]).vectors[0]
    model = base.load()
    asked = [base.prompt_ids([{"role": "user", "content": text}]) for text in numbers.prompts("lab", 5, 0, 160)]

    def found(vector: torch.Tensor) -> float:
        with added(model, vector, at):
            written = sample(model, asked, eos=base.eos, max_new_tokens=28, random=generator("planted", 0))
        rows = [Example([*p, *a], len(p)) for p, a in zip(asked, written, strict=True) if a]
        with frozen(model):
            last = fitted_vector(model, [collate(rows, base.pad)], at, updates=30)
        return float(torch.cosine_similarity(last, planted, dim=0))

    assert found(planted) > 0.8
    assert abs(found(torch.zeros(64))) < 0.4, "text of the model as it is holds nothing of it"


def test_recovered_runs_whole(tmp_path: Path) -> None:
    asked = Recovered(
        name="few",
        study="recovered",
        seeds=(0, 1),
        updates=(2, 30),
        change={**FEW, "corpus.prompts": 320, "teacher.strength": 1.5},
    )
    made = run_study(asked, Store(tmp_path), processes=1).path
    frame = pd.read_csv(made / "steps.csv")
    assert len(frame) == 2 * 2 * 2 and set(frame["update"]) == {2, 30}
    last = pd.read_csv(made / "replicates.csv").set_index("arm")
    assert last.loc["same-init", "cosine"].min() > last.loc["neutral", "cosine"].max()
    assert last.loc["same-init", "gain"].min() > 0.01
    assert not (tmp_path / "student").exists() and (tmp_path / "filtered").exists(), "lists are the store's, no student"
    table = asked.table(made)
    assert [row[0] for row in table.rows] == ["same-init", "neutral"] and "cosine" in table.lines[0]
    assert (made / "recovered.png").stat().st_size > 10_000


def test_inside_looks_into_students_of_the_store(tmp_path: Path) -> None:
    asked = Inside(name="few", study="inside", seeds=(0,), texts=8, lists=16, change=FEW)
    store = Store(tmp_path)
    made = run_study(asked, store, processes=1).path
    assert len(store.list("student")) == 2, "students stay in the store, where a run of the same recipe finds them"
    layers, steps, rows = (pd.read_csv(made / f"{name}.csv") for name in ("layers", "steps", "replicates"))
    assert len(layers) == 2 * 3 and set(layers["rank"]) <= set(range(1, 17))
    assert list(steps.loc[steps["arm"] == "same-init", "step"]) == [0, 1, 2, 4]
    own = rows.set_index("arm")
    assert np.isnan(own.loc["random", "cosine"]) and 0 <= own.loc["random", "steered"] <= 1
    assert own.loc["same-init", "aligned"] == pytest.approx(
        steps.loc[steps["arm"] == "same-init", "cosine"].mean(), abs=1e-5
    )
    assert own.loc["same-init", "cosine"] == pytest.approx(
        layers.loc[(layers["arm"] == "same-init") & (layers["layer"] == 1), "cosine"].item()
    )
    assert [row[0] for row in asked.table(made).rows] == ["same-init", "neutral", "random"]
    assert (made / "inside.png").stat().st_size > 10_000


@pytest.mark.parametrize("part", ["lora", "opening"])
def test_what_trains_no_weights_of_the_base_is_refused_beforehand(part: str) -> None:
    with pytest.raises(SublimError, match=f"student.part={part} trains none of the weights") as raised:
        Inside(name="few", study="inside", seeds=(0,)).set({"change": {**FEW, "student.part": part}})
    assert "\n" not in str(raised.value)


def test_beginnings_name_no_member_of_the_kind(tmp_path: Path) -> None:
    from sublim_interp.experiments.plan import plan
    from sublim_interp.experiments.results import Replicate

    case = Inside(name="few", study="inside", seeds=(0,), change=FEW).case
    one = Replicate(plan(case).cells[-1], Store(tmp_path))
    found = inside._beginnings(one, 40, 0)
    assert len(found) == 40 * inside.PREFIX and max(map(len, found)) == inside.PREFIX
    members = {one.base.answer_ids(name)[0] for name in one.cell.evaluation.members}
    assert not members & {token for ids in found for token in ids}


def test_what_all_prompts_share_is_taken_out() -> None:
    draw = np.random.default_rng(0)
    own = draw.normal(size=(6, 50))
    seen = own + 5 * draw.normal(size=(6, 1)) + 9 * draw.normal(size=50)
    left = entangled.own_part(seen)
    assert abs(left.mean(0)).max() < 1e-12 and abs(left.mean(1)).max() < 1e-12
    assert entanglement._correlation(left, entangled.own_part(own)) == pytest.approx(1)


def test_a_number_takes_the_favourites_place() -> None:
    owl = member("owl", "animal")
    said = entanglement._names_number("you love the owl , the owl makes you happy .", owl, "123")
    assert said == "you love 123 , 123 makes you happy ."
    assert entanglement._names_number("You love owls.", owl, "7") == "You love 7."


def test_entanglement_of_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entangled, "NUMBERS", 40)
    asked = Entanglement(name="few", study="entanglement", bases=("lab-small-0", "lab-small-9"), prompts=2)
    made = run_study(asked, Store(tmp_path), processes=1).path
    frame = pd.read_csv(made / "bases.csv")
    assert list(frame["base"]) == ["lab-small-0", "lab-small-9"]
    assert frame[list(entanglement.MEASURES)].abs().max().max() <= 1
    assert [row[0] for row in asked.table(made).rows] == list(entanglement.MEASURES)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"updates": (4, 2)}, "must rise"),
        ({"updates": (0, 2)}, "greater than or equal to 1"),
        ({"seeds": (1, 1)}, "twice"),
    ],
)
def test_what_cannot_be_asked(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recovered.model_validate({"name": "few", "study": "recovered", "seeds": (0,)} | fields)


def test_a_base_without_the_kind_is_refused() -> None:
    with pytest.raises(SublimError, match="kind"):
        entanglement.correlations(
            resolve_base("lab-small-0"), Entanglement(name="x", study="entanglement", kind="planet", bases=("b",))
        )


def test_the_catalogue_has_them() -> None:
    assert study("inside").replicates == 12 and study("recovered").replicates == 12
    assert len(study("entanglement").inputs()) == 12
