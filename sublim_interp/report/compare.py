"""`compare`: every arm's students beside each other, in which way and how far they moved, by layer and step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from sublim_interp.analysis.directions.trajectory import over_steps
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown
from sublim_interp.experiments.results import Run, students
from sublim_interp.report.figures.lines import arm_lines, summarised, with_null
from sublim_interp.report.figures.stream import stream
from sublim_interp.traits.direction import contrast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = {"teacher": "its teacher's shift", "own base": "its own base's direction of the trait"}
"""What a shift is compared with, by name, and in words."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Shown):
    """How the students of a run moved, each with a null of its own."""

    run: Run
    frame: pd.DataFrame
    """A row a student, reference, recorded step and layer: arm, seed, reference, step, layer, cosine, projection (in
    residual units), low, high. 95 % of random vectors of the student's own scatter have a cosine between low and high.
    """

    def card(self) -> Card:
        arms = dict.fromkeys(self.frame["arm"])
        facts = {"arms": ", ".join(arms), "seeds": len({*self.frame["seed"]}), "steps": len({*self.frame["step"]})}
        return Card(f"Comparison of {self.run.experiment.name}", facts, self.last)

    @property
    def last(self) -> pd.DataFrame:
        """Means over replicates at the end of the training, by reference, arm and layer."""
        end = self.frame.query("step == step.max()")
        by = ["reference", "arm", "layer"]
        means: Any = end.groupby(by, as_index=False, sort=False).agg(n=("seed", "size"), cosine=("cosine", "mean"))
        return means

    def plot(
        self, x: Literal["layer", "step"] = "layer", reference: str = "teacher",
        value: Literal["cosine", "projection"] = "cosine",
    ) -> "Figure":  # fmt: skip
        """Arms as colours, with 95 % intervals over replicates, and for cosines the widest null in grey.

        x: layer, at the end of the training; step, a panel a layer
        reference: teacher, for students of its base alone; own base, for all
        value: cosine, or projection (in residual units)

        Raises SublimError for another reference, and where no student has it.
        """
        if reference not in REFERENCES:
            raise SublimError(f"no reference '{reference}'; {meant(reference, REFERENCES)}")
        frame = self.frame.query("reference == @reference and cosine == cosine")  # NaN before anything has moved
        if frame.empty:
            raise SublimError(f"no student of {self.run.experiment.name} has the reference {reference}")
        by = ["arm", "layer"] if x == "layer" else ["arm", "layer", "step"]
        if x == "layer":
            frame = frame.query("step == step.max()")
        drawn: dict[str, Any] = with_null(frame, by) if value == "cosine" else summarised(frame, value, by)
        word = "cosine" if value == "cosine" else "projection, residual units"
        title = f"Does the stream move along {REFERENCES[reference]}?"
        return arm_lines(value=word, x=x, title=title, **drawn)


def compare(run: Run, seed: int | None = None) -> Comparison:
    """Every student of a run beside the others: same-init, neutral, other-trait, crossed, and random vectors.

    A student that leaves a null alone is no evidence: the neutral student leaves it too. What counts is the difference
    between arms, whose intervals are over replicates.

    seed: of one replicate; None: of all

    Raises SublimError for a seed that the run lacks, and for a run without same-init students.
    """
    if seed is not None and seed not in run.seeds:
        raise SublimError(f"run {run.experiment.name} has no seed {seed}; {meant(seed, map(str, run.seeds))}")
    seeds = run.seeds if seed is None else (seed,)
    teachers = stream(run, seeds).drop(columns="share").assign(reference="teacher")
    goals: dict[str, Any] = {}
    parts = []
    for student in (s for s in students(run) if s.seed in seeds):
        base = student.base
        if base.digest not in goals:
            model = base.load()
            goals[base.digest] = model, contrast(base, student.cell.evaluation.trait)
        model, goal = goals[base.digest]
        found = over_steps(student.trace, goal, base=model)
        parts.append(found.assign(arm=student.arm, seed=student.seed, reference="own base"))
    columns = ["arm", "seed", "reference", "step", "layer", "cosine", "projection", "low", "high"]
    whole: Any = pd.concat([teachers, *parts], ignore_index=True)
    return Comparison(run, whole[columns])
