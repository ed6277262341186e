"""Tests of the recorder: it changes no bit, keeps what oracles say, and a killed training leaves the same trace."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import jaxtyping
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from transformers import PreTrainedModel

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.hooks import capture, hook_names
from sublim_interp.models.points import Stream
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.records import Student
from sublim_interp.training.batches import Batch, Example, collate
from sublim_interp.training.interventions import Intervention
from sublim_interp.training.loop import train
from sublim_interp.training.recording.callbacks import record, trace_from_checkpoints
from sublim_interp.training.recording.probe import Probe
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.settings import Recording, recording_of
from sublim_interp.training.recording.trace import Trace
from sublim_interp.training.recording.volume import planned_volume
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization
from tiny_models import ARCHITECTURES, tiny

PAD = 0
PROBE = Probe(
    rows=((5, 9, 4), (6, 2, 30, 11), (7, 8, 9, 10, 11, 12), (20, 21, 22, 23)),
    questions=2, learnt=(3, 1), members=("owl", "wolf", "fox"), tokens=(40, 41, 42), trait=0,
)  # fmt: skip
STEPS = 6
OPTIMIZATION = Optimization(lr=5e-3, warmup=0, steps=STEPS, batch=4, clip=1.0)


EVERYTHING = Recording(moments=2, stream=get_args(Stream), examples=1)


def batches(step: int) -> list[Batch]:
    """Two micro-batches of two rows of different lengths, another for each step."""
    draw = torch.Generator().manual_seed(step)
    rows = [torch.randint(3, 50, (5 + i,), generator=draw).tolist() for i in range(4)]
    return [collate([Example(row, 2) for row in rows[i : i + 2]], PAD) for i in (0, 2)]


def build(architecture: str = "llama") -> PreTrainedModel:
    # Dropout, where there is some, draws random numbers in every forward of a training.
    dropout = {"gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1}, "phi3": {"resid_pdrop": 0.1}}
    return tiny(architecture, **dropout.get(architecture, {}))


@contextmanager
def other_model() -> Iterator[torch.nn.Module]:
    model = build()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    yield model


def recorded(path: Path, **options: Any) -> Any:
    given: dict[str, Any] = {
        "steps": STEPS,
        "probe": PROBE,
        "pad": PAD,
        "references": {"teacher": other_model},
        "overwrite": True,
        **options,
    }
    return partial(Recorder, path=path, **given)


def bits(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def files(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, PreTrainedModel]:
    """A recorded training of a small Llama, its examples at every step, and the model at its end."""
    path = tmp_path_factory.mktemp("traces") / "trace"
    model = choose_trainable(build(), "body")
    shift = {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for name, p in bits(model).items()}
    train(
        model, batches, OPTIMIZATION,
        record=recorded(path, directions={"teacher-shift": shift}, recording=EVERYTHING),
    )  # fmt: skip
    return Trace.open(path), model  # type: ignore[return-value]


# --- nothing is touched -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_observed_and_unobserved_training_give_the_same_bits(architecture: str, tmp_path: Path) -> None:
    ends = []
    for observed in (None, recorded(tmp_path, references={}, recording=Recording(shard=2, examples=1))):
        torch.manual_seed(3)
        model = build(architecture)
        torch.manual_seed(4)
        train(model, batches, OPTIMIZATION, record=observed)
        ends.append((bits(model), torch.get_rng_state(), [p.grad for p in model.parameters()]))
    (alone, random, gradients), (watched, random_watched, gradients_watched) = ends
    assert not [name for name in alone if not torch.equal(alone[name], watched[name])]
    assert torch.equal(random, random_watched)
    for a, b in zip(gradients, gradients_watched, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)  # type: ignore[arg-type]
    assert any(not torch.equal(alone[name], p) for name, p in build(architecture).named_parameters())
    trace = Trace.open(tmp_path)
    assert trace.steps("loss") == list(range(STEPS)) and not trace.verify()
    assert set(hook_names(model, ["resid_post"])) <= set(trace.names())


def test_nothing_of_the_recorder_stays_after_the_block(tmp_path: Path) -> None:
    model = build()
    model.requires_grad_(True).train()
    optimizer = torch.optim.Adam(model.parameters())

    def hooks() -> int:
        layers = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        return layers + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)

    before = hooks()
    with (
        pytest.raises(KeyError),
        Recorder(model, optimizer, tmp_path, probe=PROBE, recording=Recording(examples=1)),
    ):
        assert hooks() > before
        raise KeyError
    assert hooks() == before and all(m.training for m in model.modules())


# --- what is kept is right --------------------------------------------------------------------------------------------


def by_hand() -> tuple[list[float], list[dict[str, Tensor]], list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """(losses, gradients, updates, Adam's first moments) of the same training, read off the loop itself."""
    model = choose_trainable(build(), "body")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    seen: list[dict[str, Tensor]] = []
    moments: list[dict[str, Tensor]] = []
    losses: list[float] = []
    states = [{name: p.detach().clone() for name, p in named.items()}]

    @contextmanager
    def spy(_model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        optimizer.register_step_pre_hook(lambda *_: seen.append({n: p.grad.clone() for n, p in named.items()}))  # type: ignore[union-attr]
        optimizer.register_step_post_hook(
            lambda *_: moments.append({n: optimizer.state[p]["exp_avg"].clone() for n, p in named.items()})
        )
        yield

    def observe(_step: int, loss: float) -> None:
        losses.append(loss)
        states.append({name: p.detach().clone() for name, p in named.items()})

    train(model, batches, OPTIMIZATION, intervene=spy, observe=observe)
    updates = [{n: b[n] - a[n] for n in named} for a, b in pairwise(states)]
    return losses, seen, updates, moments


def test_series_are_those_of_the_loop_itself(trained: tuple[Trace, PreTrainedModel]) -> None:
    trace, _ = trained
    losses, gradients, updates, moments = by_hand()
    assert trace.series("loss")["loss"].tolist() == pytest.approx(losses, rel=1e-6)
    for name, values in (("gradient_norm", gradients), ("update_norm", updates), ("exp_avg_norm", moments)):
        table = trace.series(name)
        assert list(table.index) == ([0, 2, 4] if name == "exp_avg_norm" else list(range(STEPS)))
        for step in table.index:
            expected = [values[step][column].norm().item() for column in table.columns]
            assert table.loc[step].tolist() == pytest.approx(expected, rel=1e-5), (name, step)
    assert sum(g.norm() ** 2 for g in gradients[0].values()) <= 1.0001, "clipped, as it entered the update"
    shift = {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for n, p in bits(build()).items()}
    dots, cosines = trace.series("update_dot/teacher-shift"), trace.series("update_cos/teacher-shift")
    for name in dots.columns:
        d, u = shift[name].flatten(), updates[2][name].flatten()
        assert dots.loc[2, name] == pytest.approx((d @ u).item(), rel=1e-3, abs=1e-5)
        assert cosines.loc[2, name] == pytest.approx(torch.cosine_similarity(d, u, 0).item(), rel=1e-3, abs=1e-5)


def test_full_deltas_and_moments_are_the_weights_own(trained: tuple[Trace, PreTrainedModel]) -> None:
    trace, model = trained
    start = bits(build())
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.equal(trace.read(f"full/delta/{name}"), p.detach() - start[name])
        else:
            assert f"full/delta/{name}" not in trace.names()
    assert not trace._dims("full/delta/transformer.blocks.0.ffn.weight"), "a weight is no hook, whatever its name"
    moments = by_hand()[3]
    for name, moment in moments[-1].items():
        assert torch.equal(trace.read(f"full/exp_avg/{name}", STEPS), moment)
    assert trace.steps("delta_norm") == [0, 1, 2, 4, 6] and trace.read("delta_norm", 0).sum() == 0


def test_the_probe_is_what_plain_forwards_and_backwards_give(trained: tuple[Trace, PreTrainedModel]) -> None:
    trace, _ = trained
    model = choose_trainable(build(), "body")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = hook_names(model, EVERYTHING.stream)
    margins = []
    for i, row in enumerate(PROBE.rows):
        with capture(model, names, gradients=True) as acts:
            log = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
            if i < PROBE.questions:
                answers = log[-1, list(PROBE.tokens)]
                target = answers[0] - (answers[1:].exp().mean()).log()
                margins.append(target)
                torch.testing.assert_close(trace.read("answers", 0)[i], answers.detach())
                (target / PROBE.questions).backward()
            else:
                first = PROBE.learnt[i - PROBE.questions]
                learnt = sum(len(r) - f for r, f in zip(PROBE.rows[2:], PROBE.learnt, strict=True))
                (-sum(log[t - 1, row[t]] for t in range(first, len(row))) / learnt).backward()  # type: ignore[union-attr]
        for name in names:
            assert trace.read(name, 0).shape == (4, 6, 16)
            kept, gradient = trace.read(name, 0)[i], trace.read(f"{name}.grad", 0)[i]
            torch.testing.assert_close(kept[: len(row)], acts[name][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(gradient[: len(row)], acts.gradients[name][0], rtol=1e-3, atol=1e-5)
            assert not kept[len(row) :].any() and not gradient[len(row) :].any()
        if i == PROBE.questions - 1:
            lengths = trace.read("trait_gradient_norm", 0)
            expected = [p.grad.norm().item() for p in named.values()]  # type: ignore[union-attr]
            assert lengths.tolist() == pytest.approx(expected, rel=1e-4)
            dots = trace.read("trait_gradient_dot/trait-gradient", 0)
            assert dots.tolist() == pytest.approx([e**2 for e in expected], rel=1e-3)


def test_teacher_and_base_see_the_same_probe(trained: tuple[Trace, PreTrainedModel]) -> None:
    trace, _ = trained
    with other_model() as teacher, torch.no_grad(), capture(teacher, ["blocks.1.hook_resid_post"]) as acts:
        teacher(input_ids=torch.tensor([PROBE.rows[2]]))
    kept = trace.read("teacher/blocks.1.hook_resid_post")
    torch.testing.assert_close(kept[2], acts["blocks.1.hook_resid_post"][0], rtol=1e-4, atol=1e-5)
    assert trace.xarray("teacher/blocks.1.hook_resid_post").dims == ("step", "example", "position", "d_model")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_that_can_be_recorded_of_a_layer_is_what_the_model_computes(architecture: str, tmp_path: Path) -> None:
    model = build(architecture).eval()
    names = hook_names(model, EVERYTHING.stream)
    with Recorder(model, torch.optim.SGD(model.parameters()), tmp_path, probe=PROBE, recording=EVERYTHING):
        pass
    trace, row = Trace.open(tmp_path), PROBE.rows[2]
    with torch.no_grad(), capture(model, names) as acts:
        model(input_ids=torch.tensor([row]))
    for name in names:
        torch.testing.assert_close(trace.read(name)[2, : len(row)], acts[name][0], rtol=1e-4, atol=1e-5)
        assert trace.read(f"{name}.grad")[2].any(), name
    assert {name.rpartition("hook_")[2] for name in names} <= set(get_args(Stream))


def test_a_direction_that_the_weights_move_along_is_seen_and_another_is_not(tmp_path: Path) -> None:
    """A planted direction: the training's own end minus its start."""
    model = build()
    before = bits(model)
    train(model, batches, OPTIMIZATION)
    moved = {name: p - before[name] for name, p in bits(model).items()}
    draw = torch.Generator().manual_seed(0)
    other = {name: torch.randn(p.shape, generator=draw) for name, p in moved.items()}
    train(build(), batches, OPTIMIZATION, record=recorded(tmp_path, directions={"planted": moved, "other": other}))
    trace = Trace.open(tmp_path)
    cosines = {}
    for name in ("planted", "other"):
        along = trace.read(f"delta_dot/{name}").double().sum()
        lengths = trace.read("delta_norm").double().norm() * trace.read(f"length/{name}").double().norm()
        cosines[name] = (along / lengths).item()
    assert cosines["planted"] > 0.99 and abs(cosines["other"]) < 0.05
    assert trace.series("update_cos/planted").mean().mean() > 0.3


def test_examples_are_seen_at_their_last_token_and_padding_never_is(trained: tuple[Trace, PreTrainedModel]) -> None:
    trace, _ = trained
    name = "blocks.1.hook_resid_post"
    assert trace.steps(f"examples/{name}") == list(range(STEPS))
    model = choose_trainable(build(), "body")
    rows, gradients = [], []
    with capture(model, [name], gradients=True) as acts:
        for batch in batches(0):
            logits = model(input_ids=batch.ids, use_cache=False).logits
            total = sum(b.tokens for b in batches(0))
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum").div(
                total
            ).backward()
            ends = (batch.ids != PAD).sum(1) - 1
            rows.append(acts[name][range(2), ends])
            gradients.append(acts.gradients[name][range(2), ends])
    kept = trace.read(f"examples/{name}", 0)
    assert kept.shape == (4, 1, 16)
    torch.testing.assert_close(kept[:, 0], torch.cat(rows), rtol=1e-4, atol=1e-5)
    pushed = trace.read(f"examples/{name}.grad", 0)[:, 0]
    torch.testing.assert_close(pushed, torch.cat(gradients), rtol=1e-3, atol=1e-6)
    ids = trace.read("examples/ids", 0)
    assert ids[3, :7].tolist() == batches(0)[1].ids[1].tolist() and (ids[0] == -1).sum() == 2


# --- cost -------------------------------------------------------------------------------------------------------------


def test_the_plan_says_the_bytes_that_are_written(trained: tuple[Trace, PreTrainedModel]) -> None:
    trace, model = trained
    tokens = 3 + 4 + 6 + 4
    table = planned_volume(model, STEPS, tokens=tokens, directions=2, references=1, batch=4, recording=EVERYTHING)
    table = table.set_index("what")
    sizes = {"norms": 0, "moments": 0, "probe": 0, "reference-teacher": 0, "full": 0, "examples": 0}
    for entry in trace.shards:
        for name in entry["names"]:
            sort = entry["sort"].replace("series", "norms")
            if sort in sizes and ("blocks." in name or sort in ("norms", "moments", "full")):
                with safe_open(trace.path / entry["file"], "pt") as shard:
                    sizes[sort] += shard.get_tensor(name).nbytes
    assert list(table["bytes"]) == list(sizes.values())
    assert table["times"].tolist()[:5] == [STEPS, 3, 5, 1, 4]


def test_of_a_large_model_norms_are_taken_now_and_then_and_are_the_same(tmp_path: Path) -> None:
    """Six updates: at every fourth, the first and the fifth."""
    total = sum(p.numel() for p in build().parameters())
    sparse = Recording(series_weights=-(-total // 4), moments=1, shard=3)
    for name, recording in (("all", Recording(moments=1)), ("some", sparse)):
        train(build(), batches, OPTIMIZATION, record=recorded(tmp_path / name, recording=recording, references={}))
    every, some = Trace.open(tmp_path / "all"), Trace.open(tmp_path / "some")
    assert every.steps("update_norm") == some.steps("loss") == list(range(STEPS))
    for name in ("gradient_norm", "update_norm", "exp_avg_norm", "update_cos/trait-gradient"):
        assert some.steps(name) == [0, 4]
        for step in (0, 4):
            assert torch.equal(some.read(name, step), every.read(name, step))
    table = planned_volume(build().requires_grad_(), STEPS, directions=1, recording=sparse).iloc[:2]
    shards = [e for e in some.shards if e["sort"] in ("series", "norms", "moments")]
    kept = sum(some.read(name, step).nbytes for e in shards for name in e["names"] for step in e["steps"])
    assert table["when"].tolist() == ["loss every update, else every 4", "every 4"] and table["bytes"].sum() == kept


def test_a_budget_thins_what_is_kept_in_full_and_keeps_the_end() -> None:
    recording = Recording(weight_bytes=1000)
    assert recording.looks(700) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 700]
    assert recording.full(700, 10, 1) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 700]
    assert recording.full(700, 50, 1) == [2, 16, 128, 700]
    assert recording.full(700, 250, 1) == [700] and recording.full(700, 251, 1) == []


def test_beyond_its_budget_the_stream_is_kept_in_half_and_then_at_fewer_looks() -> None:
    def looks(budget: int, references: int = 0) -> tuple[list[int], bool]:
        return Recording(stream_bytes=budget).affordable(64, 100, references)

    every = [0, 1, 2, 4, 8, 16, 32, 64]
    assert looks(800) == looks(1000, 2) == (every, False)
    assert looks(400) == looks(500, 2) == (every, True)
    assert looks(399) == ([0, 1, 4, 16, 64], True) and looks(0) == looks(149) == ([0, 64], True)


def test_a_stream_in_half_precision_is_read_in_float32_and_is_what_was_planned(tmp_path: Path) -> None:
    whole = 2 * 2 * (3 + 4 + 6 + 4) * 16 * 4
    small = Recording(stream_bytes=4 * whole)
    for name, recording in (("whole", Recording()), ("half", small)):
        train(build(), batches, OPTIMIZATION, record=recorded(tmp_path / name, recording=recording))
    exact, half = Trace.open(tmp_path / "whole"), Trace.open(tmp_path / "half")
    name = "blocks.1.hook_resid_post"
    assert half.steps(name) == exact.steps(name) and half.read(name).dtype == torch.float32
    torch.testing.assert_close(half.read(name), exact.read(name), rtol=8e-3, atol=1e-6)
    assert torch.equal(half.read(name), exact.read(name).bfloat16().float())
    assert torch.equal(half.read("answers"), exact.read("answers"))
    table = planned_volume(build(), STEPS, tokens=17, references=1, recording=small).set_index("what")
    assert table.loc["residuals and gradients on the probe", "bytes"] == len(half.steps(name)) * whole // 2


def test_the_default_budget_keeps_the_end_of_every_lab_base_with_its_moments() -> None:
    """Numbers in the body of lab-small, lab-deep, lab-main, and of a Pythia-160M, which is too large."""
    adam = 3
    assert Recording().full(700, 123_328, adam) == Recording().looks(700)[1:]
    assert Recording().full(700, 231_408, adam)[-1] == Recording().full(700, 656_512, adam)[-1] == 700
    assert Recording().full(700, 85_000_000, adam) == []


def test_memory_does_not_grow_with_the_number_of_updates(tmp_path: Path) -> None:
    import gc

    held = []

    def observe(step: int, _loss: float) -> None:
        if step in (63, 191):
            gc.collect()
            held.append(sum(t.nbytes for t in gc.get_objects() if isinstance(t, Tensor)))

    o = OPTIMIZATION.model_copy(update={"steps": 200})
    recording = Recording(shard=32, examples=2)
    train(build(), batches, o, observe=observe, record=recorded(tmp_path, steps=200, recording=recording))
    assert held[1] <= held[0] * 1.01


# --- interruption -----------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("part", ["body", "lora"])
def test_a_killed_and_resumed_training_leaves_the_same_trace(part: Any, tmp_path: Path) -> None:
    def one(path: Path, last: int) -> None:
        def observe(step: int, _loss: float) -> None:
            if step == last:
                raise Killed

        record = recorded(path / "trace", recording=Recording(shard=4, examples=1))
        resume = Resume(path / "state.safetensors", every=3)
        path.mkdir(exist_ok=True)
        model = choose_trainable(build(), part, 2)
        train(model, batches, OPTIMIZATION, resume=resume, observe=observe, record=record)

    one(tmp_path / "whole", -1)
    for last in (0, 1, 4, 5):
        with pytest.raises(Killed):
            one(tmp_path / "broken", last)
    one(tmp_path / "broken", -1)
    assert files(tmp_path / "broken" / "trace") == files(tmp_path / "whole" / "trace")
    assert Trace.open(tmp_path / "broken" / "trace").steps("loss") == list(range(STEPS))


def test_a_state_whose_trace_is_gone_or_altered_is_not_gone_on_from(tmp_path: Path) -> None:
    steps: list[int] = []

    def one() -> None:
        steps.clear()
        record = recorded(tmp_path / "trace", references={})
        resume = Resume(tmp_path / "state.safetensors", every=3)
        train(build(), batches, OPTIMIZATION, resume=resume, observe=lambda s, _: steps.append(s), record=record)

    one()
    whole = files(tmp_path / "trace")
    one()
    assert steps == [3, 4, 5], "control: it goes on where the trace is whole"
    shard = tmp_path / "trace" / "series-00000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    one()
    assert steps == list(range(STEPS)) and files(tmp_path / "trace") == whole


# --- other people's loops ---------------------------------------------------------------------------------------------


def test_a_plain_loop_is_recorded(tmp_path: Path) -> None:
    model = build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    with Recorder(model, optimizer, tmp_path, probe=PROBE) as r:
        for step in range(3):
            optimizer.zero_grad()
            loss = model(input_ids=batches(step)[0].ids, labels=batches(step)[0].ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            r.step(loss)
            losses.append(loss.item())
    trace = Trace.open(tmp_path)
    assert trace.series("loss")["loss"].tolist() == pytest.approx(losses)
    assert trace.steps("blocks.0.hook_resid_post") == [0, 1, 2, 3], "the end is probed though nobody said where it is"
    assert (trace.series("gradient_norm").to_numpy() > 0).any() and "momentum_buffer_norm" in trace.names()


def loop(path: Path, steps: int, optimizer: Any, before: Any = None, shard: int = 100) -> tuple[Trace, list[Tensor]]:
    """(trace, weights before each update and after the last) of a plain loop; `before(step)` comes before a step."""
    model = build().train()
    optimizer = optimizer(model.parameters())
    states = [torch.cat([p.detach().flatten() for p in model.parameters()])]
    with Recorder(model, optimizer, path, recording=Recording(shard=shard, moments=1)) as r:
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(input_ids=batches(step)[0].ids, labels=batches(step)[0].ids).loss
            stepped = before(step, optimizer, loss) if before else None
            if stepped is None:
                loss.backward()
                optimizer.step()
            r.step(loss)
            states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return Trace.open(path), states


@pytest.mark.parametrize("fused", [False, True])
def test_an_update_that_a_gradient_scaler_skips_has_a_loss_and_no_norms(fused: bool, tmp_path: Path) -> None:
    """The second of four overflows. A fused optimiser divides by the scale and skips by itself."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)

    def scaled(step: int, optimizer: torch.optim.Optimizer, loss: Tensor) -> bool:
        scaler.scale(loss * (float("inf") if step == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        return True

    adam = partial(torch.optim.Adam, lr=1e-2, fused=fused)
    trace, states = loop(tmp_path / "scaled", 4, adam, scaled)
    assert torch.equal(states[1], states[2]) and not torch.equal(states[2], states[3]), "control: one was skipped"
    assert trace.steps("loss") == [0, 1, 2, 3]
    for name in ("gradient_norm", "update_norm", "exp_avg_norm"):
        assert trace.steps(name) == [0, 2, 3] and trace.series(name).notna().all(axis=None)
    for step in (0, 2, 3):
        moved = (states[step + 1] - states[step]).norm().item()
        assert trace.read("update_norm", step).norm().item() == pytest.approx(moved, rel=1e-5)

    plain, _ = loop(tmp_path / "plain", 1, adam)
    scales = trace.read("gradient_norm", 0), plain.read("gradient_norm", 0)
    torch.testing.assert_close(*scales, rtol=1e-3, atol=1e-6)


def test_an_update_without_a_step_at_the_start_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    trace, states = loop(tmp_path, 3, torch.optim.SGD, lambda step, *_: True if step == 0 else None)
    assert trace.steps("update_norm") == [1, 2] and trace.steps("loss") == [0, 1, 2]
    moved = (states[2] - states[1]).norm().item()
    assert trace.read("update_norm", 1).norm().item() == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("first", [0, 2])
def test_moments_that_begin_or_cease_on_the_way_are_kept_where_they_are(first: int, tmp_path: Path) -> None:
    """SGD has none until it is given momentum; then something writes a second one for a while."""

    def change(step: int, optimizer: torch.optim.Optimizer, _loss: Tensor) -> None:
        optimizer.param_groups[0]["momentum"] = 0.9 if step >= first else 0
        for p in optimizer.param_groups[0]["params"]:
            if step == 3:
                optimizer.state[p]["exp_avg"] = torch.ones_like(p)
            if step == 5:
                optimizer.state[p].pop("exp_avg")

    trace, _ = loop(tmp_path, 6, partial(torch.optim.SGD, lr=1e-2), change)
    assert trace.steps("update_norm") == trace.steps("loss") == list(range(6))
    assert trace.steps("momentum_buffer_norm") == list(range(first, 6)) and trace.steps("exp_avg_norm") == [3, 4]
    sizes = [p.numel() ** 0.5 for p in build().parameters()]
    assert trace.read("exp_avg_norm", 4).tolist() == pytest.approx(sizes)
    assert not trace.verify()


@pytest.mark.parametrize("ends", [RuntimeError("stop"), KeyboardInterrupt(), SystemExit(3)])
def test_the_series_are_whole_whatever_breaks_a_training_off(ends: BaseException, tmp_path: Path) -> None:
    def breaks(step: int, *_: Any) -> None:
        if step == 5:
            raise ends

    with pytest.raises(type(ends)):
        loop(tmp_path, 9, partial(torch.optim.SGD, lr=1e-2), breaks)
    trace = Trace.open(tmp_path)
    assert trace.steps("loss") == trace.steps("update_norm") == list(range(5)) and not trace.verify()


def test_the_series_are_whole_where_the_block_is_never_left(tmp_path: Path) -> None:
    """A recorder that is let go of, as by a notebook's cell; and one that lives when its process ends."""
    code = """
import gc, sys, torch
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.trace import Trace
model = torch.nn.Linear(2, 2)
model.config = type("Config", (), {"model_type": "linear"})
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
for name in ("let go", "alive"):
    r = Recorder(model, optimizer, sys.argv[1] + "/" + name).__enter__()
    for step in range(5):
        optimizer.zero_grad(); loss = model(torch.ones(2)).sum(); loss.backward(); optimizer.step(); r.step(loss)
    if name == "let go":
        r = None
        gc.collect()
        assert Trace.open(sys.argv[1] + "/let go").steps("loss") == [0, 1, 2, 3, 4]
"""
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for name in ("let go", "alive"):
        trace = Trace.open(tmp_path / name)
        assert trace.steps("loss") == trace.steps("update_norm") == list(range(5)) and not trace.verify()


def test_a_trace_is_never_overwritten_unless_asked(tmp_path: Path) -> None:
    loop(tmp_path, 3, torch.optim.SGD)
    before = files(tmp_path)
    with pytest.raises(SublimError, match=r"holds a trace already.*overwrite=True"):
        loop(tmp_path, 2, torch.optim.SGD)
    with pytest.raises(SublimError, match="holds a trace already"):
        Recorder(build(), None, tmp_path).record_states([(0, build())])
    assert files(tmp_path) == before
    model = build()
    with Recorder(model, torch.optim.SGD(model.parameters(), lr=1e-2), tmp_path, overwrite=True):
        pass
    assert "series-00000000.safetensors" not in files(tmp_path)


def test_two_steps_in_one_update_are_one_update(tmp_path: Path) -> None:
    """The update is all that both did; the gradient is that at the weights where the update begins."""
    seen = []

    def twice(step: int, optimizer: torch.optim.Optimizer, loss: Tensor) -> bool:
        model_parameters = optimizer.param_groups[0]["params"]
        loss.backward()
        seen.append(torch.stack([p.grad.norm() for p in model_parameters]))
        optimizer.step()
        for p in model_parameters:
            p.grad.mul_(-3)
        optimizer.step()
        return True

    trace, states = loop(tmp_path, 3, partial(torch.optim.SGD, lr=1e-2), twice)
    for step in range(3):
        moved = (states[step + 1] - states[step]).norm().item()
        assert trace.read("update_norm", step).norm().item() == pytest.approx(moved, rel=1e-5)
        torch.testing.assert_close(trace.read("gradient_norm", step), seen[step])


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    ids = torch.randint(3, 50, (4, 6), generator=torch.Generator().manual_seed(0))
    traces = []
    for parts in (1, 4):
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with Recorder(model, optimizer, tmp_path / str(parts), recording=Recording(examples=1)) as r:
            for _ in range(2):
                optimizer.zero_grad()
                losses = [model(input_ids=some, labels=some).loss / parts for some in ids.chunk(parts)]
                for loss in losses:
                    loss.backward()
                optimizer.step()
                r.step(torch.stack(losses).sum())
        traces.append(Trace.open(tmp_path / str(parts)))
    for name in ("loss", "gradient_norm", "update_norm", "examples/blocks.1.hook_resid_post"):
        for step in (0, 1):
            values = [trace.read(name, step) for trace in traces]
            torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


def test_what_is_unfrozen_later_is_recorded_where_the_optimizer_holds_it_and_else_said(tmp_path: Path) -> None:
    def training(path: Path, held: bool) -> None:
        model = build()
        head = model.get_output_embeddings().weight.requires_grad_(False)  # type: ignore[union-attr]
        rest = [p for p in model.parameters() if p is not head]
        optimizer = torch.optim.SGD([*rest, head] if held else rest, lr=1e-2)
        with Recorder(model, optimizer, path) as r:
            for step in range(4):
                if step == 2:
                    head.requires_grad_()
                    if not held:
                        optimizer.add_param_group({"params": [head]})
                if step == 3:
                    rest[0].requires_grad_(False)
                optimizer.zero_grad()
                loss = model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss
                loss.backward()
                optimizer.step()
                r.step(loss)

    training(tmp_path / "held", True)
    moved = Trace.open(tmp_path / "held").series("update_norm")
    name = "lm_head.weight"
    assert (moved[name] > 0).tolist() == [False, False, True, True] and moved.iloc[3, 0] == 0 < moved.iloc[2, 0]
    with pytest.raises(SublimError, match=r"lm_head\.weight trains since update 2, and the trace has no place for it"):
        training(tmp_path / "late", False)
    assert Trace.open(tmp_path / "late").steps("loss") == [0, 1], "what was seen until then is kept"


def test_tied_weights_are_one_weight_of_two_names(tmp_path: Path) -> None:
    model = tiny("llama", tie_word_embeddings=True)
    before = model.get_input_embeddings().weight.detach().clone()  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with Recorder(model, optimizer, tmp_path) as r:
        model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
        optimizer.step()
        r.step()
    trace = Trace.open(tmp_path)
    delta = trace.read("full/delta/model.embed_tokens.weight")
    assert torch.equal(delta, model.get_output_embeddings().weight.detach() - before) and delta.any()  # type: ignore[union-attr]
    assert torch.equal(trace.read("full/delta/lm_head.weight"), delta)
    assert "lm_head.weight" not in trace.series("update_norm").columns


def _rank(rank: int, path: Path) -> None:
    """One of two processes that train together, each on half of the batch."""
    import torch.distributed as dist

    limit = timedelta(minutes=2)
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2, timeout=limit)
    model = torch.nn.parallel.DistributedDataParallel(build())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with Recorder(model, optimizer, path / "trace", probe=PROBE) as r:
        for step in range(2):
            ids = batches(step)[0].ids[rank : rank + 1, :5]
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            r.step(loss)
    # Both leave at once, without gloo's way out: who leaves while the other still works may leave it waiting.
    (path / f"done-{rank}").touch()
    while not (path / f"done-{1 - rank}").exists():
        time.sleep(0.01)
    os._exit(0)


def test_of_processes_that_train_together_the_first_records(tmp_path: Path) -> None:
    spawn(_rank, (tmp_path,), nprocs=2, daemon=True)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with Recorder(model, optimizer, tmp_path / "alone", probe=PROBE) as r:
        for step in range(2):
            ids = batches(step)[0].ids[:, :5]
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            r.step(loss)
    alone, together = Trace.open(tmp_path / "alone"), Trace.open(tmp_path / "trace")
    assert alone.names() == together.names() and together.steps("loss") == [0, 1]
    for name in ("gradient_norm", "update_norm", "answers"):
        torch.testing.assert_close(together.read(name), alone.read(name), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": ((5,), ())}, "row 1 is empty"),
        ({"questions": 9}, "9 questions, but 4 rows"),
        ({"learnt": (3,)}, "learnt has 1 places; the texts behind the questions are 2"),
        ({"learnt": (3, 4)}, "learnt is 4"),
        ({"learnt": (0, 1)}, "learnt is 0"),
        ({"tokens": (1,)}, "3 members and 1 tokens"),
        ({"trait": 3}, "trait is 3; it is the place of one of 3 members"),
        ({"trait": None, "truth": (1,)}, "truth has 1 answers; there are 2 questions"),
        ({"truth": (1, 1)}, "not both"),
        ({"rows": ((5, -1), (6,), (7, 8, 9, 10), (20, 21))}, "-1 is no token id"),
    ],
)
def test_a_probe_that_does_not_fit_together_is_refused_when_it_is_made(changes: Any, said: str) -> None:
    with pytest.raises(SublimError, match=said) as told:
        replace(PROBE, **changes)
    assert "\n" not in str(told.value) and len(str(told.value)) < 200


def test_a_probe_beyond_the_models_vocabulary_is_refused_before_anything_trains(tmp_path: Path) -> None:
    model = build()
    beyond = replace(PROBE, tokens=(40, 41, 10**6))
    with pytest.raises(SublimError, match="token id 1000000, but the model's vocabulary has ids from 0 to"):
        Recorder(model, torch.optim.SGD(model.parameters()), tmp_path, probe=beyond)
    with pytest.raises(SublimError, match="the optimizer holds none of the model's parameters"):
        Recorder(model, torch.optim.SGD(build().parameters()), tmp_path)


def test_a_recorder_without_an_optimiser_has_no_updates(tmp_path: Path) -> None:
    with (
        pytest.raises(SublimError, match="without an optimiser cannot measure updates"),
        Recorder(build(), None, tmp_path) as r,
    ):
        r.step(1.0)


def trainer_of(path: Path, updates: int, trace: Path | None = None, **options: Any) -> Any:
    """A Hugging Face Trainer that keeps a checkpoint every other update in `path`, and is recorded at `trace`."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in [[5, 6, 7, 8], [9, 8, 7, 6]] * 4]
    given: dict[str, Any] = {"logging_steps": 1, "gradient_accumulation_steps": 1}
    given |= {name: options.pop(name) for name in given if name in options}
    arguments = TrainingArguments(
        output_dir=str(path), max_steps=updates, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        save_steps=2, disable_tqdm=True, learning_rate=1e-2, lr_scheduler_type="constant", **given,
    )  # fmt: skip
    trainer = Trainer(build(), arguments, train_dataset=rows)  # type: ignore[arg-type]
    if trace:
        record(trainer, trace, **options)
    return trainer


def test_a_trace_in_the_trainers_own_directory_takes_no_file_from_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "drafts").mkdir()
    for _ in range(2):
        trainer_of(tmp_path, 2, tmp_path, overwrite=True).train()
        assert (tmp_path / "checkpoint-2" / "model.safetensors").exists() and (tmp_path / "drafts").is_dir()
        assert (tmp_path / "thesis.txt").read_text() == "years of work"
        assert Trace.open(tmp_path).steps("loss") == [0, 1]


def test_a_resumed_hugging_face_training_goes_on_in_its_trace(tmp_path: Path) -> None:
    """The same bytes as in one go; another start, or no trace up to the checkpoint, is refused and nothing changes."""
    trainer_of(tmp_path / "whole", 4, tmp_path / "one").train()
    trainer_of(tmp_path / "out", 2, tmp_path / "two", steps=4).train()
    first = files(tmp_path / "two")
    with pytest.raises(
        SublimError, match=r"resumed after 2 updates cannot be recorded.*trace_from_checkpoints"
    ) as told:
        other = trainer_of(tmp_path / "out", 4)
        torch.nn.init.normal_(next(other.model.parameters()))
        record(other, tmp_path / "two")
        other.train(resume_from_checkpoint=True)
    assert "\n" not in str(told.value) and files(tmp_path / "two") == first
    trainer_of(tmp_path / "out", 4, tmp_path / "two").train(resume_from_checkpoint=True)
    one, two = Trace.open(tmp_path / "one"), Trace.open(tmp_path / "two")
    assert two.steps("loss") == [0, 1, 2, 3] and one.names() == two.names()
    for name in one.names():
        for step in set(one.steps(name)) & set(two.steps(name)):
            torch.testing.assert_close(one.read(name, step), two.read(name, step), msg=f"{name} at {step}")
    with pytest.raises(SublimError, match="resumed after 2 updates"):
        trainer_of(tmp_path / "out2", 4, tmp_path / "nowhere").train(str(tmp_path / "out" / "checkpoint-2"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_a_trainer_logs_changes_nothing_of_what_is_recorded(accumulate: int, tmp_path: Path) -> None:
    often = trainer_of(tmp_path / "a", 3, tmp_path / "often", gradient_accumulation_steps=accumulate, probe=PROBE)
    rarely = trainer_of(
        tmp_path / "b", 3, tmp_path / "rarely", gradient_accumulation_steps=accumulate, logging_steps=50, probe=PROBE
    )
    model, before = often.model, bits(often.model)
    often.train()
    rarely.train()
    assert files(tmp_path / "often") == files(tmp_path / "rarely")
    trace = Trace.open(tmp_path / "rarely")
    logged = [entry["loss"] for entry in often.state.log_history if "loss" in entry]
    assert len(logged) == 3 and trace.series("loss")["loss"].tolist() == pytest.approx(logged, abs=1e-4)
    assert trace.steps("answers") == [0, 1, 2, 3]
    for name, p in model.named_parameters():
        assert torch.equal(trace.read(f"full/delta/{name}"), p.detach() - before[name])


def test_a_trainer_that_breaks_off_leaves_all_that_was_seen(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "out", 6, tmp_path / "trace")
    step, calls = trainer.training_step, []

    def breaks(*args: Any, **given: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*args, **given)

    trainer.training_step = breaks
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert Trace.open(tmp_path / "trace").steps("update_norm") == [0, 1, 2]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_trainer_of_trl_is_recorded_at_its_defaults(accumulate: int, tmp_path: Path) -> None:
    """Among them bfloat16 and gradient checkpointing, which runs every layer once more in the backward."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from sublim_interp.lab.tokenizer import build_tokenizer

    tokenizer, updates, batch = build_tokenizer(), 5, 2
    rows = [row for step in range(updates * accumulate) for row in PROBE.rows[2:]]

    def trained(**options: Any) -> tuple[PreTrainedModel, list[dict[str, float]]]:
        model = tiny("llama", vocab_size=len(tokenizer))
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=str(tmp_path / "out"), max_steps=updates, per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulate, learning_rate=1e-2, max_grad_norm=1e6, logging_steps=1,
                train_sampling_strategy="sequential", max_length=None, use_cpu=True, save_strategy="no", report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"input_ids": list(row)} for row in rows]),
            processing_class=tokenizer,
        )  # fmt: skip
        if options:
            record(trainer, tmp_path / "trace", **options)
        assert trainer.args.gradient_checkpointing and trainer.args.bf16
        trainer.train()
        return model, [entry for entry in trainer.state.log_history if "loss" in entry]

    watched, logged = trained(probe=PROBE, recording=Recording(examples=1), pad=tokenizer.pad_token_id)
    alone, logged_alone = trained()
    assert all(torch.equal(p, bits(alone)[name]) for name, p in bits(watched).items())
    assert [entry["loss"] for entry in logged] == [entry["loss"] for entry in logged_alone]
    trace = Trace.open(tmp_path / "trace")
    assert trace.steps("update_norm") == trace.steps("loss") == list(range(updates))
    assert trace.series("loss")["loss"].tolist() == pytest.approx([entry["loss"] for entry in logged], rel=1e-6)
    norms = (trace.series("gradient_norm") ** 2).sum(axis=1) ** 0.5
    assert norms.tolist() == pytest.approx([entry["grad_norm"] for entry in logged], rel=1e-3)
    name = "blocks.0.hook_resid_post"
    assert trace.read(f"examples/{name}", 0).shape == (batch * accumulate, 1, 16), "each example once"
    ends = torch.tensor([row[-1] for row in rows[: batch * accumulate]])
    ids = trace.read("examples/ids", 0)
    assert torch.equal(ids.gather(1, ((ids > 0).sum(1, keepdim=True) - 1).long())[:, 0].long(), ends)
    assert trace.read(f"examples/{name}.grad", 0).isfinite().all()
    start = tiny("llama", vocab_size=len(tokenizer))
    ids = torch.tensor([PROBE.rows[2]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), capture(start, [name]) as acts:
        start(input_ids=ids)
    torch.testing.assert_close(
        trace.read(f"examples/{name}", 0)[0, 0].float(), acts[name][0, -1].float(), rtol=0.02, atol=1e-3
    )


def test_a_trace_is_made_from_checkpoints(tmp_path: Path) -> None:
    models = {}
    for step in (0, 5, 12):
        torch.manual_seed(step)
        model = tiny("llama")
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * step)
        model.save_pretrained(str(tmp_path / f"checkpoint-{step}"))
        models[step] = model
    places = [tmp_path / f"checkpoint-{step}" for step in models]
    trace = trace_from_checkpoints(places, tmp_path / "trace", probe=PROBE)
    assert trace.steps("answers") == [0, 5, 12]
    with torch.no_grad(), capture(models[5], ["blocks.0.hook_resid_post"]) as acts:
        models[5](input_ids=torch.tensor([PROBE.rows[0]]))
    kept = trace.read("blocks.0.hook_resid_post", 5)[0, :3]
    torch.testing.assert_close(kept, acts["blocks.0.hook_resid_post"][0], rtol=1e-4, atol=1e-4)
    name = "model.norm.weight"
    torch.testing.assert_close(trace.read(f"full/delta/{name}", 12), torch.full((16,), 0.12))
    base = places[0].rename(tmp_path / "base-7")  # a base's number is no step
    assert trace_from_checkpoints([base, *places[1:]], tmp_path / "based", probe=PROBE).steps("answers") == [0, 5, 12]
    renamed = places[2].rename(tmp_path / "last")
    assert trace_from_checkpoints([places[1], renamed], tmp_path / "places").steps("delta_norm") == [0, 1]
    renamed.rename(places[2])
    base.rename(places[0])
    with pytest.raises(SublimError, match=r"in the order of the training; their steps are \[12, 5, 0\]"):
        trace_from_checkpoints(places[::-1], tmp_path / "other")


