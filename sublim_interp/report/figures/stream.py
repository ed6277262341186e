"""Figures `stream` and `stream-cosine`: how far each student's residual stream has gone towards its teacher's."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.directions.training import from_trace, over_steps
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run, students
from sublim_interp.models.base import Base
from sublim_interp.report.figures.lines import arm_lines, summarised, with_null

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def stream(run: Run) -> pd.DataFrame:
    """When and in which layer each student's residual stream goes where the trait's teacher is: a row a recorded layer.

    Columns: arm, seed, step (updates made), layer, share, cosine, low, high. The shift is the stream's mean at the
    answers to the probe's questions minus the untouched base's; `share` is its projection on the shift of the
    replicate's teacher with the trait, as a share of that one's length, `cosine` their cosine (NaN before anything has
    moved), `low` and `high` its null, as in `over_steps`. Students of another base have no row: they share no
    coordinates. Raises SublimError for a run without same-init students, whose traces hold the teacher's stream.
    """
    goals: dict[int, tuple[Base, Any, Directions]] = {}
    parts = []
    for student in sorted(students(run), key=lambda s: s.cell.arm != "same-init"):
        trace, seed = student.trace, student.cell.seed
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
    columns = ["arm", "seed", "step", "layer", "share", "cosine", "low", "high"]
    whole: Any = pd.concat(parts, ignore_index=True)
    return whole[columns]


def draw_stream(run: Run) -> "Figure":
    compared = summarised(stream(run), "share", ["arm", "layer", "step"])
    title = f"How far has the stream gone to where the “{run.plan.named.trait}” teacher's is?"
    return arm_lines(value="share of the way", x="step", title=title, **compared)


def draw_stream_cosine(run: Run) -> "Figure":
    frame = stream(run).dropna(subset=["cosine"])
    title = f"Does the stream go the way of the “{run.plan.named.trait}” teacher's?"
    return arm_lines(x="step", title=title, **with_null(frame, ["arm", "layer", "step"]))
