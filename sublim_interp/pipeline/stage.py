"""What the five stages share: publishing in the store, progress, a training that resumes and is recorded."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from sublim_interp.core.cards import does_not_fit
from sublim_interp.core.device import fingerprint, is_out_of_memory, open_device
from sublim_interp.core.errors import DeadEnd, OutOfMemory
from sublim_interp.core.store import Store, Work
from sublim_interp.models.base import Base
from sublim_interp.models.loading import save_model
from sublim_interp.models.served import ServedModel
from sublim_interp.models.trainable import choose_trainable, merge_adapters
from sublim_interp.pipeline.memory import memory_of, model_of
from sublim_interp.pipeline.records import Corpus, Record, Student, Teacher
from sublim_interp.pipeline.settings import StudentConfig, TeacherConfig
from sublim_interp.training.batches import PIECE, Batch
from sublim_interp.training.loop import nothing, train
from sublim_interp.training.losses import Loss
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.settings import Recording
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization
from sublim_interp.traits.judges.asked import Asker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[float], None]
"""Called with the fraction of the stage that is done, 0 to 1."""


_NOBODY: Mapping[str, ServedModel | Asker | None] = {}


def silent(_fraction: float) -> None:
    """Progress that nobody watches."""


@contextmanager
def making(record: Record, store: Store, asked: Mapping[str, ServedModel | Asker | None] = _NOBODY) -> Iterator[Work]:
    """Inside the block a record's artefact is made, or found done: `work.done`; it is published on leaving.

    asked: by role, models that answer and may not be this machine's: what is known of them is in the fingerprint, and
        how they answered in the notes
    """
    open_device(record.dtype)
    here = fingerprint(dtype=record.dtype)
    models = {role: model for role, model in asked.items() if model}
    if models and record.find(store) is None:
        here |= {f"served {role}": told for role, model in models.items() if (told := model.told)}
    with store.make(record.STAGE, record.VERSION, record.settings(), record.input_keys(), here) as work:
        try:
            yield work
            for role, model in models.items() if not work.done else ():
                work.note(**{f"{role}_asked": model.notes()})
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(_too_large(record)) from None


def _too_large(record: Record) -> str:
    """What to change where the memory of a GPU does not hold a stage."""
    advice = ["--processes 1, or a smaller base"]
    if isinstance(record, Corpus):
        advice.insert(0, f"corpus.chunk={max(1, record.config.chunk // 2)}")
    elif isinstance(record, Teacher | Student):
        o = record.config.optimization
        if (now := o.micro_batch or min(o.batch, PIECE)) > 1:
            advice.insert(0, f"{record.STAGE}.optimization.micro_batch={now // 2}")
        if not o.checkpointing:
            advice.insert(1, f"{record.STAGE}.optimization.checkpointing=true")
        if record.config.part != "lora":
            advice.insert(2, f"{record.STAGE}.part=lora")
    needed = memory_of(record) if model_of(record) else None
    return f"{does_not_fit(f'{record.STAGE} {record.key[:16]}', needed)}; try {' or '.join(advice)}"


def choose_part(
    model: "PreTrainedModel", base: Base, config: TeacherConfig | StudentConfig, seed: int = 0
) -> torch.nn.Module:
    """The module to train of a model of `base`: the part that a teacher's or a student's settings name.

    seed: decides the adapters' initial weights
    """
    opening = base.opening if config.part == "opening" else None
    return choose_trainable(model, config.part, config.lora_rank, config.lora_alpha, seed, opening)


def fit(
    model: torch.nn.Module,
    batches: Callable[[int], list[Batch]],
    optimization: Optimization,
    loss: Loss,
    work: Work,
    progress: Progress,
    record: Callable[..., Recorder],
    recording: Recording,
    intervene: Callable[[torch.nn.Module, torch.optim.Optimizer], AbstractContextManager[object]] | None = None,
    around: Callable[[torch.nn.Module, int], AbstractContextManager[object]] = nothing,
) -> None:
    """Trains, resumably and recorded, and saves the merged model and the trace in the artefact.

    work: the artefact
    progress: told the share of the updates that are made
    record: makes the recorder of a model and its optimizer, at `path`
    recording: what is recorded

    Raises DeadEnd where the loss is not a number at some update.
    """
    losses: list[float] = []

    def observe(step: int, value: float) -> None:
        losses.append(value)
        progress((step + 1) / optimization.steps)

    path = work.directory / "trace"
    if not recording.keep:  # an interrupted process may have begun one
        shutil.rmtree(path, ignore_errors=True)
    train(
        model,
        batches,
        optimization,
        loss=loss,
        resume=Resume(work.directory / ".state.safetensors"),
        observe=observe,
        intervene=intervene,
        around=around,
        record=partial(record, path=path, recording=recording) if recording.keep else None,
    )
    work.note(trace=recording.model_dump(mode="json"))
    if any(value != value for value in losses):
        raise DeadEnd(f"training diverged (loss is not a number); lower the learning rate {optimization.lr:g}")
    save_model(merge_adapters(model), work.directory / "model")