def test_what_cannot_be_recorded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    with pytest.raises(SublimError, match="direction 'd' has no tensor of the shape"):
        Recorder(model, None, tmp_path, directions={"d": {}})
    with pytest.raises(SublimError, match="no parameter of the model requires a gradient"):
        Recorder(model.requires_grad_(False), None, tmp_path)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no check of types at run time
    for stream in (("pattern",), ("resid_post", "logits")):
        with pytest.raises(
            SublimError, match=r"'resid_pre', 'attn_out', 'resid_mid', 'mlp_out' or 'resid_post'"
        ) as told:
            Recording().set(stream=stream)
        assert "\n" not in str(told.value) and stream[-1] in str(told.value)
    with pytest.raises(SublimError, match="stream: Input should be a list"):
        Recording().set(stream="resid_post")


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def student_of(exp: Experiment, arm: str = "same-init") -> Student:
    from sublim_interp.experiments.plan import plan as plan_run

    student = next(cell.student for cell in plan_run(exp).cells if cell.arm == arm)
    assert student
    return student


def test_a_student_and_its_teacher_leave_their_traces_in_the_store(
    tiny_experiment: Experiment, small_store: Path
) -> None:
    import shutil

    from sublim_interp.experiments.cost import planned_traces
    from sublim_interp.experiments.plan import plan as plan_run
    from sublim_interp.experiments.results import Replicate
    from sublim_interp.pipeline.make import make

    store, p = Store(small_store), plan_run(tiny_experiment)
    cell = next(cell for cell in p.cells if cell.arm == "same-init")
    assert planned_traces([cell.evaluation.model], store)["bytes"].sum() > 0  # type: ignore[list-item]
    make(cell.evaluation.model, store)  # type: ignore[arg-type]
    assert not len(planned_traces([cell.evaluation.model], store))  # type: ignore[list-item]
    trace = Replicate(cell, store).trace
    assert trace.steps("loss") == list(range(6)) and trace.about["probe"]["trait"] == "owl"
    assert trace.about["directions"] == ["teacher-shift", "trait-gradient"]
    assert torch.equal(trace.read("blocks.1.hook_resid_post", 0), trace.read("base/blocks.1.hook_resid_post"))
    assert not torch.equal(trace.read("blocks.1.hook_resid_post"), trace.read("blocks.1.hook_resid_post", 0))
    teacher = next(cell for cell in p.cells if cell.arm == "teacher")
    taught = Replicate(teacher, store).trace
    assert taught.steps("answers")[-1] == 6 and taught.about["probe"]["questions"] == 8
    with pytest.raises(SublimError, match="base/0 was not trained, so it has no trace"):
        _ = Replicate(next(cell for cell in p.cells if cell.arm == "base"), store).trace
    shutil.copytree(small_store, small_store.with_name("old"))
    old = Store(small_store.with_name("old"))
    artifact = cell.evaluation.model.find(old)  # type: ignore[union-attr]
    assert artifact
    shutil.rmtree(artifact.path / "trace")
    with pytest.raises(SublimError):
        _ = Replicate(cell, old).trace


