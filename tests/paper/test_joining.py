"""Tests of replicates that are joined to a published run or sweep: the same tables as of one store that holds all."""

import shutil
from pathlib import Path

import pytest

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.schema import Experiment
from sublim_interp.paper.remaking import publish
from sublim_interp.report.run import run
from sublim_interp.sweeps.grid import grid
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.run import run_grid


@pytest.fixture
def own(tiny_experiment: Experiment) -> Experiment:
    return tiny_experiment.set({"arms": ["same-init", "neutral", "base"], "seeds": [0, 1, 2]})


def test_a_second_machine_adds_its_replicates_to_a_published_run(own: Experiment, tmp_path: Path) -> None:
    file, results = tmp_path / "tiny.yaml", tmp_path / "results"
    whole = run(own, Store(tmp_path / "whole"), processes=1)
    file.write_text(own.to_yaml())
    expected = publish(str(file), whole.store, tmp_path / "expected")

    first = run(own.set({"seeds": [0, 1]}), Store(tmp_path / "first"), processes=1)
    file.write_text(first.experiment.to_yaml())
    publish(str(file), first.store, results)
    second = run(own.set({"seeds": [2]}), Store(tmp_path / "second"), processes=1).store
    file.write_text(own.to_yaml())
    directory = publish(str(file), second, results)
    for path in expected.iterdir():
        assert (directory / path.name).read_text() == path.read_text(), path.name
    assert (directory / "key.txt").read_text().strip() == whole.key
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(
        SublimError, match="holds no finished tiny, and its seeds, 0, 1, 2, add none to the published 0, 1, 2"
    ):
        publish(str(file), second, results)
    file.write_text(own.set({"seeds": [0, 1, 2, 3]}).to_yaml())
    with pytest.raises(SublimError, match="no finished replicates of tiny with seeds 3"):
        publish(str(file), second, results)
    file.write_text(own.set({"seeds": [0, 1, 2, 3], "student.optimization.steps": 7}).to_yaml())
    with pytest.raises(SublimError, match="more than its seeds has changed: run all of it anew"):
        publish(str(file), second, results)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before, "what is refused changes nothing"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"arms": ["same-init", "cross-init", "base"]}, "its arm cross-init trains on to equal KL"),
        ({"evaluation.questions": ["held-out", "indirect"]}, "its indirect questions draw answers"),
    ],
)
def test_a_run_whose_tables_do_not_tell_all_is_made_in_one_store(
    own: Experiment, tmp_path: Path, change: dict[str, object], why: str
) -> None:
    file, results = tmp_path / "tiny.yaml", tmp_path / "results"
    exp = own.set({**change, "seeds": [0]})
    made = run(exp, Store(tmp_path / "store"), processes=1)
    file.write_text(exp.to_yaml())
    publish(str(file), made.store, results)
    file.write_text(exp.set({"seeds": [0, 1]}).to_yaml())
    with pytest.raises(SublimError, match=f"cannot be joined, as {why}; one store must hold them all"):
        publish(str(file), made.store, results)


def test_a_second_machine_adds_its_replicates_to_a_published_sweep(own: Experiment, tmp_path: Path) -> None:
    base, file, results = tmp_path / "tiny.yaml", tmp_path / "steps.yaml", tmp_path / "results"
    base.write_text(own.to_yaml())

    def planned(*seeds: int) -> str:
        file.write_text(
            f"about: More steps?\nextends: {base}\nseeds: {[*seeds]}\naxes: {{student.optimization.steps: [3, 6]}}\n"
        )
        return str(file)

    whole = Store(tmp_path / "whole")
    run_grid(plan_grid(grid(planned(0, 1)), whole), whole, processes=1)
    expected = publish(planned(0, 1), whole, tmp_path / "expected")

    first = Store(tmp_path / "first")
    run_grid(plan_grid(grid(planned(0)), first), first, processes=1)
    publish(planned(0), first, results)
    shutil.rmtree(whole.root / "sweep")
    for seed_0 in first.list("evaluation"):
        shutil.rmtree(whole.get("evaluation", seed_0.key).path)  # type: ignore[union-attr]
    directory = publish(planned(0, 1), whole, results)
    assert {path.name for path in expected.iterdir()} == {path.name for path in directory.iterdir()}
    for path in expected.iterdir():
        assert (directory / path.name).read_text() == path.read_text(), path.name
