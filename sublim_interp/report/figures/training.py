"""Figures `training` and `weights`: how each student came along, update by update."""

from typing import TYPE_CHECKING

import pandas as pd

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.plan import Cell
from sublim_interp.experiments.results import Replicate, Run, students
from sublim_interp.report.figures.lines import arm_lines, summarised
from sublim_interp.stats.margin import margin
from sublim_interp.training.recording.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def growth(replicate: Replicate, trait: str | None = None) -> pd.DataFrame:
    """How a training went, from its trace: a row for each recorded state, as `grown` gives them."""
    return grown(replicate.cell, replicate.trace, trait)


def grown(cell: Cell, trace: Trace, trait: str | None = None) -> pd.DataFrame:
    """How the training of a cell has gone so far: a row for each state in its trace, the first being that of step 0.

    Columns: step (updates made), loss (of the update before, nats per token), rate and margin (0 to 1, nats) of
    `trait`, or else of the probe's own, or of each question's own fact, on the probe's questions, probe_loss (nats per
    token of held-out lists), distance (norm of θ − θ_0), cosine of θ − θ_0 with the teacher's change of the weights.
    NaN where there is none: the cosine needs one base for both.
    """
    about = trace.about
    members = list(about["coords"]["member"])
    asked, trait = about["probe"].get("truth"), trait if trait in members else about["probe"]["trait"]
    right = [members.index(m) for m in asked or [trait] * (trait is not None) * about["probe"]["questions"]]
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


def _shares_base(cell: Cell) -> bool:
    """Whether a student started from the base that its teacher was made from, so that they share coordinates."""
    student = cell.student
    return student is not None and student.data.corpus.teacher.base.digest == student.base.digest


def training(run: Run) -> pd.DataFrame:
    """`growth` of every student towards the run's trait: arm, seed and the columns of `growth`."""
    parts = [growth(r, run.plan.named.trait).assign(arm=r.cell.arm, seed=r.cell.seed) for r in students(run)]
    return pd.concat(parts, ignore_index=True)


def draw_training(run: Run, column: str, axis: str, title: str) -> "Figure":
    frame = training(run).dropna(subset=[column])
    if frame.empty:
        raise SublimError(f"no trace of run {run.experiment.name} holds a {axis} to draw")
    compared = summarised(frame, column, ["arm", "step"])
    return arm_lines(value=axis, x="step", title=title.format(run.plan.named.trait), **compared)
