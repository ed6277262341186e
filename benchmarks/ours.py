"""Contestants that are this package: its stages as `sublim run` makes them, and its loop without a recorder."""

import shutil
from collections.abc import Callable

import torch

from benchmarks.timing import Turn
from sublim_interp.channels.rows import read_rows
from sublim_interp.core.store import Store
from sublim_interp.core.workers import prepare_process
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Record, Student
from sublim_interp.training.batches import PIECE, Batch, Order, micro_batches, pieces, tokenize
from sublim_interp.training.loop import train
from sublim_interp.training.losses import token_loss


def stage(record: Record, store: Store, turn: Turn) -> None:
    """Makes a record whose inputs the store holds, again where it holds the record too; a unit is what its progress
    counts: an update, a chunk of lists."""
    prepare_process()
    before = record.find(store)
    if before:
        shutil.rmtree(before.path)
    make(record, store, lambda _: turn())


def student_parts(
    student: Student, store: Store, threads: int = 1
) -> tuple[torch.nn.Module, Callable[[int], list[Batch]]]:
    """The model that a student starts as, and the micro-batches of each of its updates, for a process of so many
    threads."""
    prepare_process(threads)
    base, config, made = student.base, student.config, student.data.find(store)
    assert made
    rows = tokenize(base, read_rows(made.path / "kept.jsonl"))
    parts = pieces(config.optimization, max(1, config.optimization.batch // PIECE))
    order = Order(len(rows), config.optimization.batch, student.seed)

    def batches(step: int) -> list[Batch]:
        return micro_batches([rows[i] for i in order(step)], base.pad, parts)

    return choose_trainable(base.load(), config.part), batches


def unrecorded(student: Student, store: Store, turn: Turn) -> None:
    """A student's training without trace and without states to resume from; a unit is an update."""
    model, batches = student_parts(student, store)
    train(model, batches, student.config.optimization, observe=lambda *_: turn())


def bare(student: Student, store: Store, turn: Turn) -> None:
    """The loop that anybody would write, its micro-batches made beforehand; a unit is an update."""
    model, batches = student_parts(student, store)
    o = student.config.optimization
    made = [batches(step) for step in range(o.steps)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=o.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=o.steps)
    model.train()
    for micro in made:
        optimizer.zero_grad()
        tokens = sum(batch.tokens for batch in micro)
        for batch in micro:
            (token_loss(model, batch) / tokens).backward()
        optimizer.step()
        schedule.step()
        turn()
