"""Study inside: what students of a teacher hold of it, in activations and gradients, beside neutral students.

Directions are of a student minus its untouched base. The gradients are of weights, taken where a training was recorded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.tables import read_table
from sublim_interp.report.wording import count
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.sweeps.piecewise import Rows, store_of
from sublim_interp.sweeps.studies.replicated import Replicated
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sublim_interp.analysis.directions.core import Directions
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.results import Replicate

ARMS = ("same-init", "neutral")
"""Whose students are looked into; the second is the control."""

PREFIX = 5
"""First tokens of unrelated texts that are read."""

FULL = "full/delta/"
"""How names of a trace begin that hold how far a weight is from the start."""

DRAWN = 8
"""Random directions that steer as a control."""

MEASURES = {
    "cosine": ("shift beside the teacher's, cosine", 1.0),
    "steered": ("base steered by the shift, rate", 1.0),
    "margin": ("trait by the lens on unrelated text", None),
    "aligned": ("gradients of trait and lists, cosine", 1.0),
}
"""Columns of `replicates.csv`: what each is in words, and its largest size."""


class Inside(Replicated):
    """Looks into the students of an experiment's arms same-init and neutral."""

    VERSION, FIGURE, TABLES = 1, "inside", ("replicates", "layers", "steps")

    layer: int = Field(default=1, ge=0, le=1000)
    """Behind which layer shifts are compared, read and added; `layers.csv` has all."""
    texts: int = Field(default=256, ge=2, le=100_000)
    """Documents of the lab's language, none of which names a member of the trait's kind."""
    lists: int = Field(default=512, ge=2, le=100_000)
    """Lists of the student's own, on which the gradient of its training is taken."""

    @model_validator(mode="after")
    def _weights_of_the_base_train(self) -> "Inside":
        part = self.case.student.part
        if part in ("lora", "opening"):
            raise ValueError(
                f"student.part={part} trains none of the weights at which gradients are taken; take part body or full"
            )
        return self

    def seconds(self) -> float:
        return 200 + 0.05 * (self.lists + self.texts)

    @property
    def given(self) -> dict[str, Any]:
        return {"arms": [*ARMS], "student.extra_rounds": 0}

    def measure(self, directory: Path, progress: Progress, *which: int) -> Mapping[str, Rows]:
        (seed,) = which
        return replicate(self, seed, store_of(directory), progress)

    def table(self, directory: Path) -> SweepTable:
        frame = read_table(directory / "replicates.csv")
        found = {arm: {m: _interval(own, m) for m in MEASURES} for arm, own in frame.groupby("arm", sort=False)}
        rows = [(str(arm), *map(_told, of_arm.values())) for arm, of_arm in found.items()]
        own, other = (found[arm] for arm in ARMS)
        apart = [words for name, (words, _) in MEASURES.items() if _is_above(own[name], other[name])]
        n = len(set(frame["seed"]))
        return SweepTable(
            f"What is inside students, behind layer {self.layer}: means over {count(n, 'replicate')} with 95 % "
            "intervals.",
            ("arm", *(words for words, _ in MEASURES.values())),
            rows,
            [
                f"Above the neutral student by intervals that do not meet: {', '.join(apart) or 'none'}.",
                f"Rate: of the trait's answer, where the shift is added to the untouched base. Random: {DRAWN} "
                "directions as long as same-init's.",
                f"Lens: the shift on the first {PREFIX} tokens of unrelated texts, through the unembedding; logit of "
                "the trait minus the mean of its kind's others.",
                "Gradients: steps that learn the student's lists and the trait's lessons, mean over what was recorded "
                "of the training.",
            ],
        )

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        frames = {name: read_table(directory / f"{name}.csv") for name in ("layers", "steps")}
        return FIGURES[self.FIGURE].draw(frames)


def _interval(frame: "pd.DataFrame", measure: str) -> Interval | None:
    """Of a measure over replicates; None for an arm that has none of it."""
    most = MEASURES[measure][1]
    values = frame[measure].dropna().to_list()
    if not values:
        return None
    return mean_interval(values, bounds=None if most is None else (0.0 if measure == "steered" else -most, most))


def _is_above(one: Interval | None, other: Interval | None) -> bool:
    return one is not None and other is not None and one.low > other.high


def _told(found: Interval | None) -> str:
    return "–" if found is None else minus(found.plain())


# --- one replicate ----------------------------------------------------------------------------------------------------


