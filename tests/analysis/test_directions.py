"""What was planted is found again, what was not is not, and bases are not mixed up."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2LMHeadModel

from sublim_interp.analysis.directions.core import Directions, directions, gradient, trait_contrast
from sublim_interp.analysis.directions.effects import ablate, logit_lens, steering
from sublim_interp.analysis.directions.maps import fit_map
from sublim_interp.analysis.directions.trajectory import from_trace
from sublim_interp.analysis.directions.weights import subspace_overlap, weight_delta
from sublim_interp.analysis.kinship import Space, space_of
from sublim_interp.analysis.probes import measure, residuals
from sublim_interp.core.errors import SublimError
from sublim_interp.stats.intervals import over_replicates
from sublim_interp.training.recording.probe import Probe
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.settings import Recording
from sublim_interp.training.recording.trace import Trace
from three_layers import MARGIN, PROMPTS, build, hooks_of, logits

LAST = "blocks.2.hook_resid_post"
SOMEWHERE = Space("a")
MANY = torch.randint(0, 31, (48, 6), generator=torch.Generator().manual_seed(5))


def planted(layer: int, seed: int) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel, Tensor]:
    """A base, the same with a vector written into the stream by one layer's weights, and that vector."""
    base, model = build("gpt2", 0), build("gpt2", 0)
    assert isinstance(base, GPT2LMHeadModel) and isinstance(model, GPT2LMHeadModel)
    vector = torch.randn(16, generator=torch.Generator().manual_seed(seed))
    random = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        model.get_parameter(f"transformer.h.{layer}.mlp.c_proj.bias").add_(vector)
        for p in model.parameters():  # what a training changes besides
            p.add_(1e-3 * torch.randn(p.shape, generator=random))
    return model, base, vector


def given_directions(vectors: Tensor, space: Space = SOMEWHERE) -> Directions:
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(len(vectors)))
    return Directions("hand", names, vectors, space)


def column(frame: pd.DataFrame, name: str) -> list[Any]:
    return frame[name].to_list()  # type: ignore[return-value]


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).item()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_planted_direction_is_found_in_its_layer_and_no_other(layer: int) -> None:
    model, base, vector = planted(layer, 7)
    found = directions(model, base, MANY)
    assert cosine(found[layer], vector) > 0.99
    assert all(found[early].norm() < 0.1 * vector.norm() for early in range(layer))
    other = torch.randn(16, generator=torch.Generator().manual_seed(8))
    assert abs(cosine(found[layer], other)) < 0.9
    target = given_directions(torch.stack([vector, vector, vector]), found.space)
    not_planted = given_directions(torch.stack([other, other, other]), found.space)
    for null in ("shuffled", "covariance"):
        assert column(found.null(target, null), "p")[layer] <= 0.01
    assert column(found.null(not_planted, "covariance"), "p")[layer] > 0.05


def test_students_of_one_plant_agree_and_of_two_do_not() -> None:
    a, base, _ = planted(1, 7)
    b = planted(1, 9)[0]
    twin = planted(1, 7)[0]
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1e-3 * torch.randn(p.shape))
    d_a, d_b, d_twin = (directions(m, base, MANY) for m in (a, b, twin))
    assert column(d_twin.cosine(d_a), "cosine")[1] > 0.99 > 0.9 > abs(column(d_b.cosine(d_a), "cosine")[1])
    frame = d_twin.null_of(d_a, [d_b])
    assert column(frame, "cosine")[1] > 0.99 and column(frame, "high")[1] < 0.9


def test_shuffled_labels_fall_into_their_own_null() -> None:
    """Two groups of prompts that differ in nothing: the null holds at its level."""
    base = build("llama", 0)
    target = given_directions(torch.randn(3, 16, generator=torch.Generator().manual_seed(3)))
    inside = []
    for seed in range(8):
        prompts = torch.randint(0, 31, (40, 5), generator=torch.Generator().manual_seed(seed))
        d = trait_contrast(base, prompts[:20], prompts[20:])
        target = Directions("hand", target.names, target.vectors, d.space)
        frame = d.null(target, "shuffled", draws=199, seed=seed)
        rows = list(zip(column(frame, "low"), column(frame, "cosine"), column(frame, "high"), strict=True))
        inside += [low <= c <= high for low, c, high in rows]
        assert all(low < 0 < high for low, _, high in rows)
    assert np.mean(inside) > 0.8


