"""Tests of capture and edit: the stream adds up on every architecture, TransformerLens sees the same, nothing stays."""

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sublim_interp.analysis.bridge import bridge
from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import decoder_layers, output_map
from sublim_interp.models.hooks import added, axes_of, capture, edit, hook_names, kind_of, matching, point_of
from sublim_interp.models.points import POINTS, STREAM, eager
from sublim_interp.training.projections import project_activations, project_gradients, project_updates
from tiny_models import ARCHITECTURES, VOCABULARY, tiny

WIDTH, LAYERS = 16, 2
IDS = torch.tensor([[5, 9, 4, 17, 8], [6, 2, 30, 11, 3]])
VARIANTS = [*ARCHITECTURES, "gpt_neox sequential"]


def build(variant: str) -> PreTrainedModel:
    if variant == "gpt_neox sequential":
        return tiny("gpt_neox", use_parallel_residual=False)
    return tiny(variant)


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def hooks_left(model: torch.nn.Module) -> int:
    """Hooks of this package; transformers leaves some of its own for output_hidden_states."""
    hooks = (h for m in model.modules() for h in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()])
    return sum(h.__module__.startswith("sublim_interp") for h in hooks)


def vector(seed: int) -> Tensor:
    return 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


# --- capture ----------------------------------------------------------------------------------------------------------


def test_the_stream_after_a_layer_is_the_one_before_it_and_what_attention_and_mlp_add(model: PreTrainedModel) -> None:
    with torch.no_grad(), capture(model, hook_names(model, STREAM)) as acts:
        states = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    for layer in range(LAYERS):
        at = f"blocks.{layer}.hook_"
        attention, mlp = acts[at + "attn_out"], acts[at + "mlp_out"]
        assert attention.abs().max() > 1e-3 and mlp.abs().max() > 1e-3
        torch.testing.assert_close(acts[at + "resid_pre"] + attention + mlp, acts[at + "resid_post"])
        if at + "resid_mid" in acts:
            torch.testing.assert_close(acts[at + "resid_pre"] + attention, acts[at + "resid_mid"])
        assert torch.equal(acts[at + "resid_pre"], states[layer])
    assert torch.equal(acts["blocks.0.hook_resid_post"], acts["blocks.1.hook_resid_pre"])


def test_only_a_parallel_residual_has_no_middle() -> None:
    lacking = [v for v in VARIANTS if "blocks.0.hook_resid_mid" not in hook_names(build(v))]
    assert lacking == ["gpt_neox", "phi"]


def test_patterns_are_probabilities_of_earlier_places_and_are_refused_in_training(model: PreTrainedModel) -> None:
    names = hook_names(model, ["pattern"])
    before = logits(model)
    with torch.no_grad(), capture(model, names) as acts:
        eager = model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(eager, before, rtol=1e-3, atol=1e-3)
    assert len(acts) == LAYERS
    for pattern in acts.values():
        assert pattern.shape == (2, 2, 5, 5)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 2, 5))
        assert not pattern.triu(1).any()
    assert torch.equal(logits(model), before), "attention is computed as before the block"
    model.train()
    try:
        with pytest.raises(SublimError, match="eval"), capture(model, names):
            logits(model)
    finally:
        model.eval()
    assert not hooks_left(model)


# What TransformerLens 4.3 shows otherwise: of these types scores are the pattern, or what is within has no hook.
OTHERS: dict[str, set[str]] = {
    "opt": {"attn_scores", "result"},
    "phi3": {"rot_q", "rot_k"},
    "gpt_neox": {"rot_q", "rot_k"},
}
LIKE_OPT = {"opt": {"ln2.scale", "ln2.normalized"}}
"""Of these TransformerLens runs all tokens of a batch as one row."""


@pytest.mark.parametrize("variant", ARCHITECTURES)
def test_names_and_values_are_those_of_transformer_lens(variant: str) -> None:
    """At weights of usual size, so that float32 is exact to 1e-5; norms have weights of their own."""
    plain = tiny(variant, **{"init_std" if variant == "opt" else "initializer_range": 0.1})
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in plain.parameters():
            if p.dim() == 1:
                p += 0.1 * torch.randn(p.shape, generator=draw)
    lens = bridge(plain)
    if variant != "opt":
        lens.set_use_attn_result(True)
    with torch.no_grad():
        _, cache = lens.run_with_cache(IDS)
        with capture(plain, "*") as acts:
            plain(input_ids=IDS, use_cache=False)
    assert [*acts] == hook_names(plain)
    for name, value in acts.items():
        if kind_of(name) in OTHERS.get(variant, ()):
            continue
        theirs = cache[name].reshape(value.shape) if kind_of(name) in LIKE_OPT.get(variant, ()) else cache[name]
        masked = (value < -1e9) & (theirs < -1e9)
        torch.testing.assert_close(value[~masked], theirs[~masked], rtol=0, atol=1e-5, msg=name)
    ends = {point.name.rpartition("blocks.{}.")[2] for point in POINTS.values()}
    missed = [n for n in cache if n.startswith("blocks.1.") and n.removeprefix("blocks.1.") in ends and n not in acts]
    assert not missed, "what TransformerLens has of these names is there"


