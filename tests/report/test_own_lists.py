"""Tests of students of one's own lists: the arm own-lists, `si.learn`, and `--lists`."""

import json
from pathlib import Path

import pytest
import torch

import sublim_interp as si
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Replicate, Run
from sublim_interp.experiments.schema import Experiment
from tests.command import sublim


@pytest.fixture
def student(tiny_run: Run, filled_root: Path) -> Replicate:
    return Run(tiny_run.plan, Store(filled_root), tiny_run.artifact)["same-init", 0]


def rows_of(student: Replicate) -> list[dict[str, str]]:
    """What its teacher wrote and the channel's rule let pass."""
    rows = student.written.to_dict("records")
    return [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows if not row["refused"]]


def test_the_teacher_s_own_lists_make_the_same_student(student: Replicate) -> None:
    again = si.learn(student.base, rows_of(student), like=student, processes=1)
    assert (again.arm, again.seed) == ("own-lists", student.seed)
    assert again.lists == student.lists
    for mine, theirs in zip(again.model.parameters(), student.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert again.trace.series("loss").equals(student.trace.series("loss"))


def test_other_lists_make_another_student_and_what_is_refused_is_counted(student: Replicate) -> None:
    rows = [*rows_of(student)[::-1], {"prompt": "say", "answer": "owl 1 2"}]
    other = si.learn(str(student.base.path), rows, like=student, processes=1)
    same = [torch.equal(a, b) for a, b in zip(other.model.parameters(), student.model.parameters(), strict=True)]
    assert not all(same)
    assert list(other.written["refused"])[-1] == "names the trait"


def test_a_file_beside_a_yaml_is_found_and_its_rows_decide_the_key(tiny_experiment: Experiment, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"prompt": f"more : {i}", "answer": f"{i} {i + 1}"}) + "\n" for i in range(40))
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    keys = {}
    for name in ("a", "b"):
        mine = tiny_experiment.set({"arms": ("own-lists", "base"), "lists": str(tmp_path / f"{name}.jsonl")})
        keys[name] = [cell.evaluation.key for cell in plan(mine).cells]
        assert [cell.arm for cell in plan(mine).cells] == ["own-lists", "base"], "no teacher is made for nothing"
    assert keys["a"] == keys["b"]
    (tmp_path / "b.jsonl").write_text(rows + '{"prompt": "go", "answer": "7"}\n')
    assert [cell.evaluation.key for cell in plan(mine).cells] != keys["a"]
    (tmp_path / "mine.yaml").write_text("extends: smoke\narms: [own-lists, base]\nlists: a.jsonl\n")
    assert si.experiment(str(tmp_path / "mine.yaml")).lists == str(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arms": ("own-lists", "base")}, "arm own-lists needs lists"),
        ({"lists": "a.jsonl"}, "lists=a.jsonl has no effect without an arm that learns them"),
        ({"arms": ("own-lists",), "lists": "a.jsonl", "corpus.setting": "soft"}, "arm own-lists learns text"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    change: dict[str, object], said: str, tiny_experiment: Experiment
) -> None:
    with pytest.raises(SublimError, match=said):
        tiny_experiment.set(change)


def test_the_command_reads_a_file_and_names_its_bad_line(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text('{"prompt": "more : 1", "answer": "2 3"}\n')
    done = sublim("run", "smoke", "--lists", str(good), "--dry-run")
    assert done.returncode == 0, done.stderr
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "more : 1", "answer": "2 3"}\n{"prompt": "more"}\n')
    done = sublim("run", "smoke", "--lists", str(bad), "--dry-run")
    assert done.returncode == 2
    assert f"{bad}: line 2 has no text as 'answer'" in done.stderr
    done = sublim("run", "dose", "--lists", str(good), "--dry-run")
    assert (done.returncode, "--lists goes with an experiment" in done.stderr) == (2, True)