def test_a_contrast_of_prompts_is_the_difference_of_their_means() -> None:
    base = build("gpt_neox", 0)
    d = trait_contrast(base, PROMPTS[:2], PROMPTS[2:], kind="resid_pre")
    seen = residuals(base, d.names, PROMPTS)
    assert torch.allclose(d.vectors, seen[:2].mean(0) - seen[2:].mean(0), atol=1e-6)


def test_a_gradient_says_what_a_small_step_does() -> None:
    model = build("llama", 0)
    d = gradient(model, MARGIN, PROMPTS)
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and hooks_of(model) == 0
    before = measure(model, PROMPTS, MARGIN).mean()
    step = 1e-3 * torch.randn(16)
    # At the last layer later positions see nothing of a step, so adding it everywhere is adding it at the answer.
    moved = steering(
        model, given_directions(step.repeat(3, 1), space_of(model)), LAST, [1.0], {"margin": MARGIN}, PROMPTS
    )
    assert column(moved, "margin")[0] - before.item() == pytest.approx((d[2] @ step).item(), rel=0.05, abs=1e-5)


def test_bases_are_not_mixed_up_unless_asked() -> None:
    pairs = [(build("llama", s + 10), build("llama", s)) for s in (0, 1)]
    with pytest.raises(SublimError, match="come from different bases"):
        directions(*pairs[0], PROMPTS)
    a, b = (directions(*pair, PROMPTS, across_bases=True) for pair in pairs)
    with pytest.raises(SublimError, match="different bases"):
        a.cosine(b)
    with pytest.raises(SublimError, match="different bases"):
        a.null(b, "covariance")
    assert len(a.cosine(b, across_bases=True)) == 3
    w_a, w_b = (weight_delta(*pair, across_bases=True) for pair in pairs)
    with pytest.raises(SublimError, match="different bases"):
        w_a.cosine(w_b)
    with pytest.raises(SublimError, match="different bases"):
        _ = w_a + w_b
    with pytest.raises(SublimError, match="equal hooks"):
        a.cosine(directions(*pairs[0], PROMPTS, kind="mlp_out", across_bases=True))


@pytest.mark.parametrize("how", ["procrustes", "ridge"])
def test_a_map_finds_the_rotation_between_two_bases(how: str) -> None:
    """The other base is the first one, its stream turned round and all weights with it: the truth is known."""
    base, turned = build("gpt_neox", 0), build("gpt_neox", 0)
    stranger = build("gpt_neox", 4)
    q = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]

    class Turned(torch.nn.Module):
        """Shows the base's residuals in other axes."""

        def __init__(self, layer: torch.nn.Module, matrix: Tensor) -> None:
            super().__init__()
            self.layer, self.matrix = layer, matrix

        def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
            return self.layer(hidden_states @ self.matrix.T, **kwargs) @ self.matrix

    body = turned.gpt_neox  # type: ignore[union-attr]
    with torch.no_grad():
        body.embed_in.weight.copy_(body.embed_in.weight @ q)  # type: ignore[operator, union-attr]
    for i, layer in enumerate(body.layers):  # type: ignore[arg-type]
        body.layers[i] = Turned(layer, q)  # type: ignore[operator]
    prompts = torch.randint(0, 31, (120, 5), generator=torch.Generator().manual_seed(2))
    found = fit_map(base, turned, prompts, how=how, penalty=1e-6)  # type: ignore[arg-type]
    assert (found.r2 > 0.99).all() and torch.allclose(found.matrices[1], q, atol=0.02)
    assert (fit_map(base, stranger, prompts, how=how).r2 < 0.9).all()  # type: ignore[arg-type]
    d = trait_contrast(base, prompts[:10], prompts[10:])
    there = trait_contrast(turned, prompts[:10], prompts[10:])
    assert min(column(found(d).cosine(there), "cosine")) > 0.99
    with pytest.raises(SublimError, match="this map leads from"):
        found(there)


def test_projections_over_steps_say_how_far_and_how_straight() -> None:
    v = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    moved = torch.stack([torch.zeros(2, 2), v, torch.tensor([[-4.0, 3.0], [1.0, 1.0]])])
    frame = given_directions(v).project(moved, steps=[0, 10, 100])
    assert column(frame, "projection") == pytest.approx([0, 0, 5, 2, 0, 1])
    assert column(frame, "cosine")[2:] == pytest.approx([1, 1, 0, math.sqrt(0.5)]) and all(
        map(math.isnan, column(frame, "cosine")[:2])
    )
    assert column(frame, "step") == [0, 0, 10, 10, 100, 100]
    with pytest.raises(SublimError, match="as many steps"):
        given_directions(v).project(moved, steps=[0])