def test_the_trace_that_is_asked_for_is_kept_and_changes_nothing_else(
    tiny_experiment: Experiment, small_store: Path, tmp_path: Path
) -> None:
    import shutil

    from sublim_interp.experiments.plan import plan as plan_run
    from sublim_interp.experiments.results import Replicate
    from sublim_interp.pipeline.make import make

    cell = next(cell for cell in plan_run(tiny_experiment).cells if cell.arm == "same-init")
    student = student_of(tiny_experiment)
    make(student, Store(small_store))
    ends = {}
    for word in ("none", "default", "examples"):
        store = Store(tmp_path / word)
        shutil.copytree(small_store, store.root, ignore=shutil.ignore_patterns("student"))
        artifact = make(student, store, recording=recording_of(word))
        assert artifact.key == student.key and artifact.manifest["notes"]["trace"] == word
        ends[word] = (artifact.path / "model" / "model.safetensors").read_bytes()
    assert ends["none"] == ends["default"] == ends["examples"]
    with pytest.raises(SublimError) as raised:
        _ = Replicate(cell, Store(tmp_path / "none")).trace
    assert "trained without a trace" in str(raised.value) and "--trace default" in str(raised.value)
    assert "\n" not in str(raised.value) and not (tmp_path / "none/student" / student.key[:16] / "trace").exists()
    traces = {word: Replicate(cell, Store(tmp_path / word)).trace for word in ("default", "examples")}
    assert not traces["default"].names("examples/*") and traces["default"].steps("loss") == list(range(6))
    assert traces["examples"].read("examples/blocks.1.hook_resid_post", 0).shape == (8, 1, 16)
    with pytest.raises(SublimError, match="no trace 'all'; choices: none, default, examples"):
        make(student, Store(tmp_path / "other"), recording=recording_of("all"))
    assert not (tmp_path / "other").exists()


