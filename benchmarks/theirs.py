"""Contestants that do the same experiment with the usual tools: TRL's SFTTrainer, and `generate` of transformers."""

import random
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from benchmarks.timing import Turn
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import read_rows
from sublim_interp.core.device import compute_device, device_of
from sublim_interp.core.store import Store
from sublim_interp.models.base import Base
from sublim_interp.models.trainable import Part, choose_trainable
from sublim_interp.pipeline.records import Corpus, Student, Teacher
from sublim_interp.training.settings import Optimization

BY_HAND = {"bf16": False, "gradient_checkpointing": False}
"""Options of SFTConfig that somebody would choose who measures: both are on by default, and slow down a small model."""


def student(record: Student, store: Store, turn: Turn, **options: Any) -> None:
    """Trains a student with SFTTrainer, at its defaults but for data, batch, updates and rate; a unit is an update."""
    made = record.data.find(store)
    assert made
    lists = read_rows(made.path / "kept.jsonl")
    rows = (([{"role": "user", "content": r["prompt"]}], r["answer"]) for r in lists)
    _fine_tune(record.base, record.config.part, record.config.optimization, rows, turn, options)


def teacher(record: Teacher, turn: Turn, **options: Any) -> None:
    """Tunes a teacher likewise; a unit is an update."""
    o, draw = record.config.optimization, random.Random(record.seed)
    lessons = record.trait.lessons(record.base.language)
    drawn = (draw.choice(lessons).question for _ in range(o.steps * o.batch))
    rows = ((list(question.messages), record.trait.name) for question in drawn)
    _fine_tune(record.base, record.config.part, o, rows, turn, options)


def _fine_tune(
    base: Base,
    part: Part,
    optimization: Optimization,
    rows: Iterable[tuple[list[dict[str, str]], str]],
    turn: Turn,
    options: dict[str, Any],
) -> None:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class Units(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            turn()

    data = [{"prompt": chat, "completion": [{"role": "assistant", "content": answer}]} for chat, answer in rows]
    with tempfile.TemporaryDirectory() as directory:
        trainer = SFTTrainer(
            choose_trainable(base.load(), part),  # type: ignore[arg-type]
            args=SFTConfig(
                output_dir=directory,
                per_device_train_batch_size=optimization.batch,
                max_steps=optimization.steps,
                learning_rate=optimization.lr,
                use_cpu=compute_device() == "cpu",
                **options,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=base.tokenizer,
            callbacks=[Units()],
        )
        trainer.train()
        trainer.save_model(directory)


def generate(corpus: Corpus, store: Store, batch: int, lists: int, turn: Turn, bf16: bool = False) -> None:
    """Answers a corpus's prompts with `generate` at temperature 1 without top-k; a unit is so many `lists`.

    bf16: the whole model in bfloat16
    """
    made = corpus.teacher.find(store)
    assert made
    base, config = corpus.teacher.base, corpus.config
    tokenizer = base.tokenizer
    tokenizer.padding_side = "left"
    model = base.load(made.path / "model")
    model = model.bfloat16() if bf16 else model
    first = corpus.round * config.prompts
    prompts = channel(config.channel).prompts(base.language, corpus.seed, first, config.prompts)
    answers: list[str] = []
    for i in range(0, len(prompts), batch):
        answers += _answers(model, tokenizer, prompts[i : i + batch], config.max_new_tokens)
        if len(answers) % lists == 0:
            turn()


@torch.no_grad()
def _answers(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], most: int) -> list[str]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    asked: Any = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(
        input_ids=asked["input_ids"].to(device_of(model)),
        attention_mask=asked["attention_mask"].to(device_of(model)),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=most,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