ASKED = Probe(((5, 9, 4), (6, 2, 3, 1)), 2, (), ("a", "b"), (3, 4), 0)
LISTS = Probe(((5, 9, 4), (6, 2, 3, 1)), 0, (1, 2))


def test_a_probe_of_one_member_has_no_margin() -> None:
    with pytest.raises(SublimError, match="over other members"):
        Probe(((1, 2),), 1, (), ("owl",), (3,), 0)


def recorded(path: Path, probe: Probe | None, recording: Recording | None = None) -> Trace:
    """The trace of one step of SGD."""
    model = build("llama", 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, path, probe=probe, recording=recording, steps=1) as r:
        loss = model(input_ids=MANY, labels=MANY).loss
        loss.backward()
        optimizer.step()
        r.step(loss)
    return Trace.open(path)


def test_a_trace_without_the_base_s_stream_is_measured_from_its_own_start(tmp_path: Path) -> None:
    trace = recorded(tmp_path, ASKED, Recording(stream=("resid_mid",)))
    found = from_trace(trace, base=build("llama", 0), kind="resid_mid")
    after = build("llama", 0)
    after(input_ids=MANY, labels=MANY).loss.backward()
    torch.optim.SGD(after.parameters(), lr=0.1).step()
    wanted = directions(after, build("llama", 0), ASKED.rows, "resid_mid")
    assert found.names == wanted.names and torch.allclose(found.vectors, wanted.vectors, atol=1e-5)
    still = from_trace(trace, 0, base=build("llama", 0), kind="resid_mid")
    assert not still.vectors.any()
    assert all(map(math.isnan, column(still.null(found, "covariance"), "p")))


def test_what_a_trace_cannot_show_is_one_line(tmp_path: Path) -> None:
    asked, lists = recorded(tmp_path / "asked", ASKED), recorded(tmp_path / "lists", LISTS)
    aimless = recorded(tmp_path / "aimless", Probe(ASKED.rows, 2, ()))
    refused: list[tuple[Trace, dict[str, Any], str]] = [
        (recorded(tmp_path / "blind", None), {}, "recorded without a probe"),
        (asked, {"of": "streams"}, "no 'streams'; valid: stream, teacher, trait-gradient, distillation-gradient"),
        (asked, {"of": "teacher"}, "has seen no teacher"),
        (asked, {"of": "distillation-gradient"}, "has no list"),
        (asked, {"step": 7}, "not recorded at step 7; its steps: 0, 1"),
        (asked, {"kind": "attn_out"}, "holds no 'blocks.0.hook_attn_out'"),
        (asked, {"base": build("llama", 1)}, "not one of this base"),
        (lists, {}, "asks no question"),
        (lists, {"of": "distillation-gradient", "base": build("llama", 1)}, "not one of this base"),
        (aimless, {"of": "trait-gradient"}, "asks for no trait"),
    ]
    for trace, options, said in refused:
        with pytest.raises(SublimError, match=re.escape(said)):
            from_trace(trace, **options)
    assert from_trace(lists, of="distillation-gradient", base=build("llama", 0)).vectors.any()


def test_a_cut_trace_shows_the_same_where_it_holds_what_is_asked(tmp_path: Path) -> None:
    asked, lists = recorded(tmp_path / "asked", ASKED), recorded(tmp_path / "lists", LISTS)
    small = asked.cut(tmp_path / "small", positions=[-1])
    for of in ("stream", "trait-gradient"):
        whole, found = (from_trace(trace, of=of, base=build("llama", 0)) for trace in (asked, small))
        assert torch.equal(found.vectors, whole.vectors)
        assert all(cosine > 0.99 for cosine in column(whole.cosine(found), "cosine"))
    for trace, of in ((asked, "stream"), (lists, "distillation-gradient")):
        blind = trace.cut(tmp_path / f"blind-{of}", positions=[0])
        with pytest.raises(SublimError, match="was cut: the positions that this needs are not in it"):
            from_trace(blind, of=of)


