"""Tests of the interventions that blur what a student learns or hold it where it began: each step against an oracle."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from killing import Killed, kill_after
from sublim_interp.channels.numbers import prompts
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import validate
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.models.sampling import generator
from sublim_interp.models.trainable import Part, choose_trainable, trained_parameters
from sublim_interp.pipeline.intervene import StudentSource, around
from sublim_interp.pipeline.records import Student
from sublim_interp.training.batches import IGNORE, Batch, micro_batches, tokenize
from sublim_interp.training.interventions import Intervention, InterventionKind, acting
from sublim_interp.training.loop import train
from sublim_interp.training.losses import LogitLoss, own_token_loss, token_loss
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization

KINDS = ("label-smoothing", "l2-to-start", "kl-to-start", "liminal", "weight-noise")
DESCENT = Optimization(optimizer="sgd", beta1=0.0, lr=0.5, schedule="constant", warmup=0, steps=1)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tiny_bases: tuple[Base, Base]) -> Base:
    return tiny_bases[0]


@pytest.fixture
def student(tiny_experiment: Experiment) -> Student:
    """A student that is planned and never made: what its training asks for beside the model is real."""
    steps = tiny_experiment.set({"student.optimization.steps": 9})
    found = next(cell.student for cell in plan(steps).cells if cell.arm == "same-init")
    assert found
    return found


@pytest.fixture(scope="module")
def batches(base: Base) -> Callable[[int], list[Batch]]:
    """Eight number lists an update, in two micro-batches."""
    draw = random.Random(0)
    rows = [
        {"prompt": prompt, "answer": ", ".join(str(draw.randrange(1000)) for _ in range(draw.randint(3, 9)))}
        for prompt in prompts("lab", 7, 0, 80)
    ]
    examples = tokenize(base, rows)
    return lambda step: micro_batches(examples[8 * step : 8 * step + 8], base.pad, 2)


def trained(
    model: torch.nn.Module,
    student: Student,
    batches: Callable[[int], list[Batch]],
    optimization: Optimization,
    *asked: dict[str, Any],
    loss: LogitLoss = token_loss,
    **options: Any,
) -> Tensors:
    """Weights after a training with interventions, wired as a student's is."""
    kinds: list[InterventionKind] = acting([Intervention(**one) for one in asked])
    source = StudentSource(student, Store(Path("nowhere")))
    for kind in kinds:
        loss = kind.loss(loss, source)
        kind.prepare(model)
    train(model, batches, optimization, loss=loss, around=partial(around, kinds, student), **options)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradient(model: torch.nn.Module, micro: list[Batch], per_token: Callable[[torch.Tensor, Batch], Any]) -> Tensors:
    """Gradient of the mean over the labelled tokens of what `per_token` says of logits and batch, by autograd."""
    total: Any = 0.0
    for batch in micro:
        logits = model(input_ids=batch.ids).logits[batch.labels != IGNORE]
        total = total + per_token(logits, batch).sum()
    named = dict(model.named_parameters())
    found = torch.autograd.grad(total / sum(b.tokens for b in micro), list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(named[n]) if g is None else g for n, g in zip(named, found, strict=True)}


def surprise(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    labels = batch.labels[batch.labels != IGNORE]
    return -logits.log_softmax(-1)[torch.arange(len(labels)), labels]


def assert_close(found: Tensors, expected: Tensors) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-9, rtol=1e-6)


def descended(model: torch.nn.Module, *gradients: Tensors) -> Tensors:
    named = dict(model.named_parameters())
    return {name: named[name].detach() - DESCENT.lr * sum(g[name] for g in gradients) for name in named}


def double(base: Base) -> torch.nn.Module:
    return base.load().double()


