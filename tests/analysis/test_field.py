"""Patching, attribution and probes as the field has them: parts, paths, metrics by name, many runs, controls."""

from typing import Any

import pandas as pd
import pytest
import torch

import sublim_interp as si
from sublim_interp.analysis.decompose import direct_attribution, linear_probes
from sublim_interp.analysis.directions.core import directions
from sublim_interp.analysis.directions.effects import logit_lens
from sublim_interp.analysis.metrics import METRICS, metric
from sublim_interp.analysis.patching.cells import BY_PART
from sublim_interp.analysis.patching.grid import Patching, patch
from sublim_interp.analysis.patching.runs import patch_intervals, patch_runs
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run
from sublim_interp.models.hooks import capture, edit
from three_layers import EVEN, MARGIN, PROMPTS, build, logits
from tiny_models import tiny


@pytest.fixture(params=["llama", "gpt2", "gpt_neox"])
def both(request: pytest.FixtureRequest) -> Patching:
    return patch(build(request.param, 0), build(request.param, 1), EVEN, MARGIN, across_bases=True)


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["q", "k", "v", "pattern", "neurons"])
def test_a_grid_of_parts_equals_each_patch_alone(both: Patching, kind: Any) -> None:
    grid = both.grid(kind)
    name, part = BY_PART[kind]
    layers, count = grid.values.shape
    block = "mlp" if kind == "neurons" else "attn"
    for layer in range(layers):
        for place in range(0, count, 5):
            chosen: Any = {"neurons" if part == "neuron" else "heads": [place]}
            alone = both.value(both.at(f"blocks.{layer}.{block}.hook_{name}", **chosen))
            assert grid.values[layer, place].item() == pytest.approx(alone, abs=1e-4)
    few = both.grid(kind, positions_at_once=1 if count < 5 else 7)
    torch.testing.assert_close(few.each, grid.each, rtol=1e-4, atol=1e-5)
    assert both.attribution(kind).each.shape == grid.each.shape
    assert len(grid.frame) == layers * count and not grid.words


def test_attribution_of_parts_is_the_grid_to_first_order() -> None:
    dst = build("llama", 1)
    near = build("llama", 1)
    with torch.no_grad():
        for p in near.parameters():
            p += 1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    both = patch(near, dst, EVEN, MARGIN)
    for kind in ("q", "v", "pattern", "neurons"):
        error = both.attribution(kind).error(both.grid(kind))  # type: ignore[arg-type]
        assert error.correlation > 0.98, kind


def test_intervals_are_over_prompts(both: Patching) -> None:
    grid = both.grid("heads")
    found = grid.intervals
    assert list(found.columns) == ["layer", "place", "estimate", "low", "high", "n"]
    assert all(found["low"] <= found["estimate"]) and set(found["n"]) == {2}
    assert list(found["estimate"]) == pytest.approx(list(grid.frame["effect"]), abs=1e-5)


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_path_carries_what_reaches_its_receiver_directly(both: Patching) -> None:
    """By hand: the sender's change is added to the receiver's stream, and nothing that lies between answers it."""
    sender, receiver = "blocks.0.hook_mlp_out", "blocks.2.hook_resid_pre"
    ids = torch.tensor(EVEN)
    with torch.no_grad(), capture(both.src, sender) as theirs, capture(both.dst, [sender, receiver]) as ours:
        both.src(input_ids=ids)
        both.dst(input_ids=ids)
    by_hand = ours[receiver] + theirs[sender] - ours[sender]
    path = both.path(sender, receiver)
    (piece,) = path
    assert piece.site == receiver
    torch.testing.assert_close(piece.value, by_hand, rtol=1e-4, atol=1e-4)
    with edit(both.dst, {receiver: lambda _: by_hand}):
        expected = MARGIN(logits(both.dst)[:, -1]).mean().item()
    assert both.value(path) == pytest.approx(expected, abs=1e-4)


def test_a_path_from_a_head_to_the_queries_of_another_changes_these_alone(both: Patching) -> None:
    path = both.path("blocks.0.attn.hook_z", "blocks.1.attn.hook_q", heads=[1], to_heads=[0])
    (piece,) = path
    assert piece.heads == (0,)
    inner = [f"blocks.1.attn.hook_{part}" for part in "qkv"]
    with torch.no_grad(), capture(both.dst, inner) as before:
        logits(both.dst)
    with path.on(both.dst), torch.no_grad(), capture(both.dst, inner) as after:
        logits(both.dst)
    assert torch.equal(before[inner[1]], after[inner[1]]) and torch.equal(before[inner[2]], after[inner[2]])
    assert torch.equal(before[inner[0]][:, :, 1], after[inner[0]][:, :, 1])
    assert not torch.allclose(before[inner[0]][:, :, 0], after[inner[0]][:, :, 0])


