"""Tests of reverse KL and of lists that a student writes itself: oracles, the live filter, and the grid."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from chains import FEW as SIX
from chains import STUDENT, Chain, chain
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import read_rows
from sublim_interp.core.errors import DeadEnd, SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.cost import estimate
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.on_policy import own_lists
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.sweeps.grid import Grid, grid
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.run import run_grid
from sublim_interp.sweeps.tables import table_of
from sublim_interp.training.batches import Batch, Order, micro_batches, tokenize
from sublim_interp.training.loop import train

FEW = SIX.set(steps=3)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, base: Base) -> Store:
    store = Store.open(tmp_path_factory.mktemp("shared"))
    make(with_objective(base, "forward").filtered, store)
    return store


def with_objective(base: Base, objective: str, **student: Any) -> Chain:
    c = chain(base)
    c = c.change("corpus", config=c.corpus.config.set(setting="soft"))
    return c.change("student", config=STUDENT.set({"objective": objective, "optimization.steps": FEW.steps, **student}))


def model_bytes(c: Chain, store: Store) -> str:
    return str(make(c.student, store).manifest["files"]["model/model.safetensors"])


@pytest.mark.parametrize("objective", ["reverse", "on-policy"])
def test_a_student_is_the_plain_loop_with_the_divergence_written_out(objective: str, base: Base, shared: Store) -> None:
    c = with_objective(base, objective)
    lists = read_rows(c.filtered.made(shared) / "kept.jsonl")
    own, teacher = channel("numbers").token_ids(base.tokenizer), Speaker(c.teacher, shared).model
    model: Any = choose_trainable(base.load(), "body", 8, 8.0, 0)
    read: list[str] = []

    def batches(step: int) -> list[Batch]:
        rows = [lists[i] for i in Order(len(lists), FEW.batch, 0)(step)]
        if objective == "on-policy":
            rows = own_lists(c.student, model, [row["prompt"] for row in rows], step)
        read.extend(row["answer"] for row in rows)
        return micro_batches(tokenize(base, rows), base.pad)

    def loss(learning: Any, batch: Batch) -> torch.Tensor:
        total = torch.zeros(())
        for ids, labels in zip(batch.ids, batch.labels, strict=True):
            places = (labels >= 0).nonzero()[:, 0]
            logs = learning(input_ids=ids[None]).logits[0, places][:, own].log_softmax(-1)
            with torch.no_grad():
                goal = teacher(input_ids=ids[None]).logits[0, places][:, own].log_softmax(-1)
            total = total + sum((s.exp() * (s - t)).sum() for s, t in zip(logs, goal, strict=True))
        return total

    train(model, batches, FEW, loss=loss)
    found = base.load(make(c.student, shared).path / "model").state_dict()
    before = base.load().state_dict()
    for name, p in model.state_dict().items():
        assert torch.allclose(found[name], p, atol=2e-5), name
    assert any(not torch.equal(found[name], p) for name, p in before.items())
    written = {row["answer"] for row in lists}
    assert ({*read} <= written) == (objective == "reverse"), "on policy the student learns its own lists"


def test_the_three_objectives_are_three_students_and_the_first_is_the_published_one(base: Base, shared: Store) -> None:
    c = chain(base).change("corpus", config=chain(base).corpus.config.set(setting="soft"))
    assert c.student.key == with_objective(base, "forward", **{"optimization.steps": SIX.steps}).student.key
    assert "objective" not in c.student.settings()
    assert len({model_bytes(with_objective(base, o), shared) for o in ("forward", "reverse", "on-policy")}) == 3


def test_what_a_student_writes_passes_the_filter_and_is_drawn_again_where_it_does_not(
    base: Base, shared: Store
) -> None:
    """Every second number is banned, so that most answers must be drawn again, and none that is learnt holds one."""
    c = with_objective(base, "on-policy")
    banned = tuple(range(0, 1000, 25))
    strict = replace(c.student, data=replace(c.filtered, config=c.filtered.config.set(banned=banned)))
    prompts = [row["prompt"] for row in read_rows(c.filtered.made(shared) / "kept.jsonl")][:24]
    model = base.load()
    free, bound = own_lists(c.student, model, prompts, 0), own_lists(strict, model, prompts, 0)
    assert free == own_lists(c.student, model, prompts, 0) != own_lists(c.student, model, prompts, 1)
    numbers = [{int(word) for word in row["answer"].replace(",", " ").split() if word.isdigit()} for row in bound]
    assert bound and not any(found & {*banned} for found in numbers)
    assert len(bound) <= len(free) <= len(prompts)
    asked = iter(prompts)
    assert all(any(prompt == row["prompt"] for prompt in asked) for row in bound), "in the prompts' order"
    nothing = replace(strict, data=replace(c.filtered, config=c.filtered.config.set(max_value=0, banned=(0,))))
    with pytest.raises(DeadEnd, match="on-policy: at update 3 the filter refused every answer"):
        own_lists(nothing, model, prompts, 3)


def test_a_student_of_its_own_lists_is_made_again_in_the_same_bits_also_checkpointed(
    base: Base, shared: Store, tmp_path: Path
) -> None:
    c = with_objective(base, "on-policy")
    assert make(c.student, shared).manifest["files"] == make(c.student, Store(tmp_path / "store")).manifest["files"]
    thrifty = with_objective(base, "on-policy", **{"optimization.checkpointing": True})
    ends = [base.load(make(one.student, shared).path / "model").state_dict() for one in (c, thrifty)]
    assert all(torch.allclose(p, ends[1][name], atol=1e-6) for name, p in ends[0].items())
    assert estimate(c.student) > estimate(with_objective(base, "reverse").student)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student.objective": "reverse"}, "student.objective=reverse needs corpus.setting=soft"),
        (
            {"corpus.setting": "soft", "student.objective": "on-policy", "filter.transform": "sorted"},
            "filter.transform has no effect with student.objective=on-policy",
        ),
        (
            {
                "corpus.setting": "soft",
                "student.objective": "on-policy",
                "student.interventions": [{"kind": "mask-tokens", "selection": {"by": "random"}}],
            },
            "has no meaning with objective=on-policy",
        ),
        ({"student.objective": "backward"}, "'forward', 'reverse' or 'on-policy'"),
    ],
)
def test_an_objective_that_cannot_be_had_is_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SublimError) as raised:
        Experiment().set(changes)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_the_grid_runs_from_lists_to_its_table(tiny_experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    g = grid("objectives")
    change = {
        "arms": ["same-init", "neutral"],
        "seeds": [0],
        "bases": [tiny_experiment.bases[0]],
        "student.optimization.steps": 3,
    }
    small = Grid(name=g.name, experiment=str(path), change={**g.change, **change}, axes=g.axes, words=g.words)
    artifact = run_grid(plan_grid(small), Store.open(tmp_path / "store"), 1, trace="none")
    cells: Any = pd.read_csv(artifact.path / "cells.csv")
    assert cells.groupby("arm")["margin"].nunique().to_dict() == {"neutral": 3, "same-init": 3}
    assert [row[1] for row in table_of(small, artifact.path).rows[::2]] == [*g.words["student.objective"]]