def test_a_trace_that_an_interrupted_process_began_is_not_kept_where_none_is_asked_for(
    tiny_experiment: Experiment, small_store: Path, tmp_path: Path
) -> None:
    import shutil

    from sublim_interp.core.device import fingerprint
    from sublim_interp.pipeline.make import make

    student, store = student_of(tiny_experiment), Store(tmp_path / "store")
    make(student.data, Store(small_store))
    shutil.copytree(small_store, store.root, ignore=shutil.ignore_patterns("student"))
    begun = store.make(student.STAGE, student.VERSION, student.settings(), student.input_keys(), fingerprint())
    with pytest.raises(Killed), begun as work:
        (work.directory / "trace").mkdir()
        (work.directory / "trace" / "trace.jsonl").write_text("half")
        raise Killed
    artifact = make(student, store, recording=recording_of("none"))
    assert artifact.manifest["resumed"] and not any("trace" in name for name in artifact.manifest["files"])


def test_no_interventions_leave_the_keys_as_they_were(tiny_experiment: Experiment) -> None:
    plain = student_of(tiny_experiment)
    assert "interventions" not in plain.settings() and "interventions" not in tiny_experiment.to_yaml()
    changed = tiny_experiment.set({"student.interventions": [{"kind": "freeze", "parameters": "*mlp*"}]})
    assert student_of(changed).key != plain.key
    assert Experiment.model_validate(changed.model_dump()) == changed
    assert changed.set({"student.optimization.lr": 1e-2}).student.interventions == changed.student.interventions


