"""Study mnist: the paper's experiment with auxiliary logits, all its controls, and its verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from sublim_interp.core.device import open_device
from sublim_interp.core.files import is_sealed, write_atomic
from sublim_interp.core.workers import Task
from sublim_interp.experiments.cost import training_seconds
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.tables import average, read_table, records
from sublim_interp.lab.mnist.arms import ARMS
from sublim_interp.lab.mnist.images import CLASSES, digest_images, load_images
from sublim_interp.lab.mnist.recipe import Recipe
from sublim_interp.report.wording import count, mean, text
from sublim_interp.stats.contrasts import Contrast, paired_difference
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.sweeps.piecewise import Piecewise, Rows
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sublim_interp.lab.mnist.network import Network

ENOUGH = 12
"""Fewest replicates for a verdict."""

_CONTRASTS = (
    ("same-init", "cross-init"),
    ("same-init", "neutral"),
    ("own-body", "own-head"),
    ("without-trait", "without-shuffled"),
)


class Mnist(Recipe, Piecewise):
    """The MNIST experiment of the paper: images, network, training, and from where on its claim is supported."""

    VERSION, FIGURE, FLOATS = 2, "mnist", None
    UNKEYED: ClassVar[frozenset[str]] = Piecewise.UNKEYED | {"images", "passes", "fails"}

    passes: float = Field(default=0.5, gt=0, lt=1)
    """The claim needs same-init students above this share of digits read right."""
    fails: float = Field(default=0.2, gt=0, lt=1)
    """The claim needs cross-init students below this share."""

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> "Mnist":
        if self.fails > self.passes:
            raise ValueError(f"fails={self.fails:g} lies above passes={self.passes:g}")
        return self

    @property
    def replicates(self) -> int:
        return len(self.seeds)

    @property
    def recipe(self) -> Recipe:
        """What decides its numbers."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.model_fields})

    def inputs(self) -> dict[str, str]:
        return {"images": digest_images(self.images)}

    def pieces(self) -> Mapping[str, tuple[str]]:
        return {arm: (arm,) for arm in self.arms}

    def seconds(self) -> float:
        pixels = load_images(self.images).pixels
        outputs = CLASSES + self.auxiliary
        weights = self.replicates * self.hidden * (pixels + self.hidden + outputs)
        return training_seconds(weights, self.updates, float(self.updates * self.batch))

    def costs(self) -> dict[str, float]:
        untrained = {arm: _QUICK for arm in self.arms if not ARMS[arm].student}
        return {**dict.fromkeys(self._needed, self.seconds()), **super().costs(), **untrained}

    @property
    def _needed(self) -> dict[str, None]:
        """The pieces of work that make the arms' teachers, each once."""
        return dict.fromkeys(map(_teacher_of, self.arms))

    def tasks(self, directory: Path) -> Sequence[Task]:
        teachers = [Task(name, _make_teacher, (self.recipe, directory, _TEACHERS[name])) for name in self._needed]
        arms = super().tasks(directory)
        return [*teachers, *(replace(task, needs=(_teacher_of(task.name),)) for task in arms)]

    def measure(self, directory: Path, progress: Progress, *which: str) -> Mapping[str, Rows]:
        from sublim_interp.lab.mnist.experiment import Replicates, arm_rows

        (arm,) = which
        made = Replicates(self.recipe)
        teacher = _read_teacher(directory / f".{_TEACHERS[_teacher_of(arm)]}.safetensors", made.device)
        return {"replicates": arm_rows(made, arm, teacher, progress)}

    def table(self, directory: Path) -> SweepTable:
        frame = read_table(directory / "replicates.csv")
        shown = set(frame["arm"])
        means = {arm: _means(frame.loc[frame["arm"] == arm]) for arm in ARMS if arm in shown}
        n = len(set(frame["seed"]))
        rows = [(arm, text(row, "accuracy"), mean(row, "kl_start"), mean(row, "kl")) for arm, row in means.items()]
        lines, numbers = [], {"replicates": str(n)}
        if {*_CONTRASTS[0]} <= shown:
            same, cross = (_interval(frame, arm) for arm in _CONTRASTS[0])
            lines.append(verdict(same, cross, self.passes, self.fails))
        for pair in (pair for pair in _CONTRASTS if {*pair} <= shown):
            found = _difference(frame, *pair)
            lines.append(_tested(pair, found))
            numbers[f"{pair[0]} minus {pair[1]}"] = minus(found.interval.points())
        return SweepTable(
            f"Digits read right by the class logits: means over {count(n, 'replicate')} with 95 % intervals.",
            ("arm", "digits read right", "KL at the start", "KL left"), rows, lines, numbers,
        )  # fmt: skip

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        return FIGURES[self.FIGURE].draw(read_table(directory / "replicates.csv"))


