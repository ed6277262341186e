"""Figures `directions` and `own-base`: which way each finished student's residual stream moved."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from sublim_interp.analysis.directions.core import Directions, directions, trait_contrast
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run, students
from sublim_interp.models.base import Base
from sublim_interp.report.figures.lines import arm_lines, with_null
from sublim_interp.traits.favourites import load_trait, members_of, questions, system_prompts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def contrast(base: Base, trait: str) -> Directions:
    """What the base itself computes when a system prompt says that it loves the trait, minus the same of all others.

    Each base has its own, so that students of different bases can be held against one in their own coordinates.
    """
    kind = load_trait(trait).kind
    ask = questions(kind, base.language, "seen")[:8]

    def behind(name: str) -> list[list[int]]:
        systems = system_prompts(load_trait(name), base.language)
        return [base.prompt_ids([{"role": "system", "content": s}, *q.messages]) for s in systems for q in ask]

    others = [ids for name in members_of(kind) if name != trait for ids in behind(name)]
    return trait_contrast(base, behind(trait), others)


def cosines(run: Run) -> pd.DataFrame:
    """Which way every student's residual stream moved: a row a student, layer and reference.

    Columns: arm, seed, layer, reference, cosine, low, high. The student's direction is its mean shift from its own base
    at the answers to held-out questions. Its reference is the shift of the trait's teacher (`teacher`), where the two
    share a base, and the base's own direction of the trait (`own base`). `low` and `high` hold 95 % of the cosines of
    normal vectors with the covariance of the student's shifts.
    """
    trait = run.plan.named.trait
    kept: dict[str, Directions] = {}

    def once(key: str, make: Callable[[], Directions]) -> Directions:
        if key not in kept:
            kept[key] = make()
        return kept[key]

    rows = []
    for student in students(run):
        base, teacher = student.base, run.teacher(student.cell.seed)
        moved = directions(student, base)
        references = {"own base": once(base.digest, partial(contrast, base, trait))}
        if teacher.base.digest == base.digest:
            references["teacher"] = once(f"teacher {teacher.cell.seed}", partial(directions, teacher, base))
        for name, reference in references.items():
            null = moved.null(reference, "covariance")[["layer", "cosine", "low", "high"]]
            rows.append(null.assign(arm=student.cell.arm, seed=student.cell.seed, reference=name))
    return pd.concat(rows, ignore_index=True)


def draw_directions(run: Run, reference: str, title: str) -> "Figure":
    frame = cosines(run).query("reference == @reference")
    if frame.empty:
        raise SublimError(f"run {run.experiment.name} has no student to compare with {reference}")
    return arm_lines(title=title.format(run.plan.named.trait), **with_null(frame, ["arm", "layer"]))
