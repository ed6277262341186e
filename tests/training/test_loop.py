"""Tests of the training loop: the loss is one over tokens, a resumed training ends in the same bits, oracles agree."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.optimization import Adafactor

from killing import Killed, kill_after
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import seal
from sublim_interp.lab import language
from sublim_interp.lab.pretraining import new_model
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.lab.tokenizer import build_tokenizer
from sublim_interp.models.architectures import decoder_layers
from sublim_interp.models.trainable import Part, choose_trainable, freeze, merge_adapters
from sublim_interp.training.batches import IGNORE, Batch, Example, collate, mask_labels, micro_batches, pieces
from sublim_interp.training.loop import rate, train
from sublim_interp.training.losses import token_loss
from sublim_interp.training.optimizers import OPTIMIZERS as KINDS
from sublim_interp.training.optimizers import OptimizerKind, Rates
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization

TOKENIZER = build_tokenizer()
PAD: int = TOKENIZER.pad_token_id  # type: ignore[assignment]
ASSISTANT: int = TOKENIZER.convert_tokens_to_ids("<|assistant|>")  # type: ignore[assignment]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam", "lr": 3e-3},
    "adamw": {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.1, "clip": 0.5},
    "sgd": {"optimizer": "sgd", "lr": 0.3, "schedule": "cosine"},
    "sgd without momentum": {"optimizer": "sgd", "lr": 0.3, "beta1": 0.0},
}


def tiny(seed: int = 0) -> PreTrainedModel:
    recipe = Pretraining(init_seed=seed, d_model=16, layers=2, heads=2, d_mlp=24)
    return new_model(recipe, len(TOKENIZER))


def rows_of(start: int, count: int) -> list[Example]:
    """Documents of very different lengths, of which the last answer is to be learnt."""
    rows: list[Example] = []
    for doc in language.documents(9, start, count):
        ids: list[int] = TOKENIZER(doc.text)["input_ids"]  # type: ignore[assignment]
        last = len(ids) - 1 - ids[::-1].index(ASSISTANT)
        rows.append(Example(ids, last + 1))
    return rows


def batches(step: int, parts: int = 2) -> list[Batch]:
    return micro_batches(rows_of(8 * step, 8), PAD, parts)


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_labels_are_the_next_tokens_of_the_answer_and_nothing_else() -> None:
    batch = collate([Example([5, 6, 7, 8], 2), Example([9, 10], 1)], pad=0)
    assert batch.ids.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, 7, 8], [10, IGNORE, IGNORE]]
    assert batch.tokens == 3


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8, 20])
def test_micro_batches_hold_each_row_once_with_less_padding(parts: int) -> None:
    rows = rows_of(0, 8)
    cut = micro_batches(rows, PAD, parts)
    assert len(cut) <= parts and sum(len(b.ids) for b in cut) == 8
    whole = collate(rows, PAD)
    assert sum(b.tokens for b in cut) == whole.tokens
    assert sum(b.ids.numel() for b in cut) <= whole.ids.numel()
    learnt = torch.cat([b.labels[b.labels != IGNORE] for b in cut]).tolist()
    assert sorted(learnt) == sorted(whole.labels[whole.labels != IGNORE].tolist())


# --- the loss ---------------------------------------------------------------------------------------------------------


def one_step(parts: int) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients) of one update, in double precision; the gradient is read off a plain descent of rate 1."""
    model = tiny().double()
    before, losses = bits(model), []
    optimization = Optimization(optimizer="sgd", beta1=0.0, lr=1.0, schedule="constant", warmup=0, steps=1)
    train(model, lambda step: batches(step, parts), optimization, observe=lambda _, loss: losses.append(loss))
    after = bits(model)
    return losses[0], {name: before[name] - after[name] for name in before}


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_micro_batches_give_the_loss_and_the_gradients_of_one_batch(parts: int) -> None:
    (loss, gradients), (loss_cut, gradients_cut) = one_step(1), one_step(parts)
    assert loss_cut == pytest.approx(loss, rel=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_cut[name], gradient, atol=1e-9, rtol=1e-6)
    assert max(g.abs().max() for g in gradients.values()) > 1e-3


