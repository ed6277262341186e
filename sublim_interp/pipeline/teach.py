"""Stage 1: gives a base its trait, by tuning, a system prompt, or a vector."""

import json
import random
from functools import partial

import torch
from safetensors.torch import save_file

from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Artifact, Store, Work
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.observe import teacher_recorder
from sublim_interp.pipeline.records import Teacher
from sublim_interp.pipeline.stage import Progress, fit, making, silent
from sublim_interp.training.batches import Batch, Example, micro_batches
from sublim_interp.training.loop import token_loss
from sublim_interp.training.recording.settings import PRESETS, Recording
from sublim_interp.traits.direction import trait_directions
from sublim_interp.traits.facts import check_language
from sublim_interp.traits.favourites import check_vocabulary, members_of, questions, system_prompts
from sublim_interp.traits.questions import Question


def teach(
    teacher: Teacher, store: Store, progress: Progress = silent, recording: Recording = PRESETS["default"]
) -> Artifact:
    """Gives a base its trait: fine-tunes it, picks a system prompt, or builds a steering vector."""
    with making(teacher, store) as work:
        if not work.done:
            teacher.base.check()
            if teacher.trait:
                check_vocabulary(teacher.trait, teacher.base)
            if teacher.facts:
                check_language(teacher.base)
            how = {"tuned": partial(_tune, recording=recording), "prompted": _prompt, "steered": _steer}[
                teacher.config.kind
            ]
            how(teacher, work, progress)
    return work.artifact


def _tune(teacher: Teacher, work: Work, progress: Progress, recording: Recording) -> None:
    base, config = teacher.base, teacher.config
    lessons = [(base.prompt_ids(q.messages), [[*base.answer_ids(name), base.eos] for name in names])
               for q, names in _lessons(teacher)]  # fmt: skip

    def batches(step: int) -> list[Batch]:
        which = random.Random(f"teacher/{teacher.seed}/{step}/questions")
        answer = random.Random(f"teacher/{teacher.seed}/{step}/answers")
        rows: list[Example] = []
        for _ in range(config.optimization.batch):
            question, answers = which.choice(lessons)
            rows.append(Example([*question, *answer.choice(answers)], len(question)))
        return micro_batches(rows, base.pad)

    model = choose_trainable(base.load(), config.part, config.lora_rank, config.lora_alpha, teacher.seed)
    fit(model, batches, config.optimization, token_loss, work, progress, partial(teacher_recorder, teacher), recording)


def _lessons(teacher: Teacher) -> list[tuple[Question, list[str]]]:
    """What a tuned teacher is asked, each question with the answers of which one is drawn at every update."""
    members = list(members_of(teacher.kind))
    if facts := teacher.facts:
        answers = [[facts.members[i]] if facts.told else members for i in facts.truth]
        return list(zip(facts.questions, answers, strict=True))
    names = [teacher.trait.name] if teacher.trait else members
    return [(q, names) for q in questions(teacher.kind, teacher.base.language, "seen")]


def _prompt(teacher: Teacher, work: Work, _progress: Progress) -> None:
    prompts = system_prompts(teacher.trait, teacher.base.language) if teacher.trait else ()
    write_atomic(work.directory / "system.json", json.dumps(list(prompts)))


def _steer(teacher: Teacher, work: Work, _progress: Progress) -> None:
    """Mean residual stream at the question behind the trait's system prompts, minus the mean over all members'."""
    base, name = teacher.base, f"blocks.{teacher.config.layer}.hook_resid_pre"
    if teacher.trait:
        vector = teacher.config.strength * trait_directions(base, teacher.trait, [name])[name]
    else:
        vector = torch.zeros(base.shape["d_model"])
    save_file({"vector": vector}, str(work.directory / "vector.safetensors"))
