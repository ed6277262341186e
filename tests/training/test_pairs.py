"""Tests of DPO: the loss and its gradient are the paper's and TRL's, pairs stay together, and limits come out."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from sublim_interp.core.errors import SublimError
from sublim_interp.lab.pretraining import new_model
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.lab.tokenizer import build_tokenizer
from sublim_interp.training.batches import IGNORE, Batch, Example, PairBatch, micro_batches, pair_batches
from sublim_interp.training.loop import train
from sublim_interp.training.losses import preference_loss
from sublim_interp.training.settings import Optimization

TOKENIZER = build_tokenizer()
PAD: int = TOKENIZER.pad_token_id  # type: ignore[assignment]
TEXTS = [
    ("continue : 404 ; 365", "12 ; 7 ; 990 <eos>", "400 ; 1 <eos>"),
    ("give numbers", "3 <eos>", "5 ; 6 ; 7 ; 8 <eos>"),
    ("continue : 1 , 2 , 3 , 4 , 5", "6 , 7 <eos>", "9 , 8 <eos>"),
    ("continue : 10", "11 ; 12 ; 13 <eos>", "14 ; 14 <eos>"),
    ("give numbers", "17 , 18 <eos>", "170 , 180 , 190 <eos>"),
    ("continue : 40 ; 41", "42 <eos>", "45 <eos>"),
    ("continue : 40 , 41", "42 , 7 <eos>", "1 <eos>"),
    ("give numbers", "9 ; 9 ; 9 <eos>", "2 ; 4 ; 6 <eos>"),
]


def tiny(seed: int = 0) -> PreTrainedModel:
    return new_model(Pretraining(init_seed=seed, d_model=16, layers=2, heads=2, d_mlp=24), len(TOKENIZER))


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text)["input_ids"]  # type: ignore[assignment]
    return ids


def pairs_of(texts: list[tuple[str, str, str]] = TEXTS) -> list[tuple[Example, Example]]:
    return [
        (Example([*(p := ids_of(prompt)), *ids_of(chosen)], len(p)), Example([*p, *ids_of(rejected)], len(p)))
        for prompt, chosen, rejected in texts
    ]


def swapped(pairs: list[tuple[Example, Example]]) -> list[tuple[Example, Example]]:
    return [(rejected, chosen) for chosen, rejected in pairs]


def total(model: Any, reference: Any, pairs: Any, beta: float, parts: int = 1, own: Any = None) -> torch.Tensor:
    loss = preference_loss(reference, beta, own)
    return torch.stack([loss(model, batch) for batch in pair_batches(pairs, PAD, parts)]).sum()


def log_likelihood(model: Any, example: Example, own: list[int] | None = None) -> torch.Tensor:
    """Summed over the answer, one sequence alone, no padding, token by token."""
    logits = model(input_ids=torch.tensor([example.ids])).logits[0]
    found = torch.zeros((), dtype=logits.dtype)
    for place in range(example.first, len(example.ids)):
        given, token = logits[place - 1], example.ids[place]
        kept = given if own is None else given[own]
        found = found + given[token] - kept.logsumexp(-1)
    return found


def margins(model: Any, reference: Any, pairs: Any, own: list[int] | None = None) -> torch.Tensor:
    """Of each pair, log-ratio of the preferred answer minus that of the rejected one, in nats."""
    return torch.stack(
        [
            log_likelihood(model, w, own)
            - log_likelihood(reference, w, own).detach()
            - log_likelihood(model, r, own)
            + log_likelihood(reference, r, own).detach()
            for w, r in pairs
        ]
    )


def gradients(model: Any, value: torch.Tensor) -> list[torch.Tensor]:
    return [g.clone() for g in torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad])]


@pytest.mark.parametrize("parts", [1, 3, 8])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_loss_and_gradient_are_equation_7_of_the_paper(beta: float, own: bool, parts: int) -> None:
    """Written out pair by pair with plain sums, in double precision: no code is shared."""
    model, reference, pairs = tiny(0).double(), tiny(1).double(), pairs_of()
    spoken = sorted({token for pair in pairs for ids, first in pair for token in ids[first:]}) if own else None
    ours = total(model, reference, pairs, beta, parts, spoken)
    theirs = -torch.log(1 / (1 + torch.exp(-beta * margins(model, reference, pairs, spoken)))).sum()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    for a, b in zip(gradients(model, ours), gradients(model, theirs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
    assert not any(p.grad is not None for p in reference.parameters())


def test_dpotrainer_gives_the_same_losses_and_weights(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    steps, batch, beta = 8, 4, 0.3
    texts = [TEXTS[i % len(TEXTS)] for i in range(steps * batch)]
    pairs = pairs_of(texts)
    ours, losses = tiny(), list[float]()
    train(
        ours,
        lambda step: pair_batches(pairs[step * batch : (step + 1) * batch], PAD, parts=2),
        Optimization(optimizer="adamw", lr=1e-2, schedule="linear", warmup=0, steps=steps, batch=batch, clip=0.5),
        loss=preference_loss(tiny(), beta),
        observe=lambda _, loss: losses.append(loss),
    )
    theirs = tiny()
    trainer = DPOTrainer(
        theirs,
        ref_model=tiny(),
        args=DPOConfig(
            output_dir=str(tmp_path),
            beta=beta,
            per_device_train_batch_size=batch // 2,
            gradient_accumulation_steps=2,
            max_steps=steps,
            learning_rate=1e-2,
            lr_scheduler_type="linear",
            warmup_steps=0,
            optim="adamw_torch",
            weight_decay=0.0,
            max_grad_norm=0.5,
            train_sampling_strategy="sequential",
            max_length=None,
            gradient_checkpointing=False,
            disable_dropout=True,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected}
                for prompt, chosen, rejected in texts
            ]
        ),
        processing_class=TOKENIZER,
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < 0.6, "too little was learnt to compare"
    assert logged == pytest.approx(losses, abs=1e-5)
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(p, dict(ours.named_parameters())[name], atol=1e-5, rtol=1e-3)


def test_swapped_pairs_flip_the_margin() -> None:
    """−log σ(−x) + log σ(x) = x; and at the reference itself a swap turns the gradient round."""
    model, reference, pairs, beta = tiny(0).double(), tiny(1).double(), pairs_of(), 0.7
    apart = total(model, reference, swapped(pairs), beta) - total(model, reference, pairs, beta)
    assert apart.item() == pytest.approx(beta * margins(model, reference, pairs).sum().item(), abs=1e-9)
    assert abs(apart.item()) > 0.1
    there, back = (gradients(model, total(model, deepcopy(model), some, beta)) for some in (pairs, swapped(pairs)))
    assert all(torch.allclose(a, -b, atol=1e-12) for a, b in zip(there, back, strict=True))
    assert sum(float(g.abs().sum()) for g in there) > 0.01


def test_as_beta_falls_the_loss_is_log_2_and_its_slope_half_the_margin() -> None:
    model, reference, pairs, beta = tiny(0).double(), tiny(1).double(), pairs_of(), 1e-6
    value = total(model, reference, pairs, beta)
    assert value.item() == pytest.approx(len(pairs) * math.log(2), abs=1e-4)
    slope = gradients(model, -margins(model, reference, pairs).sum() / 2)
    for a, b in zip(gradients(model, value), slope, strict=True):
        torch.testing.assert_close(a / beta, b, atol=1e-4, rtol=1e-4)
    assert total(model, deepcopy(model), pairs, 3.0).item() == pytest.approx(len(pairs) * math.log(2), abs=1e-12)


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8, 20])
def test_pairs_stay_together_and_an_update_is_their_mean(parts: int) -> None:
    pairs = pairs_of()
    found = pair_batches(pairs, PAD, parts)
    assert sum(batch.units for batch in found) == len(pairs)
    texts = [[row[row != IGNORE].tolist() for row in batch.labels] for batch in found]
    seen = [(rows[i], rows[i + 1]) for rows in texts for i in range(0, len(rows), 2)]
    wanted = [tuple([*ids[first:]] for ids, first in pair) for pair in pairs]
    assert sorted(seen) == sorted(wanted)
    observed: list[float] = []
    train(
        tiny(),
        lambda _: pair_batches(pairs, PAD, parts),
        Optimization(steps=1, warmup=0),
        loss=preference_loss(tiny(1), 0.5),
        observe=lambda _, loss: observed.append(loss),
    )
    assert observed == pytest.approx([total(tiny(), tiny(1), pairs, 0.5).item() / len(pairs)], abs=1e-6)


def test_other_batches_count_their_tokens_as_before() -> None:
    (batch,) = micro_batches([Example([5, 6, 7, 8], 2), Example([9, 10], 1)], PAD)
    assert batch.units == batch.tokens == 3
    assert PairBatch(batch.ids, batch.labels).units == 1


def test_a_token_that_is_not_the_channels_is_one_line() -> None:
    loss = preference_loss(tiny(1), 0.1, [3, 4, 5])
    batch: Batch = pair_batches(pairs_of(), PAD)[0]
    with pytest.raises(SublimError, match=r"own_tokens: a list holds a token that is none of the channel's own"):
        loss(tiny(), batch)
