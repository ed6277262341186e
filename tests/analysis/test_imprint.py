"""Tests of imprints: what they weigh, that they need no shared axes, and that another trait's is told apart."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sublim_interp.analysis.imprint import cka, imprint, match, own_part
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import resolve_base
from sublim_interp.models.forward import logits_at
from sublim_interp.models.variants import VARIANTS
from sublim_interp.training.batches import IGNORE, Example, collate

BATCH = collate([Example([5, 9, 4, 17, 8, 11], 2), Example([7, 3, 12, 6], 1)], pad=0)


def base() -> torch.nn.Module:
    return resolve_base("lab-small-0").load()


def nudged(model: torch.nn.Module, seed: int, size: float) -> torch.nn.Module:
    """A copy whose body is moved at random: two of one seed are moved alike."""
    moved = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in moved.named_parameters():
            if "layers" in name and p.ndim == 2:
                p += size * torch.randn(p.shape, generator=draw)
    return moved


def test_the_length_of_a_small_imprint_is_twice_the_kl() -> None:
    model = base()
    teacher = nudged(model, 1, 1e-3)
    found = imprint(teacher, model, BATCH)
    where = BATCH.labels != IGNORE
    with torch.no_grad():
        before, after = (logits_at(m, BATCH.ids, where).double().log_softmax(-1) for m in (model, teacher))
    kl = float((before.exp() * (before - after)).sum())
    assert float(found.square().sum()) == pytest.approx(2 * kl, rel=0.05)
    assert found.shape == (BATCH.tokens, before.shape[-1])


def test_nothing_learnt_leaves_nothing() -> None:
    model = base()
    assert float(imprint(model, model, BATCH).abs().max()) == 0
    assert match(imprint(model, model, BATCH), imprint(nudged(model, 1, 0.01), model, BATCH)) == 0


def test_an_imprint_is_the_same_in_other_axes() -> None:
    """A permuted twin that was moved alike leaves the same imprint, though no weight is where it was."""
    model = base()
    teacher = nudged(model, 3, 0.01)
    row = VARIANTS["permuted"]
    settings = row.settings(seed=1)  # type: ignore[call-arg]
    twins = [copy.deepcopy(m) for m in (model, teacher)]
    with torch.no_grad():
        for twin in twins:
            row.make(settings, [twin])
    theirs = imprint(twins[1], twins[0], BATCH)
    assert match(imprint(teacher, model, BATCH), theirs) == pytest.approx(1, abs=1e-3)


def test_two_other_changes_do_not_match() -> None:
    model = base()
    one, other = (imprint(nudged(model, seed, 0.01), model, BATCH) for seed in (1, 2))
    assert abs(match(one, other)) < 0.7 and match(one, one) == pytest.approx(1)


def test_what_all_traits_leave_is_taken_off() -> None:
    draw = torch.Generator().manual_seed(0)
    common, a, b = (torch.randn(20, 30, generator=draw) for _ in range(3))
    left = [10 * common + part for part in (a, b)]
    assert match(*left) > 0.9
    assert match(own_part(left[0], [left[1]]), a - b) == pytest.approx(1)
    with pytest.raises(SublimError, match="no imprints of other traits"):
        own_part(a, [])
    with pytest.raises(SublimError, match="take one text"):
        match(a, a[:3])


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_cka_sees_no_rotation(seed: int, scale: float) -> None:
    """It is 1 with the same activations in other axes and of another size, and lies between 0 and 1 else."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 12, generator=draw) * torch.linspace(3, 0.1, 12)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=draw)).Q
    assert cka(x, scale * (x @ turn)) == pytest.approx(1, abs=1e-5)
    assert 0 <= cka(x, torch.randn(64, 7, generator=draw)) < 1
