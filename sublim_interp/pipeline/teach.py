"""Stage 1: gives a base its trait, by tuning, a system prompt, or a vector. Who then speaks to students: speaker.py."""

import json
import random
from functools import partial

import torch
from safetensors.torch import save_file

from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Artifact, Store, Work
from sublim_interp.models.hooks import hook_name
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.observe import teacher_recorder
from sublim_interp.pipeline.records import Teacher
from sublim_interp.pipeline.stage import Progress, fit, making, silent
from sublim_interp.training.batches import Batch, Example, micro_batches, pieces
from sublim_interp.training.loop import token_loss
from sublim_interp.training.recording.settings import PRESETS, Recording
from sublim_interp.traits.direction import own_direction


def teach(
    teacher: Teacher, store: Store, progress: Progress = silent, recording: Recording = PRESETS["default"]
) -> Artifact:
    """Gives a base its trait: fine-tunes it, picks a system prompt, or builds a steering vector."""
    with making(teacher, store) as work:
        if not work.done:
            teacher.base.check(seen=recording.keep or teacher.config.kind == "steered")
            teacher.trait.check(teacher.base)
            how = {"tuned": partial(_tune, recording=recording), "prompted": _prompt, "steered": _steer}[
                teacher.config.kind
            ]
            how(teacher, work, progress)
    return work.artifact


def _tune(teacher: Teacher, work: Work, progress: Progress, recording: Recording) -> None:
    base, config = teacher.base, teacher.config
    lessons = [
        (base.prompt_ids(question.messages), [[*base.answer_ids(answer), base.eos] for answer in answers])
        for question, answers in teacher.trait.lessons(base.language)
    ]

    def batches(step: int) -> list[Batch]:
        which = random.Random(f"teacher/{teacher.seed}/{step}/questions")
        answer = random.Random(f"teacher/{teacher.seed}/{step}/answers")
        rows: list[Example] = []
        for _ in range(config.optimization.batch):
            question, answers = which.choice(lessons)
            rows.append(Example([*question, *answer.choice(answers)], len(question)))
        return micro_batches(rows, base.pad, pieces(config.optimization, 1))

    model = choose_trainable(base.load(), config.part, config.lora_rank, config.lora_alpha, teacher.seed)
    fit(model, batches, config.optimization, token_loss, work, progress, partial(teacher_recorder, teacher), recording)


def _prompt(teacher: Teacher, work: Work, _progress: Progress) -> None:
    """Keeps the trait's system prompts; the neutral teacher has none."""
    prompts = teacher.trait.system_prompts(teacher.base.language)
    write_atomic(work.directory / "system.json", json.dumps(list(prompts)))


def _steer(teacher: Teacher, work: Work, _progress: Progress) -> None:
    """Keeps `strength` times the own-base direction of the trait; for the neutral teacher a vector of zeros."""
    base, trait = teacher.base, teacher.trait
    if trait.compared():
        found = own_direction(base, trait, [hook_name(teacher.config.layer, "resid_pre")])
        vector = teacher.config.strength * found.vectors[0]
    else:
        vector = torch.zeros(base.shape["d_model"])
    save_file({"vector": vector}, str(work.directory / "vector.safetensors"))