def test_a_path_backwards_is_one_line(both: Patching) -> None:
    with pytest.raises(SublimError, match=r"blocks\.0\.attn\.hook_q is not computed after blocks\.1\.hook_mlp_out"):
        both.path("blocks.1.hook_mlp_out", "blocks.0.attn.hook_q")
    with pytest.raises(SublimError, match=r"no hook 'blocks\.9"):
        both.path("blocks.1.hook_mlp_out", "blocks.9.attn.hook_q")


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_by_name_are_what_they_say() -> None:
    rows = torch.randn(4, 31, generator=torch.Generator().manual_seed(0))
    log = rows.log_softmax(-1)
    expected = {
        "margin": log[:, 4] - (log[:, [3, 5]].exp().mean(-1)).log(),
        "logit-diff": rows[:, 4] - rows[:, [3, 5]].mean(-1),
        "logprob": log[:, 4],
        "rate": log[:, 4].exp(),
    }
    assert set(expected) == set(METRICS)
    for name, values in expected.items():
        torch.testing.assert_close(metric(name, [3, 4, 5], 1)(rows), values, rtol=1e-4, atol=1e-5)
    with pytest.raises(SublimError, match=r"unknown metric 'margn'; .*margin"):
        metric("margn", [3, 4, 5], 1)
    with pytest.raises(SublimError, match="no answer_tokens given"):
        patch(build("llama", 0), build("llama", 0), EVEN, "margin")


def test_kl_compares_each_prompt_with_its_own() -> None:
    src, dst = build("llama", 0), build("llama", 1)
    both = patch(src, dst, PROMPTS, "kl", across_bases=True)  # of two lengths
    grid = both.grid("resid_post")
    assert grid.src.abs().max() < 1e-5, "from itself there is none"
    for place, row in enumerate(PROMPTS):
        p, q = (logits(m, [row])[0, -1].log_softmax(-1) for m in (src, dst))
        assert grid.dst[place].item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-3)
    assert grid.dst.min() > 1e-3
    torch.testing.assert_close(both.attribution("resid_post").dst, grid.dst, rtol=1e-4, atol=1e-5)
    assert both.value(both.weights()) == pytest.approx(0, abs=1e-5)


# --- many runs --------------------------------------------------------------------------------------------------------


def test_patches_of_many_replicates_are_one_frame(tiny_run: Run) -> None:
    found = patch_runs(tiny_run, ["same-init", "neutral"], kind=["resid_pre", "heads"])
    assert list(found.columns[:5]) == ["run", "arm", "seed", "src", "dst"]
    assert set(found["arm"]) == {"same-init", "neutral"} and set(found["kind"]) == {"resid_pre", "heads"}
    own = patch(tiny_run["neutral", 0], tiny_run["neutral", 0].base).grid("heads").frame
    part = found[(found["arm"] == "neutral") & (found["kind"] == "heads")]
    assert list(part["effect"]) == pytest.approx(list(own["effect"]))
    seeds = found.assign(seed=found["seed"] + 1, recovered=found["recovered"] + 1)
    both = patch_intervals(pd.concat([found, seeds]))
    assert set(both["n"]) == {2} and len(both) == len(found)
    between = patch_runs([tiny_run], "same-init", 0, src="teacher", dst="neutral", kind="z", metric="kl")
    assert set(between["src"]) == {"teacher"} and all(between["value"].notna())
    for wrong, said in (({"arms": "same"}, "no arm 'same'"), ({"seeds": 9}, "no replicate"), ({"dst": "x"}, "no arm")):
        with pytest.raises(SublimError, match=said):
            patch_runs(tiny_run, **wrong)  # type: ignore[arg-type]


def test_every_arm_has_the_runs_metric(tiny_run: Run) -> None:
    rows = torch.randn(3, len(tiny_run["base", 0].base.tokenizer))
    expected = tiny_run["same-init", 0].metric(rows)
    for arm in ("neutral", "base"):
        torch.testing.assert_close(tiny_run[arm, 0].metric(rows), expected)


# --- what parts say ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_direct_attribution_has_its_rows_and_the_rest_is_what_is_left(kind: str) -> None:
    model = build(kind, 0)
    found = direct_attribution(model, PROMPTS, ([3, 4, 5], 1))
    said = [(x := logits(model, [row])[0, -1])[4] - x[[3, 5]].mean() for row in PROMPTS]
    assert sum(found["estimate"]) == pytest.approx(torch.stack(said).mean().item(), abs=1e-3)
    heads = found[found["part"] == "head"]
    assert len(heads) == (0 if kind == "gemma2" else 6) and list(found["part"]).count("mlp") == 3
    assert list(found["part"]).count("embed") == (2 if kind == "gpt2" else 1)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "gemma2", "olmo2", "gpt2", "granite", "bloom"])