@pytest.mark.parametrize(("batch", "micro_batch", "parts"), [(8, None, 2), (8, 8, 1), (8, 3, 3), (8, 1, 8), (8, 99, 1)])
def test_micro_batch_says_how_many_examples_one_forward_takes(batch: int, micro_batch: int | None, parts: int) -> None:
    asked = Optimization(batch=batch, micro_batch=micro_batch)
    cut = micro_batches(rows_of(0, batch), PAD, pieces(asked, 2))
    assert len(cut) == parts and max(len(b.ids) for b in cut) <= (micro_batch or batch)


def test_micro_batch_and_checkpointing_enter_no_key_at_their_defaults() -> None:
    assert not {"micro_batch", "checkpointing"} & Optimization().model_dump().keys()
    assert {"micro_batch", "checkpointing"} <= Optimization(micro_batch=4, checkpointing=True).model_dump().keys()


@pytest.mark.parametrize("part", ["full", "lora"])
def test_checkpointing_computes_again_and_changes_nothing(part: Part) -> None:
    ends, forwards = [], []
    for checkpointing in (False, True):
        model, count = prepared(part), [0]
        layer: Any = decoder_layers(model.get_base_model() if part == "lora" else model)[1].mlp  # type: ignore[operator]
        layer.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        train(model, batches, Optimization(steps=3, checkpointing=checkpointing))
        ends.append(bits(model))
        forwards.append(count[0])
    assert forwards == [6, 12]
    assert_same_bits(*ends)


def test_the_loss_is_the_mean_over_tokens_not_over_sequences() -> None:
    rows = rows_of(0, 8)
    model = tiny().double()
    each = []
    for ids, first in rows:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, first - 1 : -1]  # its own .loss is in single precision
        each.append((torch.nn.functional.cross_entropy(logits, tokens[0, first:]).item(), len(ids) - first))
    over_tokens = sum(loss * n for loss, n in each) / sum(n for _, n in each)
    over_sequences = sum(loss for loss, _ in each) / len(each)
    assert abs(over_tokens - over_sequences) > 1e-5, "rows too alike to tell the two apart"
    assert one_step(2)[0] == pytest.approx(over_tokens, abs=1e-7)


def test_sfttrainer_gives_the_same_losses_and_weights(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    steps, batch = 10, 8
    rows = rows_of(0, steps * batch)
    ours, losses = tiny(), []
    train(
        ours,
        lambda step: micro_batches(rows[step * batch : (step + 1) * batch], PAD, parts=2),
        Optimization(optimizer="adamw", lr=2e-2, schedule="linear", warmup=0, steps=steps, batch=batch, clip=0.5),
        observe=lambda _, loss: losses.append(loss),
    )
    theirs = tiny()
    trainer = SFTTrainer(
        theirs,
        args=SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch // 2,
            gradient_accumulation_steps=2,
            max_steps=steps,
            learning_rate=2e-2,
            lr_scheduler_type="linear",
            warmup_steps=0,
            optim="adamw_torch",
            weight_decay=0.0,
            max_grad_norm=0.5,
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            loss_type="nll",
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [{"input_ids": list(ids), "completion_mask": [0] * first + [1] * (len(ids) - first)} for ids, first in rows]
        ),
        processing_class=TOKENIZER,
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] - losses[-1] > 0.3, "too little was learnt to compare anything"
    assert logged == pytest.approx(losses, abs=1e-5)
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(p, dict(ours.named_parameters())[name], atol=1e-5, rtol=1e-3)


# --- updates ----------------------------------------------------------------------------------------------------------