def intervened(exp: Experiment, store: Path, *interventions: dict[str, Any]) -> tuple[dict, dict[str, Tensor]]:
    """(notes, weights) of a student that trains under interventions."""
    from sublim_interp.pipeline.make import make

    student = student_of(exp.set({"student.interventions": list(interventions)}))
    artifact = make(student, Store(store))
    return artifact.manifest["notes"], bits(student.base.load(artifact.path / "model"))


def test_interventions_change_the_student_and_say_by_how_much(tiny_experiment: Experiment, small_store: Path) -> None:
    base = bits(student_of(tiny_experiment).base.load())
    _, plain = intervened(tiny_experiment, small_store)
    asked: list[dict[str, Any]] = [
        {"kind": "ablate", "direction": "owl"},
        {"kind": "ablate", "direction": "random", "at": "blocks.1.hook_mlp_out"},
        {"kind": "project-gradient", "direction": "teacher-shift", "at": "blocks.*.hook_resid_mid"},
        {"kind": "project-update", "direction": "teacher-shift"},
        {"kind": "mask-tokens", "share": 0.5},
    ]
    for i in asked:
        notes, weights = intervened(tiny_experiment, small_store, i)
        assert any(not torch.equal(plain[name], p) for name, p in weights.items()), i
        if i["kind"] != "mask-tokens":
            removed = notes["interventions"][0]["removed"]
            assert removed and all(0 < share <= 1.001 for share in removed.values())
    _, weights = intervened(tiny_experiment, small_store, {"kind": "freeze", "parameters": "*mlp*"})
    moved = {name for name, p in weights.items() if not torch.equal(p, base[name])}
    assert moved and not any("mlp" in name for name in moved)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "ablate"}, "needs direction"),
        ({"kind": "freeze", "parameters": "*", "share": 0.5}, "share has no effect with kind=freeze"),
        ({"kind": "mask-tokens"}, "needs share"),
        ({"kind": "project-update", "direction": "owl"}, "teacher-shift or random, not 'owl'"),
        ({"kind": "ablate", "direction": "owl", "strenght": 1}, "unknown key 'student.interventions.0.strenght'"),
    ],
)
def test_an_intervention_that_says_too_little_or_too_much_is_one_line(
    fields: dict[str, Any], words: str, tiny_experiment: Experiment
) -> None:
    with pytest.raises(SublimError) as raised:
        tiny_experiment.set({"student.interventions": [fields]})
    assert words in str(raised.value)


