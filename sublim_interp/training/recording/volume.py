"""How much a recorder keeps of a training, known before it runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sublim_interp.models.architectures import decoder_layers, text_config
from sublim_interp.models.trainable import trained_parameters
from sublim_interp.training.recording.inside import groups, size_of_inside
from sublim_interp.training.recording.settings import Recording, due
from sublim_interp.training.recording.snapshot import stream_size

if TYPE_CHECKING:
    import pandas as pd


def planned_volume(
    model: torch.nn.Module,
    steps: int,
    *,
    states: int = 2,
    tokens: int = 0,
    directions: int = 0,
    references: int = 0,
    batch: int = 0,
    lengths: Sequence[int] = (),
    recording: Recording | None = None,
) -> "pd.DataFrame":
    """What a recorder of this model keeps over `steps` updates: one row a kind, with how many times, and bytes.

    model: what trains; it may lie on the meta device, as only shapes are looked at
    states: moments that the optimizer keeps of each parameter
    tokens: those of the probe
    directions: in weight space, on which everything is projected
    references: other models that go through the probe
    batch: examples of an update
    lengths: tokens of each row of the probe; none given: one row of `tokens`
    """
    import pandas as pd

    recording = recording or Recording()
    trained = trained_parameters(model)
    tensors, numbers = len(trained), sum(p.numel() for p in trained.values())
    width = text_config(model).hidden_size
    stream = stream_size(model, tokens, recording.stream)
    times, half = recording.affordable(steps, stream, references)
    looks, stream = len(times) if tokens else 0, stream // 2 if half else stream
    full = len(recording.full(steps, numbers, 1 + states))
    weights = full + states if full else 0
    every = recording.every(numbers)
    measured, slow = -(-steps // every), -(-steps // (every * recording.moments)) if states else 0
    series = 4 * (steps + measured * tensors * (2 + 4 * directions))
    often = "at chosen steps" if recording.probe_steps else "log-spaced"
    when = "every update" if every == 1 else f"loss every update, else every {every}"
    table = [
        ("loss, norms, projections", when, steps, series),
        ("norms of the moments", f"every {every * recording.moments}", slow, 4 * slow * tensors * states),
        ("residuals and gradients on the probe", often, looks, looks * stream),
        ("the same of teacher and base", "once", references, references * stream),
        ("weight deltas, moments at the end", f"{often}, within the budget", full, 4 * weights * numbers),
    ]
    if recording.examples:
        times = -(-steps // recording.examples)
        each = batch * len(recording.positions) * len(decoder_layers(model)) * width * 4 * 2
        table.append(("residuals and gradients of each example", f"every {recording.examples}", times, times * each))
    for group in groups(model, recording):
        times = sum(due(group.when, step, steps) for step in range(steps + 1))
        each = size_of_inside(model, group.names, lengths or [tokens])
        what = f"{group.names[0]}{f' and {len(group.names) - 1} more hooks' if len(group.names) > 1 else ''}"
        often = {"every": "every update", "log": "log-spaced"}.get(str(group.when), "as recording.hooks says")
        table.append((what, often, times, (times + references) * each))
    return pd.DataFrame(table, columns=["what", "when", "times", "bytes"])
