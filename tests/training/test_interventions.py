"""Tests of the interventions' table: what cannot act is refused in the plan, and a kind that is added acts."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chains import OWL, STUDENT, TEACHER, chain
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Student
from sublim_interp.pipeline.settings import TeacherConfig
from sublim_interp.training.interventions import INTERVENTIONS, InterventionKind


def with_interventions(exp: Experiment, *interventions: dict[str, Any]) -> Experiment:
    return exp.set({"student.interventions": list(interventions)})


def student_of(exp: Experiment) -> Student:
    student = next(cell.student for cell in plan(exp).cells if cell.arm == "same-init")
    assert student
    return student


@pytest.mark.parametrize(
    ("changes", "fields", "words"),
    [
        ({}, {"kind": "ablate", "direction": "owl", "at": "blocks.7.*"}, "no hook matches 'blocks.7.*'; valid: "),
        ({}, {"kind": "project-gradient", "direction": "random", "at": "blocks.*.hook_residual"}, "no hook matches"),
        ({}, {"kind": "freeze", "parameters": "*moe*"}, "matches none of what trains"),
        ({}, {"kind": "ablate", "direction": "unicorn"}, "unknown trait 'unicorn'"),
        (
            {"student.part": "lora"},
            {"kind": "project-update", "direction": "teacher-shift"},
            "needs a teacher of the student's shape: it has no ",
        ),
        (
            {"teacher.kind": "steered"},
            {"kind": "project-update", "direction": "teacher-shift"},
            "needs teacher.kind=tuned",
        ),
        (
            {"teacher.kind": "prompted"},
            {"kind": "ablate", "direction": "teacher-shift"},
            "needs teacher.kind=tuned or steered",
        ),
    ],
)
def test_an_intervention_that_cannot_act_is_refused_in_the_plan(
    changes: dict[str, Any], fields: dict[str, Any], words: str, tiny_experiment: Experiment
) -> None:
    exp = with_interventions(tiny_experiment.set(changes), fields)
    with pytest.raises(SublimError) as raised:
        plan(exp)
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("arms", [["own-lists", "same-init", "base"], ["same-init", "own-lists", "base"]])
def test_every_arms_teacher_is_asked_whichever_is_named_last(
    arms: list[str], tiny_experiment: Experiment, tmp_path: Path
) -> None:
    lists = tmp_path / "lists.jsonl"
    lists.write_text('{"prompt": "continue : 1 2 3", "answer": "4 5 6"}\n' * 40)
    exp = with_interventions(
        tiny_experiment.set(arms=arms, lists=str(lists)), {"kind": "project-update", "direction": "teacher-shift"}
    )
    with pytest.raises(SublimError, match=r"needs teacher\.kind=tuned"):  # nobody's lists have no teacher's weights
        plan(exp)


def test_nothing_is_removed_where_a_teacher_is_its_base(tiny_experiment: Experiment, tmp_path: Path) -> None:
    """A steered teacher is its base up to its layer, and the neutral one is it everywhere."""
    exp, store = tiny_experiment.set({"teacher.kind": "steered", "arms": ("same-init", "neutral")}), Store(tmp_path)
    asked = with_interventions(exp, {"kind": "ablate", "direction": "teacher-shift"})
    made = {cell.arm: make(cell.student, store) for cell in plan(asked).cells if cell.student}
    removed = {arm: one.manifest["notes"]["interventions"][0]["removed"] for arm, one in made.items()}
    assert removed["same-init"].keys() == {"blocks.1.hook_resid_post"} and removed["neutral"] == {}
    plain = next(cell.student for cell in plan(exp).cells if cell.arm == "neutral")
    assert plain
    left, whole = (dict(plain.base.load(one.path / "model").named_parameters()) for one in
                   (made["neutral"], make(plain, store)))  # fmt: skip
    assert all(torch.equal(p, left[name]) for name, p in whole.items())


def test_the_neutral_teacher_beside_a_student_that_teaches_is_its_base(
    tiny_bases: tuple[Base, Base], tmp_path: Path
) -> None:
    teacher = TeacherConfig(kind="student", student="owl/same-init")
    student = STUDENT.set(interventions=[{"kind": "ablate", "direction": "teacher-shift"}])
    c = chain(tiny_bases[0]).change("teacher", trait=OWL.neutral(), config=teacher).change("student", config=student)
    assert make(c.student, Store(tmp_path)).manifest["notes"]["interventions"][0]["removed"] == {}


@pytest.mark.parametrize("direction", ["random", "teacher-shift"])
def test_an_update_that_is_projected_moves_the_opening_alone_where_it_alone_trains(
    direction: str, tiny_bases: tuple[Base, Base], tmp_path: Path
) -> None:
    base = tiny_bases[0]
    config = STUDENT.set(part="opening", interventions=[{"kind": "project-update", "direction": direction}])
    c = chain(base).change("teacher", config=TEACHER.set(part="opening"))
    made = make(replace(c.student, config=config), Store(tmp_path))
    models = base.load(), base.load(made.path / "model")
    before, after = (torch.as_tensor(m.get_input_embeddings().weight) for m in models)
    moved = before.ne(after).any(-1).nonzero().flatten().tolist()
    assert moved == [base.opening]
    assert all(0 < share <= 1 for share in made.manifest["notes"]["interventions"][0]["removed"].values())


def test_a_teacher_that_is_its_base_at_every_hook_is_refused(tiny_experiment: Experiment, tmp_path: Path) -> None:
    fields = {"kind": "ablate", "direction": "teacher-shift", "at": "blocks.0.*"}
    student = student_of(with_interventions(tiny_experiment.set({"teacher.kind": "steered"}), fields))
    with pytest.raises(SublimError, match=r"the direction at blocks\.0\.hook_resid_pre has no length"):
        make(student, Store(tmp_path))


def test_each_kind_can_be_planned_also_on_adapters(tiny_experiment: Experiment) -> None:
    asked: list[dict[str, Any]] = [
        {"kind": "ablate", "direction": "owl"},
        {"kind": "project-gradient", "direction": "teacher-shift", "at": "blocks.1.hook_*"},
        {"kind": "project-update", "direction": "random"},
        {"kind": "mask-tokens", "share": 0.5},
    ]
    for part in ("body", "lora"):
        freeze = {"kind": "freeze", "parameters": "*lora_A*" if part == "lora" else "*mlp*"}
        plan(with_interventions(tiny_experiment.set({"student.part": part}), *asked, freeze))


def test_the_trait_of_an_intervention_is_read_once(
    tiny_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is applied is the trait in the key, though its file changes before a worker makes the student."""
    from sublim_interp.pipeline import intervene

    own = tmp_path / "mine.yaml"
    own.write_text("kind: animal\nname: owl\nwords: [owl, owls]\n")
    student = student_of(with_interventions(tiny_experiment, {"kind": "ablate", "direction": str(own)}))
    key = student.key
    own.write_text("kind: animal\nname: wolf\nwords: [wolf, wolves]\n")
    applied = []
    whole = intervene.own_direction
    monkeypatch.setattr(
        intervene, "own_direction", lambda base, trait, names: applied.append(trait) or whole(base, trait, names)
    )
    assert make(student, Store(tmp_path / "store")).key == key
    assert [trait.name for trait in applied] == ["owl"] == [t["name"] for t in student.settings()["toward"]]