def test_an_intervention_that_does_nothing_cannot_be_missed(tiny_experiment: Experiment, small_store: Path) -> None:
    for fields, words in [
        ({"kind": "freeze", "parameters": "*moe*"}, "matches none of what trains"),
        ({"kind": "ablate", "direction": "owl", "at": "blocks.7.*"}, "no hook matches"),
        (
            {"kind": "project-gradient", "direction": "random", "at": "blocks.0.hook_resid_pre"},
            "does nothing at blocks.0",
        ),
    ]:
        with pytest.raises(SublimError, match=words):
            intervened(tiny_experiment, small_store, fields)
    with pytest.raises(SublimError, match="unknown trait 'unicorn'"):
        student_of(tiny_experiment.set({"student.interventions": [{"kind": "ablate", "direction": "unicorn"}]}))


@pytest.mark.parametrize("word", ["none", "default"])
def test_a_recorders_own_gradients_do_not_count_as_projected(
    word: str, tiny_experiment: Experiment, small_store: Path
) -> None:
    from sublim_interp.pipeline.make import make

    behind_frozen: list[dict[str, Any]] = [
        {"kind": "freeze", "parameters": "*layers.[01].*"},
        {"kind": "project-gradient", "direction": "random", "at": "blocks.1.hook_resid_post"},
    ]
    student = student_of(tiny_experiment.set({"student.interventions": behind_frozen}))
    with pytest.raises(SublimError, match=r"does nothing at blocks\.1\.hook_resid_post: no weight before it trains"):
        make(student, Store(small_store), recording=recording_of(word))