def test_every_name_has_the_axes_that_the_table_says(model: PreTrainedModel) -> None:
    config = model.config
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    sizes = {"batch": 2, "position": 5, "d_model": WIDTH, "query": 5, "key": 5, "one": 1, "d_head": 8}
    with torch.no_grad(), capture(model, "*") as acts:
        model(input_ids=IDS, use_cache=False)
    for name, value in acts.items():
        of_keys = kind_of(name) in ("k", "v", "rot_k")
        heads = groups if of_keys else config.num_attention_heads
        widths = {**sizes, "head": heads, "d_mlp": value.shape[-1]}
        assert list(value.shape) == [widths[axis] for axis in axes_of(name)], name
    for layer in range(LAYERS):
        at = f"blocks.{layer}."
        added = acts[at + "attn.hook_result"].sum(2)
        if not (acts.keys() & {at + "ln1_post.hook_scale"}):
            bias = getattr(output_map(model, layer), "bias", None)
            torch.testing.assert_close(acts[at + "hook_attn_out"], added if bias is None else added + bias)


# --- gradients --------------------------------------------------------------------------------------------------------


def loss(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).square().sum()


def test_gradients_are_those_of_something_added_there(model: PreTrainedModel) -> None:
    names = hook_names(model)
    with capture(model, names, gradients=True) as acts:
        loss(model).backward()
    model.zero_grad()
    for name in names:
        added = torch.zeros(acts[name].shape, requires_grad=True)
        with edit(model, {name: lambda h, added=added: h + added}):
            (expected,) = torch.autograd.grad(loss(model), added)
        scale = expected.abs().max()
        torch.testing.assert_close(acts.gradients[name], expected, rtol=1e-3, atol=1e-4 * scale.item(), msg=name)
        assert scale > 1e-3, name


def test_gradients_reach_behind_frozen_weights_and_change_no_weight_gradient() -> None:
    plain, watched = tiny("llama"), tiny("llama")
    for model in (plain, watched):
        model.get_input_embeddings().requires_grad_(False)
    loss(plain).backward()
    with capture(watched, hook_names(watched, STREAM), gradients=True) as acts:
        loss(watched).backward()
    assert acts.gradients["blocks.0.hook_resid_pre"].abs().max() > 0
    for (name, a), b in zip(plain.named_parameters(), watched.parameters(), strict=True):
        assert a.grad is None and b.grad is None if a.grad is None else torch.equal(a.grad, b.grad), name  # type: ignore[arg-type]


def test_gradients_of_a_forward_without_any_are_one_line() -> None:
    model = tiny("llama")
    with pytest.raises(SublimError, match="no_grad"), capture(model, ["blocks.0.hook_resid_post"], gradients=True):
        logits(model)
    assert not hooks_left(model)


# --- edit -------------------------------------------------------------------------------------------------------------


def test_changing_nothing_changes_no_bit(model: PreTrainedModel) -> None:
    with eager(model):
        step_by_step = logits(model)
    before = logits(model)
    for name in hook_names(model):
        with edit(model, {name: lambda h: h + 0}):
            assert torch.equal(logits(model), step_by_step if point_of(name).eager else before), name


def test_every_name_can_be_edited_and_is_as_it_was_after_the_block(model: PreTrainedModel) -> None:
    """What is put there is what the other text has there, or positions in another order where texts share them."""
    before = logits(model)
    for name in hook_names(model):
        axis = int(kind_of(name) == "pos_embed")
        with torch.no_grad(), capture(model, [name]) as plain:
            model(input_ids=IDS, use_cache=False)
        with edit(model, {name: lambda h, axis=axis: h.flip(axis)}), torch.no_grad(), capture(model, [name]) as acts:
            edited = model(input_ids=IDS, use_cache=False).logits
        assert (edited - before).abs().max() > 1e-4, name
        torch.testing.assert_close(acts[name], plain[name].flip(axis), msg=name)
    assert torch.equal(logits(model), before) and not hooks_left(model)


