"""A patch puts one model's values into another, is taken back whole, and many at once equal each alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2LMHeadModel,
    PreTrainedModel,
)

from sublim_interp.analysis.patching.grid import PatchGrid, Patching, patch
from sublim_interp.analysis.patching.moments import moments, moments_of
from sublim_interp.analysis.patching.patch import Patch, Piece
from sublim_interp.analysis.probes import Among, answer_margin, answer_rate
from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import hook_names
from sublim_interp.training.batches import Batch, Example, micro_batches
from sublim_interp.training.loop import train
from sublim_interp.training.losses import token_loss
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.settings import Recording
from sublim_interp.training.recording.trace import Trace
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization
from three_layers import EVEN, MARGIN, PROMPTS, build, hooks_of, logits

KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@pytest.fixture(params=["llama", "gpt2", "gpt_neox", "gemma2"])
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two models of one shape with the same embeddings and head, as two students of one base would be."""
    src, dst = build(request.param, 0), build(request.param, 1)
    with torch.no_grad():
        src.get_input_embeddings().weight.copy_(dst.get_input_embeddings().weight)  # type: ignore[arg-type]
        src.get_output_embeddings().weight.copy_(dst.get_output_embeddings().weight)  # type: ignore[arg-type, union-attr]
    return src, dst


def between(pair: tuple[PreTrainedModel, PreTrainedModel], prompts: list[list[int]] = EVEN) -> Patching:
    return patch(*pair, prompts=prompts, metric=MARGIN, across_bases=True)


