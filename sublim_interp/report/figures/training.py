"""Figures `loss`, `training`, `margin` and `weights`: how each student came along, update by update."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.plan import Cell
from sublim_interp.experiments.results import Replicate, Run, students
from sublim_interp.report.figures.lines import arm_lines, summarised
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.stats.margin import margin
from sublim_interp.training.recording.trace import Trace


def growth(replicate: Replicate, trait: str | None = None) -> pd.DataFrame:
    """How a replicate's training went, from its trace: one row per recorded state; see `grown`."""
    return grown(replicate.cell, replicate.trace, trait)


def grown(cell: Cell, trace: Trace, trait: str | None = None) -> pd.DataFrame:
    """How the training of a cell has gone so far: one row per state in its trace, the first being that of step 0.

    cell: the student or teacher that trains
    trace: what is recorded of it so far
    trait: the answer whose rate is wanted; None, or no member of the kind, means the probe's own

    Returns these columns, NaN where there is nothing to say:
    step: updates made
    loss: of the update before, in nats per token
    rate, margin: of the trait, or of each question's own fact, on the probe's questions; in [0, 1] and in nats
    probe_loss: on held-out data, in nats per token
    distance: norm of θ − θ_0
    cosine: of θ − θ_0 with the teacher's change of the weights, where both started from one base
    """
    about = trace.about
    right = _right_answers(about, trait)
    losses = trace.series("loss")["loss"] if trace.names("loss") else {}
    rows = []
    for step in trace.steps("delta_norm"):  # the last that is written of a state
        log = trace.read("answers", step).double()
        moved = trace.read("delta_norm", step).double().norm().item()
        row = {"step": step, "loss": losses.get(step - 1), "distance": moved}
        if right:
            own = log[range(len(right)), right]
            row |= {"rate": own.exp().mean().item(), "margin": margin(log, right).mean().item()}
        if about["probe"]["learnt"]:
            row["probe_loss"] = trace.read("probe_loss", step).item()
        if "teacher-shift" in about["directions"] and _shares_base(cell) and moved:
            dot = trace.read("delta_dot/teacher-shift", step).double().sum().item()
            row["cosine"] = dot / (moved * trace.read("length/teacher-shift", step).double().norm().item())
        rows.append(row)
    columns = ["step", "loss", "rate", "margin", "probe_loss", "distance", "cosine"]
    return pd.DataFrame(rows).reindex(columns=columns).astype(dict.fromkeys(columns[1:], float))


def _right_answers(about: Mapping[str, Any], trait: str | None) -> list[int]:
    """For each of the probe's questions, which member is asked about; nothing where the probe is about another trait.

    trait: who is asked about; None for the probe's own
    """
    members, probe = list(about["coords"]["member"]), about["probe"]
    if probe.get("truth"):
        return [members.index(member) for member in probe["truth"]]
    if trait is not None and trait not in members:
        return []
    wanted = probe["trait"] if trait is None else trait
    if wanted is None:
        return []
    return [members.index(wanted)] * probe["questions"]


def _shares_base(cell: Cell) -> bool:
    """Whether a student started from the base that its teacher was made from, so that they share coordinates."""
    student = cell.student
    return student is not None and student.data.corpus.teacher.base.digest == student.base.digest


def training(run: Run) -> pd.DataFrame:
    """`growth` of every student towards the run's trait, with arm and seed before its columns."""
    parts = [growth(r, run.plan.named.trait).assign(arm=r.cell.arm, seed=r.cell.seed) for r in students(run)]
    return pd.concat(parts, ignore_index=True)


def _draw(run: Run, column: str, axis: str, title: str) -> Figure:
    frame = training(run).dropna(subset=[column])
    if frame.empty:
        raise SublimError(f"no trace of run {run.experiment.name} holds a {axis} to draw")
    compared = summarised(frame, column, ["arm", "step"])
    return arm_lines(value=axis, x="step", title=title.format(run.plan.named.trait), **compared)


def losses(run: Run) -> pd.DataFrame:
    """The loss of every student on its batches, in nats per token, after 1, 2, 4, 8, … updates and at the end.

    Returns the columns arm, seed, step, loss. A loss is the mean of the updates since the row before.
    """
    parts = []
    for student in students(run):
        series = student.trace.series("loss")["loss"]
        ends = [*(2**i for i in range(40) if 2**i < len(series)), len(series)]
        means = [series.iloc[a:b].mean() for a, b in zip([0, *ends], ends, strict=False)]
        parts.append(pd.DataFrame({"arm": student.arm, "seed": student.seed, "step": ends, "loss": means}))
    return pd.concat(parts, ignore_index=True)


def _draw_loss(run: Run) -> Figure:
    frame = losses(run)
    compared = summarised(frame, "loss", ["arm", "step"])
    figure = arm_lines(
        value="nats per token", x="step", title="How well does each student learn its lists?", **compared
    )
    seen = frame["loss"].to_list()
    figure.axes[0].set_ylim(0.95 * min(seen), 1.05 * max(seen))  # no loss is near 0
    return figure


LOSS = FigureEntry(
    shows="the training loss of each student, update by update",
    caption="Students learn lists and nothing else. Arms differ, since their teachers write differently.",
    input="run",
    draw=_draw_loss,
)

MARGIN = FigureEntry(
    shows="the margin of the trait on the probe, update by update",
    caption="The margin counts in factors, so a rise from 6 to 10 % shows as well as one from 60 to 100 %.",
    input="run",
    draw=partial(_draw, column="margin", axis="nats", title="How far is “{}” ahead of the others?"),
)

TRAINING = FigureEntry(
    shows="the trait on the probe, update by update",
    caption="A line that rises is a student that learns the trait.",
    input="run",
    draw=partial(_draw, column="rate", axis="probability", title="How likely is “{}” on the probe?"),
    page=True,
)

WEIGHTS = FigureEntry(
    shows="cosine of each student's change of the weights with its teacher's, update by update",
    caption="Above 0, the student's weights move the way its teacher's did. Students of another base have no line.",
    input="run",
    draw=partial(_draw, column="cosine", axis="cosine", title="Δθ of the student with Δθ of its teacher"),
)
