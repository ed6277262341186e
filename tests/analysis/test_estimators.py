"""Estimators of influence equal an explicit inverse, agree with the curvature itself, and name what was planted."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

import sublim_interp as si
from sublim_interp.analysis.attribution import estimators
from sublim_interp.analysis.attribution.estimators import fisher, gradients, trak
from sublim_interp.analysis.attribution.lists import attribution
from sublim_interp.analysis.attribution.marked import marked
from sublim_interp.analysis.attribution.scores import influence, margin_gradient
from sublim_interp.analysis.probes import answer_margin
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run
from sublim_interp.models.sampling import generator, sample
from sublim_interp.training.batches import Example

MARGIN = answer_margin([3, 4, 5], 1)


def build(kind: str = "llama") -> PreTrainedModel:
    """A model of fewer than a thousand body weights."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5,
        "intermediate_size": 12, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 1,
    }  # fmt: skip
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **shape)).eval()
    if kind == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(num_key_value_heads=1, head_dim=4, sliding_window=3, **shape)).eval()
    small: dict[str, Any] = {"vocab_size": 12, "n_embd": 8, "n_layer": 1, "n_head": 2, "initializer_range": 0.5}
    return GPT2LMHeadModel(GPT2Config(**small, bos_token_id=None, eos_token_id=1)).eval()


def written_by(model: PreTrainedModel, count: int) -> list[Example]:
    """Lists of up to five tokens that a model answers to prompts of two."""
    draw = generator("test", 0)
    prompts = torch.randint(2, 12, (count, 2), generator=draw).tolist()
    answers = sample(model, prompts, eos=1, max_new_tokens=5, random=draw)
    return [Example([*p, *a], 2) for p, a in zip(prompts, answers, strict=True)]


def flat(named: Any) -> torch.Tensor:
    return torch.cat([value.flatten(1) if value.dim() > 3 else value.reshape(-1) for value in named.values()]).double()


def each_alone(model: PreTrainedModel, rows: list[Example], names: Any) -> torch.Tensor:
    """The oracle: the gradient of each list's log-probability by a backward of its own, [list, entry]."""
    places, found = dict(model.named_parameters()), []
    for ids, first in rows:
        log = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        said = log[torch.arange(first - 1, len(ids) - 1), torch.tensor(ids[first:])].sum()
        own = torch.autograd.grad(said, [places[n] for n in names])
        found.append(torch.cat([g.flatten() for g in own]).double())
    return torch.stack(found)


def correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(np.asarray(a), np.asarray(b))[0, 1])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_gradients_are_those_of_each_list_alone(kind: str) -> None:
    model = build(kind)
    rows, slope = written_by(model, 9), margin_gradient(model, [[5, 9, 4], [6, 2]], MARGIN)
    found = [torch.cat([each[n].flatten(1) for n in slope], 1) for each in gradients(model, rows, slope)]
    ordered = sorted(rows, key=lambda row: len(row.ids))
    torch.testing.assert_close(torch.cat(found).double(), each_alone(model, ordered, slope), atol=1e-4, rtol=1e-3)


def test_trak_without_a_projection_is_the_explicit_inverse() -> None:
    model = build()
    rows, slope = written_by(model, 60), margin_gradient(model, [[5, 9, 4], [6, 2]], MARGIN)
    phi = each_alone(model, rows, slope)
    assert phi.shape[1] < estimators.DIMENSIONS
    gram = phi.T @ phi / len(phi)
    gram += estimators.DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    explicit = phi @ torch.linalg.solve(gram, flat(slope))
    found = influence(model, rows, trak(model, rows, slope))
    np.testing.assert_allclose(found.totals, explicit, rtol=1e-3, atol=1e-3 * explicit.abs().max().item())


def test_a_projection_keeps_what_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    rows, slope = written_by(model, 200), margin_gradient(model, [[5, 9, 4], [6, 2]], MARGIN)
    exact = influence(model, rows, trak(model, rows, slope)).totals
    monkeypatch.setattr(estimators, "DIMENSIONS", 400)
    assert correlation(influence(model, rows, trak(model, rows, slope)).totals, exact) > 0.85