def test_an_added_kind_is_checked_and_acts(
    tiny_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Halve(InterventionKind):
        """Halves every gradient of some parameters."""

        USES = frozenset({"parameters"})

        def check(self, planned: Any) -> None:
            if "mlp" not in self.asked.parameters:
                raise SublimError("halve is for MLPs")

        @contextmanager
        def during(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, directions: Any):  # type: ignore[override]
            hooks = [p.register_hook(lambda g: g / 2) for n, p in model.named_parameters() if "mlp" in n]
            yield None
            for hook in hooks:
                hook.remove()

    monkeypatch.setitem(INTERVENTIONS._own, "halve", Halve)
    with pytest.raises(SublimError, match="kind=halve needs parameters"):
        with_interventions(tiny_experiment, {"kind": "halve"})
    with pytest.raises(SublimError, match="halve is for MLPs"):
        plan(with_interventions(tiny_experiment, {"kind": "halve", "parameters": "*attn*"}))
    sgd = tiny_experiment.set({"student.optimization.optimizer": "sgd", "student.optimization.lr": 0.1})
    plain = student_of(sgd)
    halved = student_of(with_interventions(sgd, {"kind": "halve", "parameters": "*mlp*"}))
    store = Store(tmp_path / "store")
    ends = [dict(plain.base.load(make(s, store).path / "model").named_parameters()) for s in (plain, halved)]
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(ends[0][name], ends[1][name])


def test_an_unknown_kind_is_refused_in_one_line(tiny_experiment: Experiment) -> None:
    with pytest.raises(SublimError) as raised:
        with_interventions(tiny_experiment, {"kind": "erase"})
    assert "valid: ablate, project-gradient, project-update, mask-tokens, replace-tokens, freeze" in str(raised.value)
    assert str(raised.value).endswith("(got 'erase')") and "\n" not in str(raised.value)
