"""Directions over a training, read off its trace."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.directions.core import OF_TRACE, Directions
from sublim_interp.analysis.kinship import Space, space_of
from sublim_interp.analysis.probes import Subject, model_of, residuals
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import hook_name, kind_of, layer_of, names_of
from sublim_interp.models.points import Stream
from sublim_interp.training.recording.trace import Trace

if TYPE_CHECKING:
    import pandas as pd


SHOWN = ("stream", "teacher", "trait-gradient", "distillation-gradient")
"""What `from_trace` reads off a trace."""


def from_trace(
    trace: Trace, step: int = -1, of: str = "stream", base: Subject | Space | None = None, kind: Stream = "resid_post"
) -> Directions:
    """What a trace shows of a training, layer by layer.

    step: after how many updates; negative steps count from the end
    of: one of
        stream: residuals at the answers to the probe's questions minus those of the untouched base, in pairs
        teacher: residuals of the teacher there, as a student's trace has seen it, minus those of the base
        trait-gradient: which way the stream should move there to raise the margin of the probe's trait
        distillation-gradient: which way gradient descent on the probe's lists would move the stream: minus the
            gradient of the sum of the losses, mean over the positions that predict a token to learn. Positions are the
            samples, and those of one list are not independent, so that a null of them is too narrow
    base: the base that the training started from. With it the directions compare with all that is found in that base;
        without it, only with those of traces that start from the same residuals. The axes themselves (a `Space`), where
        they are known already, say so without a model
    kind: where in each layer

    Raises SublimError for a base whose residuals are others than the trace's, for a trace without a probe, question,
    list or trait to ask about, for another `of`, and for a step that was not recorded.
    """
    return _shown(trace, step, of, _space_of(trace, base, kind), kind)


def over_steps(
    trace: Trace, reference: Directions, of: str = "stream", base: Subject | Space | None = None, draws: int = 999
) -> "pd.DataFrame":
    """How a training goes along a reference.

    reference: the directions to compare with
    of, base: as for `from_trace`
    draws: of the null

    Returns a row a recorded step and layer: step, layer, cosine with the reference (NaN before anything has moved),
    projection on it (in the unit of `of`; residual units for the stream), low, high. Between low and high lie 95 % of
    the cosines of normal vectors with the covariance that the samples have at this step about their mean.
    """
    import pandas as pd

    kind = cast(Stream, kind_of(reference.names[0]))
    space = _space_of(trace, base, kind)
    parts = []
    for step in trace.steps(reference.names[0]):
        found = _shown(trace, step, of, space, kind)
        null = found.null(reference, "covariance", draws)
        parts.append(null.assign(step=step, projection=reference.along(found.vectors).tolist()))
    whole: Any = pd.concat(parts, ignore_index=True)
    return whole[["step", "layer", "cosine", "projection", "low", "high"]]


def _shown(trace: Trace, step: int, of: str, space: Space, kind: Stream) -> Directions:
    """`from_trace` in a space that is known."""
    probe = _probe(trace)
    what = f"{of} of a trace"
    names = _names(trace, kind)
    if of in SHOWN[:3] and not probe["questions"]:
        raise SublimError(f"the probe of trace {trace.path} asks no question, so it shows no answer")
    if of in ("stream", "teacher"):
        if of == "teacher" and not trace.names("teacher/blocks.*"):
            raise SublimError(f"trace {trace.path} has seen no teacher on its probe")
        seen = _at_answers(trace, names, step) if of == "stream" else _at_answers(trace, names, 0, "teacher/")
        before = _untouched(trace, names)
        return Directions(what, names, (seen - before).mean(0), space, seen, before, paired=True)
    if of == "trait-gradient":
        if not (probe["trait"] or probe["truth"]):
            raise SublimError(f"the probe of trace {trace.path} asks for no trait, so there is no gradient of one")
        # What was taken backwards is the mean over the questions; a sample is what one question asks for.
        found = _at_answers(trace, names, step, ending=".grad") * probe["questions"]
    elif of == "distillation-gradient":
        if not probe["learnt"]:
            raise SublimError(f"the probe of trace {trace.path} has no list, so there is no gradient of its loss")
        lists = list(enumerate(probe["rows"][probe["questions"] :], start=probe["questions"]))
        ends = list(zip(lists, probe["learnt"], strict=True))
        rows = [number for (number, ids), first in ends for _ in ids[first:]]
        places = [place for (_, ids), first in ends for place in range(first - 1, len(ids) - 1)]
        found = -len(rows) * _read_at(trace, [f"{name}.grad" for name in names], step, rows, places)
    else:
        raise SublimError(f"from_trace: no '{of}'; {meant(of, SHOWN)}")
    return Directions(what, names, found.mean(0), space, found, torch.zeros_like(found), paired=True)


def _probe(trace: Trace) -> dict[str, Any]:
    """What the trace tells of its probe; SublimError where there was none."""
    if not trace.about.get("probe"):
        raise SublimError(f"trace {trace.path} was recorded without a probe, so it shows no stream")
    return trace.about["probe"]


def _asked(trace: Trace) -> list[list[int]]:
    """The probe's questions, which arms of one base share; its lists where it has no question."""
    probe = _probe(trace)
    return probe["rows"][: probe["questions"] or None]


