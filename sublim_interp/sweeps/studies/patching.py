"""Study patching: which part of a student is enough for the trait in its base, and which part the student needs.

What is patched are weights, heads, and the stream before a layer, always between a student and its own untouched base.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.tables import read_table, records
from sublim_interp.report.wording import count
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.sweeps.piecewise import Rows, store_of
from sublim_interp.sweeps.studies.replicated import Replicated
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch.nn import Module

    from sublim_interp.analysis.patching.cells import GridKind
    from sublim_interp.experiments.results import Replicate

ARMS = ("same-init", "neutral")
"""Whose students are patched; the second is the control."""

PARTS: "tuple[GridKind, ...]" = ("heads", "weights")
KINDS: "tuple[GridKind, ...]" = ("resid_pre", *PARTS)
"""Of the grids in `patches.csv`: the stream by position, and parts at all positions."""

PLACES = 8
"""Positions of the stream, from the end: so many have the shortest questions."""

WHOLE = {"all attention": "attn", "all MLPs": "mlp", "all norms": "norm"}
"""Pieces through all layers, and what names of their weights have in common."""


class Patched(Replicated):
    """Patches the students of an experiment's arms same-init and neutral into their bases, and the other way round."""

    VERSION, FIGURE, TABLES = 1, "patches", ("replicates", "patches")

    def seconds(self) -> float:
        return 210.0

    @property
    def given(self) -> dict[str, Any]:
        return {"arms": [*ARMS], "student.extra_rounds": 0}

    def measure(self, directory: Path, progress: Progress, *which: int) -> Mapping[str, Rows]:
        (seed,) = which
        return replicate(self.students(seed, ARMS, store_of(directory), progress, 0.9), seed)

    def table(self, directory: Path) -> SweepTable:
        frame = read_table(directory / "replicates.csv")
        pieces = [*dict.fromkeys(frame["piece"])]
        columns = [("same-init", "enough"), ("same-init", "needed"), ("neutral", "enough")]
        rows = [(piece, *(_told(frame, piece, *column) for column in columns)) for piece in pieces]
        layers = [piece for piece in pieces if piece.startswith("layer ")]
        alone = frame.loc[(frame["arm"] == ARMS[0]) & frame["piece"].isin(layers)].groupby("seed")["enough"].sum()
        together = mean_interval(alone.to_list()).percent()
        return SweepTable(
            "Which part of a student carries the trait: shares of the margin that a student gained, means over "
            f"{count(len(set(frame['seed'])), 'replicate')} with 95 % intervals.",
            ("part", "enough: the student's, in its base", "needed: the base's, in the student", "neutral student's"),
            rows,
            [
                f"Each layer alone, added up: {together} of the margin.",
                "Enough: 100 % is all that the student gained. Needed: 100 % is that nothing of it is left.",
                "Neutral student's: its part in the same base, as a share of what the trait's student gained.",
            ],
        )

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        return FIGURES[self.FIGURE].draw(read_table(directory / "patches.csv"))


def _told(frame: "pd.DataFrame", piece: str, arm: str, measure: str) -> str:
    values = frame.loc[(frame["piece"] == piece) & (frame["arm"] == arm), measure]
    found: Interval = mean_interval(values.to_list())
    return minus(found.percent())


# --- one replicate ----------------------------------------------------------------------------------------------------


def replicate(students: "Mapping[str, Replicate]", seed: int) -> dict[str, Rows]:
    """Patches each of the students into its base and the base into it: the rows of both tables."""
    from sublim_interp.analysis.patching.grid import patch

    own = students[ARMS[0]]
    untouched = own.base.load()
    rows: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    gained = own.value() - own.value(model=untouched)
    for arm, student in students.items():
        into = patch(student.model, untouched, own.prompts, own.metric)
        about = {"seed": seed, "base": own.base.name, "arm": arm}
        found: dict[str, dict[str, float]] = {}
        for way, one, share in (("enough", into, 1 / gained), ("needed", into.swapped(), -1 / gained)):
            start = one.value()
            for piece, name in pieces(untouched):
                found.setdefault(piece, {})[way] = share * (one.value(one.weights(name)) - start)
            for kind in KINDS:
                grid = one.grid(kind).frame
                some = grid if kind in PARTS else grid.loc[grid["place"] >= -PLACES]
                for cell in records(some):
                    cells.append(
                        about | {"way": way, "kind": kind, "layer": cell["layer"], "place": cell["place"],
                                 "share": share * cell["effect"]}
                    )  # fmt: skip
        rows += [about | {"piece": piece} | ways for piece, ways in found.items()]
    return {"replicates": rows, "patches": cells}


def pieces(model: "Module") -> Iterator[tuple[str, str]]:
    """Every piece: what it is called, and what names of its weights have in common."""
    from sublim_interp.models.architectures import decoder_layers

    layers = decoder_layers(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    yield from ((f"layer {i}", f"{prefix}.{i}.") for i in range(len(layers)))
    yield from WHOLE.items()