def test_an_edit_within_a_norm_or_a_fused_map_leaves_the_rest(model: PreTrainedModel) -> None:
    """What is edited alone changes; queries, keys and values of one module do not reach each other."""
    inner = [f"blocks.1.attn.hook_{part}" for part in "qkv"]
    with torch.no_grad(), capture(model, inner) as plain:
        model(input_ids=IDS, use_cache=False)
    for name in inner:
        with torch.no_grad(), edit(model, {name: torch.zeros_like}), capture(model, inner) as acts:
            model(input_ids=IDS, use_cache=False)
        assert not acts[name].any()
        assert all(torch.equal(acts[other], plain[other]) for other in inner if other != name)
    scales = [n for n in hook_names(model) if n.endswith("hook_scale")]
    for name in scales:
        normalized = name.replace("scale", "normalized")
        with torch.no_grad(), capture(model, normalized) as before:
            model(input_ids=IDS, use_cache=False)
        with torch.no_grad(), edit(model, {name: lambda s: 2 * s}), capture(model, normalized) as acts:
            model(input_ids=IDS, use_cache=False)
        torch.testing.assert_close(acts[normalized], before[normalized] / 2, msg=name)


def test_a_pattern_can_be_frozen_to_that_of_another_text(model: PreTrainedModel) -> None:
    names = hook_names(model, ["pattern"])
    other = IDS.flip(0)
    with torch.no_grad(), capture(model, names) as theirs:
        model(input_ids=other, use_cache=False)
    kept = {name: theirs[name] for name in names}
    with (
        torch.no_grad(),
        edit(model, {name: lambda _, name=name: kept[name] for name in names}),
        capture(model, names) as acts,
    ):
        frozen = model(input_ids=IDS, use_cache=False).logits
    assert all(torch.equal(acts[name], kept[name]) for name in names)
    assert (frozen - logits(model)).abs().max() > 1e-3


def test_globs_mean_every_name_that_matches(model: PreTrainedModel) -> None:
    with torch.no_grad(), capture(model, ["blocks.*.attn.hook_q", "blocks.1.hook_resid_p*"]) as acts:
        model(input_ids=IDS, use_cache=False)
    kinds = ["blocks.0.attn.hook_q", "blocks.1.attn.hook_q", "blocks.1.hook_resid_post", "blocks.1.hook_resid_pre"]
    assert sorted(acts) == kinds
    with edit(model, {"blocks.*.hook_mlp_out": torch.zeros_like, "blocks.*.hook_attn_out": torch.zeros_like}):
        alone = logits(model)
    with torch.no_grad(), capture(model, "blocks.0.hook_resid_pre") as start:
        model(input_ids=IDS, use_cache=False)
        with edit(model, {"blocks.1.hook_resid_post": lambda _: start["blocks.0.hook_resid_pre"]}):
            torch.testing.assert_close(logits(model), alone)


def test_an_edit_moves_the_stream_by_what_it_adds(model: PreTrainedModel) -> None:
    """What is added to any part of a layer arrives in the stream after it, less what the MLP answers to it."""
    names = hook_names(model, STREAM)
    before = logits(model)
    for name in (n for n in names if n.startswith("blocks.1.")):
        with (
            torch.no_grad(),
            edit(model, {name: lambda h: h + vector(3)}),
            capture(model, [n for n in names if n.startswith("blocks.1.")]) as acts,
        ):
            edited = model(input_ids=IDS, use_cache=False).logits
        at = "blocks.1.hook_"
        parts = acts[at + "attn_out"] + acts[at + "mlp_out"] + acts[at + "resid_pre"]
        extra = vector(3) if name.endswith(("resid_mid", "resid_post")) else torch.zeros(WIDTH)
        torch.testing.assert_close(acts[at + "resid_post"], parts + extra, rtol=1e-4, atol=1e-4)
        assert (edited - before).abs().max() > 1e-3, name


def by_hand(model: PreTrainedModel, layer: int, added: Tensor) -> Tensor:
    """Logits where `added` enters the stream before `layer`: embeddings, layers, norm and head called one by one."""
    places = torch.arange(IDS.shape[1])
    if isinstance(model, GPT2LMHeadModel):
        body, extra = model.transformer, {}
        stream, blocks, norm = body.wte(IDS) + body.wpe(places), body.h, body.ln_f
    elif isinstance(model, LlamaForCausalLM):
        body = model.model
        stream, blocks, norm = body.embed_tokens(IDS), body.layers, body.norm
        extra = {"position_embeddings": body.rotary_emb(stream, places[None])}
    else:
        assert isinstance(model, GPTNeoXForCausalLM)
        body = model.gpt_neox
        stream, blocks, norm = body.embed_in(IDS), body.layers, body.final_layer_norm
        extra = {"position_embeddings": body.rotary_emb(stream, places[None])}
    for i, block in enumerate(blocks):
        stream = block(stream + added if i == layer else stream, attention_mask=None, **extra)
        stream = stream[0] if isinstance(stream, tuple) else stream
    return model.get_output_embeddings()(norm(stream))  # type: ignore[operator, reportOptionalCall]


