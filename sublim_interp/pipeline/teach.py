"""Stage 1: gives a base its trait. Every way of this package is a class here."""

import json
import random
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Artifact, Store, Work
from sublim_interp.models.base import Base
from sublim_interp.models.hooks import added, hook_name
from sublim_interp.models.served import FOLDER, PLAIN, ServedModel
from sublim_interp.models.trainable import IN_WORDS
from sublim_interp.pipeline.observe import teacher_recorder
from sublim_interp.pipeline.records import StoredStudent, Teacher
from sublim_interp.pipeline.settings import TeacherConfig
from sublim_interp.pipeline.stage import Progress, choose_part, fit, making, silent
from sublim_interp.pipeline.ways import WAYS, Way
from sublim_interp.training.batches import Batch, Example, micro_batches, pieces
from sublim_interp.training.losses import token_loss
from sublim_interp.training.recording.settings import PRESETS, Recording
from sublim_interp.traits.direction import own_direction
from sublim_interp.traits.protocol import Trait


def teach(
    teacher: Teacher, store: Store, progress: Progress = silent, recording: Recording = PRESETS["default"]
) -> Artifact:
    """Gives a base its trait, in the way that the teacher's configuration names."""
    with making(teacher, store) as work:
        if not work.done:
            way = WAYS[teacher.config.kind]
            teacher.base.check(seen=recording.keep or way.HOOKS)
            teacher.trait.check(teacher.base)
            way.make(teacher, work, progress, recording)
    return work.artifact


class Tuned(Way):
    """Fine-tuned on the trait's lessons."""

    TRAINS = OWN_WEIGHTS = True

    def make(self, teacher: Teacher, work: Work, progress: Progress, recording: Recording) -> None:
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

        model = choose_part(base.load(), base, config, teacher.seed)
        record = partial(teacher_recorder, teacher)
        fit(model, batches, config.optimization, token_loss, work, progress, record, recording)

    def load(self, teacher: Teacher, store: Store) -> Any:
        return teacher.base.load(teacher.made(store) / "model")

    def describe(self, config: TeacherConfig, lesson: str) -> str:
        o = config.optimization
        updates = f"{o.steps:,} update{'s' * (o.steps != 1)} of {o.batch} examples"
        return f"is fine-tuned on {lesson}, for {updates}. It trains {IN_WORDS[config.part]}"


class Prompted(Way):
    """Behind the trait's system prompts; the neutral teacher has none."""

    OWN_PROMPT = True

    def check(self, config: TeacherConfig, trait: Trait, base: Base) -> None:
        if not trait.system_prompts(base.language):
            raise SublimError(
                f"teacher.kind={config.kind}: trait {trait.name} has no system prompts for {base.name}; "
                "choose kind=tuned"
            )

    def make(self, teacher: Teacher, work: Work, progress: Progress, recording: Recording) -> None:
        prompts = teacher.trait.system_prompts(teacher.base.language)
        write_atomic(work.directory / "system.json", json.dumps(list(prompts)))

    def systems(self, teacher: Teacher, store: Store) -> tuple[str, ...]:
        return tuple(json.loads((teacher.made(store) / "system.json").read_text()))

    def describe(self, config: TeacherConfig, lesson: str) -> str:
        return "has a system prompt that names its favourite. Its weights are the base's"


class Steered(Way):
    """`strength` times the own-base direction of the trait is added; for the neutral teacher a vector of zeros."""

    HOOKS = True

    def check(self, config: TeacherConfig, trait: Trait, base: Base) -> None:
        if not trait.compared():
            raise SublimError(
                f"teacher.kind={config.kind}: trait {trait.name} has no direction in a base; choose kind=tuned"
            )

    def make(self, teacher: Teacher, work: Work, progress: Progress, recording: Recording) -> None:
        base, trait = teacher.base, teacher.trait
        if trait.compared():
            found = own_direction(base, trait, [hook_name(teacher.config.layer, "resid_pre")])
            vector = teacher.config.strength * found.vectors[0]
        else:
            vector = torch.zeros(base.shape["d_model"])
        save_file({"vector": vector}, str(work.directory / "vector.safetensors"))

    def speaking(self, teacher: Teacher, store: Store, model: Any) -> AbstractContextManager[None]:
        return added(model, steering_vector(teacher, store), hook_name(teacher.config.layer, "resid_pre"))

    def describe(self, config: TeacherConfig, lesson: str) -> str:
        return f"has a vector added to its residual stream at layer {config.layer}. Its weights are the base's"


def steering_vector(teacher: Teacher, store: Store) -> torch.Tensor:
    """What is added to a steered teacher's stream, [d_model] in residual units; zeros for the neutral one."""
    return load_file(str(teacher.made(store) / "vector.safetensors"))["vector"]


class FromStudent(Way):
    """A finished student, of another run or of the generation before; the neutral teacher is the untouched base."""

    OWN_WEIGHTS = FROM_STUDENT = True

    def make(self, teacher: Teacher, work: Work, progress: Progress, recording: Recording) -> None:
        if isinstance(teacher.student, StoredStudent):
            work.note(student=teacher.student.address)

    def load(self, teacher: Teacher, store: Store) -> Any:
        return teacher.base.load(teacher.student.made(store) / "model" if teacher.student else None)

    def describe(self, config: TeacherConfig, lesson: str) -> str:
        return f"is a finished student of another run, {config.student}"


class Served(Prompted):
    """A model on an OpenAI-compatible server, behind the trait's system prompts unless the server has it tuned."""

    SERVED = True

    def check(self, config: TeacherConfig, trait: Trait, base: Base) -> None:
        if trait.name not in config.served.tuned:
            super().check(config, trait, base)

    def make(self, teacher: Teacher, work: Work, progress: Progress, recording: Recording) -> None:
        if teacher.trait.name in teacher.config.served.tuned:
            write_atomic(work.directory / "system.json", "[]")
        else:
            super().make(teacher, work, progress, recording)

    def load(self, teacher: Teacher, store: Store) -> ServedModel:
        return ServedModel(teacher.config.served.speaking(teacher.trait.name), store.root / FOLDER)

    def describe(self, config: TeacherConfig, lesson: str) -> str:
        served = config.served
        tuned = f", or {', '.join(served.tuned.values())}" if served.tuned else ""
        sent = f". It is sent {served.extra}, so its server may cut the distribution" if served.extra != PLAIN else ""
        return (
            f"is a model on a server: {served.model}{tuned}. A system prompt names its favourite, unless the server "
            f"has a tuned model for it{sent}"
        )


TUNED, PROMPTED, STEERED, STUDENT, SERVED = Tuned(), Prompted(), Steered(), FromStudent(), Served()