def test_the_parts_add_up_without_a_rest_where_there_is_no_bias(kind: str) -> None:
    model = tiny(kind, **({"final_logit_softcapping": None} if kind == "gemma2" else {}))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") and "embedding" not in name:
                p.zero_()
            elif p.dim() == 1:  # weights and biases of norms differ from those at the start
                p.add_(0.3 * torch.randn(p.shape, generator=draw))
    prompts = [[5, 9, 4, 17, 8, 3], [6, 2, 30, 11, 3, 1], [9, 9, 1, 28]]
    for row in prompts:
        found = direct_attribution(model, [row], ([3, 4, 5], 1))
        (rest,) = found["estimate"][found["part"] == "rest"]
        assert abs(rest) < 1e-4 * found["estimate"].abs().max()


def test_heads_and_embedding_are_read_as_they_enter_the_stream() -> None:
    """By hand, on a Granite whose multipliers are not 1."""
    model = tiny("granite")
    ids = torch.tensor([[5, 9, 4, 17]])
    with torch.no_grad(), capture(model, "*") as seen:
        model(input_ids=ids)
    torch.testing.assert_close(seen["blocks.0.hook_resid_pre"], 3.0 * seen["hook_embed"])
    for layer in range(2):
        heads = seen[f"blocks.{layer}.attn.hook_result"].sum(2)
        torch.testing.assert_close(heads, seen[f"blocks.{layer}.hook_attn_out"], rtol=1e-4, atol=1e-5)
        middle = seen[f"blocks.{layer}.hook_resid_mid"] - seen[f"blocks.{layer}.hook_resid_pre"]
        torch.testing.assert_close(heads, middle, rtol=1e-4, atol=1e-5)
    before = model(input_ids=ids).logits
    with torch.no_grad(), edit(model, {"blocks.1.attn.hook_result": lambda x: x.clone()}):
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)


def test_a_head_that_writes_the_answer_is_found() -> None:
    model = build("llama", 0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
        answer = model.lm_head.weight[4] - model.lm_head.weight[[3, 5]].mean(0)
        model.model.layers[1].self_attn.o_proj.weight[:, 8:] = answer[:, None]  # the second head's
    found = direct_attribution(model, EVEN, ([3, 4, 5], 1)).set_index(["part", "layer", "head"])["estimate"]
    heads = found.loc["head"]
    assert heads.abs().idxmax() == (1, 1)
    assert float(heads.drop((1, 1)).abs().max()) < 1e-5


def test_a_tuned_lens_counts_what_later_layers_do() -> None:
    model = build("llama", 0)
    d = directions(build("llama", 1), model, PROMPTS, across_bases=True)
    texts = torch.randint(31, (40, 8), generator=torch.Generator().manual_seed(0)).tolist()
    plain = logit_lens(model, d, PROMPTS, k=3, across_bases=True)
    tuned = logit_lens(model, d, PROMPTS, k=3, across_bases=True, tuned=texts)
    last = plain["layer"] == plain["layer"].max()
    assert list(plain[last]["token"]) == list(tuned[last]["token"]), "behind the last layer there is nothing to count"
    assert list(plain[~last]["change"]) != list(tuned[~last]["change"])
    with pytest.raises(SublimError, match="tuned has 8 tokens; a map of 16 dimensions needs more"):
        logit_lens(model, d, PROMPTS, k=3, across_bases=True, tuned=texts[:1])


def test_a_linear_probe_finds_what_is_there_and_shuffled_labels_do_not() -> None:
    model = build("llama", 0)
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(31, (60, 5), generator=draw)
    prompts[:, -1] = 7 + (torch.arange(60) % 2)  # the answer position's own token tells the class
    labels = ["even" if i % 2 == 0 else "odd" for i in range(60)]
    found = linear_probes(model, prompts.tolist(), labels)
    first = found.to_dict("records")[0]
    assert first["accuracy"] > 0.95 and first["p"] < 0.06 and first["n"] == 60
    assert all(found["shuffled"].between(0.35, 0.65))
    nothing = linear_probes(model, torch.randint(31, (60, 5), generator=draw).tolist(), labels)
    assert max(nothing["accuracy"]) < 0.8
    for wrong, said in ((labels[:3], "3 labels for 60 prompts"), (["a"] * 60, "two or more classes")):
        with pytest.raises(SublimError, match=said):
            linear_probes(model, prompts.tolist(), wrong)


def test_the_floor_of_a_probe_is_chance_with_few_prompts() -> None:
    """Labels of no meaning, five prompts each: 200 tests, of which 5 % may be wrong, and three standard errors."""
    model, draw = tiny("llama", num_hidden_layers=1), torch.Generator().manual_seed(0)
    found = pd.concat(
        linear_probes(model, torch.randint(53, (10, 4), generator=draw).tolist(), [*"ab"] * 5, shuffles=19, seed=seed)
        for seed in range(200)
    )
    means = found[["shuffled", "accuracy"]].to_numpy().mean(0)
    assert means == pytest.approx([0.5, 0.5], abs=0.05) and abs(means[0] - 0.5) < 0.02
    assert (found["p"].to_numpy() <= 0.05).mean() <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_all_of_it_is_typed_by_name() -> None:
    for name in ("patch_runs", "patch_intervals", "direct_attribution", "linear_probes", "metric"):
        assert callable(getattr(si, name))
