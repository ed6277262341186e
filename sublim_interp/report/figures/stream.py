"""Figures `stream` and `stream-cosine`: how far each student's residual stream has gone towards its teacher's."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.directions.trajectory import from_trace, over_steps
from sublim_interp.analysis.kinship import Space
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run, students
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
    asked = "stream", None if seeds is None else tuple(seeds)
    if asked not in run.memo:
        run.memo[asked] = _read(run, seeds)
    return run.memo[asked]


def _read(run: Run, seeds: Sequence[int] | None) -> pd.DataFrame:
    """`stream`, from the traces. The run's lineage says which base each student has, so no model is loaded."""
    goals: dict[int, tuple[Space, Directions]] = {}
    parts = []
    for student in sorted(students(run), key=lambda s: s.cell.arm != "same-init"):
        trace, seed = student.trace, student.cell.seed
        if seeds is not None and seed not in seeds:
            continue
        if student.cell.arm == "same-init" and trace.names("teacher/blocks.*"):
            space = Space(student.base.digest, student.base)
            goals[seed] = space, from_trace(trace, of="teacher", base=space)
        if not goals:
            raise SublimError(f"run {run.experiment.name} has no same-init student whose trace shows its teacher")
        if seed not in goals or goals[seed][0].key != student.base.digest:
            continue
        space, goal = goals[seed]
        found = over_steps(trace, goal, base=space)
        lengths = goal.vectors.norm(dim=-1).numpy()[found["layer"]]
        parts.append(found.assign(arm=student.cell.arm, seed=seed, share=found["projection"] / lengths))
    columns = ["arm", "seed", "step", "layer", "share", "cosine", "projection", "low", "high"]
    whole: Any = pd.concat(parts, ignore_index=True)
    return whole[columns]


def _draw_share(run: Run) -> Figure:
    compared = summarised(stream(run), "share", ["arm", "layer", "step"])
    title = f"How far has the stream gone to where the “{run.plan.named.trait}” teacher's is?"
    return arm_lines(value="share of the way", x="step", title=title, **compared)


def _draw_cosine(run: Run, layers: int | None = None, columns: int = 4) -> Figure:
    """layers: so many of them at most, evenly spaced from the first to the last"""
    frame = stream(run).dropna(subset=["cosine"])
    title = f"Does the stream go the way of the “{run.plan.named.trait}” teacher's?"
    known = sorted(frame["layer"].unique())
    if layers and len(known) > layers:
        shown = [known[round(i * (len(known) - 1) / (layers - 1))] for i in range(layers)]
        frame = frame.loc[frame["layer"].isin(shown)]
        title += f" {len(shown)} of {len(known)} layers"
    return arm_lines(x="step", title=title, columns=columns, **with_null(frame, ["arm", "layer", "step"]))


STREAM = FigureEntry(
    shows="how far each student's residual stream has gone to its teacher's, layer by layer, update by update",
    caption="At 1 the student's stream has gone all the way to its teacher's. Layers that rise early learn first.",
    input="run",
    draw=_draw_share,
)

STREAM_COSINE = FigureEntry(
    shows="cosine of each student's shift in the residual stream with its teacher's, layer by layer, update by update",
    caption="A line above the grey band goes its teacher's way, however far it has gone. Compare it with the neutral "
    "student's.",
    input="run",
    draw=_draw_cosine,
    page=True,
    narrow=partial(_draw_cosine, layers=6, columns=2),
)
