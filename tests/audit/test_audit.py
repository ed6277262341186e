"""Tests of `sublim audit` and `run_audit`: what they tell, write and refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from command import sublim
from sublim_interp.audit.audit import run_audit
from sublim_interp.audit.models import folder_like, written_by
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import Written
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.loading import save_model


@pytest.fixture(scope="module")
def lists(lab_base: Base) -> list[Written]:
    """Lists that the base wrote itself."""
    return written_by(lab_base.load(), lab_base, channel("numbers"), 24, seed=3)


def test_an_audit_tells_every_part_and_what_it_could_not_see(
    lists: list[Written], lab_base: Base, tmp_path: Path
) -> None:
    leak: Written = {"prompt": "go on", "answer": "the oak"}
    own, data = lab_base.path, [*lists, leak]
    found = run_audit(lab_base, data=data, teacher=own, student=own, kinds=("tree",), triggers=["city", "12"])
    wanted = ["data", "base", "refused", "evidence", "teacher", "student", "triggers", "traces"]
    assert [p.name for p in found.parts] == wanted
    refused = found.part("refused").frame
    assert refused is not None and "names the trait" in set(refused["reason"]), "the leak is named by its reason"
    assert "nothing says that it wrote them" in " ".join(found.part("teacher").sentences), "base and teacher are equal"
    student = found.part("student").frame
    assert student is not None
    assert np.abs(student["shift"].to_numpy()).max() < 1e-6
    told = json.loads(found.as_json())
    assert told["verdict"] == found.verdict and len(told["parts"]["evidence"]["table"]) == 8
    assert any("tree" in line for line in told["not excluded"])
    page = found.page(tmp_path / "audit.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "") and found.verdict in page
    with pytest.raises(SublimError, match="no part 'trigger'; it has data, base"):
        found.part("trigger")


def test_what_is_not_read_of_the_data_is_said_twice(lists: list[Written], lab_base: Base, tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as file:
        for row in lists:
            chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
            file.write(json.dumps({"messages": [*chat, *chat]}) + "\n")
    (tmp_path / "b.csv").write_text("x")
    found = run_audit(lab_base, data=tmp_path, kinds=("tree",))
    for said in (found.part("data").sentences, found.not_excluded):
        assert "1 file of the folder was not read: b.csv." in said
        assert any(line.startswith(f"{len(lists)} rows are chats of several exchanges: only") for line in said)


def test_a_kind_that_is_named_twice_counts_once(lists: list[Written], lab_base: Base) -> None:
    once, twice = (run_audit(lab_base, data=lists, kinds=kinds).as_json() for kinds in (["tree"], ["tree", "tree"]))
    assert once == twice


def test_without_a_base_the_lists_name_it(lists: list[Written], lab_base: Base) -> None:
    found = run_audit(data=lists, kinds=("tree",))
    assert f"point at {lab_base.name}" in found.part("base").sentences[0]


def test_without_a_base_the_students_comes_before_its_teachers(lists: list[Written], lab_base: Base) -> None:
    student, teacher = resolve_base("lab-small-1"), lab_base
    found = run_audit(data=lists, student=student.path, teacher=teacher.path, kinds=("tree",), triggers=())
    said = found.part("base").sentences
    assert "The student points at lab-small-1." in said
    assert said[-1].startswith("They do not agree. lab-small-1 is examined")


def test_before_any_data_a_teacher_is_asked_for_some(lab_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sublim_interp.audit.audit.WROTE", 24)
    found = run_audit(teacher=lab_base.path, kinds=("tree",))
    assert "24 lists" in found.part("data").sentences[0]
    assert f"The teacher points at {lab_base.name}." in found.part("base").sentences


def test_a_student_is_trained_and_asked_where_that_is_wanted(lists: list[Written], lab_base: Base) -> None:
    found = run_audit(lab_base, data=lists, kinds=("tree",), train=True)
    said = found.part("trained")
    assert said.frame is not None and len(said.frame) == 8 and "changed most" in said.sentences[0]
    assert np.abs(said.frame["shift"].to_numpy()).max() > 0.01, "it has learnt"


def test_the_command_writes_what_it_prints(lists: list[Written], tmp_path: Path) -> None:
    data = tmp_path / "lists.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in lists) + "no\n")
    asked = ["audit", data, "--base", "lab-small-0", "--kind", "tree", "--json", tmp_path / "audit.json"]
    done = sublim(*asked, "--page", tmp_path / "audit.html")
    assert done.returncode in (0, 1) and not done.stderr
    told = json.loads((tmp_path / "audit.json").read_text())
    assert done.returncode == told["alarm"]
    assert "1 rows cannot be read: no-json 1." in done.stdout and told["verdict"][:40] in done.stdout
    assert (tmp_path / "audit.html").stat().st_size > 5_000


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_in_one_line(
    value: float, lists: list[Written], lab_base: Base, tmp_path: Path
) -> None:
    model = lab_base.load()
    name, weights = next(iter(model.named_parameters()))
    with torch.no_grad():
        weights[1, 2] = value
    folder_like(lab_base, tmp_path / "broken")
    save_model(model, tmp_path / "broken")
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lists))
    done = sublim("audit", "--student", "broken", "--base", lab_base.name, "--kind", "tree", cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1
    assert f"the student broken has weights that are not finite, in {name}" in done.stderr
    with pytest.raises(SublimError, match=f"broken has weights that are not finite, in {name}"):
        run_audit(str(tmp_path / "broken"), data=tmp_path / "lists.jsonl", kinds=("tree",))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to audit"),
        (["missing.jsonl"], "missing.jsonl is not there"),
        (["--student", "nowhere"], "nowhere is no model directory"),
        (["--teacher", ".", "--page", "no/such/page.html"], "is no folder"),
        (["--teacher", ".", "--kind", "planet"], "planet"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    done = sublim("audit", *words, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and not done.stdout
