"""What a finished run can be drawn as: run → tidy frame → a function of figures.py. Nothing is drawn or trained here.

`growth`, `training`, `stream`, `cosines` and `patched` are the frames, for tables of one's own; `plot` is one of
`FIGURES`.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from sublim_interp import figures
from sublim_interp.analysis.directions import (
    Directions,
    directions,
    from_trace,
    over_replicates,
    over_steps,
    trait_contrast,
)
from sublim_interp.analysis.patching import GridKind, patch
from sublim_interp.errors import SublimError
from sublim_interp.models import Base
from sublim_interp.recorder import margin
from sublim_interp.report import replicates
from sublim_interp.runs import Cell, Plan, Replicate, Run
from sublim_interp.trace import Trace
from sublim_interp.traits import load_trait, members_of, questions, system_prompts
from sublim_interp.words import FEW

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


def students(run: Run) -> list[Replicate]:
    """Every student of a run after its first round, arm by arm."""
    return [Replicate(c, run.store) for c in students_of(run.plan)]


def students_of(plan: Plan) -> list[Cell]:
    """The cell of every student of a plan after its first round, arm by arm."""
    cells = [c for c in plan.cells if c.student is not None and c.round == 0]
    return sorted(cells, key=lambda c: list(figures.ARMS).index(c.arm))


def training(run: Run) -> pd.DataFrame:
    """`growth` of every student towards the run's trait: arm, seed and the columns of `growth`."""
    parts = [growth(r, run.plan.named.trait).assign(arm=r.cell.arm, seed=r.cell.seed) for r in students(run)]
    return pd.concat(parts, ignore_index=True)


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


def patched(run: Run, arm: str, kind: GridKind = "resid_pre") -> pd.DataFrame:
    """The frame of `PatchGrid` for patches of one arm's model into its untouched base, a row a cell and seed."""
    sources = [run[arm, seed] for seed in run.experiment.seeds]
    grids = [patch(s, s.base).grid(kind).frame.assign(seed=s.cell.seed) for s in sources]
    return pd.concat(grids, ignore_index=True)


# --- figures ----------------------------------------------------------------------------------------------------------


def _arms(run: Run) -> "Figure":
    frame = replicates(run.results, run.distances, run.plan.named.trait)
    return figures.arms(frame, run.table, run.plan.named.trait)


def _probes(run: Run) -> "Figure":
    return figures.probes(run.results, run.plan.named.trait)


def summarised(frame: pd.DataFrame, value: str, by: list[str]) -> dict[str, Any]:
    """`frame`, `replicates` and `bars` for `figures.directions`, of a frame with a row a replicate and place."""
    each = frame.rename(columns={value: "estimate"})
    means = over_replicates(each, "estimate", by)
    few = bool(means["n"].max() < FEW)
    if few:
        ends = each.groupby(by, as_index=False).agg(low=("estimate", "min"), high=("estimate", "max"))
        means = means.drop(columns=["low", "high"]).merge(ends, on=by)
        means.loc[means["n"] == 1, ["low", "high"]] = float("nan")
    return {"frame": means, "replicates": each, "bars": "least to most" if few else "95 % interval of the mean"}


def _training(run: Run, column: str, axis: str, title: str) -> "Figure":
    frame = training(run).dropna(subset=[column])
    if frame.empty:
        raise SublimError(f"no trace of run {run.experiment.name} holds a {axis} to draw")
    compared = summarised(frame, column, ["arm", "step"])
    return figures.directions(value=axis, x="step", title=title.format(run.plan.named.trait), **compared)


def _stream(run: Run) -> "Figure":
    compared = summarised(stream(run), "share", ["arm", "layer", "step"])
    title = f"How far has the stream gone to where the “{run.plan.named.trait}” teacher's is?"
    return figures.directions(value="share of the way", x="step", title=title, **compared)


def _stream_cosine(run: Run) -> "Figure":
    frame = stream(run).dropna(subset=["cosine"])
    title = f"Does the stream go the way of the “{run.plan.named.trait}” teacher's?"
    return figures.directions(x="step", title=title, **_with_null(frame, ["arm", "layer", "step"]))


def _with_null(frame: pd.DataFrame, by: list[str]) -> dict[str, Any]:
    """`summarised` cosines, with the widest null of the replicates at each place."""
    null = frame.groupby(by, as_index=False).agg(null_low=("low", "min"), null_high=("high", "max"))
    compared = summarised(frame, "cosine", by)
    return compared | {"frame": compared["frame"].merge(null, on=by)}


def _directions(run: Run, reference: str, title: str) -> "Figure":
    frame = cosines(run).query("reference == @reference")
    if frame.empty:
        raise SublimError(f"run {run.experiment.name} has no student to compare with {reference}")
    return figures.directions(title=title.format(run.plan.named.trait), **_with_null(frame, ["arm", "layer"]))


def _patching(run: Run, arm: str, kind: GridKind, what: str) -> "Figure":
    means = over_replicates(patched(run, arm, kind), "recovered", ["kind", "layer", "place"])
    return figures.patch_grid(means.rename(columns={"estimate": "recovered"}), title=f"{what}, {arm} into base")


FIGURES: dict[str, tuple[str, Callable[[Run], "Figure"]]] = {
    "arms": ("how likely each arm gives the trait as its answer, and how near it came to its teacher", _arms),
    "probes": ("every answer of every arm", _probes),
    "training": (
        "the trait on the probe, update by update",
        partial(_training, column="rate", axis="probability", title="How likely is “{}” on the probe?"),
    ),
    "stream": (
        "how far each student's residual stream has gone towards the teacher's, layer by layer, update by update",
        _stream,
    ),
    "stream-cosine": (
        "cosine of each student's shift in the residual stream with the teacher's, layer by layer, update by update",
        _stream_cosine,
    ),
    "weights": (
        "cosine of each student's change of the weights with its teacher's, update by update",
        partial(_training, column="cosine", axis="cosine", title="Δθ of the student with Δθ of its teacher"),
    ),
    "directions": (
        "cosine of each student's shift in the residual stream with the teacher's, layer by layer",
        partial(_directions, reference="teacher", title="Does the stream move where the “{}” teacher's did?"),
    ),
    "own-base": (
        "the same with the direction of the trait in each student's own base, across initialisations too",
        partial(_directions, reference="own base", title="Does the stream move towards the own base's “{}”?"),
    ),
    "patching": (
        "residual stream of same-init students into their base, layer by position",
        partial(_patching, arm="same-init", kind="resid_pre", what="Stream before a layer"),
    ),
    "patching-teacher": (
        "residual stream of the teachers into their base, layer by position",
        partial(_patching, arm="teacher", kind="resid_pre", what="Stream before a layer"),
    ),
    "modules": (
        "weights of same-init students into their base, layer by module",
        partial(_patching, arm="same-init", kind="weights", what="Weights"),
    ),
}
"""What `plot` draws: name → (what it shows, how it is made)."""


def plot(run: Run, name: str) -> "Figure":
    """One of `FIGURES` of a finished run. Raises SublimError for another name, and where the run lacks its arms."""
    require_figure(name)
    return FIGURES[name][1](run)


def require_figure(name: str) -> None:
    """SublimError, with those there are, for a name that is none of `FIGURES`."""
    if name not in FIGURES:
        raise SublimError(f"no figure '{name}'; figures: {', '.join(FIGURES)}")
