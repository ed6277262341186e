"""Recording other people's loops: a callback for Hugging Face Trainers, and traces made from checkpoints."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError
from sublim_interp.models.loading import load_model
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.trace import Trace

if TYPE_CHECKING:
    from transformers import TrainerCallback


def callback(path: Path | str, **options: Any) -> "TrainerCallback":
    """A callback for a Hugging Face Trainer or one of TRL's: `Trainer(…, callbacks=[callback("trace")])`.

    path: the directory of the trace
    options: those of `Recorder`

    An update has a loss in the trace where the Trainer logs it (`logging_steps=1`). The training raises SublimError
    where the Trainer resumes one, and leaves its trace as it is: the weights of the start are gone.
    """
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step:
                raise SublimError(
                    f"{path}: a training resumed after {state.global_step} updates cannot be recorded; record from the "
                    "first update on, or train without and make a trace of its checkpoints, trace_from_checkpoints"
                )
            optimizer = getattr(given["optimizer"], "optimizer", given["optimizer"])  # Accelerate wraps it
            self.recorder = Recorder(given["model"], optimizer, path, **{"steps": state.max_steps, **options})
            self.recorder.__enter__()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.recorder.step()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            if logs and "loss" in logs:
                self.recorder.set_loss(float(logs["loss"]))

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.recorder.__exit__(None)

    return Callback()


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
