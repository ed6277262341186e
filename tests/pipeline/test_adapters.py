"""Tests of where a student's adapter begins: of matrices of its own, or of its teacher's; and what keys say of it."""

from typing import Any

import pytest
import torch

from chains import FEW, Chain, chain
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.pipeline.learn import adapter_seed
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Student
from sublim_interp.pipeline.settings import StudentConfig, TeacherConfig
from sublim_interp.pipeline.stage import choose_part


def adapted(base: Base, teacher: str = "lora", **student: Any) -> Chain:
    config = StudentConfig(part="lora", optimization=FEW, **student)
    taught = TeacherConfig.model_validate({"part": teacher, "optimization": FEW})
    return chain(base).change("teacher", config=taught).change("student", config=config)


def begun(base: Base, config: TeacherConfig | StudentConfig, seed: int) -> torch.Tensor:
    model = choose_part(base.load(), base, config, seed)
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_A" in name])


def test_a_student_begins_with_matrices_of_its_own_unless_it_is_to_begin_as_its_teacher(lab_base: Base) -> None:
    own, alike = adapted(lab_base), adapted(lab_base, adapter="teacher")
    teachers = begun(lab_base, own.teacher.config, own.teacher.seed)
    assert torch.equal(begun(lab_base, alike.student.config, adapter_seed(alike.student)), teachers)
    other = begun(lab_base, own.student.config, adapter_seed(own.student))
    assert other.shape == teachers.shape
    cosine = float(torch.nn.functional.cosine_similarity(other, teachers, dim=0))
    assert abs(cosine) < 4 / len(other) ** 0.5, "they are drawn apart"


def test_rounds_and_generations_begin_apart_too(lab_base: Base) -> None:
    own = adapted(lab_base)
    second = Student(own.student, own.filtered, own.student.config, 0)
    taught = own.teacher.config.model_copy(update={"kind": "student", "student": "run/same-init/0"})
    child = own.change("teacher", config=taught, student=own.student).student
    assert len({adapter_seed(one) for one in (own.student, second, child)} | {own.teacher.seed}) == 4


def test_keys_tell_the_two_apart_and_only_where_it_matters(lab_base: Base) -> None:
    own, alike = adapted(lab_base), adapted(lab_base, adapter="teacher")
    assert own.student.key != alike.student.key and own.filtered.key == alike.filtered.key
    body = adapted(lab_base, "body")
    assert body.student.key == adapted(lab_base, "body", adapter="teacher").student.key
    assert adapter_seed(body.student) == body.student.seed
    prompted = chain(lab_base).change("teacher", config=TeacherConfig(kind="prompted", part="lora"))
    assert not prompted.change("student", config=own.student.config).student.own_adapter, "a prompt is no adapter"


def test_what_is_trained_follows(lab_base: Base, tmp_path: Any) -> None:
    """With no update but the first, B is still near 0: what a student moved lies in the rows of its adapter's A."""
    store, moved = Store(tmp_path), []
    for adapter in ("own", "teacher"):
        links = adapted(lab_base, adapter=adapter)
        for record in links.student.lineage():
            make(record, store)
        before, after = lab_base.load(), lab_base.load(links.student.made(store) / "model")
        name = "model.layers.0.self_attn.q_proj.weight"
        moved.append(after.state_dict()[name] - before.state_dict()[name])
        if adapter == "teacher":
            matrix = choose_part(lab_base.load(), lab_base, links.teacher.config, links.teacher.seed)
            rows = next(p for n, p in matrix.named_parameters() if "0.self_attn.q_proj.lora_A" in n).detach().double()
    basis = torch.linalg.qr(rows.T)[0]
    inside = [float((m.double() @ basis).norm() / m.double().norm()) for m in moved]
    assert inside[1] > 0.95 and inside[0] < 0.7, inside


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student.part": "lora"}, "needs teacher.kind=tuned, and lora for both parts"),
        ({"teacher.part": "lora"}, "needs teacher.kind=tuned, and lora for both parts"),
        (
            {"student.part": "lora", "teacher.part": "lora", "teacher.lora_rank": 4},
            "needs adapters of one rank; lora_rank is 4 in the teacher and 8 in the student",
        ),
    ],
)
def test_a_teacher_without_a_like_adapter_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SublimError, match=said):
        Experiment().set({"student.adapter": "teacher", **change})
    assert Experiment().set(change).student.adapter == "own"