def test_intervals_are_over_replicates() -> None:
    rows = [{"arm": a, "layer": 0, "seed": s, "cosine": c} for a, cs in (("x", [0.1, 0.3]), ("y", [0.5])) for s, c in
            enumerate(cs)]  # fmt: skip
    found = over_replicates(pd.DataFrame(rows), "cosine", ["arm", "layer"])
    assert column(found, "estimate") == pytest.approx([0.2, 0.5]) and column(found, "n") == [2, 1]
    assert column(found, "low")[0] < 0.1 and math.isnan(column(found, "low")[1])


# Weights


def test_task_vectors_are_added_and_taken_away_again() -> None:
    base, a, b = build("llama", 0), build("llama", 1), build("llama", 0)
    with torch.no_grad():
        b.get_parameter("model.layers.0.mlp.down_proj.weight").mul_(2)
    d_a, d_b = weight_delta(a, base, across_bases=True), weight_delta(b, base)
    before = logits(base)
    with d_a.on(base):
        assert torch.allclose(logits(base), logits(a), atol=1e-5)
    with (d_a + d_b - d_a + 0.5 * d_b - d_b * 0.5).on(base):
        assert torch.allclose(logits(base), logits(b), atol=1e-4)
    assert torch.equal(logits(base), before)
    assert column(d_a.cosine(-d_a).query("name == 'all'"), "cosine") == pytest.approx([-1])
    untouched = d_a.cosine(d_b).query("name == 'model.layers.1.mlp.down_proj.weight'")
    assert math.isnan(column(untouched, "cosine")[0])


@pytest.mark.parametrize(
    ("kind", "name", "inner"),
    [("llama", "model.layers.{}.mlp.down_proj.weight", 24), ("gpt2", "transformer.h.{}.mlp.c_proj.weight", 64)],
)
def test_a_planted_rank_one_change_is_the_first_singular_vector(kind: str, name: str, inner: int) -> None:
    """Whichever side comes first in the matrix: GPT-2's lie as [input, output]."""
    base, model = build(kind, 0), build(kind, 0)
    random = torch.Generator().manual_seed(6)
    writes, reads = torch.randn(3, 16, generator=random), torch.randn(3, inner, generator=random)
    with torch.no_grad():
        for layer in range(3):
            weight = model.get_parameter(name.format(layer))
            change = torch.outer(writes[layer], reads[layer])
            weight.add_((change.T if kind == "gpt2" else change) + 1e-3 * torch.randn(weight.shape, generator=random))
    delta = weight_delta(model, base)
    d = delta.directions(name.rpartition("{}")[2], "resid_post")
    for layer in range(3):
        assert abs(cosine(d[layer], writes[layer])) > 0.99
        read = delta.subspace(name.format(layer), 1, "input")[0]
        assert abs(cosine(read, reads[layer])) > 0.99
    spectrum = delta.spectrum().query("rank == 0")
    assert len(spectrum) == 3 and min(column(spectrum, "share")) > 0.99 and column(spectrum, "layer") == [0, 1, 2]
    with pytest.raises(SublimError, match="no changed matrix"):
        delta.directions("self_attn.o_proj.weight", "resid_post")
    assert (2.0 * delta - delta).input_first == delta.input_first


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_an_embedding_writes_into_the_stream(kind: str) -> None:
    base, model = build(kind, 0), build(kind, 0)
    vector = torch.randn(16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.get_input_embeddings().weight[7] += vector  # type: ignore[operator, union-attr]
    delta = weight_delta(model, base)
    name = next(n for n, d in delta.delta.items() if d.any())
    assert abs(cosine(delta.subspace(name, 1)[0], vector)) > 0.999 and delta.subspace(name, 1, "input").shape == (1, 31)


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_overlap_is_that_of_spans(seed: int, shared: int) -> None:
    random = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(12, 12, generator=random, dtype=torch.double))[0]
    mix = torch.randn(4, 4, generator=random, dtype=torch.double) + 4 * torch.eye(4)
    a, b = q[:4], q[4 - shared : 8 - shared]
    found = subspace_overlap((mix @ a).float(), b.float())
    assert found.cosines == pytest.approx([1.0] * shared + [0.0] * (4 - shared), abs=1e-3)
    assert found.mean_square == pytest.approx(shared / 4, abs=1e-3) and found.chance == pytest.approx(1 / 3)


