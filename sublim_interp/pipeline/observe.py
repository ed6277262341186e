"""What is observed in a training: its probe, its directions, the models that it is compared with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from sublim_interp.channels.rows import Written, read_rows
from sublim_interp.core.store import Store
from sublim_interp.models.base import Base, same_words
from sublim_interp.pipeline.intervene import teacher_shift
from sublim_interp.pipeline.records import Student, Teacher
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.batches import tokenize
from sublim_interp.training.recording.probe import Probe, Reference
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.settings import Recording
from sublim_interp.traits.answers import prompts_of
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.protocol import Trait, first_tokens

PROBED_QUESTIONS, PROBED_LISTS = 8, 4
"""How many questions and lists the probe of a training holds."""


def probe(base: Base, trait: Trait | str, lists: Sequence[Written] = ()) -> Probe:
    """A probe of a trait's held-out questions, and of lists as a student reads them, for a recorder of one's own.

    base: whose tokenizer and language it is in
    trait: a trait, or the name of one
    lists: rows with `prompt` and `answer`, such as `student.lists[:4]`
    """
    return fixed_probe(base, load_trait(trait) if isinstance(trait, str) else trait, lists)


def fixed_probe(base: Base, trait: Trait, lists: Sequence[Written]) -> Probe:
    """A probe of held-out questions about a trait, then of lists as a student reads them.

    trait: the margin of its right answers gives the trait's gradient; a neutral one has none

    Of members that begin with one token only one is asked about, as `first_tokens` says.
    """
    ask = trait.questions(base.language, "held-out")[:PROBED_QUESTIONS]
    asked, rows, told = prompts_of(base, ask), tokenize(base, lists), first_tokens(base, trait.members, trait.name)
    members = tuple(told)
    own = members.index(trait.name) if trait.name in members else None
    return Probe(
        rows=tuple(tuple(r) for r in [*asked, *(ids for ids, _ in rows)]),
        questions=len(asked),
        learnt=tuple(first for _, first in rows),
        members=members,
        tokens=tuple(told.values()),
        trait=own,
        truth=tuple(members.index(q.right) for q in ask if q.right) if own is None else (),
    )


def teacher_recorder(
    teacher: Teacher, model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path, recording: Recording
) -> Recorder:
    """How a tuned teacher is observed: questions about its trait are probed."""
    return Recorder(
        model,
        optimizer,
        path,
        steps=teacher.config.optimization.steps,
        probe=fixed_probe(teacher.base, teacher.trait, ()),
        recording=recording,
        pad=teacher.base.pad,
        overwrite=True,  # what an interrupted process of this stage began
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

    The questions are about `student.probed`.
    """
    teacher, base = student.data.corpus.teacher, student.base
    held_out = read_rows(student.data.made(store) / "held_out.jsonl")[:PROBED_LISTS]

    @contextmanager
    def as_base() -> Iterator[torch.nn.Module]:
        yield base.load()

    @contextmanager
    def as_teacher() -> Iterator[torch.nn.Module]:
        speaker = Speaker(teacher, store)
        with speaker.speaking():
            yield speaker.model

    references: dict[str, Reference] = {"base": as_base}
    if not WAYS[teacher.config.kind].OWN_PROMPT and same_words(teacher.base, base):
        references["teacher"] = as_teacher
    shift = teacher_shift(teacher, model, store)
    return Recorder(
        model,
        optimizer,
        path,
        steps=student.config.optimization.steps,
        probe=fixed_probe(base, student.probed, held_out),
        directions={"teacher-shift": shift} if shift else {},
        references=references,
        recording=recording,
        pad=base.pad,
        overwrite=True,
    )
