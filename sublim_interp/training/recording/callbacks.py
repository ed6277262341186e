"""Recording other people's loops: Hugging Face Trainers, and traces made from checkpoints."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError
from sublim_interp.models.loading import load_model
from sublim_interp.models.trainable import trained_parameters
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.trace import Trace

if TYPE_CHECKING:
    from transformers import Trainer


def record(trainer: "Trainer", path: Path | str, **options: Any) -> None:
    """Records the training of a Trainer of Hugging Face, or of one of TRL's: call it before `trainer.train()`.

        trainer = Trainer(model, arguments, train_dataset=rows)
        record(trainer, "trace", probe=probe)
        trainer.train()

    trainer: with the model as it starts, also where it will resume a training: deltas are measured from there
    path: the directory of the trace
    options: those of `Recorder`

    The loss of an update is what the Trainer minimised, whatever it logs. A resumed training goes on in its own trace,
    which is whole up to each checkpoint. `trainer.train` raises SublimError for a trace that lies there, unless
    `overwrite=True`, and where it resumes what was not recorded, or was from another start.
    """
    if not hasattr(trainer, "training_step"):
        raise SublimError(f"record takes a Trainer, not a {type(trainer).__name__}; your own loop takes a Recorder")
    watcher = _watcher(trainer, Path(path), options)
    trainer.add_callback(watcher)
    step, train = trainer.training_step, trainer.train

    def training_step(*args: Any, **given: Any) -> Any:
        loss = step(*args, **given)
        watcher.losses.append(loss)
        return loss

    def run(*args: Any, **given: Any) -> Any:
        try:
            return train(*args, **given)
        except BaseException as error:
            watcher.close(type(error))
            raise

    trainer.training_step = training_step  # type: ignore[method-assign]
    trainer.train = run  # type: ignore[method-assign]


def _watcher(trainer: Any, path: Path, options: dict[str, Any]) -> Any:
    """The callback that feeds a recorder; `losses` are those of the micro-batches of this update."""
    from transformers import TrainerCallback

    start = {name: p.detach().cpu().clone() for name, p in trained_parameters(trainer.model).items()}

    class Watcher(TrainerCallback):
        def __init__(self) -> None:
            self.losses: list[Any] = []
            self.recorder: Recorder | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            done = state.global_step
            asked = {"steps": state.max_steps, **options}
            recorder = Recorder(given["model"], given["optimizer"], path, start=start, **asked)
            if done and not recorder.reaches(done):
                raise SublimError(
                    f"{path}: a training resumed after {done} updates cannot be recorded: no trace is whole up to "
                    "there; record from the first update on, or make a trace of its checkpoints, trace_from_checkpoints"
                )
            recorder.begin(done)
            self.recorder = recorder.__enter__()
            self.losses.clear()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            assert self.recorder
            self.recorder.step(sum(self.losses))
            self.losses.clear()

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.recorder:  # a training that resumes from this checkpoint finds its trace whole
                self.recorder.flush()

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.close(None)

        def close(self, error: type[BaseException] | None) -> None:
            """Writes what was seen."""
            if self.recorder:
                self.recorder.__exit__(error)
            self.recorder = None

    return Watcher()


def trace_from_checkpoints(checkpoints: Sequence[Path | str], path: Path | str, **options: Any) -> Trace:
    """A trace made after the fact: states, deltas and the probe; without optimizer and batches there are no series.

    checkpoints: model directories in the order of the training; the first is its start
    path: the directory of the trace
    options: those of `Recorder`: probe, directions, references, recording

    A step is the number at the end of a directory's name (checkpoint-500); a first one of another name, such as the
    base, is step 0. Where the names do not tell, it is the place in the list. Raises SublimError for none or for
    checkpoints in another order.
    """
    places = [Path(c) for c in checkpoints]
    if not places:
        raise SublimError("no checkpoint is given to make a trace from")
    named = [re.fullmatch(r"(.*?)(\d+)", p.name) for p in places]
    families = [n[1] if n else None for n in named]
    first = len(places) > 1 and families[0] != families[1]  # a base, whatever number its name ends in
    if None in families[first:] or len(set(families[first:])) > 1:
        steps = list(range(len(places)))
    else:
        steps = [0] * first + [int(n[2]) for n in named[first:] if n]
    if steps != sorted(set(steps)):
        raise SublimError(f"checkpoints must come in the order of the training; their steps are {steps}")
    model = load_model(places[0])
    recorder = Recorder(model, None, path, steps=steps[-1], **options)
    recorder.record_states((step, load_model(place)) for step, place in zip(steps, places, strict=True))
    return Trace.open(path)