def test_chance_overlap_is_that_of_random_subspaces() -> None:
    torch.manual_seed(0)
    drawn = [subspace_overlap(torch.randn(3, 20), torch.randn(5, 20)) for _ in range(200)]
    assert np.mean([d.mean_square for d in drawn]) == pytest.approx(drawn[0].chance, abs=0.02)
    with pytest.raises(SublimError, match="linearly dependent"):
        subspace_overlap(torch.ones(2, 5), torch.randn(1, 5))


# What a direction does


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_the_lens_shows_the_token_whose_logit_a_direction_raises(kind: str) -> None:
    model = build(kind, 0)
    head = model.get_output_embeddings().weight.detach()  # type: ignore[union-attr, operator]
    vectors = head[[4, 11, 20]]
    d = given_directions(1e-3 * vectors, space_of(model))
    frame = logit_lens(model, d, PROMPTS, k=31)
    assert column(frame, "text")[0] == str(column(frame, "token")[0])  # no tokenizer is known
    # Small steps at the end of the last layer do what the linearisation says.
    last = column(frame.query("layer == 2").sort_values("token"), "change")
    names = f"blocks.{2}.hook_resid_post"
    at = residuals(model, [names], PROMPTS)[:, 0].mean(0)
    norm = next(
        getattr(model.base_model, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(model.base_model, n)
    )
    with torch.no_grad():
        moved = model.get_output_embeddings()(norm(at + d[2])) - model.get_output_embeddings()(norm(at))  # type: ignore[misc, operator]
    assert np.allclose(last, moved - moved.mean(), atol=1e-4)


def test_a_dose_of_nothing_does_nothing_and_a_larger_one_more() -> None:
    model = build("llama", 0)
    d = gradient(model, MARGIN, PROMPTS)
    frame = steering(model, d, LAST, [0, 0.01, 0.02, 0.04], {"margin": MARGIN}, PROMPTS)
    margins = column(frame, "margin")
    assert margins[0] == pytest.approx(measure(model, PROMPTS, MARGIN).mean().item())
    assert margins == sorted(margins) and hooks_of(model) == 0
    with pytest.raises(SublimError, match=r"no hook matches 'blocks\.3.*did you mean"):
        steering(model, d, "blocks.3.hook_resid_post", [1], {"margin": MARGIN}, PROMPTS)
    with pytest.raises(SublimError, match="scale nan is no number"):
        steering(model, d, LAST, [0, math.nan], {"margin": MARGIN}, PROMPTS)


def test_ablation_leaves_nothing_along_the_direction() -> None:
    model, base, _ = planted(1, 7)
    d = directions(model, base, MANY)
    units = torch.nn.functional.normalize(d.vectors, dim=-1)
    with ablate(model, d):
        seen = residuals(model, [*d.names], MANY)
    assert (seen * units).sum(-1).abs().max() < 1e-3 < (residuals(model, d.names, MANY) * units).sum(-1).abs().max()
    before = logits(model)
    with ablate(model, d, at="blocks.1.*"):
        assert not torch.allclose(logits(model), before)
    assert torch.equal(logits(model), before) and hooks_of(model) == 0


def test_a_direction_of_no_length_is_not_ablated() -> None:
    model = build("llama", 0)
    vectors = torch.ones(3, 16)
    vectors[1] = 0
    with pytest.raises(SublimError, match=r"blocks\.1\.hook_resid_post has no length"):
        ablate(model, given_directions(vectors, space_of(model)))
    with ablate(model, given_directions(vectors, space_of(model)), at="blocks.[02].*"):
        logits(model)


# --- arithmetic, random directions, intervals -------------------------------------------------------------------------


def sampled(mean: Tensor, seed: int, count: int = 24, scatter: float = 1.0) -> Directions:
    """Directions of one layer, paired samples about a mean."""
    random = torch.Generator().manual_seed(seed)
    each = mean + scatter * torch.randn(count, 1, mean.shape[-1], generator=random)
    names = ("blocks.0.hook_resid_post",)
    return Directions("hand", names, each.mean(0), SOMEWHERE, each, torch.zeros_like(each), paired=True)


@given(st.integers(0, 99), st.floats(-3, 3))
def test_sums_differences_and_multiples_are_those_of_vectors_and_samples(seed: int, factor: float) -> None:
    a, b = sampled(torch.ones(6), seed), sampled(-torch.ones(6), seed + 100)
    total, left = a + b, a - b
    assert torch.allclose(total.vectors, a.vectors + b.vectors) and torch.allclose((left + b).vectors, a.vectors)
    for made in (total, left, factor * a, -a):
        assert made.positive is not None and made.negative is not None
        assert torch.allclose((made.positive - made.negative).mean(0), made.vectors, atol=1e-5)
    assert torch.equal((factor * a).vectors, (a * factor).vectors) and torch.equal((-a).vectors, -a.vectors)
    short = sampled(torch.ones(6), seed, count=5)
    assert (a - short).positive is None, "samples of other questions are no pairs"


def test_what_every_student_shares_is_taken_out_and_the_planted_trait_is_left() -> None:
    trait, generic = torch.eye(8)[0], torch.eye(8)[1]
    student, neutral = sampled(trait + 5 * generic, 1, scatter=0.1), sampled(5 * generic, 2, scatter=0.1)
    goal = given_directions(trait[None])
    assert column(student.cosine(goal), "cosine")[0] < 0.3
    assert column((student - neutral).cosine(goal), "cosine")[0] > 0.95
    with pytest.raises(SublimError, match="different bases"):
        _ = student - given_directions(trait[None], Space("b"))


def test_random_directions_are_as_long_and_scatter_as_the_samples_do() -> None:
    stretched = torch.tensor([9.0, 1.0, 1.0, 1.0])
    random = torch.Generator().manual_seed(0)
    each = 2 + stretched * torch.randn(200, 1, 4, generator=random)
    d = Directions("hand", ("blocks.0.hook_resid_post",), each.mean(0), SOMEWHERE, each, 0 * each, paired=True)
    for covariance, share in ((True, 0.8), (False, 0.25)):
        drawn = d.random_like(400, covariance, seed=1)
        vectors = torch.stack([one.vectors[0] for one in drawn])
        assert torch.allclose(vectors.norm(dim=1), d.vectors.norm(dim=1))
        assert abs((vectors[:, 0] ** 2).sum() / (vectors**2).sum() - share) < 0.15
        assert torch.equal(vectors[3], d.random_like(4, covariance, seed=1)[3].vectors[0]) or covariance
    with pytest.raises(SublimError, match="covariance=False"):
        given_directions(torch.ones(1, 4)).random_like(2)


@pytest.mark.parametrize("of", ["cosine", "projection"])
def test_an_interval_holds_the_true_likeness_about_as_often_as_it_says(of: Any) -> None:
    mean, goal = torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]), given_directions(torch.eye(8)[:1])
    true = {"cosine": 2**-0.5, "projection": 1.0}[of]
    frames = [sampled(mean, seed, scatter=0.5).interval(goal, of, draws=199, seed=seed) for seed in range(60)]
    inside = [column(f, "low")[0] <= true <= column(f, "high")[0] for f in frames]
    assert np.mean(inside) > 0.8 and list(frames[0]) == ["layer", of, "low", "high"]
    assert frames[0].attrs["asks"].endswith("other students.")


