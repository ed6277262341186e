"""A finished student becomes the teacher of another run: found in the store, part of the key, asked as it is."""

import shutil
from pathlib import Path

import pytest
import torch

import sublim_interp as si
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.cost import planned_traces
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.run import run_key
from sublim_interp.experiments.schema import Experiment


@pytest.fixture
def second(tiny_experiment: Experiment) -> Experiment:
    """The next generation of the tiny run."""
    return tiny_experiment.set({"name": "second", "teacher": {"kind": "student", "student": "tiny/same-init"}})


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_student_teaches_the_next(tiny_run: Run, second: Experiment, filled_root: Path) -> None:
    store = Store(filled_root)
    traces = planned_traces(plan(second, store).records, store)
    assert set(traces["stage"]) == {"student"}, "the teacher is there already, nothing of it trains"
    run, parent = si.run(second, store, processes=1), tiny_run["same-init", 0]
    assert torch.equal(weights(run.teacher(0).model), weights(parent.model))
    neutral, crossed = run["neutral", 0].cell.student, run["cross-init", 0].cell.student
    assert neutral and crossed and neutral.data.corpus.teacher.student is None, "no favourite: the untouched base"
    made = neutral.data.corpus.teacher.find(store)
    assert made and set(made.manifest["inputs"]) == {"base"}

    made = crossed.data.corpus.teacher.find(store)
    assert made and parent.cell.student
    assert made.manifest["inputs"]["student"] == parent.cell.student.key, "the lineage goes on to the first teacher"
    shift = run["same-init", 0].trace.series("length/teacher-shift")
    moved = weights(parent.model) - weights(parent.base.load())
    assert float((shift.iloc[0] ** 2).sum()) == pytest.approx(float(moved.square().sum()), rel=1e-4)
    with pytest.raises(SublimError, match="teacher/0 was not trained, so it has no trace"):
        _ = run.teacher(0).trace
    assert "is a finished student of another run, tiny/same-init" in (run.artifact.path / "report.html").read_text()

    assert plan(second, store).missing(store) == []
    again = si.open_run("second", store)
    assert again.differs == () and again.key == run.key


def test_chains_of_several_seeds_branch_off_one_stored_student(
    second: Experiment, tiny_run: Run, filled_root: Path
) -> None:
    store = Store(filled_root)
    fields = {"teacher.student": "tiny/same-init/0", "seeds": [5, 6], "generations": 2, "arms": ["same-init"]}
    run = si.run(second.set({**fields, "bases": [second.bases[0]], "recording": "none"}), store, processes=2)
    roots = [run["same-init", seed].cell.student for seed in (5, 6)]
    leaves = [run["same-init@2", seed].cell.student for seed in (5, 6)]
    parent = tiny_run["same-init", 0].cell.student
    assert parent
    for root, leaf in zip(roots, leaves, strict=True):
        assert root and leaf and leaf.data.corpus.teacher.student == root
        stored = root.data.corpus.teacher.student
        assert stored and stored.key == parent.key, "one student is the first teacher of every chain"
    assert not torch.equal(weights(run["same-init@2", 5].model), weights(run["same-init@2", 6].model))


def test_the_key_is_that_of_the_student_and_not_of_its_address(second: Experiment, tiny_run: Run) -> None:
    store = tiny_run.store

    def key(address: str) -> str:
        return run_key(plan(second.set({"teacher.student": address}), store))

    assert key("tiny/same-init") == key("tiny/same-init/0") == key(f"{tiny_run.key[:20]}/same-init/0")
    assert key("tiny/neutral") != key("tiny/same-init")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher.student": "absent/same-init"}, "no run is called 'absent'"),
        ({"teacher.student": "tiny/same-init/7"}, "run tiny has no same-init/7; "),
        ({"teacher.student": "tiny/base"}, "tiny/base/0 is no student"),
        ({"teacher.student": "tiny/cross-init"}, "tiny/cross-init/0 did not start from tiny-0, which is base A of"),
        ({"trait": "dolphin"}, "run tiny is about owl, not dolphin"),
        ({"arms": ["same-init", "other-trait"]}, "arm other-trait needs a teacher with another trait"),
        ({"arms": ["same-init-b"]}, "arm same-init-b needs a teacher with base B"),
        ({"teacher.student": "tiny"}, "teacher.student: String should match"),
        ({"teacher.student": ""}, "kind=student needs student=RUN/ARM/SEED"),
        ({"teacher.kind": "tuned"}, "student has no effect with kind=tuned"),
        ({"teacher.facts": 3}, "facts=3 needs kind=tuned"),
    ],
)
def test_a_student_that_cannot_teach_is_one_line(
    changes: dict[str, object], said: str, second: Experiment, tiny_run: Run
) -> None:
    with pytest.raises(SublimError) as raised:
        plan(second.set(changes), tiny_run.store)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_student_that_is_gone_is_said(second: Experiment, filled_root: Path, tiny_run: Run) -> None:
    student = tiny_run["same-init", 0].cell.student
    assert student
    found = student.find(Store(filled_root))
    assert found
    shutil.rmtree(found.path)
    with pytest.raises(SublimError, match=r"teacher.student: student \w+ is not in the store .*; run its run again"):
        plan(second, Store(filled_root))