def test_patching_everything_gives_the_other_models_logits(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    src, dst = pair
    both, own = between(pair), logits(dst)
    assert (logits(src) - own).abs().max() > 0.1
    with both.weights().on(dst):
        assert torch.equal(logits(dst), logits(src))
    everywhere = Patch()
    for name in hook_names(dst, KINDS):
        everywhere += both.at(name)
    with everywhere.on(dst):
        assert (logits(dst) - logits(src)).abs().max() < 1e-5
    assert torch.equal(logits(dst), own) and hooks_of(dst) == 0


def test_patching_nothing_changes_no_bit(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _, dst = pair
    before = logits(dst)
    with Patch().on(dst):
        assert torch.equal(logits(dst), before) and hooks_of(dst) == 0
    itself = patch(dst, dst, prompts=EVEN, metric=MARGIN)
    with (itself.at("blocks.1.hook_resid_pre") + itself.at("blocks.0.attn.hook_z") + itself.weights()).on(dst):
        assert torch.equal(logits(dst), before)
    grid = itself.grid("resid_pre")
    assert torch.allclose(grid.each, grid.dst[:, None, None].expand_as(grid.each), atol=1e-5)


def test_a_patch_is_taken_back_after_an_exception(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _, dst = pair
    before, both = logits(dst), between(pair)
    with pytest.raises(RuntimeError, match="stop"), (both.weights("mlp") + both.at("blocks.0.attn.hook_z")).on(dst):
        raise RuntimeError("stop")
    assert torch.equal(logits(dst), before) and hooks_of(dst) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_equals_its_patch_alone(pair: tuple[PreTrainedModel, PreTrainedModel], kind: Any) -> None:
    _, dst = pair
    if not hook_names(dst, (kind,)):
        with pytest.raises(SublimError, match=f"no '{kind}'; valid: .*resid_pre"):
            between(pair).grid(kind)
        return
    grids = [between(pair, PROMPTS).grid(kind, at_once) for at_once in (None, 1, 4)]
    for rows, prompts in ((slice(0, 2), EVEN), (slice(2, 4), PROMPTS[2:])):
        for layer in range(3):
            (piece,) = between(pair, prompts).at(f"blocks.{layer}.hook_{kind}")
            for position in range(-len(prompts[0]), 0):
                with Patch((replace(piece, positions=(position,)),)).on(dst):
                    alone = MARGIN(logits(dst, prompts)[:, -1])
                for grid in grids:
                    assert torch.allclose(grid.each[rows, layer, position], alone, atol=1e-4)
    assert grids[0].each[2:, :, :2].isnan().all() and not grids[0].values.isnan().any()
    assert hooks_of(dst) == 0


def test_after_a_grid_its_models_train_and_its_cells_may_be_computed_with(
    pair: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    src, dst = pair
    both = between(pair)
    scale = torch.ones((), requires_grad=True)
    (both.grid().each * scale).sum().backward()
    assert scale.grad is not None and scale.grad.isfinite()
    for model in (src, dst):
        for kind in ("resid_pre", "heads"):
            both.grid(kind)
            MARGIN(model(input_ids=torch.tensor(EVEN)).logits[:, -1]).sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        assert sum(p.grad is not None for p in model.parameters()) > 10
        model.zero_grad()


def test_a_metric_of_a_few_tokens_gives_what_the_same_of_all_logits_gives(
    pair: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    assert isinstance(MARGIN, Among)
    for kind in ("resid_pre", "heads"):
        few, whole = (
            patch(*pair, prompts=PROMPTS, metric=metric, across_bases=True).grid(kind)
            for metric in (MARGIN, lambda logits: MARGIN(logits))
        )
        for a, b in ((few.each, whole.each), (few.src, whole.src), (few.dst, whole.dst)):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0, equal_nan=True)


def test_cells_of_long_prompts_lie_in_several_rows_and_equal_their_patch_alone(
    pair: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    _, dst = pair
    long = torch.randint(31, (2, 24), generator=torch.Generator().manual_seed(0)).tolist()
    grids = [between(pair, long).grid("resid_post", at_once) for at_once in (None, 5)]
    for layer in range(3):
        (piece,) = between(pair, long).at(f"blocks.{layer}.hook_resid_post")
        for position in range(-24, 0):
            with Patch((replace(piece, positions=(position,)),)).on(dst):
                alone = MARGIN(logits(dst, long)[:, -1])
            for grid in grids:
                assert torch.allclose(grid.each[:, layer, position], alone, atol=1e-4)


def test_grids_of_heads_and_weights_equal_each_patch_alone(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _src, dst = pair
    both = between(pair)
    heads, weights = both.grid("heads"), both.grid("weights")
    for layer in range(3):
        for head in range(2):
            with both.at(f"blocks.{layer}.attn.hook_z", heads=[head]).on(dst):
                assert torch.allclose(heads.each[:, layer, head], MARGIN(logits(dst)[:, -1]), atol=1e-4)
        for i, module in enumerate(weights.places):
            with both.weights(f".{layer}.{module}.").on(dst):
                assert torch.allclose(weights.each[:, layer, i], MARGIN(logits(dst)[:, -1]), atol=1e-4)


def test_all_heads_together_are_the_attention_output(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _src, dst = pair
    both = between(pair)
    with both.weights("layers.1.self_attn.o_proj").on(dst) if "Llama" in type(dst).__name__ else Patch().on(dst):
        with both.at("blocks.1.attn.hook_z").on(dst):
            whole = logits(dst)
        each = both.at("blocks.1.attn.hook_z", heads=[0]) + both.at("blocks.1.attn.hook_z", heads=[1])
        with each.on(dst):
            assert torch.equal(logits(dst), whole)
        if "Llama" in type(dst).__name__:  # of equal output maps, equal heads make equal outputs
            with both.at("blocks.1.hook_attn_out").on(dst):
                assert torch.allclose(logits(dst), whole, atol=1e-4)


@pytest.mark.parametrize("kind", ["resid_pre", "mlp_out", "heads"])
def test_attribution_is_the_grid_to_first_order(kind: Any) -> None:
    dst, src = build("llama", 1), build("llama", 1)
    torch.manual_seed(2)
    nudges = [torch.randn_like(p) for p in src.parameters()]
    errors = []
    for size in (4e-4, 8e-4):
        src.load_state_dict(dst.state_dict())
        with torch.no_grad():
            for p, nudge in zip(src.parameters(), nudges, strict=True):
                p.add_(size * nudge)
        both = patch(src, dst, prompts=PROMPTS, metric=MARGIN)
        errors.append(both.attribution(kind).error(both.grid(kind)))
    assert errors[0].correlation > 0.999 and errors[0].max_abs < 0.1 * errors[0].largest
    assert 2.5 < errors[1].max_abs / errors[0].max_abs < 6  # what is left out is of second order
    assert all(p.grad is None and p.requires_grad for p in dst.parameters()) and hooks_of(dst) == 0


def test_a_far_model_is_where_attribution_fails(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    error = between(pair).attribution("resid_pre").error(between(pair).grid("resid_pre"))
    assert error.max_abs > 0.05 * error.largest


def test_the_last_position_of_the_last_layer_carries_all(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _src, dst = pair
    norms = between(pair).weights("norm") if not isinstance(dst, GPT2LMHeadModel) else between(pair).weights("ln_f")
    with norms.on(dst):
        grid = between(pair, PROMPTS).grid("resid_post")
    assert torch.allclose(grid.recovered[-1], torch.tensor([0.0] * 5 + [1.0]), atol=1e-4)
    frame = grid.frame
    assert len(frame) == 18 and set(frame["place"]) == set(range(-6, 0))
    assert sorted(frame.query("place == -6")["prompts"].unique()) == [2]


def test_noising_is_denoising_the_other_way_round(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    src, dst = pair
    back = between(pair).swapped().grid("resid_pre")
    forth = patch(dst, src, prompts=EVEN, metric=MARGIN, across_bases=True).grid("resid_pre")
    assert torch.equal(back.each, forth.each) and torch.equal(back.src, forth.src) and torch.equal(back.dst, forth.dst)
    # Unpatched prompts are rows of the batch of cells, the source a batch of its own: sums may round differently.
    assert torch.allclose(back.src, between(pair).grid("resid_pre").dst, atol=1e-6)


def test_pieces_are_listed_and_the_later_wins(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _src, dst = pair
    both = between(pair)
    there, back = both.at("blocks.1.hook_resid_pre", [-1]), both.swapped().at("blocks.1.hook_resid_pre", [-1])
    assert [str(piece) for piece in there + back] == ["<blocks.1.hook_resid_pre at -1>"] * 2
    with (there + back).on(dst):
        assert torch.equal(logits(dst), logits(dst, EVEN))
        kept = logits(dst)
    assert torch.allclose(kept, logits(dst), atol=1e-6)


def test_a_share_is_taken_of_the_prompts_that_have_the_place_and_a_place_of_none_has_no_interval() -> None:
    each = torch.tensor([[[3.0, 2.0, torch.nan]], [[torch.nan, 4.0, torch.nan]]])  # the second prompt is shorter
    grid = PatchGrid("resid_pre", "exact", each, torch.tensor([3.0, 5.0]), torch.tensor([1.0, 1.0]), (-2, -1, "mlp"))
    assert grid.recovered[0, :2].tolist() == pytest.approx([1.0, (1 + 3) / (2 + 4)])
    assert grid.intervals["place"].to_list() == [-2, -1] and grid.intervals["n"].to_list() == [1, 2]


def test_what_cannot_be_patched_is_refused_in_one_line(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    src, dst = pair
    both = between(pair, PROMPTS)
    with pytest.raises(SublimError, match="one length"):
        both.at("blocks.0.hook_resid_pre")
    with pytest.raises(SublimError, match=r"no hook 'blocks\.7\.hook_resid_pre'"):
        between(pair).at("blocks.7.hook_resid_pre")
    with pytest.raises(SublimError, match="run the prompts"), between(pair).at("blocks.0.hook_resid_pre").on(dst):
        logits(dst, PROMPTS[2:])
    with pytest.raises(SublimError, match="training mode"):
        patch(src, build("llama", 0).train() if "Llama" in type(dst).__name__ else dst.train(), EVEN, MARGIN)
    with pytest.raises(SublimError, match="metric="):
        patch(src, src, EVEN)
    with pytest.raises(SublimError, match="no parameter has 'nothing'"):
        both.weights("nothing")
    with pytest.raises(SublimError, match="no attribution of weights; valid kinds: resid_pre"):
        both.attribution("weights")


# --- moments ----------------------------------------------------------------------------------------------------------

HALF = Optimization(lr=1e-2, steps=4, schedule="constant", warmup=0)
WAYS = [{"optimizer": "adam"}, {"optimizer": "adamw", "weight_decay": 0.1}, {"optimizer": "sgd"}]


def step_batches(step: int) -> list[Batch]:
    ids = torch.randint(2, 31, (4, 6), generator=torch.Generator().manual_seed(step)).tolist()
    return micro_batches([Example(row, 1) for row in ids], 0)


def trained(model: PreTrainedModel, optimization: Optimization, **options: Any) -> dict[str, Tensor]:
    train(model, step_batches, optimization, **options)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way["optimizer"])
def test_a_training_from_patched_moments_is_one_that_had_them_itself(way: dict[str, Any], tmp_path: Path) -> None:
    half, whole = HALF.set(way), HALF.set({**way, "steps": 8})
    expected = trained(build("llama", 1), whole)
    model = build("llama", 1)
    trained(model, half, record=partial(Recorder, path=tmp_path, steps=4))
    start = {name: p.clone() for name, p in model.state_dict().items()}
    patch_ = moments(Trace.open(tmp_path))
    assert {p.site.partition("/")[0] for p in patch_} == (
        {"momentum_buffer"} if way["optimizer"] == "sgd" else {"exp_avg", "exp_avg_sq", "step"}
    )
    optimizers: list[torch.optim.Optimizer] = []

    @contextmanager
    def patched(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        optimizers.append(optimizer)
        with patch_.on(model, optimizer):
            yield
        assert not optimizer.state, "taken back: it had made no update of its own"

    found = trained(model, whole, first=4, intervene=patched)
    assert optimizers and all(torch.equal(found[name], p) for name, p in expected.items())
    model.load_state_dict(start)
    without = trained(model, whole, first=4)
    assert any(not torch.equal(without[name], p) for name, p in expected.items())


def test_a_training_from_patched_moments_is_resumed_in_the_same_bits(tmp_path: Path) -> None:
    trained(build("llama", 2), HALF, record=partial(Recorder, path=tmp_path / "trace", steps=4))
    start = moments(Trace.open(tmp_path / "trace")).on
    expected = trained(build("llama", 1), HALF, intervene=start)
    resume = Resume(tmp_path / "state", every=2)

    def stop(step: int, _loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(build("llama", 1), HALF, intervene=start, resume=resume, observe=stop)
    assert resume.step == 2
    found = trained(build("llama", 1), HALF, intervene=start, resume=resume)
    assert all(torch.equal(found[name], p) for name, p in expected.items())


def an_optimizer(model: PreTrainedModel, updates: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(updates):
        optimizer.zero_grad()
        token_loss(model, step_batches(step)[0]).backward()
        optimizer.step()
    return optimizer


def state_of(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {piece.site: piece.value for piece in moments_of(model, optimizer)}


def test_moments_are_combined_with_weights_and_taken_back_after_an_exception() -> None:
    src, dst = build("llama", 0), build("llama", 1)
    theirs, ours = an_optimizer(src, 3), an_optimizer(dst, 2)
    weights, state = {n: p.clone() for n, p in dst.state_dict().items()}, state_of(dst, ours)
    with moments_of(dst, ours).on(dst, ours):
        assert all(torch.equal(value, state[site]) for site, value in state_of(dst, ours).items())
    second = Patch(tuple(p for p in moments_of(src, theirs) if p.site.startswith("exp_avg_sq/")))
    both = between((src, dst)).weights("mlp") + second
    assert len(both) == 9 + len(weights) and "<exp_avg_sq/lm_head.weight>" in map(str, both)
    with pytest.raises(RuntimeError, match="stop"), both.on(dst, ours):
        now, other = state_of(dst, ours), state_of(src, theirs)
        for site, value in now.items():
            assert torch.equal(value, (other if site.startswith("exp_avg_sq/") else state)[site])
        assert torch.equal(
            dst.state_dict()["model.layers.0.mlp.up_proj.weight"], src.model.layers[0].mlp.up_proj.weight
        )
        token_loss(dst, step_batches(9)[0]).backward()
        ours.step()
        raise RuntimeError("stop")
    assert all(torch.equal(value, state[site]) for site, value in state_of(dst, ours).items())
    assert torch.equal(
        dst.state_dict()["model.layers.0.mlp.up_proj.weight"], weights["model.layers.0.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("counts_there", [False, True])
def test_moments_go_where_the_parameter_is(counts_there: bool) -> None:
    """A trace's are on the CPU; torch's meta device stands for a GPU here."""
    src = build("llama", 0)
    patch_ = moments_of(src, an_optimizer(src, 1))
    dst: Any = build("llama", 1)
    dst.to("meta")
    optimizer = torch.optim.Adam(dst.parameters(), capturable=counts_there)
    with patch_.on(dst, optimizer):
        for p in dst.parameters():
            where = {name: value.device.type for name, value in optimizer.state[p].items()}
            assert where == {"step": "meta" if counts_there else "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_moments_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    model = build("llama", 0)
    optimizer = an_optimizer(model, 1)
    piece = next(iter(moments_of(model, optimizer)))
    fresh, sgd = torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters(), momentum=0.9)
    name = "model.norm.weight"
    for pieces, into, words in [
        ((piece,), None, "is an optimizer's: give it too"),
        ((piece,), sgd, r"patch of step/.*: SGD keeps momentum_buffer"),
        ((Piece("exp_avg/no.such", torch.zeros(2)),), optimizer, "has no such parameter"),
        ((Piece(f"exp_avg/{name}", torch.zeros(2)),), optimizer, r"shape \[2\], the optimizer's \[16\]"),
        ((Piece(f"exp_avg/{name}", torch.zeros(16)),), fresh, "needs step, exp_avg, exp_avg_sq of each parameter"),
        ((Piece(f"exp_avg/{name}", torch.zeros(16)),), an_optimizer(build("llama", 1), 1), "has no such parameter"),
    ]:
        with pytest.raises(SublimError, match=words):
            Patch(pieces).on(model, into).__enter__()
    assert not fresh.state and not sgd.state
    with pytest.raises(SublimError, match="SGD keeps no moments"):
        moments_of(model, sgd)
    record = partial(Recorder, path=tmp_path, steps=1, recording=Recording(weight_bytes=0))
    trained(model, HALF.set(steps=1), record=record)
    with pytest.raises(SublimError, match="holds no moments; it keeps them of Adam and SGD, within its budget"):
        moments(Trace.open(tmp_path))
    trained(model, HALF.set(steps=1), record=partial(Recorder, path=tmp_path / "full", steps=1))
    assert {p.site.rpartition(".")[2] for p in moments(Trace.open(tmp_path / "full"), part="norm")} == {"weight"}
    with pytest.raises(SublimError, match="holds no moments of a parameter with 'moe' in its name"):
        moments(Trace.open(tmp_path / "full"), part="moe")
    with pytest.raises(SublimError, match="not recorded at step 7"):
        moments(Trace.open(tmp_path / "full"), 7)


def test_margin_and_rate_are_those_of_probabilities() -> None:
    rows = torch.randn(4, 9)
    p = rows.double().softmax(-1)
    margin = p[:, 6].log() - ((p[:, 2] + p[:, 8]) / 2).log()
    assert torch.allclose(answer_margin([2, 6, 8], 1)(rows).double(), margin, atol=1e-5)
    assert torch.allclose(answer_rate([2, 6, 8], 1)(rows).double(), p[:, 6], atol=1e-6)
    for members, which in (([2], 0), ([2, 2], 0), ([2, 3], 2)):
        with pytest.raises(SublimError):
            answer_margin(members, which)
