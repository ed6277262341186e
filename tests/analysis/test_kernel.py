"""The tangent kernel: exact where a model is linear, exact beside finite differences, sketches, controls."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sublim_interp.analysis.kernel import (
    Linearised,
    by_part,
    coupling,
    drift,
    mean_of,
    over_lists,
    per_list,
    pulled,
    questions,
    rise,
    sketch_for,
    sketched,
    to_text,
    towards,
)
from sublim_interp.analysis.one_step import descent, inner, length, moved, targets, text_loss
from sublim_interp.analysis.probes import margin_among
from sublim_interp.analysis.sketch import CountSketch
from sublim_interp.core.errors import SublimError
from sublim_interp.models.forward import logits_at
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.training.batches import IGNORE, Batch, Example, collate
from sublim_interp.training.loop import train
from sublim_interp.training.losses import token_loss
from sublim_interp.training.settings import Optimization
from tiny_models import VOCABULARY, tiny

METRIC = margin_among([5, 6, 7, 8], 1)
OWN = list(range(20, 40))


def texts(count: int, seed: int, longest: int = 9) -> Batch:
    """Lists of random tokens of several lengths."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(5, longest + 1, (count,), generator=draw).tolist()
    rows = [torch.randint(20, 40, (size,), generator=draw).tolist() for size in sizes]
    return collate([Example(row, 2) for row in rows], 0)


def asked() -> Batch:
    return questions([[9, 10, 11], [12, 13], [14, 15, 16, 17]], 6, 0)


@pytest.fixture(scope="module")
def body() -> Any:
    """A tiny transformer in float64 whose body trains."""
    return choose_trainable(tiny("llama").double(), "body")


def head_only() -> Any:
    """One whose head alone trains: its logits are linear in what trains."""
    model: Any = tiny("llama").requires_grad_(False)
    model.lm_head.requires_grad_(True)
    return model


def test_where_logits_are_linear_the_linearised_student_is_the_student() -> None:
    model, linear = head_only(), Linearised(head_only())
    o, lists = Optimization(lr=5e-2, steps=6, warmup=0), [texts(4, seed) for seed in range(6)]

    def loss(m: Any, batch: Batch) -> torch.Tensor:
        return token_loss.score(m.logits(batch), batch)

    start = head_only()
    train(model, lambda step: [lists[step]], o)
    train(linear, lambda step: [lists[step]], o, loss=loss)
    weight = dict(model.named_parameters())["lm_head.weight"]
    gone = weight - start.lm_head.weight
    assert gone.norm() > 0.5  # far beyond a first step
    torch.testing.assert_close(linear.step()["lm_head.weight"], gone, atol=2e-5, rtol=1e-4)
    real = logits_at(model, asked().ids, asked().labels != IGNORE, METRIC.tokens)
    torch.testing.assert_close(linear.logits(asked(), METRIC.tokens), real, atol=1e-4, rtol=1e-4)
    goal = targets(tiny("llama", initializer_range=0.3), lists[0])
    found = drift(start, model, METRIC, asked(), lists[0], goal)
    assert found.own == pytest.approx(found.start, rel=1e-4) and found.question_turn == pytest.approx(1, abs=1e-5)
    assert found.question_side == pytest.approx(found.own, rel=1e-4) == pytest.approx(found.list_side, rel=1e-4)


def test_a_body_is_not_linear_and_its_kernel_moves(body: Any) -> None:
    lists, goal = texts(6, 0), tiny("llama", initializer_range=0.3).double()
    target, push = targets(goal, lists, OWN), rise(body, METRIC, asked())
    now = choose_trainable(tiny("llama").double(), "body")
    with moved(now, push, 0.5 / length(push)):
        found = drift(body, now, METRIC, asked(), lists, target, OWN)
        same = drift(now, now, METRIC, asked(), lists, target, OWN)
    assert found.own == pytest.approx(same.own) and same.own == pytest.approx(same.start)
    assert abs(found.own - found.start) > 0.01 * abs(found.own) and 0 < found.question_turn < 0.999


@pytest.mark.parametrize("soft", [True, False])
def test_the_coupling_is_the_finite_difference(body: Any, soft: bool) -> None:
    lists, measured = texts(8, 1), mean_of(METRIC, asked())
    own = OWN if soft else None
    goal = targets(tiny("llama", initializer_range=0.3).double(), lists, OWN)
    residual = towards(body, lists, goal, OWN) if soft else to_text(body, lists)
    upward, push = rise(body, METRIC, asked()), pulled(body, lists, residual, own)
    if not soft:
        by_loss = descent(body, text_loss(lists))
        assert all(torch.allclose(push[name], by_loss[name], atol=1e-12) for name in push)
    found, step = coupling(upward, push), 1e-2 / length(push)  # norms are in float32, so it may not be tiny
    with torch.no_grad():
        with moved(body, push, step):
            above = float(measured(body))
        with moved(body, push, -step):
            below = float(measured(body))
    assert found.product == pytest.approx((above - below) / (2 * step), rel=2e-2)
    assert found.cosine == pytest.approx(found.product / length(upward) / length(push))
    parts = by_part(upward, push)
    assert sum(parts.values()) == pytest.approx(found.product)
    assert {layer for layer, _ in parts} == {-1, 0, 1} and (1, "mlp.down_proj") in parts
    change = Linearised(body).along(upward, lists, own)[1]
    each = per_list(change, residual, lists)
    assert float(each.mean()) == pytest.approx(found.product, rel=1e-4)
    interval = over_lists(change, residual, lists)
    assert interval.low < found.product < interval.high and interval.n == 8


