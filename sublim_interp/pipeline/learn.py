"""Stage 4: from a base and the kept data to a student: batches, interventions, recorder. The loop: training/loop.py."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import read_rows
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Artifact, Store
from sublim_interp.models.base import Base
from sublim_interp.models.sampling import generator
from sublim_interp.pipeline.intervene import StudentSource, around, intervening
from sublim_interp.pipeline.moments import FILE, beginning, keeping
from sublim_interp.pipeline.observe import student_recorder
from sublim_interp.pipeline.on_policy import own_lists
from sublim_interp.pipeline.records import Student
from sublim_interp.pipeline.select import learnt_tokens, replaced_tokens
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.pipeline.stage import Progress, choose_part, fit, making, silent
from sublim_interp.training.batches import (
    PIECE,
    Batch,
    Order,
    keep_labels,
    micro_batches,
    pair_batches,
    pieces,
    relabel,
    tokenize,
)
from sublim_interp.training.interventions import acting
from sublim_interp.training.losses import LogitLoss, imitation_loss, own_token_loss, preference_loss, token_loss
from sublim_interp.training.recording.settings import PRESETS, Recording


def learn(
    student: Student, store: Store, progress: Progress = silent, recording: Recording = PRESETS["default"]
) -> Artifact:
    """Trains a base, or a student of an earlier round, on filtered lists."""
    with making(student, store) as work:
        if not work.done:
            config, base = student.config, student.base
            start = None if isinstance(student.start, Base) else student.start.made(store) / "model"
            lists = read_rows(student.data.made(store) / "kept.jsonl")
            pad = base.pad
            if start is None and base.key != student.data.corpus.teacher.base.key:  # the teacher's is tried already
                base.check(seen=recording.keep)
            rows = tokenize(base, lists, config.bare)
            worse = tokenize(base, [{**row, "answer": row["rejected"]} for row in lists if "rejected" in row])
            order = Order(len(rows), config.optimization.batch, student.seed)

            kinds, source = acting(config.interventions), StudentSource(student, store)
            loss = _loss(student, source, store)
            for kind in kinds:
                loss = kind.loss(loss, source)
            learnt = learnt_tokens(student, rows, lists, store, work)
            others = replaced_tokens(student, rows, lists, store, work)

            parts = pieces(config.optimization, max(1, order.batch // PIECE)) * (2 if worse else 1)

            def batches(step: int) -> list[Batch]:
                some = order(step)
                if config.objective == "on-policy":
                    read = tokenize(base, own_lists(student, model, [lists[i]["prompt"] for i in some], step))
                else:
                    read = [(others.read if others else rows)[i] for i in some]
                if worse:
                    return pair_batches([(rows[i], worse[i]) for i in some], pad, parts)
                micro = micro_batches(read, pad, parts)
                if others:
                    micro = relabel(micro, micro_batches([others.learnt[i] for i in some], pad, parts))
                if learnt:
                    micro = keep_labels(micro, micro_batches([learnt[i] for i in some], 0, parts))
                for kind in kinds:
                    micro = kind.mask(micro, generator("mask", student.seed, step))
                return micro

            model = choose_part(base.load(start), base, config, adapter_seed(student))
            for kind in kinds:
                kind.prepare(model)
            record = partial(student_recorder, student, store)

            @contextmanager
            def intervene(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
                with ExitStack() as held:
                    if student.first:
                        held.enter_context(beginning(student, store, model, optimizer))
                    if config.moments == "kept":
                        held.enter_context(keeping(work.directory / FILE, model, optimizer))
                    if kinds:
                        held.enter_context(intervening(kinds, source, work, model, optimizer))
                    yield

            update = partial(around, kinds, student)
            fit(model, batches, config.optimization, loss, work, progress, record, recording, intervene, update)
    return work.artifact


def adapter_seed(student: Student) -> int:
    """What draws the random matrices of a student's adapter: with its `seed` they are as its teacher's."""
    if not student.own_adapter:
        return student.seed
    return generator("adapter", student.seed, student.round, student.generation).initial_seed()


def _loss(student: Student, source: StudentSource, store: Store) -> LogitLoss:
    """The loss that the settings of corpus and student ask for."""
    if student.data.corpus.config.preference:
        own = source.own_tokens() if student.config.own_tokens else None
        return preference_loss(student.base.load(), student.config.beta, own)
    if student.data.corpus.config.setting == "soft":
        return _soft_loss(student, store)
    if student.config.own_tokens:
        return own_token_loss(source.own_tokens())
    return token_loss


def _soft_loss(student: Student, store: Store) -> LogitLoss:
    """KL(teacher ‖ student), or the reverse, summed over the answers' positions: over the channel's own tokens."""
    teacher = student.data.corpus.teacher
    speaker = Speaker(teacher, store)
    if speaker.systems:
        raise SublimError("corpus.setting=soft needs a tuned or steered teacher: a prompted one reads another context")
    support = channel(student.data.corpus.config.channel).token_ids(teacher.base.tokenizer)

    return imitation_loss(speaker.model, support, speaker.speaking, student.config.objective != "forward")
