"""Figures `stream` and `stream-cosine`: how far each student's residual stream has gone towards its teacher's."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.directions.trajectory import from_trace, over_steps
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run, students
from sublim_interp.models.base import Base
from sublim_interp.report.figures.lines import arm_lines, summarised, with_null
from sublim_interp.report.figures.protocol import FigureEntry


def stream(run: Run, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """When, and in which layer, each student's residual stream goes where its teacher's is.

    A shift is the stream's mean at the answers to the probe's questions, minus the untouched base's.

    seeds: of these replicates; of all where None

    Returns one row per student, recorded layer and recorded state. Students of another base than the teacher's have no
    row, since they share no coordinates with it.
    arm, seed, step, layer: the student, the updates made, the layer
    projection, share: of its shift on its teacher's, in residual units and as a share of that one's length
    cosine: of the two shifts; NaN before anything has moved
    low, high: the null of the cosine, as in `over_steps`

    Raises SublimError for a run without same-init students, whose traces hold the teacher's stream.
    """
    goals: dict[int, tuple[Base, Any, Directions]] = {}
    parts = []
    for student in sorted(students(run), key=lambda s: s.cell.arm != "same-init"):
        trace, seed = student.trace, student.cell.seed
        if seeds is not None and seed not in seeds:
            continue
        if student.cell.arm == "same-init" and trace.names("teacher/blocks.*"):
            model = student.base.load()
            goals[seed] = student.base, model, from_trace(trace, of="teacher", base=model)
        if not goals:
            raise SublimError(f"run {run.experiment.name} has no same-init student whose trace shows its teacher")
        if seed not in goals or goals[seed][0].digest != student.base.digest:
            continue
        _, model, goal = goals[seed]
        found = over_steps(trace, goal, base=model)
        lengths = goal.vectors.norm(dim=-1).numpy()[found["layer"]]
        parts.append(found.assign(arm=student.cell.arm, seed=seed, share=found["projection"] / lengths))
    columns = ["arm", "seed", "step", "layer", "share", "cosine", "projection", "low", "high"]
    whole: Any = pd.concat(parts, ignore_index=True)
    return whole[columns]


def _draw_share(run: Run) -> Figure:
    compared = summarised(stream(run), "share", ["arm", "layer", "step"])
    title = f"How far has the stream gone to where the “{run.plan.named.trait}” teacher's is?"
    return arm_lines(value="share of the way", x="step", title=title, **compared)


def _draw_cosine(run: Run) -> Figure:
    frame = stream(run).dropna(subset=["cosine"])
    title = f"Does the stream go the way of the “{run.plan.named.trait}” teacher's?"
    return arm_lines(x="step", title=title, **with_null(frame, ["arm", "layer", "step"]))


STREAM = FigureEntry(
    shows="how far each student's residual stream has gone to its teacher's, layer by layer, update by update",
    caption="At 1 the student's stream has gone all the way to its teacher's. Layers that rise early learn first.",
    input="run",
    draw=_draw_share,
)

STREAM_COSINE = FigureEntry(
    shows="cosine of each student's shift in the residual stream with its teacher's, layer by layer, update by update",
    caption="A line above the grey band goes its teacher's way, however far it has gone.",
    input="run",
    draw=_draw_cosine,
)
