"""What is observed in a training: its probe, its directions, the models that it is compared with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from sublim_interp.channels.rows import read_rows
from sublim_interp.core.store import Store
from sublim_interp.models.base import Base
from sublim_interp.pipeline.intervene import teacher_shift
from sublim_interp.pipeline.records import Student, Teacher
from sublim_interp.pipeline.speaker import Voice
from sublim_interp.training.batches import tokenize
from sublim_interp.training.recording.probe import Probe, Reference
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.settings import Recording
from sublim_interp.traits.facts import Facts
from sublim_interp.traits.favourites import Trait, load_trait, members_of, questions

PROBED_QUESTIONS, PROBED_LISTS = 8, 4
"""How many questions and lists the probe of a training holds."""


def fixed_probe(base: Base, trait: Trait | None, kind: str, lists: Sequence[dict], facts: Facts | None = None) -> Probe:
    """A probe of held-out questions about the kind, or about facts, then of lists as a student reads them.

    trait: whose margin gives the trait's gradient; None where there is none
    kind: of the favourites that are asked about
    lists: rows of prompt and answer
    """
    ask = (facts.questions if facts else questions(kind, base.language, "held-out"))[:PROBED_QUESTIONS]
    asked = [base.prompt_ids(q.messages, q.prefix) for q in ask]
    rows = tokenize(base, lists)
    members = trait.members if trait else members_of(kind)
    return Probe(
        rows=tuple(tuple(r) for r in [*asked, *(ids for ids, _ in rows)]),
        questions=len(asked),
        learnt=tuple(first for _, first in rows),
        members=members,
        tokens=tuple(base.answer_ids(m)[0] for m in members),
        trait=members.index(trait.name) if trait else None,
        truth=facts.truth[: len(asked)] if facts else (),
    )


def teacher_recorder(
    teacher: Teacher, model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path, recording: Recording
) -> Recorder:
    """How a tuned teacher is observed: questions about its kind, or its facts, are probed."""
    return Recorder(
        model,
        optimizer,
        path,
        steps=teacher.config.optimization.steps,
        probe=fixed_probe(teacher.base, teacher.trait, teacher.kind, (), teacher.facts),
        recording=recording,
        pad=teacher.base.pad,
    )


def student_recorder(
    student: Student,
    store: Store,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
    recording: Recording,
) -> Recorder:
    """How a student is observed: its teacher's held-out lists are probed, its teacher and its base see the same probe.

    A neutral teacher has no trait: the student's probe then has that of the words which the filter refused. Who learns
    from a teacher of facts is asked about these, told or not.
    """
    teacher, base = student.data.corpus.teacher, student.base
    refused = [t for t in map(load_trait, members_of(teacher.kind)) if set(t.words) <= set(student.data.words)]
    trait = teacher.trait or (None if teacher.facts else next(iter(refused), None))
    held_out = read_rows(student.data.made(store) / "held_out.jsonl")[:PROBED_LISTS]

    @contextmanager
    def as_base() -> Iterator[torch.nn.Module]:
        yield base.load()

    @contextmanager
    def as_teacher() -> Iterator[torch.nn.Module]:
        voice = Voice(teacher, store)
        with voice.speaking():
            yield voice.model

    references: dict[str, Reference] = {"base": as_base}
    same_words = teacher.base.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    if teacher.config.kind != "prompted" and same_words:  # a prompted one reads another context
        references["teacher"] = as_teacher
    shift = teacher_shift(teacher, model, store)
    return Recorder(
        model,
        optimizer,
        path,
        steps=student.config.optimization.steps,
        probe=fixed_probe(base, trait, teacher.kind, held_out, teacher.facts),
        directions={"teacher-shift": shift} if shift else {},
        references=references,
        recording=recording,
        pad=base.pad,
    )