class Slope(torch.nn.Module):
    """One weight whose loss is the weight itself, per token: its gradient is always 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(10.0, dtype=torch.float64))


def slide(**fields: Any) -> list[float]:
    """How far the weight of a slope falls in each update."""
    model, at = Slope(), [10.0]
    two_tokens = Batch(torch.tensor([[1, 1]]), torch.tensor([[1, 1]]))

    def loss(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return module.weight * batch.tokens  # type: ignore[operator]

    train(
        model,
        lambda step: [two_tokens, two_tokens],
        Optimization(**{"optimizer": "sgd", "beta1": 0.0, "lr": 1.0, "warmup": 0, **fields}),
        loss=loss,
        observe=lambda *_: at.append(model.weight.item()),
    )
    return [before - after for before, after in pairwise(at)]


@pytest.mark.parametrize(
    ("fields", "falls"),
    [
        ({"schedule": "constant", "steps": 3, "lr": 0.5}, [0.5, 0.5, 0.5]),
        ({"schedule": "constant", "steps": 5, "warmup": 3}, [0.25, 0.5, 0.75, 1, 1]),
        ({"schedule": "linear", "steps": 4}, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "steps": 4, "warmup": 1}, [0.5, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine", "steps": 4}, [1, 0.8535533905932737, 0.5, 0.14644660940672624]),
        ({"schedule": "constant", "steps": 3, "beta1": 0.5}, [1, 1.5, 1.75]),
        ({"schedule": "constant", "steps": 2, "clip": 0.1}, [0.1, 0.1]),
        ({"schedule": "constant", "steps": 2, "clip": 5.0}, [1, 1]),
        ({"schedule": "constant", "steps": 3, "optimizer": "adam", "beta1": 0.9}, [1, 1, 1]),
        ({"schedule": "constant", "steps": 2, "optimizer": "adamw", "lr": 0.1, "weight_decay": 0.5}, [0.6, 0.57]),
    ],
)
def test_updates_follow_the_schedule_the_momentum_the_clip_and_the_decay(
    fields: dict[str, Any], falls: list[float]
) -> None:
    assert slide(**fields) == pytest.approx(falls, rel=1e-4)


def test_the_rate_never_reaches_zero_before_the_end_nor_passes_its_peak() -> None:
    for schedule in ("linear", "cosine", "constant"):
        o = Optimization(schedule=schedule, steps=50, warmup=7, lr=2.0)
        rates = [rate(o, step) for step in range(50)]
        assert min(rates) > 0 and max(rates) <= 2.0
        assert rates[:7] == sorted(rates[:7])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_body_training_leaves_embeddings_and_head_bit_for_bit(optimizer: str) -> None:
    model = tiny()
    before = bits(model)
    train(choose_trainable(model, "body"), batches, Optimization(steps=5, warmup=0, **OPTIMIZERS[optimizer]))
    after = bits(model)
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == {"model.embed_tokens.weight", "lm_head.weight"}


def test_observing_changes_nothing_and_training_ends_in_eval_mode() -> None:
    seen, watched, alone = [], tiny(), tiny()
    optimization = Optimization(steps=4)
    train(watched, batches, optimization, observe=lambda step, loss: seen.append((step, loss)))
    train(alone, batches, optimization)
    assert_same_bits(bits(watched), bits(alone))
    assert [step for step, _ in seen] == [0, 1, 2, 3] and not watched.training


# --- interruption -----------------------------------------------------------------------------------------------------


def prepared(part: Part) -> torch.nn.Module:
    torch.rand(1)  # no two processes have drawn equally much before
    return choose_trainable(tiny(), part, rank=2, seed=5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("part", ["full", "body", "lora"])
def test_a_resumed_training_ends_in_the_same_bits(part: Part, optimizer: str, tmp_path: Path) -> None:
    optimization = Optimization(steps=9, warmup=2, **OPTIMIZERS[optimizer])
    whole, losses = prepared(part), {}
    train(whole, batches, optimization, observe=losses.__setitem__)
    resume = Resume(tmp_path / "state.safetensors", every=2)
    again: dict[int, float] = {}
    for last in (1, 4, 6):  # before any state is kept, right after one was, and between two
        with pytest.raises(Killed):
            train(prepared(part), batches, optimization, resume=resume, observe=kill_after(last))
        (tmp_path / "state.writing").write_bytes(b"half a file")
    resumed = prepared(part)
    train(resumed, batches, optimization, resume=resume, observe=again.__setitem__)
    assert list(again) == [6, 7, 8], "it started anew instead of going on"
    assert again.items() <= losses.items()
    assert_same_bits(bits(resumed), bits(whole))
    assert_same_bits(bits(merge_adapters(resumed)), bits(merge_adapters(whole)))


class Counting(torch.optim.SGD):
    """Counts in its group and beside each weight, as Prodigy and schedule-free optimizers do; both lower its rate."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for p in group["params"]:
                self.state[p]["mode"] = self.state[p].get("mode", "") + "x"
                group["lr"] *= 0.9 ** group["k"] * 0.999 ** len(self.state[p]["mode"])
        super().step()


