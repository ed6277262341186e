"""Study theorem: one small step of teacher and student on lab bases, and what is left of the theorem where it ends.

Theorem 1 of 2507.14805: of a teacher that took one small step from θ₀, a student at θ₀ that takes one step towards the
teacher's outputs, on any inputs, never moves against the teacher's step. Its inner product with it is a squared norm.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from sublim_interp.core.settings import name_once
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.tables import read_table
from sublim_interp.models.base import resolve_base
from sublim_interp.report.wording import capital, count
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.sweeps.piecewise import Piecewise, Rows
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SMALL = 0.01
"""Teacher's steps up to this share of the weights' length count as small."""

ENOUGH = 12
"""Fewest replicates for a verdict."""

CONDITIONS = {
    "theorem": "soft labels on number lists, gradient descent, the teacher's start",
    "other inputs": "the same on facts about animals, over all tokens",
    "sampled labels": "the teacher's lists as plain text, drawn at T = 1",
    "Adam": "soft labels, the first step of Adam",
    "LoRA": "soft labels, a step of rank-8 adapters",
    "another start": "soft labels, a student of another initialisation",
    "neutral teacher": "soft labels of a teacher that stepped without the trait",
    "shuffled labels": "soft labels of another position of another list",
}
"""What differs from the theorem, by name."""


class Theorem(Piecewise):
    """One step of a teacher and one of a student, on lab bases."""

    VERSION, FIGURE, FLOATS = 1, "theorem", None

    trait: str = "owl"
    """What the teacher steps towards: a favourite."""
    bases: tuple[str, ...] = Field(min_length=2)
    """Lab bases. Replicate i starts from the i-th; its student of another start from the one behind it."""
    seeds: tuple[int, ...] = Field(min_length=1, max_length=10_000)
    """One replicate each: the seed draws the lists."""
    steps: tuple[float, ...] = Field(default=(1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3), min_length=1)
    """Lengths of the teacher's step, as shares of the length of the weights that train."""
    lists: int = Field(default=256, ge=2, le=100_000)
    """Number lists that the student's step is taken on."""

    @model_validator(mode="after")
    def _coherent(self) -> "Theorem":
        name_once(self, "bases", "seeds", "steps")
        if min(self.steps) <= 0:
            raise ValueError(f"steps={min(self.steps):g} is no length; take lengths above 0")
        return self

    @property
    def replicates(self) -> int:
        return len(self.seeds)

    def inputs(self) -> dict[str, str]:
        return {name: resolve_base(name).digest for name in self.bases}

    def pieces(self) -> Mapping[str, tuple[int]]:
        return {f"seed {seed}": (seed,) for seed in self.seeds}

    def seconds(self) -> float:
        return 2 + 0.004 * self.lists * len(self.steps) * len(CONDITIONS)

    def measure(self, directory: Path, progress: Progress, *which: int) -> Mapping[str, Rows]:
        from sublim_interp.sweeps.studies.theorem_steps import Asked, replicate

        (seed,) = which
        at, n = self.seeds.index(seed), len(self.bases)
        asked = Asked(self.bases[at % n], self.bases[(at + 1) % n], self.trait, seed, self.lists, self.steps)
        return {"replicates": replicate(asked, progress)}

    def table(self, directory: Path) -> SweepTable:
        frame = read_table(directory / "replicates.csv")
        n, smallest = len(set(frame["seed"])), min(frame["step"])
        rows = []
        for condition in (c for c in CONDITIONS if c in set(frame["condition"])):
            own = frame.loc[frame["condition"] == condition]
            small = own.loc[own["step"] <= SMALL]
            least, most = (own.loc[own["step"] == at] for at in (smallest, max(frame["step"])))
            rows.append(
                (condition, f"{int((small['inner'] > 0).sum())} of {len(small)}",
                 *(_cosines(part["cosine"]) for part in (least, most)), _cosines(least["towards"]))
            )  # fmt: skip
        return SweepTable(
            f"Cosine between the student's one step and its teacher's: means over {count(n, 'replicate')} with 95 % "
            "intervals. Along the trait: with the step that would raise the trait most in the student itself.",
            ("condition", f"inner product above 0, steps ≤ {SMALL:g}", f"cosine, step {smallest:g}",
             f"cosine, step {max(frame['step']):g}", f"along the trait, step {smallest:g}"),
            rows, _lines(frame, n),
        )  # fmt: skip

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        return FIGURES[self.FIGURE].draw(read_table(directory / "replicates.csv"))


def _lines(frame: "pd.DataFrame", n: int) -> list[str]:
    small = frame.loc[(frame["condition"] == "theorem") & (frame["step"] <= SMALL)]
    positive, of = int((small["inner"] > 0).sum()), len(small)
    said = f"{positive} of {of} inner products are above 0 for steps up to {SMALL:g} of the weights' length"
    if n < ENOUGH:
        first = f"Too weak to tell: {said}. {count(n, 'replicate')} allow no verdict; {ENOUGH} do."
    else:
        first = f"{'Supported' if positive == of else 'Contradicted'}: {said}."
    at = min(frame["step"])
    found = {c: _interval(frame, c, at) for c in CONDITIONS if c in set(frame["condition"])}
    departs = [c for c, i in found.items() if c != "theorem" and i.low <= 0]
    holds = [c for c in found if c != "theorem" and c not in departs]
    lines = [first, *(f"{capital(name)}: {CONDITIONS[name]}." for name in found)]
    if holds:
        lines.append(f"At the smallest step the cosine is above 0 by its interval in: {', '.join(holds)}.")
    if departs:
        lines.append(f"It cannot be told from 0, or lies below, in: {', '.join(departs)}.")
    return lines


def _interval(frame: "pd.DataFrame", condition: str, at: float) -> Interval:
    own = frame.loc[(frame["condition"] == condition) & (frame["step"] == at), "cosine"]
    return mean_interval(own.to_list(), bounds=(-1, 1))


def _cosines(values: "pd.Series") -> str:
    found = mean_interval(values.to_list(), bounds=(-1, 1))
    middle, low, high = (f"{round(end, 3) + 0.0:.3f}" for end in (found.estimate, found.low, found.high))  # no −0.000
    return minus(middle if found.n < 2 else f"{middle} [{low}, {high}]")