@pytest.mark.parametrize("variant", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_steering_changes_the_logits_as_a_forward_by_hand_says(layer: int, variant: str) -> None:
    model = tiny(variant)
    with torch.no_grad():
        expected = by_hand(model, layer, vector(layer))
    with added(model, vector(layer), f"blocks.{layer}.hook_resid_pre"):
        steered = logits(model)
    torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4)
    plain = logits(model)
    assert (steered - plain).abs().max() > 0.1, "the vector is large enough to be seen"
    with added(model, vector(layer), f"blocks.{layer}.hook_resid_pre", positions=slice(-1, None)):
        last = logits(model)
    assert torch.equal(last[:, :-1], plain[:, :-1]), "a causal model carries nothing backwards"
    assert not torch.allclose(last[:, -1], plain[:, -1])


def test_blocks_nest(model: PreTrainedModel) -> None:
    name = matching(model, "blocks.1.hook_resid_*")[-1]
    with edit(model, {name: lambda s: s + vector(1)}), edit(model, {name: lambda s: 2 * s}):
        both = logits(model)
    with edit(model, {name: lambda s: 2 * (s + vector(1))}):
        torch.testing.assert_close(both, logits(model))


# --- what stays, and what is refused ----------------------------------------------------------------------------------


def test_everything_goes_with_the_block_also_after_an_exception(model: PreTrainedModel) -> None:
    before = logits(model)
    names = hook_names(model, STREAM)
    with edit(model, dict.fromkeys(names, lambda h: 0 * h)), capture(model, names):
        assert not torch.allclose(logits(model), before)

    def fails(_stream: Tensor) -> Tensor:
        raise RuntimeError("no")

    for error, call in ((RuntimeError, logits), (KeyError, lambda _model: {}["no"])):
        with pytest.raises(error, match="no"), edit(model, {names[-1]: fails}), capture(model, names):
            call(model)
    assert not hooks_left(model)
    assert torch.equal(logits(model), before)


def test_a_name_that_the_model_lacks_is_one_line_that_names_those_there_are(model: PreTrainedModel) -> None:
    for name in ("blocks.2.hook_resid_pre", "blocks.-1.hook_resid_pre", "resid_pre", "blocks.0.hook_q"):
        for block in (capture(model, [name]), edit(model, {name: lambda h: h})):
            with pytest.raises(SublimError) as raised, block:
                raise AssertionError("it is refused on entry")
            assert f"'{name}'" in str(raised.value) and "blocks.0.hook_resid_post" in str(raised.value)
    with pytest.raises(SublimError, match=r"no hook matches 'blocks\.9.*blocks\.0\.hook_resid_pre"):
        matching(model, "blocks.9.*")
    assert not hooks_left(model)


def test_a_hook_that_never_fires_is_one_line_that_names_those_that_did() -> None:
    model = tiny("llama")
    for block in (
        capture(model, ["blocks.0.hook_mlp_out", "blocks.1.hook_resid_post"]),
        edit(model, {"blocks.0.hook_mlp_out": lambda h: h, "blocks.1.hook_resid_post": lambda h: h}),
    ):
        with pytest.raises(SublimError) as raised, block:
            decoder_layers(model)[0](torch.ones(1, 1, WIDTH), position_embeddings=(torch.ones(1), torch.zeros(1)))
        said = str(raised.value)
        assert "'blocks.1.hook_resid_post' never fired" in said and "fired: blocks.0.hook_mlp_out;" in said
    with pytest.raises(SublimError, match="was not captured"), capture(model, ["blocks.0.hook_mlp_out"]) as acts:
        acts["blocks.0.hook_mlp_out"]


def test_an_edit_of_another_shape_is_one_line() -> None:
    with pytest.raises(SublimError, match=r"returned shape \[2, 5\]"):
        model = tiny("llama")
        with edit(model, {"blocks.0.hook_mlp_out": lambda h: h[..., 0]}):
            logits(model)