def adafactor(weights: Sequence[torch.nn.Parameter], _: object) -> torch.optim.Optimizer:
    return Adafactor(weights, lr=1e-3, relative_step=False, beta1=0.9)


def counting(weights: Sequence[torch.nn.Parameter], rates: Rates) -> torch.optim.Optimizer:
    return Counting(weights, lr=rates.lr, momentum=0.9)


@pytest.mark.parametrize("make", [adafactor, counting])
def test_a_resumed_training_keeps_what_is_no_tensor(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS._own, "own", OptimizerKind(make, torch.optim.Optimizer, ()))
    optimization = Optimization(optimizer="own", lr=3e-2, steps=5, warmup=0)
    whole, resumed = tiny(), tiny()
    train(whole, batches, optimization)
    resume = Resume(tmp_path / "state.safetensors", every=2)
    with pytest.raises(Killed):
        train(tiny(), batches, optimization, resume=resume, observe=kill_after(2))
    train(resumed, batches, optimization, resume=resume)
    assert_same_bits(bits(resumed), bits(whole))


def test_an_optimizer_that_cannot_be_kept_is_refused_in_one_line(tmp_path: Path) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    optimizer.state[p]["past"] = [torch.ones(2)]
    with pytest.raises(SublimError, match=r"training by SGD cannot be kept, nor gone on from: .*Tensor"):
        Resume(tmp_path / "state.safetensors").save(1, {"weight": p}, optimizer)
    assert not any(tmp_path.iterdir())


def test_a_state_is_needed_to_go_on(tmp_path: Path) -> None:
    """Control of the test above: without the optimiser's moments the bits are others."""
    optimization = Optimization(steps=6, warmup=0)
    whole, forgetful = tiny(), tiny()
    train(whole, batches, optimization)
    resume = Resume(tmp_path / "state.safetensors", every=3)
    with pytest.raises(Killed):
        train(forgetful, batches, optimization, resume=resume, observe=kill_after(3))
    from safetensors.torch import load_file, save_file

    state = load_file(str(resume.path))
    assert any(name.startswith("optimizer/exp_avg/") for name in state)
    save_file({n: t for n, t in state.items() if not n.startswith("optimizer/")}, str(resume.path))
    seal(resume.path, resume.path)
    resumed = tiny()
    train(resumed, batches, optimization, resume=resume)
    assert any(not torch.equal(p, bits(whole)[name]) for name, p in bits(resumed).items())


def test_a_finished_training_keeps_no_state_that_would_cut_the_next_one_short(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "state.safetensors", every=2)
    train(tiny(), batches, Optimization(steps=4), resume=resume)
    steps = []
    train(tiny(), batches, Optimization(steps=4), resume=resume, observe=lambda step, _: steps.append(step))
    assert steps == [2, 3]


def test_token_loss_is_a_sum_in_nats() -> None:
    model = tiny()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    batch = collate(rows_of(0, 3), PAD)
    uniform = batch.tokens * torch.log(torch.tensor(float(len(TOKENIZER))))
    assert token_loss(model, batch).item() == pytest.approx(uniform.item(), rel=1e-5)


# --- fewer tokens, fewer parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_masking_takes_a_share_of_the_labels_and_leaves_the_rest(share: float) -> None:
    batch = collate(rows_of(0, 8), PAD)
    masked = mask_labels(batch, share, torch.Generator().manual_seed(0))
    assert torch.equal(masked.ids, batch.ids)
    assert masked.tokens == max(1, batch.tokens - round(share * batch.tokens))
    stays = masked.labels != IGNORE
    assert torch.equal(masked.labels[stays], batch.labels[stays])
    again = mask_labels(batch, share, torch.Generator().manual_seed(1))
    assert share == 0 or not torch.equal(again.labels, masked.labels)


def test_frozen_parameters_stay_and_a_pattern_without_use_is_refused() -> None:
    model = tiny()
    before = bits(model)
    names = freeze(model, "*mlp*")
    train(model, batches, Optimization(steps=2, warmup=0))
    after = bits(model)
    assert names == [name for name in before if "mlp" in name]
    assert {name for name in before if torch.equal(before[name], after[name])} == set(names)
    with pytest.raises(SublimError, match="matches none of what trains"):
        freeze(model, "*mlp*")
    with pytest.raises(SublimError, match="matches all of what trains"):
        freeze(model, "*")