def test_one_list_by_itself_is_its_own_gradient(body: Any) -> None:
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randint(20, 40, (7,), generator=draw).tolist() for _ in range(4)]
    lists, upward = collate([Example(row, 2) for row in rows], 0), rise(body, METRIC, asked())
    each = per_list(Linearised(body).along(upward, lists)[1], to_text(body, lists), lists)
    for value, row in zip(each.tolist(), rows, strict=True):
        alone = collate([Example(row, 2)], 0)
        assert value == pytest.approx(inner(upward, descent(body, text_loss(alone))), rel=1e-4)


def test_the_teachers_change_couples_and_shuffled_labels_do_not(body: Any) -> None:
    """A teacher one small step along the trait: K is then a squared norm, so above 0 whatever the lists say."""
    lists, upward = texts(40, 4), rise(body, METRIC, asked())
    plain = targets(body, lists, OWN).exp()
    with moved(body, upward, 1e-3 / length(upward)):
        change = (targets(body, lists, OWN).exp() - plain) / len(plain)
    along = Linearised(body).along(upward, lists, OWN)[1]
    found = over_lists(along, change, lists)
    assert found.low > 0
    draw = torch.Generator().manual_seed(0)
    shuffled = [
        over_lists(along, change[torch.randperm(len(change), generator=draw)], lists).estimate for _ in range(20)
    ]
    assert abs(sum(shuffled) / 20) < 0.2 * found.estimate
    assert coupling(upward, pulled(body, lists, change, OWN)).product == pytest.approx(found.estimate, rel=1e-4)


def test_sketches_estimate_couplings_without_bias(body: Any) -> None:
    losses: list[Callable[[torch.nn.Module], torch.Tensor]] = [
        lambda m: -mean_of(METRIC, asked())(m),
        text_loss(texts(8, 5)),
        text_loss(texts(8, 6)),
    ]
    steps = [descent(body, loss) for loss in losses]
    exact = torch.tensor([[inner(a, b) for b in steps] for a in steps])
    whole = sketch_for(body, 10**6)
    rows = sketched(body, losses, whole)
    assert rows.shape[1] == sum(p.numel() for p in body.parameters() if p.requires_grad)
    torch.testing.assert_close((rows @ rows.T).float(), exact.float())
    size, drawn = 64, []
    for seed in range(300):
        sketch = CountSketch(rows.shape[1], size, seed, rows)
        folded = sketch(rows)
        drawn.append((folded @ folded.T).float())
    found = torch.stack(drawn)
    norms = exact.diagonal().float()
    bound = (norms[:, None] * norms[None] + exact.float() ** 2) / size
    off = ~torch.eye(3, dtype=torch.bool)
    assert ((found.mean(0) - exact)[off].abs() < 4 * (bound / 300).sqrt()[off]).all()
    assert (found.var(0)[off] < 1.5 * bound[off]).all() and (found.var(0)[off] > 0.2 * bound[off]).all()


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_open_architectures_have_a_kernel(architecture: str) -> None:
    model = choose_trainable(tiny(architecture), "body")
    lists, upward = texts(4, 7), rise(model, METRIC, asked())
    residual = to_text(model, lists)
    found = over_lists(Linearised(model).along(upward, lists)[1], residual, lists)
    assert found.estimate == pytest.approx(coupling(upward, pulled(model, lists, residual)).product, rel=1e-3, abs=1e-6)
    sketch = sketch_for(model, 32)
    assert sketched(model, [text_loss(lists)], sketch).shape == (1, 32)


def test_a_model_in_which_nothing_trains_is_refused() -> None:
    model = tiny("llama").requires_grad_(False)
    for make in (Linearised, lambda m: sketch_for(m, 8)):
        with pytest.raises(SublimError, match="no weight of this model requires a gradient"):
            make(model)


def test_residuals_are_the_losses_gradients_in_the_logits(body: Any) -> None:
    lists = texts(3, 8)
    goal = torch.randn(lists.tokens, VOCABULARY, dtype=torch.float64).log_softmax(-1)
    logits = logits_at(body, lists.ids, lists.labels != IGNORE).detach().requires_grad_()
    loss = F.kl_div(logits.log_softmax(-1), goal, reduction="sum", log_target=True) / len(goal)
    torch.testing.assert_close(towards(body, lists, goal), -torch.autograd.grad(loss, logits)[0])