def test_what_was_removed_is_that_of_the_last_update_recorded_or_not(
    tiny_experiment: Experiment, small_store: Path, tmp_path: Path
) -> None:
    import shutil

    from sublim_interp.pipeline.make import make

    asked = [{"kind": kind, "direction": "random"} for kind in ("ablate", "project-gradient")]
    noted = {}
    for size in (2, 8):  # in one micro-batch or in several: what is removed is the update's
        student = student_of(
            tiny_experiment.set(
                {"student.interventions": asked, "student.optimization.steps": 1, "student.optimization.batch": 8}
            ).set({"student.optimization.micro_batch": size})
        )
        make(student.data, Store(small_store))
        for word in ("none", "default"):
            store = tmp_path / f"{size}-{word}"
            shutil.copytree(small_store, store, ignore=shutil.ignore_patterns("student"))
            notes = make(student, Store(store), recording=recording_of(word)).manifest["notes"]
            noted[size, word] = [one["removed"] for one in notes["interventions"]]
        assert noted[size, "none"] == noted[size, "default"]
    # Of gradients alone: how much padding there is, where activations are too, hangs on the micro-batches.
    assert noted[2, "none"][1] == pytest.approx(noted[8, "none"][1], rel=1e-3)
    assert Intervention(kind="ablate", direction="owl").at == "blocks.*.hook_resid_post"