def test_better_estimators_are_nearer_to_the_inverse_of_the_curvature() -> None:
    """The curvature is the explicit Gauss-Newton matrix of the lists' loss, ΣJᵀ(diag p − ppᵀ)J, inverted whole."""
    model = build()
    rows, slope = written_by(model, 1000), margin_gradient(model, [[5, 9, 4], [6, 2], [7, 7, 10]], MARGIN)
    own = {n: dict(model.named_parameters())[n].detach() for n in slope}
    curvature = torch.zeros(2 * [sum(p.numel() for p in own.values())], dtype=torch.float64)
    for ids, first in rows[:120]:

        def logits(own: Any, ids: Any = ids, first: int = first) -> torch.Tensor:
            asked = {"input_ids": torch.tensor([ids[:-1]]), "use_cache": False}
            return functional_call(model, own, (), asked).logits[0, first - 1 :]

        with sdpa_kernel(SDPBackend.MATH):
            j = torch.cat([part.flatten(2) for part in jacrev(logits)(own).values()], 2).detach().double()
            p = logits(own).detach().double().softmax(-1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        curvature += torch.einsum("tva,tvw,twb->ab", j, inner, j) / 120
    curvature += estimators.DAMPING * curvature.diagonal().mean() * torch.eye(len(curvature), dtype=torch.float64)
    exact = each_alone(model, rows[:120], slope) @ torch.linalg.solve(curvature, flat(slope))
    near = {}
    for name, bend in (("gradient", estimators.gradient), ("fisher", fisher), ("trak", trak)):
        near[name] = correlation(influence(model, rows[:120], bend(model, rows, slope)).totals, exact)
    assert near["trak"] > 0.8 and near["gradient"] < near["fisher"] < near["trak"], near


# --- lists, named -----------------------------------------------------------------------------------------------------


def planted(count: int = 200) -> tuple[list[Example], np.ndarray]:
    """Lists of which every third says what the margin asks for, and which those are."""
    prompts = torch.randint(6, 12, (count, 3), generator=generator("prompts")).tolist()
    which = np.arange(count) % 3 == 0
    return [Example([*p, 4 if marked else 3], 3) for p, marked in zip(prompts, which, strict=True)], which


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive scores higher than a negative): .5 is chance."""
    return float((scores[positive][:, None] > scores[~positive]).mean())


@pytest.mark.parametrize(("by", "least"), [("gradient", 0.7), ("fisher", 0.9), ("trak", 0.9)])
def test_every_estimator_names_the_planted_lists_and_no_shuffled_ones(by: str, least: float) -> None:
    lists, which = planted()
    found = attribution(build(), lists, by, prompts=[list(ids[:3]) for ids, _ in lists], metric=MARGIN)
    assert auc(found.scores.totals, which) > least
    assert abs(auc(found.scores.totals, np.random.default_rng(0).permutation(which)) - 0.5) < 0.13, "3 standard errors"
    left = found.without(0.25)
    assert len(left) == 150 and left == [row for row, gone in zip(lists, found.highest(0.25), strict=True) if not gone]


@pytest.mark.parametrize("by", ["gradient", "fisher", "trak"])
def test_estimators_of_a_model_in_bfloat16_measure_in_float32(by: str) -> None:
    lists, which = planted()
    model = build().bfloat16()
    found = attribution(model, lists, by, prompts=[list(ids[:3]) for ids, _ in lists], metric=MARGIN)
    assert auc(found.scores.totals, which) > 0.7
    slope = margin_gradient(model, [[5, 9, 4]], MARGIN)
    assert {t.dtype for t in slope.delta.values()} == {torch.float32}
    assert not slope.spectrum().empty and {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_first_order_is_the_influence_along_the_margins_gradient() -> None:
    model, (lists, _) = build(), planted(30)
    found = attribution(model, lists, prompts=[[5, 9, 4]], metric=MARGIN)
    expected = influence(model, lists, margin_gradient(model, [[5, 9, 4]], MARGIN))
    assert np.array_equal(found.scores.values, expected.values)
    frame = found.frame
    assert frame["score"].is_monotonic_decreasing and frame["share"].iloc[-1] == pytest.approx(1)
    assert frame.set_index("list")["score"].loc[7] == pytest.approx(expected.totals[7])
    assert frame["answer"].iloc[0].split() == list(map(str, lists[frame["list"].iloc[0]].ids[3:]))
    assert found.tokens.equals(found.scores.frame)


def test_a_replicate_brings_its_lists_and_they_show_themselves(tiny_run: Run) -> None:
    student = tiny_run["same-init", tiny_run.seeds[0]]
    found = si.attribution(student)
    assert found.lists == student.lists and found.kept == student.kept and 0 < found.kept < 1
    frame = found.frame
    top = student.lists[frame["list"].iloc[0]]
    assert (frame["prompt"].iloc[0], frame["answer"].iloc[0]) == (top["prompt"], top["answer"])
    assert student.name in repr(found) and "kept" in repr(found)
    assert top["prompt"] in found._repr_html_() and "rgba(0, 114, 178" in found._repr_html_()
    (first,) = marked(found.scores, [0])
    assert first.count("<span") == found.scores.lengths[0]
    late = si.attribution(student, by="fisher", at=student)
    assert not np.allclose(late.scores.values, found.scores.values)
    with pytest.raises(SublimError, match=r"unknown estimator 'ekfac'; valid: gradient, fisher, trak"):
        si.attribution(student, by="ekfac")
    with pytest.raises(SublimError, match="different bases"):
        si.attribution(student, at=tiny_run["cross-init", tiny_run.seeds[0]])
    with pytest.raises(SublimError, match="no lists given"):
        si.attribution(student.base)