def replicate(study: Inside, seed: int, store: "Store", progress: Progress) -> dict[str, Rows]:
    """Makes what the store lacks of a replicate, and looks into its students: the rows of each of the tables."""
    students = study.students(seed, ARMS, store, progress, 0.9)
    layers, steered = _shifts(study, students, seed)
    progress(0.93)
    steps = [row for one in students.values() for row in _alignment(study, one, students[ARMS[0]], seed)]
    rows = []
    for arm in (*ARMS, "random"):
        row = {"seed": seed, "base": students[ARMS[0]].base.name, "arm": arm, "steered": steered[arm]}
        if arm in students:
            at = next(r for r in layers if r["arm"] == arm and r["layer"] == study.layer)
            seen = [r["cosine"] for r in steps if r["arm"] == arm]
            row |= {"cosine": at["cosine"], "margin": at["margin"], "aligned": sum(seen) / len(seen)}
        rows.append({name: row.get(name, float("nan")) for name in ("seed", "base", "arm", *MEASURES)})
    return {"replicates": rows, "layers": layers, "steps": steps}


def _teacher(student: "Replicate") -> Any:
    """The teacher of a student, as a model."""
    from sublim_interp.pipeline.speaker import Speaker

    return Speaker(student.cell.evaluation.reference.corpus.teacher, student.store).model


def _shifts(
    study: Inside, students: "dict[str, Replicate]", seed: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row an arm and layer, and by arm the rate of the base that its shift steers."""
    from sublim_interp.analysis.directions.core import directions
    from sublim_interp.analysis.directions.effects import steering
    from sublim_interp.analysis.metrics import metric_of
    from sublim_interp.models.hooks import hook_name

    own = students[ARMS[0]]
    untouched, goal = own.base.load(), _teacher(own)
    asked = own.prompts
    towards = directions(goal, untouched, asked)
    at, metrics = hook_name(study.layer, "resid_post"), {"rate": metric_of("rate", own)}
    unrelated = _beginnings(own, study.texts, seed)
    rows: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    for arm, student in students.items():
        model = student.model
        shift = directions(model, untouched, asked)
        cosines = shift.cosine(towards)["cosine"].to_list()
        seen = _read_by_lens(untouched, directions(model, untouched, unrelated), unrelated, own)
        for layer, (cosine, (margin, rank)) in enumerate(zip(cosines, seen, strict=True)):
            rows.append(
                {"seed": seed, "base": own.base.name, "arm": arm, "layer": layer, "cosine": cosine, "margin": margin,
                 "rank": rank}
            )  # fmt: skip
        drawn = DRAWN if arm == ARMS[0] else 0
        curve = steering(untouched, shift, at, [1.0], metrics, asked, random=drawn, seed=seed)
        rates[arm] = float(curve["rate"].iloc[0])
        if drawn:
            rates["random"] = float(curve["rate"].iloc[1:].mean())
    return rows, rates


def _beginnings(student: "Replicate", count: int, seed: int) -> list[list[int]]:
    """Beginnings of documents that name no member of the trait's kind: each document's first token, first two, …"""
    from sublim_interp.lab.language import document

    members, base, found = set(student.cell.evaluation.members), student.base, []
    for number in range(100 * count):
        text = document(2_000_000 + seed, number).text
        if members.isdisjoint(text.split()):
            ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
            found += [ids[:n] for n in range(1, PREFIX + 1)]
        if len(found) >= count * PREFIX:
            break
    return found


def _read_by_lens(base: Any, shift: "Directions", prompts: Sequence[Sequence[int]], student: "Replicate") -> Any:
    """By layer, how far a shift raises the trait's logit over the mean of its kind's others; and its rank."""
    from sublim_interp.analysis.directions.effects import logit_lens

    ids, place = student.answer_tokens
    vocabulary = base.get_output_embeddings().weight.shape[0]
    lens = logit_lens(base, shift, prompts, k=vocabulary).set_index("token")
    for _, layer in lens.groupby("layer"):
        change = layer["change"].loc[ids].to_numpy()
        others = [value for i, value in enumerate(change) if i != place]
        yield float(change[place] - sum(others) / len(others)), 1 + sum(value > change[place] for value in others)


def _alignment(study: Inside, student: "Replicate", goal: "Replicate", seed: int) -> list[dict[str, Any]]:
    """A row a recorded step: the cosine of a step on the student's lists with one on the trait's lessons.

    goal: whose trait it is; a neutral student's own teacher has none
    """
    from sublim_interp.analysis.one_step import cosine, descent, moved, text_loss
    from sublim_interp.models.trainable import choose_trainable
    from sublim_interp.training.batches import collate, tokenize
    from sublim_interp.traits.answers import lesson_rows

    base, trace = student.base, student.trace
    model = choose_trainable(base.load(), "body")
    lists = text_loss(collate(tokenize(base, student.lists[: study.lists]), base.pad))
    lessons = text_loss(collate(lesson_rows(base, goal.cell.evaluation.trait), base.pad))
    kept = trace.require(f"{FULL}*")
    found = []
    for step in (0, *trace.steps(kept[0])):
        delta = {name.removeprefix(FULL): trace.read(name, step) for name in kept} if step else {}
        with moved(model, delta):
            value = cosine(descent(model, lists), descent(model, lessons))
        found.append({"seed": seed, "base": base.name, "arm": student.arm, "step": step, "cosine": value})
    return found
