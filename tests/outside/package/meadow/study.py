"""A study: how often a die of so many sides shows its highest face."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.report.figures.by_name import FIGURES
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.sweeps.piecewise import Piecewise, Rows
from sublim_interp.sweeps.wording import SweepTable


class Dice(Piecewise):
    """Dice of several sides, each thrown so often."""

    VERSION, FIGURE, TABLES = 1, "dice", ("dice",)

    sides: tuple[int, ...] = (6,)
    """The dice."""
    throws: int = 100
    """How often each is thrown."""

    @property
    def replicates(self) -> int:
        return len(self.sides)

    def pieces(self) -> Mapping[str, tuple[int]]:
        return {f"{sides} sides": (sides,) for sides in self.sides}

    def seconds(self) -> float:
        return 1.0

    def measure(self, directory: Path, progress: Callable[[float], None], *which: int) -> Mapping[str, Rows]:
        (sides,) = which
        rng = random.Random(sides)
        share = sum(rng.randrange(sides) == sides - 1 for _ in range(self.throws)) / self.throws
        return {"dice": [{"sides": sides, "share": share}]}

    def table(self, directory: Path) -> SweepTable:
        frame = pd.read_csv(directory / "dice.csv")
        rows = [(str(row["sides"]), f"{100 * row['share']:.0f} %") for row in frame.to_dict("records")]
        about = f"Dice thrown {self.throws} times."
        return SweepTable(about, ("sides", "highest face"), rows, ["More sides show their highest face less often."])

    def draw(self, directory: Path) -> Figure:
        return FIGURES[self.FIGURE].draw(pd.read_csv(directory / "dice.csv"))


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