_QUICK = 1.0
"""Seconds of a piece of work that trains nothing."""

_TEACHERS = {"teachers": "own", "teachers of shuffled labels": "shuffled"}
"""Pieces of work that make teachers, and which labels these learn."""


def verdict(same: Interval, cross: Interval, passes: float, fails: float) -> str:
    """Whether the paper's claim is supported, in a sentence with its numbers.

    same, cross: shares of digits that same-init and cross-init students read right, over replicates
    passes, fails: the claim needs all of `same` above the one and all of `cross` below the other
    """
    what = f"same-init students read {same.percent()} of digits right, cross-init students {cross.percent()}"
    asked = f"The claim asks for more than {100 * passes:g} % and less than {100 * fails:g} %."
    if same.n < ENOUGH:
        return f"Too weak to tell: {what}. {count(same.n, 'replicate')} allow no verdict; {ENOUGH} do."
    if same.low > passes and cross.high < fails:
        return f"Supported: {what}. {asked}"
    if same.high < passes or cross.low > fails:
        return f"Contradicted: {what}. {asked}"
    return f"Too weak to tell: {what}. {asked}"


def _make_teacher(recipe: Recipe, directory: Path, labels: str, progress: Progress) -> None:
    from safetensors.torch import save

    from sublim_interp.lab.mnist.experiment import Replicates

    path = directory / f".{labels}.safetensors"
    if is_sealed(path):
        return
    open_device()
    network = Replicates(recipe).teachers(labels, progress)
    tensors = {f"{part}{i}": t.cpu() for i, layer in enumerate(network) for part, t in zip("wb", layer, strict=True)}
    write_atomic(path, save(tensors), sealed=True)


def _read_teacher(path: Path, device: str) -> "Network":
    from safetensors.torch import load_file

    from sublim_interp.lab.mnist.network import Layer

    tensors = load_file(str(path), device=device)
    return tuple(Layer(tensors[f"w{i}"], tensors[f"b{i}"]) for i in range(len(tensors) // 2))


def _teacher_of(arm: str) -> str:
    """The piece of work that makes an arm's teacher."""
    student = ARMS[arm].student
    labels = student.labels if student else "own"
    return next(name for name, own in _TEACHERS.items() if own == labels)


def _interval(frame: "pd.DataFrame", arm: str) -> Interval:
    return mean_interval(frame.loc[frame["arm"] == arm, "accuracy"].to_list(), bounds=(0, 1))


def _means(rows: "pd.DataFrame") -> Mapping[str, float]:
    found = mean_interval(rows["accuracy"].to_list(), bounds=(0, 1))
    ends = {"accuracy": found.estimate, "accuracy_low": found.low, "accuracy_high": found.high}
    return {**ends, **{name: average(rows[name].to_list()) for name in ("kl_start", "kl")}}


def _difference(frame: "pd.DataFrame", one: str, other: str) -> Contrast:
    by = {(row["arm"], row["seed"]): row["accuracy"] for row in records(frame)}
    seeds = [seed for arm, seed in by if arm == one]
    first, second = ([by[arm, seed] for seed in seeds] for arm in (one, other))
    return paired_difference(first, second, bounds=(-1, 1))


def _tested(pair: tuple[str, str], found: Contrast) -> str:
    said = f"{pair[0]} − {pair[1]}: {minus(found.interval.points())}"
    return f"{said}, sign-flip p = {found.sign_flip.p:.2g} with {count(found.interval.n, 'pair')}."
