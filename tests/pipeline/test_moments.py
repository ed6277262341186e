"""Tests of moments that go from one student to another: which come from whom, against the plain loop, and the grid."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from chains import FEW, STUDENT, Chain, chain
from killing import Killed
from sublim_interp.channels.rows import read_rows
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import validate
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.learn import learn
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.moments import FILE
from sublim_interp.pipeline.records import Student
from sublim_interp.pipeline.settings import StudentConfig
from sublim_interp.sweeps.grid import Grid, grid
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.run import run_grid
from sublim_interp.sweeps.tables import table_of
from sublim_interp.training.batches import Order, micro_batches, tokenize
from sublim_interp.training.loop import rate, train
from sublim_interp.training.losses import token_loss
from sublim_interp.traits.favourites import NoFavourite

KEPT = STUDENT.set(moments="kept")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, base: Base) -> Store:
    store = Store.open(tmp_path_factory.mktemp("shared"))
    for c in (chain(base), neutral(base)):
        make(c.change("student", config=KEPT).student, store)
    return store


def neutral(base: Base) -> Chain:
    return chain(base).change("teacher", trait=NoFavourite("animal"))


def keepers(base: Base) -> tuple[Student, Student]:
    own, other = (c.change("student", config=KEPT).student for c in (chain(base), neutral(base)))
    return own, other


def beginning_with(base: Base, first: Student, second: Student, moments: str = "both") -> Student:
    return replace(neutral(base).student, config=STUDENT.set(moments=moments), first=first, second=second)


def trained(base: Base, shared: Store, student: Student) -> dict[str, torch.Tensor]:
    return base.load(make(student, shared).path / "model").state_dict()


def test_what_is_kept_is_adams_after_the_last_update_and_changes_no_weight(base: Base, shared: Store) -> None:
    c = chain(base)
    kept, plain = c.change("student", config=KEPT).student, c.student
    artifact = make(kept, shared)
    assert FILE in artifact.manifest["files"] and FILE not in make(plain, shared).manifest["files"]
    assert (
        artifact.manifest["files"]["model/model.safetensors"]
        == (make(plain, shared).manifest["files"]["model/model.safetensors"])
    )
    rows = tokenize(base, read_rows(c.filtered.made(shared) / "kept.jsonl"))
    model = choose_trainable(base.load(), "body", 8, 8.0, 0)
    order, gradients = Order(len(rows), FEW.batch, 0), {n: [] for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], betas=(FEW.beta1, FEW.beta2))
    for step in range(FEW.steps):
        (batch,) = micro_batches([rows[i] for i in order(step)], base.pad)
        model.zero_grad()
        (token_loss(model, batch) / batch.tokens).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                gradients[name].append(p.grad.clone())
        optimizer.param_groups[0]["lr"] = rate(FEW, step)
        optimizer.step()
    found = load_file(str(artifact.path / FILE))
    assert {site.split("/")[0] for site in found} == {"exp_avg", "exp_avg_sq", "step"}
    for name, each in gradients.items():
        first, second = torch.zeros_like(each[0]), torch.zeros_like(each[0])
        for g in each:
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g.square()
        assert torch.allclose(found[f"exp_avg/{name}"], first, atol=1e-5, rtol=1e-3)
        assert torch.allclose(found[f"exp_avg_sq/{name}"], second, atol=1e-6, rtol=1e-3)
        assert found[f"step/{name}"] == FEW.steps


@pytest.mark.parametrize("which", [(0, 1), (1, 0), (0, 0)])
def test_a_student_begins_with_the_moments_it_is_given(which: tuple[int, int], base: Base, shared: Store) -> None:
    """Against the plain loop with an optimizer whose state is filled in by hand."""
    first, second = (keepers(base)[i] for i in which)
    student = beginning_with(base, first, second)
    found = trained(base, shared, student)
    states = [load_file(str(donor.made(shared) / FILE)) for donor in (first, second)]
    rows = tokenize(base, read_rows(student.data.made(shared) / "kept.jsonl"))
    model: Any = choose_trainable(base.load(), "body", 8, 8.0, 0)

    class Filled:
        """Fills the state where a training begins, and leaves it."""

        def __init__(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
            for name, p in model.named_parameters():
                if p.requires_grad:
                    optimizer.state[p] = {
                        "step": states[0][f"step/{name}"].clone(),
                        "exp_avg": states[0][f"exp_avg/{name}"].clone(),
                        "exp_avg_sq": states[1][f"exp_avg_sq/{name}"].clone(),
                    }

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    order = Order(len(rows), FEW.batch, 0)
    train(model, lambda s: micro_batches([rows[i] for i in order(s)], base.pad), FEW, intervene=Filled)
    assert all(torch.equal(found[name], p) for name, p in model.state_dict().items())
    untreated = trained(base, shared, neutral(base).student)
    assert any(not torch.equal(found[name], p) for name, p in untreated.items()), "and moments matter"


def test_moments_of_nothing_leave_every_bit(base: Base, shared: Store, tmp_path: Path) -> None:
    """A donor whose moments and count are 0 is an optimizer that has made no update."""
    store = Store.open(tmp_path / "store")
    donor = keepers(base)[1]
    make(donor, store)
    path = donor.made(store) / FILE
    nothing = {site: torch.zeros_like(value) for site, value in load_file(str(path)).items()}
    from sublim_interp.analysis.patching.patch import Patch, Piece

    rows = tokenize(base, read_rows(donor.data.made(store) / "kept.jsonl"))
    model: Any = choose_trainable(base.load(), "body", 8, 8.0, 0)
    order, patch = Order(len(rows), FEW.batch, 0), Patch(tuple(Piece(*item) for item in nothing.items()))
    train(model, lambda s: micro_batches([rows[i] for i in order(s)], base.pad), FEW, intervene=patch.on)
    untreated = trained(base, store, neutral(base).student)
    assert all(torch.equal(untreated[name], p) for name, p in model.state_dict().items())


def test_a_killed_student_goes_on_to_the_same_bits(
    base: Base, shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sublim_interp.training.resume import Resume

    student, store = beginning_with(base, *keepers(base)), Store.open(tmp_path / "store")
    make(student, shared)
    for donor in keepers(base):
        make(donor, store)
    make(student.data, store)
    monkeypatch.setattr(Resume, "due", lambda self, step: step % 2 == 0)

    def kill(share: float) -> None:
        if share > 0.6:
            raise Killed

    with pytest.raises(Killed):
        learn(student, store, kill)
    assert all(torch.equal(p, trained(base, shared, student)[n]) for n, p in trained(base, store, student).items())


def test_the_plan_takes_one_moment_of_the_arms_student_and_the_other_of_a_neutral_one(
    tiny_experiment: Experiment,
) -> None:
    arms = ("same-init", "neutral", "cross-init")
    found: dict[tuple[str, str], Student] = {}
    for moments in ("kept", "first", "second", "both"):
        exp = tiny_experiment.set({"arms": arms, "seeds": [0], "student.moments": moments})
        found |= {(moments, c.arm): c.student for c in plan(exp).cells if c.student}
    for arm in arms:
        plain = found["first", arm].second
        assert plain and plain.data.corpus.teacher.trait.name != "owl" and plain.base == found["kept", arm].base
        own, other = found["kept", arm].key, plain.key
        assert arm == "cross-init" or other == found["kept", "neutral"].key
        both = {m: found[m, arm] for m in ("first", "second", "both")}
        moments = {m: (s.first.key, s.second.key) for m, s in both.items() if s.first and s.second}
        assert moments == {"first": (own, other), "second": (other, own), "both": (own, own)}
        assert all(s.data.corpus.teacher.trait.name != "owl" for s in both.values()), "they learn neutral lists"
    assert len({found[m, "neutral"].key for m in ("first", "second", "both")}) == 1, "the control is trained once"
    assert len({s.key for s in found.values()}) == 10


def test_moments_that_cannot_be_had_are_one_line(tiny_experiment: Experiment) -> None:
    for optimization, moments, words in (
        ({"optimizer": "sgd"}, "second", "moments=second needs an optimizer with 2 of them, such as adam; sgd keeps 1"),
        ({"optimizer": "sgd", "beta1": 0}, "kept", "moments=kept needs an optimizer with 1 of them"),
        ({}, "third", "'first', 'second' or 'both'"),
    ):
        with pytest.raises(SublimError) as raised:
            validate(StudentConfig, {"moments": moments, "optimization": optimization}, "student")
        assert words in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(SublimError, match=r"student\.moments=first needs student\.extra_rounds=0 and generations=1"):
        tiny_experiment.set({"student.moments": "first", "student.extra_rounds": 1})
    assert "moments" not in StudentConfig().model_dump()


def test_the_grid_runs_from_lists_to_its_table(tiny_experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    g = grid("moments")
    change = {"arms": ["same-init", "neutral"], "seeds": [0], "bases": [tiny_experiment.bases[0]]}
    small = Grid(name=g.name, experiment=str(path), change=change, axes=g.axes, words=g.words)
    artifact = run_grid(plan_grid(small), Store.open(tmp_path / "store"), 1, trace="none")
    margins: Any = pd.read_csv(artifact.path / "cells.csv").pivot(index="value", columns="arm", values="margin")
    assert margins.loc[["first", "second", "both"], "neutral"].nunique() == 1
    assert margins["same-init"].nunique() == 4
    assert [row[1] for row in table_of(small, artifact.path).rows[::2]] == [*g.words["student.moments"]]