def test_an_architecture_without_a_row_has_its_stream_and_says_what_it_lacks() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "vocab_size": VOCABULARY}
    own = {"ffn_dim": 24, "word_embed_proj_dim": 16, "do_layer_norm_before": False}  # the row is of the other OPTs
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", **own, **shape))
    model.eval()
    with capture(model, hook_names(model)) as acts:
        states = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    kinds = {kind_of(name) for name in acts}
    assert kinds == {"embed", "resid_pre", "z", "result", "resid_post"}
    torch.testing.assert_close(acts["blocks.1.hook_resid_pre"], states[1])
    with pytest.raises(SublimError, match="of the architecture opt only what lies around the layers"):
        capture(model, ["blocks.0.hook_mlp_out"]).__enter__()


def test_a_model_without_a_list_of_layers_is_one_line() -> None:
    model = torch.nn.Linear(2, 2)
    model.config = LlamaConfig(num_hidden_layers=3)  # type: ignore[assignment]
    with pytest.raises(SublimError, match="Linear: no list of 3 decoder layers found"):
        decoder_layers(model)


# --- interventions ----------------------------------------------------------------------------------------------------


def test_what_is_ablated_is_gone_and_the_rest_stays(model: PreTrainedModel) -> None:
    name = "blocks.1.hook_mlp_out"
    unit = vector(5) / vector(5).norm()
    with torch.no_grad(), capture(model, [name]) as plain:
        model(input_ids=IDS, use_cache=False)
    with torch.no_grad(), project_activations(model, {name: vector(5)}) as effect, capture(model, [name]) as acts:
        model(input_ids=IDS, use_cache=False)
    assert (acts[name] @ unit).abs().max() < 1e-4
    before, after = (a[name] - (a[name] @ unit)[..., None] * unit for a in (plain, acts))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    expected = ((plain[name] @ unit).norm() / plain[name].norm()).item()
    assert effect.removed[name] == pytest.approx(expected, rel=1e-4)


def test_gradients_are_projected_where_they_pass() -> None:
    model, name = tiny("llama"), "blocks.0.hook_resid_post"
    unit = vector(5) / vector(5).norm()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with project_gradients(model, optimizer, {name: vector(5)}), capture(model, [name], gradients=True) as acts:
        loss(model).backward()
        optimizer.step()
    assert (acts.gradients[name] @ unit).abs().max() < 1e-4 * acts.gradients[name].abs().max()
    assert acts.gradients[name].abs().max() > 1e-3
    assert not optimizer._optimizer_step_pre_hooks


def test_where_no_gradient_passes_is_told_at_the_first_update() -> None:
    model, name = tiny("llama"), "blocks.0.hook_resid_pre"
    model.get_input_embeddings().requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with (
        pytest.raises(SublimError, match=r"does nothing at blocks\.0\.hook_resid_pre: no weight before it trains"),
        project_gradients(model, optimizer, {name: vector(1), "blocks.1.hook_resid_pre": vector(2)}),
    ):
        loss(model).backward()
        optimizer.step()
        pytest.fail("the first update was made")


def test_updates_move_across_a_direction_and_not_along_it() -> None:
    model = tiny("llama")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    draw = torch.Generator().manual_seed(0)
    directions = {n: torch.randn(p.shape, generator=draw) for n, p in before.items() if "mlp" in n}
    with project_updates(model, optimizer, directions) as effect:
        loss(model).backward()
        optimizer.step()
    for name, p in model.named_parameters():
        update = p.detach() - before[name]
        assert update.abs().max() > 0.01
        if name in directions:
            cosine = torch.cosine_similarity(update.flatten(), directions[name].flatten(), 0)
            assert abs(cosine) < 1e-4
    assert effect.removed.keys() == directions.keys() and all(v > 0 for v in effect.removed.values())
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_an_intervention_that_does_nothing_is_an_error() -> None:
    model, name = tiny("llama"), "blocks.0.hook_resid_post"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(SublimError, match=r"direction at blocks\.0\.hook_resid_post has no length"):
        project_activations(model, {name: torch.zeros(WIDTH)}).__enter__()
    with (
        pytest.raises(SublimError, match=r"project-gradient does nothing at blocks\.0"),
        torch.no_grad(),
        project_gradients(model, optimizer, {name: vector(1)}),
    ):
        model(input_ids=IDS)
    weight = "model.norm.weight"
    with (
        pytest.raises(SublimError, match="project-update does nothing"),
        project_updates(model, optimizer, {weight: torch.ones(WIDTH)}),
    ):
        loss(model).backward()
        optimizer.step()
    for bad in ({weight: torch.ones(3)}, {"no.such": torch.ones(3)}, {weight: torch.zeros(WIDTH)}):
        with pytest.raises(SublimError, match="project-update: the"):
            project_updates(model, optimizer, bad).__enter__()
    assert not hooks_left(model)
