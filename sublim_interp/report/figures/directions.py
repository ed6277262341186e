"""Figures `directions` and `own-base`: which way each finished student's residual stream moved."""

from collections.abc import Callable
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.analysis.directions.core import Directions, directions
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run, students
from sublim_interp.report.figures.lines import arm_lines, with_null
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.traits.direction import contrast


def cosines(run: Run) -> pd.DataFrame:
    """Which way every student's residual stream moved: one row per student, layer and reference.

    Returns these columns:
    arm, seed, layer: the student, and where in it; its direction is its mean shift from its base at the answers to
        held-out questions
    reference: "teacher", the shift of the trait's teacher, where the two share a base; "own base", its base's own
        direction of the trait
    cosine: of the student's direction with the reference
    low, high: between them lie 95 % of the cosines of normal vectors with the covariance of the student's shifts
    """
    kept: dict[str, Directions] = {}

    def once(key: str, make: Callable[[], Directions]) -> Directions:
        if key not in kept:
            kept[key] = make()
        return kept[key]

    rows = []
    for student in students(run):
        base, teacher = student.base, run.teacher(student.cell.seed)
        moved = directions(student, base)
        references = {"own base": once(base.digest, partial(contrast, base, student.cell.evaluation.trait))}
        if teacher.base.digest == base.digest:
            references["teacher"] = once(f"teacher {teacher.cell.seed}", partial(directions, teacher, base))
        for name, reference in references.items():
            null = moved.null(reference, "covariance")[["layer", "cosine", "low", "high"]]
            rows.append(null.assign(arm=student.cell.arm, seed=student.cell.seed, reference=name))
    return pd.concat(rows, ignore_index=True)


def _draw(run: Run, reference: str, title: str) -> Figure:
    frame = cosines(run).query("reference == @reference")
    if frame.empty:
        raise SublimError(f"run {run.experiment.name} has no student to compare with {reference}")
    return arm_lines(title=title.format(run.plan.named.trait), **with_null(frame, ["arm", "layer"]))


DIRECTIONS = FigureEntry(
    shows="cosine of each student's shift in the residual stream with the teacher's, layer by layer",
    caption="A student above the grey band moved the way its teacher did. Only students of the teacher's base have a "
    "line.",
    input="run",
    draw=partial(_draw, reference="teacher", title="Does the stream move where the “{}” teacher's did?"),
)

OWN_BASE = FigureEntry(
    shows="cosine of each student's shift with its own base's direction of the trait, layer by layer",
    caption="A student above the grey band moved towards the trait. Students of every base have a line.",
    input="run",
    draw=partial(_draw, reference="own base", title="Does the stream move towards the own base's “{}”?"),
    page=True,
    waits="always",
)