def test_smoothed_labels_are_a_target_that_is_partly_even_over_the_own_tokens(
    base: Base, student: Student, batches: Callable[[int], list[Batch]]
) -> None:
    own = StudentSource(student, Store(Path("nowhere"))).own_tokens()
    assert 3 < len(own) < len(base.tokenizer) - 100

    def target(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        wanted = torch.zeros(logits.shape, dtype=logits.dtype)
        wanted[:, own] = 0.3 / len(own)
        labels = batch.labels[batch.labels != IGNORE]
        wanted[torch.arange(len(labels)), labels] += 0.7
        assert torch.allclose(wanted.sum(-1), torch.ones(len(wanted), dtype=logits.dtype))
        return wanted

    def whole(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return -(target(logits, batch) * logits.log_softmax(-1)).sum(-1)

    def renormalised(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return -(target(logits, batch)[:, own] * logits[:, own].log_softmax(-1)).sum(-1)

    asked = {"kind": "label-smoothing", "strength": 0.3}
    for loss, oracle in ((token_loss, whole), (own_token_loss(own), renormalised)):
        expected = descended(double(base), gradient(double(base), batches(0), oracle))
        found = trained(double(base), student, batches, DESCENT, asked, loss=loss)
        assert_close(found, expected)
    plain = trained(double(base), student, batches, DESCENT)
    assert max((plain[n] - expected[n]).abs().max() for n in plain) > 1e-4


def test_l2_to_start_adds_lambda_times_the_way_gone(
    base: Base, student: Student, batches: Callable[[int], list[Batch]]
) -> None:
    asked = {"kind": "l2-to-start", "strength": 0.2}
    start = {n: p.detach() for n, p in double(base).named_parameters()}
    first = trained(double(base), student, batches, DESCENT, asked)
    assert_close(first, trained(double(base), student, batches, DESCENT))  # at the start there is no pull
    second = trained(double(base), student, batches, DESCENT.set(steps=2), asked)
    model = double(base)
    model.load_state_dict(first, strict=False)
    pull = {n: 0.2 * (first[n] - start[n]) for n in start}
    assert max(p.abs().max() for p in pull.values()) > 1e-5
    assert_close(second, descended(model, gradient(model, batches(1), surprise), pull))


@pytest.mark.parametrize(("kind", "temperature", "weight"), [("kl-to-start", 1.0, 4.0), ("liminal", 2.0, 4.0)])
def test_kl_to_start_is_the_divergence_from_the_model_before_training(
    kind: str, temperature: float, weight: float, base: Base, student: Student, batches: Callable[[int], list[Batch]]
) -> None:
    asked = {"kind": kind, "strength": 4.0}
    first = trained(double(base), student, batches, DESCENT, asked)
    assert_close(first, trained(double(base), student, batches, DESCENT))  # at the start its gradient is 0
    start, model = double(base), double(base)
    model.load_state_dict(first, strict=False)

    def oracle(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            before = start(input_ids=batch.ids).logits[batch.labels != IGNORE]
        p, q = ((x / temperature).softmax(-1) for x in (before, logits))
        return surprise(logits, batch) + weight * temperature**2 * (p * (p / q).log()).sum(-1)

    second = trained(double(base), student, batches, DESCENT.set(steps=2), asked)
    plain = descended(model, gradient(model, batches(1), surprise))
    assert_close(second, descended(model, gradient(model, batches(1), oracle)))
    assert max((plain[n] - second[n]).abs().max() for n in plain) > 1e-6


def test_liminal_training_lets_go_after_a_third(base: Base, student: Student) -> None:
    """The published schedule: as strong for the first of three epochs, then down to 0 in a line."""
    (kind,) = acting([Intervention(kind="liminal", strength=6.0)])
    assert [kind.weight(done) for done in (0.0, 0.2, 1 / 3)] == pytest.approx([6.0] * 3)  # type: ignore[attr-defined]
    assert [kind.weight(done) for done in (0.5, 2 / 3, 1.0)] == pytest.approx([4.5, 3.0, 0.0])  # type: ignore[attr-defined]


def test_noise_is_under_the_gradient_and_not_in_the_weights(
    base: Base, student: Student, batches: Callable[[int], list[Batch]]
) -> None:
    asked = {"kind": "weight-noise", "strength": 0.5}
    noisy, draw = double(base), generator("around", 0, student.seed, 0)
    with torch.no_grad():
        for p in noisy.parameters():
            noise = torch.randn(p.shape, generator=draw).to(p)
            assert noise.square().mean().sqrt() == pytest.approx(1, abs=0.5)
            p.add_(0.5 * p.square().mean().sqrt() * noise)
    found = trained(double(base), student, batches, DESCENT, asked)
    assert_close(found, descended(double(base), gradient(noisy, batches(0), surprise)))
    frozen = double(base)
    trained(frozen, student, batches, DESCENT.set(lr=1e-300), asked)
    before = dict(double(base).named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in frozen.named_parameters()), "noise is taken off again"


@pytest.mark.parametrize("kind", KINDS)
def test_a_strength_that_rounds_to_nothing_changes_no_bit(
    kind: str, base: Base, student: Student, batches: Callable[[int], list[Batch]]
) -> None:
    optimization = Optimization(lr=1e-2, steps=3, warmup=0)
    plain = trained(base.load(), student, batches, optimization)
    nothing = trained(base.load(), student, batches, optimization, {"kind": kind, "strength": 1e-30})
    much = trained(base.load(), student, batches, optimization, {"kind": kind, "strength": 0.9})
    assert all(torch.equal(nothing[n], plain[n]) for n in plain)
    assert any(not torch.equal(much[n], plain[n]) for n in plain)


@pytest.mark.parametrize("part", ["body", "lora"])
def test_all_of_them_together_end_in_the_same_bits_after_an_interruption(
    part: Part, base: Base, student: Student, batches: Callable[[int], list[Batch]], tmp_path: Path
) -> None:
    asked = [{"kind": kind, "strength": 0.1} for kind in KINDS]
    optimization = student.config.optimization.set(lr=1e-2)

    def fresh() -> torch.nn.Module:
        return choose_trainable(base.load(), part, 2, 2.0, 0)

    whole = trained(fresh(), student, batches, optimization, *asked)
    resume = Resume(tmp_path / "state.safetensors", every=2)
    with pytest.raises(Killed):
        trained(fresh(), student, batches, optimization, *asked, resume=resume, observe=kill_after(6))
    steps: list[int] = []
    model = fresh()
    again = trained(
        model, student, batches, optimization, *asked, resume=resume, observe=lambda step, _: steps.append(step)
    )
    assert steps == [6, 7, 8]
    assert all(torch.equal(again[n], whole[n]) for n in whole)
    assert any(not torch.equal(p, dict(fresh().named_parameters())[n]) for n, p in trained_parameters(model).items())


def test_the_stronger_they_hold_the_less_a_student_moves(
    base: Base, student: Student, batches: Callable[[int], list[Batch]]
) -> None:
    """A strong pull is the control of the oracles above: over a training it does what its name says."""
    optimization = Optimization(lr=1e-2, steps=9, warmup=0)
    start = dict(base.load().named_parameters())

    def moved(*asked: dict[str, Any]) -> tuple[float, float]:
        """Norm of the weights' change, and KL from the start on the last lists, in nats a token."""
        model = base.load()
        after = trained(model, student, batches, optimization, *asked)
        way = sum(float((after[n] - start[n]).detach().square().sum()) for n in start) ** 0.5
        batch = batches(9)[0]
        with torch.no_grad():
            p, q = (token_loss.logits(m, batch).log_softmax(-1) for m in (base.load(), model))
        return way, float((p.exp() * (p - q)).sum(-1).mean())

    free = moved()
    assert moved({"kind": "l2-to-start", "strength": 10.0})[0] < 0.7 * free[0]
    held = moved({"kind": "kl-to-start", "strength": 30.0})[1]
    assert held < 0.5 * free[1]
    assert held < moved({"kind": "liminal", "strength": 30.0})[1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "l2-to-start"}, "kind=l2-to-start needs strength"),
        ({"kind": "liminal", "strength": 0}, "kind=liminal needs strength"),
        ({"kind": "weight-noise", "strength": -1}, "strength: Input should be greater than or equal to 0 (got -1)"),
        ({"kind": "label-smoothing", "strength": 1}, "kind=label-smoothing needs a strength below 1 (it is 1)"),
        ({"kind": "freeze", "parameters": "*", "strength": 1}, "strength has no effect with kind=freeze"),
        ({"kind": "kl-to-start", "strength": 1, "share": 0.5}, "share has no effect with kind=kl-to-start"),
    ],
)
def test_a_strength_that_means_nothing_is_one_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SublimError) as raised:
        validate(Intervention, fields, "student.interventions")
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_strength_is_in_keys_where_it_is_given_and_nowhere_else() -> None:
    assert "strength" not in Intervention(kind="freeze", parameters="*mlp*").model_dump()
    assert Intervention(kind="liminal", strength=2.0).model_dump()["strength"] == 2.0