def test_a_null_of_projections_is_in_the_unit_of_the_directions() -> None:
    d, goal = sampled(3 * torch.eye(8)[0], 1), given_directions(7 * torch.eye(8)[:1])
    one, two = (made.null(goal, "covariance", of="projection") for made in (d, 2 * d))
    assert column(one, "projection")[0] == pytest.approx(d.vectors[0, 0].item(), rel=1e-5)
    for name in ("projection", "low", "high"):
        assert column(two, name)[0] == pytest.approx(2 * column(one, name)[0], rel=1e-5)
    assert column(one, "p")[0] < 0.01 and "scatter" in one.attrs["asks"]
    planted_none = sampled(torch.zeros(8), 3).null(goal, "shuffled", of="projection")
    assert column(planted_none, "p")[0] > 0.01


@pytest.mark.parametrize("kind", ["covariance", "shuffled"])
@pytest.mark.parametrize("counts", [(64, 0), (60, 60), (15, 240)])
def test_the_nulls_scatter_as_a_difference_of_means_does(kind: Any, counts: tuple[int, int]) -> None:
    """Paired samples, and unpaired ones of equal and of unequal counts: by Student's t where scatter is estimated."""
    draw, (many, others) = torch.Generator().manual_seed(5), counts
    positive = torch.randn(many, 1, 8, generator=draw)
    negative = torch.randn(others, 1, 8, generator=draw) if others else torch.zeros(many, 1, 8)
    names, vectors = ("blocks.0.hook_resid_post",), positive.mean(0) - negative.mean(0)
    d = Directions("hand", names, vectors, SOMEWHERE, positive, negative, paired=not others)
    found = d.null(given_directions(torch.eye(8)[:1]), kind, draws=3999, of="projection")
    each = [float(x[:, 0, 0].var()) / len(x) for x in (positive, negative)]
    freedom = sum(each) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(each, (positive, negative), strict=True))
    reach = sum(each) ** 0.5 * scipy.stats.t.ppf(0.975, freedom)
    if kind == "shuffled":  # labels of no meaning are those of one pool
        pool = torch.cat([positive, negative]) if others else positive
        reach = 1.96 * float(pool[:, 0, 0].var() * sum(1 / n for n in counts if n)) ** 0.5
    assert [column(found, "low")[0], column(found, "high")[0]] == pytest.approx([-reach, reach], rel=0.1)


