"""A study: how often a die of so many sides shows its highest face."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.files import write_atomic
from sublim_interp.core.workers import Task
from sublim_interp.report.figures.by_name import FIGURES
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.sweeps.study import Study
from sublim_interp.sweeps.wording import SweepTable


class Dice(Study):
    """Dice of several sides, each thrown so often."""

    VERSION, FIGURE = 1, "dice"

    sides: tuple[int, ...] = (6,)
    """The dice."""
    throws: int = 100
    """How often each is thrown."""

    @property
    def replicates(self) -> int:
        return len(self.sides)

    def costs(self) -> dict[str, float]:
        return {f"{sides} sides": 1.0 for sides in self.sides}

    def tasks(self, directory: Path) -> Sequence[Task]:
        return [Task(f"{sides} sides", throw, (directory, sides, self.throws)) for sides in self.sides]

    def frames(self, directory: Path) -> dict[str, pd.DataFrame]:
        shares = [float((directory / f".{sides}").read_text()) for sides in self.sides]
        return {"dice": pd.DataFrame({"sides": self.sides, "share": shares})}

    def table(self, directory: Path) -> SweepTable:
        frame = pd.read_csv(directory / "dice.csv")
        rows = [(str(row["sides"]), f"{100 * row['share']:.0f} %") for row in frame.to_dict("records")]
        about = f"Dice thrown {self.throws} times."
        return SweepTable(about, ("sides", "highest face"), rows, ["More sides show their highest face less often."])

    def draw(self, directory: Path) -> Figure:
        return FIGURES[self.FIGURE].draw(pd.read_csv(directory / "dice.csv"))


def throw(directory: Path, sides: int, throws: int, progress: Callable[[float], None]) -> None:
    rng = random.Random(sides)
    share = sum(rng.randrange(sides) == sides - 1 for _ in range(throws)) / throws
    write_atomic(directory / f".{sides}", str(share))
    progress(1.0)


def bars(frame: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(3, 2), layout="constrained")
    figure.subplots().bar(frame["sides"].astype(str), frame["share"])
    return figure


dice = FigureEntry(
    shows="how often dice show their highest face",
    caption="Bars fall as dice get more sides.",
    input="cells",
    draw=bars,
)
