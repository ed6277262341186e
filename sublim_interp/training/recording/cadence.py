"""What is kept of a training, how often, and how many bytes that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch

from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import decoder_layers
from sublim_interp.models.hooks import hook_names
from sublim_interp.models.trainable import trained_parameters
from sublim_interp.training.recording.probe import Stream

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cadence:
    """How often what is kept. What the defaults cost is in docs/benchmarks.md."""

    shard: int = 100
    """Updates whose series make one shard."""
    series_weights: int = 1 << 24
    """Trained weights of which norms and projections are taken at every update; of n times as many, at every n-th."""
    moments: int = 10
    """At every so many of these updates the norms of the optimiser's moments are taken too."""
    stream: tuple[Stream, ...] = ("resid_post",)
    """Where in each layer the probe is seen; a place that a model lacks is left out."""
    weight_bytes: int = 8 << 20
    """Most bytes of weight-sized tensors kept in full, over all steps; beyond it, at fewer of the log-spaced steps.

    Of lab-main's body, 2.5 MiB, this keeps the end with both moments; of lab-small's, every log-spaced step.
    """
    examples: int = 0
    """Every so many updates each example's residuals are kept; 0: never."""
    positions: tuple[int, ...] = (-1,)
    """Which positions of an example: from its first token (0, 1, …) or from its last (-1, -2, …)."""
    pad: int | None = None
    """Token that fills examples up on the right; what comes after the last other token is no position."""

    def __post_init__(self) -> None:
        for kind in self.stream:
            if kind not in get_args(Stream):
                raise SublimError(f"no stream '{kind}' can be recorded; a tuple of: {', '.join(get_args(Stream))}")

    def every(self, parameters: int) -> int:
        """At every how many updates the norms and projections of so many trained weights are taken."""
        return max(1, -(-parameters // self.series_weights))

    def probes(self, steps: int) -> list[int]:
        """0, 1, 2, 4, … and the last step."""
        return sorted({0, *(2**i for i in range(steps.bit_length()) if 2**i <= steps), steps})

    def full(self, steps: int, parameters: int, kinds: int) -> list[int]:
        """Those of the log-spaced steps at which the delta of every trained parameter is kept, the last first.

        With the last go the other `kinds` of tensors of this size; the budget holds them too.
        """
        some = [t for t in self.probes(steps) if t > 0]
        most = self.weight_bytes // (4 * parameters) - (kinds - 1) if parameters else len(some)
        if most <= 0:
            return []
        every = -(-len(some) // most)
        return sorted(some[::-1][::every])


TRACES: dict[str, Cadence | None] = {"none": None, "default": Cadence(), "examples": Cadence(examples=10)}
"""What a run may be told to record of its trainings: nothing, the default, or residuals of examples too."""


def cadence_of(trace: str) -> Cadence | None:
    """The cadence that a word of `TRACES` stands for, None where nothing is recorded; SublimError for another word."""
    if trace not in TRACES:
        raise SublimError(f"no trace '{trace}'; choices: {', '.join(TRACES)}")
    return TRACES[trace]


def stream_names(model: torch.nn.Module, kinds: Sequence[Stream]) -> list[str]:
    """The hook names of these kinds, none twice: a layer's input is the output of the one before."""
    twice = "resid_pre" if "resid_post" in kinds else "nothing"
    return [n for n in hook_names(model, kinds) if n.startswith("blocks.0.") or not n.endswith(twice)]


def plan(
    model: torch.nn.Module,
    steps: int,
    *,
    states: int = 2,
    tokens: int = 0,
    directions: int = 0,
    references: int = 0,
    batch: int = 0,
    cadence: Cadence | None = None,
) -> "pd.DataFrame":
    """What a recorder of this model keeps over `steps` updates: one row a kind, with how many times, and bytes.

    `model` may lie on the meta device: only shapes are looked at. `states` counts the optimiser's moments, `tokens`
    those of the probe, `references` the other models that go through it, `batch` the examples of an update.
    """
    import pandas as pd

    cadence = cadence or Cadence()
    tensors, numbers = len(trained_parameters(model)), sum(p.numel() for p in trained_parameters(model).values())
    probes = len(cadence.probes(steps)) if tokens else 0
    width_of_stream = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    stream = len(stream_names(model, cadence.stream)) * tokens * width_of_stream * 4
    full = len(cadence.full(steps, numbers, 1 + states))
    weights = full + states if full else 0
    every = cadence.every(numbers)
    measured, slow = -(-steps // every), -(-steps // (every * cadence.moments)) if states else 0
    series = 4 * (steps + measured * tensors * (2 + 4 * directions))
    when = "every update" if every == 1 else f"loss every update, else every {every}"
    table = [
        ("loss, norms, projections", when, steps, series),
        ("norms of the moments", f"every {every * cadence.moments}", slow, 4 * slow * tensors * states),
        ("residuals and gradients on the probe", "log-spaced", probes, 2 * probes * stream),
        ("the same of teacher and base", "once", references, 2 * references * stream),
        ("weight deltas, moments at the end", "log-spaced, within the budget", full, 4 * weights * numbers),
    ]
    if cadence.examples:
        times = -(-steps // cadence.examples)
        each = batch * len(cadence.positions) * len(decoder_layers(model)) * width_of_stream * 4 * 2
        table.append(("residuals and gradients of each example", f"every {cadence.examples}", times, times * each))
    return pd.DataFrame(table, columns=["what", "when", "times", "bytes"])