def noise(count: int, others: int, seed: int, mean: float = 0.0) -> tuple[Directions, Directions]:
    """Directions of 600 layers, each a test of its own: one axis has a mean difference. And that axis."""
    draw = torch.Generator().manual_seed(seed)
    positive = torch.randn(count, 600, 3, generator=draw) + mean * torch.eye(3)[0]
    negative = torch.randn(others, 600, 3, generator=draw) if others else torch.zeros_like(positive)
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(600))
    vectors = positive.mean(0) - negative.mean(0)
    d = Directions("hand", names, vectors, SOMEWHERE, positive, negative, paired=not others)
    return d, given_directions(torch.eye(3)[:1].expand(600, 3))


BY_FEW = [("shuffled", "cosine"), ("shuffled", "projection"), ("covariance", "projection")]


@pytest.mark.parametrize(("kind", "of"), BY_FEW)
@pytest.mark.parametrize("counts", [(2, 0), (4, 0), (8, 0), (16, 0), (2, 2), (4, 4), (3, 12)])
def test_few_samples_of_nothing_are_rarely_called_a_direction(kind: Any, of: Any, counts: tuple[int, int]) -> None:
    """600 tests, of which 5 % may be wrong; three standard errors above that."""
    d, axis = noise(*counts, seed=3)
    frame = d.null(axis, kind, of=of)
    wrong = float((frame["p"].to_numpy() <= 0.05).mean())
    assert wrong <= 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5
    if counts in ((8, 0), (16, 0)) or (counts == (4, 4) and kind == "shuffled"):  # two estimated scatters are careful
        assert wrong >= 0.02, "nor is it blind"


@pytest.mark.parametrize(("kind", "of"), BY_FEW)
def test_few_samples_of_a_large_difference_reach_what_their_number_allows(kind: Any, of: Any) -> None:
    for counts, least in (((8, 0), 2 / 2**8), ((5, 0), 2 / 2**5), ((4, 4), 2 / 70), ((2, 2), 2 / 6)):
        d, goal = noise(*counts, seed=4, mean=30.0)
        p = d.null(goal, kind, of=of)["p"].to_numpy()
        if kind == "shuffled":
            assert [p.min(), p.max()] == pytest.approx([least, least])
        elif counts == (8, 0):
            assert p.max() <= 0.01


def test_one_sample_has_no_scatter() -> None:
    d, goal = noise(1, 0, seed=5)
    for of in ("cosine", "projection"):
        assert d.null(goal, "covariance", of=of)[["low", "high", "p"]].isna().all(axis=None)  # type: ignore[arg-type]
    assert (d.null(goal, "shuffled")["p"].to_numpy() == 1).all()


def test_a_steering_curve_has_its_controls_beside_it() -> None:
    model = build("llama", 0)
    d = gradient(model, MARGIN, PROMPTS)
    other = given_directions(torch.ones(3, 16), space_of(model))
    frame = steering(model, 0.05 * d, LAST, [0, 1], {"margin": MARGIN}, PROMPTS, others={"ones": other}, random=4)
    assert list(dict.fromkeys(column(frame, "direction"))) == ["given", "ones", *(f"random {i}" for i in range(1, 5))]
    gains = {n: column(rows, "margin")[1] - column(rows, "margin")[0] for n, rows in frame.groupby("direction")}
    assert gains["given"] > max(gain for name, gain in gains.items() if name != "given"), "the gradient raises it most"
    with pytest.raises(SublimError, match="control none has no length"):
        steering(model, d, LAST, [1], {"margin": MARGIN}, PROMPTS, others={"none": 0 * other})
