"""What the five stages share: publishing in the store, progress, a training that resumes and is recorded."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch

from sublim_interp.core.device import fingerprint
from sublim_interp.core.errors import DeadEnd
from sublim_interp.core.store import Store, Work
from sublim_interp.models.loading import save_model
from sublim_interp.models.trainable import merge_adapters
from sublim_interp.pipeline.records import Record
from sublim_interp.training.batches import Batch
from sublim_interp.training.loop import Loss, train
from sublim_interp.training.recording.cadence import cadence_of
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization

Progress = Callable[[float], None]
"""Called with the fraction of the stage that is done, 0 to 1."""


def silent(_fraction: float) -> None:
    """Progress that nobody watches."""


@contextmanager
def making(record: Record, store: Store) -> Iterator[Work]:
    here = fingerprint(dtype=record.dtype)
    with store.make(record.STAGE, record.VERSION, record.settings(), record.input_keys(), here) as work:
        yield work


def fit(
    model: torch.nn.Module,
    batches: Callable[[int], list[Batch]],
    optimization: Optimization,
    loss: Loss,
    work: Work,
    progress: Progress,
    record: Callable[..., Recorder],
    trace: str,
    intervene: Callable[[torch.nn.Module, torch.optim.Optimizer], AbstractContextManager[object]] | None = None,
) -> None:
    """Trains, resumably and recorded as `trace` says, and saves the merged model and the trace in the artefact."""
    losses: list[float] = []

    def observe(step: int, value: float) -> None:
        losses.append(value)
        progress((step + 1) / optimization.steps)

    cadence, path = cadence_of(trace), work.directory / "trace"
    if cadence is None:  # an interrupted process may have begun one
        shutil.rmtree(path, ignore_errors=True)
    train(
        model,
        batches,
        optimization,
        loss=loss,
        resume=Resume(work.directory / ".state.safetensors"),
        observe=observe,
        intervene=intervene,
        record=partial(record, path=path, cadence=cadence) if cadence else None,
    )
    work.note(trace=trace)
    if any(value != value for value in losses):
        raise DeadEnd(f"training diverged (loss is not a number); lower the learning rate {optimization.lr:g}")
    save_model(merge_adapters(model), work.directory / "model")