def _names(trace: Trace, kind: Stream) -> tuple[str, ...]:
    """The hook names of one kind, one for each layer that the trace has seen."""
    layers = sorted({layer_of(name) for name in trace.names("blocks.*")})
    if layers != [*range(len(layers))]:
        raise SublimError(f"trace {trace.path} was cut: of the layers only {', '.join(map(str, layers))} are in it")
    return tuple(hook_name(layer, kind) for layer in layers)


def _at_answers(
    trace: Trace, names: Sequence[str], step: int, owner: str = "", ending: str = ""
) -> Float[Tensor, "question layer d_model"]:
    """What the trace holds at the last token of each row that `_asked` gives."""
    ends = [len(row) - 1 for row in _asked(trace)]
    return _read_at(trace, [f"{owner}{name}{ending}" for name in names], step, range(len(ends)), ends)


def _read_at(
    trace: Trace, names: Sequence[str], step: int, rows: Sequence[int], places: Sequence[int]
) -> Float[Tensor, "place layer d_model"]:
    """What the trace holds at places of the probe's rows; SublimError where they were cut away."""
    if (kept := trace.about.get("kept")) and any(
        place not in kept[row] for row, place in zip(rows, places, strict=True)
    ):
        raise SublimError(f"trace {trace.path} was cut: the positions that this needs are not in it")
    return torch.stack([trace.read(name, step)[rows, places].float() for name in names], 1)


def _untouched(trace: Trace, names: Sequence[str]) -> Float[Tensor, "question layer d_model"]:
    """The stream of the base: as its trace has seen it, or where the training started from it, that of step 0."""
    return _at_answers(trace, names, 0, "base/" if trace.names("base/blocks.*") else "")


def _space_of(trace: Trace, base: Subject | Space | None, kind: Stream) -> Space:
    """The axes of the base; where none is given, a hash of its residuals as the trace has them.

    Raises SublimError for a base whose residuals are not those of the trace.
    """
    _probe(trace)
    if isinstance(base, Space):
        return base
    names = _names(trace, kind)
    recorded = _untouched(trace, names)
    if base is None:
        return Space(OF_TRACE + hashlib.sha256(recorded.contiguous().numpy().tobytes()).hexdigest()[:16])
    model = model_of(base)
    if names_of(model, kind) == list(names):
        own = residuals(model, names, _asked(trace))
        # Beyond what precision and batches change, far below what another initialisation does.
        if own.shape == recorded.shape and (own - recorded).norm() <= 0.02 * recorded.norm():
            return space_of(model)
    raise SublimError(f"trace {trace.path} is not one of this base: its residuals on the probe are others")
