"""Mode pairs: one base teaches itself and others, which lie ever further from it; a row of the table for each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.tables import read_table, records
from sublim_interp.lab.landscape import distance, hill
from sublim_interp.models.base import resolve_base
from sublim_interp.report.wording import number
from sublim_interp.sweeps.cells import GridCell, cell_means
from sublim_interp.sweeps.modes.fields import ABOUT, Fields, read_cells
from sublim_interp.sweeps.modes.matrix import require_one_axis
from sublim_interp.sweeps.wording import SweepTable, nats, row_spread

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ARMS = ("same-init", "cross-init")


class Pairs(Fields):
    """A cell for each pair of bases, as in the plain mode, whose files its sweeps have; the first base is in all."""

    keyed_as = ""

    def check(self) -> None:
        require_one_axis(self.grid, "bases")
        firsts = {pair[0] if isinstance(pair, list | tuple) and len(pair) == 2 else None for pair in self.pairs}
        if None in firsts or len(firsts) > 1:
            raise ValueError("matrix=pairs needs pairs in axes.bases, whose first base is the same in all")

    def check_cells(self, cells: Sequence[GridCell]) -> None:
        first = resolve_base(self.pairs[0][0])
        for name in dict.fromkeys(name for pair in self.pairs for name in pair):
            base = resolve_base(name)
            if base.shape != first.shape or "held_out_loss" not in base.card:
                raise SublimError(f"matrix=pairs compares weights, so it needs lab bases of one shape; {name} is none")

    @property
    def pairs(self) -> tuple[Any, ...]:
        """The base that is in all pairs and another, of each cell; whatever else the axis holds before `check`."""
        return self.grid.axes["bases"]

    def apart(self, directory: Path) -> "pd.DataFrame":
        """How far each pair's bases lie from each other, a row a cell: value, distance, hill; see `lab.landscape`.

        Read from apart.csv where `directory` has it, else worked out, which takes seconds a pair.
        """
        import pandas as pd

        if (kept := directory / "apart.csv").exists():
            return read_table(kept)
        rows = [
            (value, distance(one, other), hill(one, other))
            for (value, _), (one, other) in zip(
                self.grid.worded["bases"], (map(resolve_base, pair) for pair in self.pairs), strict=True
            )
        ]
        return pd.DataFrame(rows, columns=["value", "distance", "hill"])

    def table(self, directory: Path) -> SweepTable:
        means = {(row["value"], row["arm"]): row for row in records(cell_means(read_cells(directory)))}
        rows = []
        for at in records(self.apart(directory)):
            own, other = (means.get((at["value"], arm)) for arm in ARMS)
            if own is None or other is None:
                continue
            rows.append(
                (at["value"], f"{at['distance']:.2f}", number("kl", at["hill"], 2), str(other["n"]), row_spread(own),
                 row_spread(other), nats(other["margin"]), f"{own['kl']:.4f}", f"{other['kl']:.4f}")
            )  # fmt: skip
        columns = ("the other base", "weights apart", "hill, nats", "n", "same-init", "cross-init",
                   "cross-init margin, nats", "same-init KL left", "cross-init KL left")  # fmt: skip
        return SweepTable(ABOUT, columns, rows, [])

    def draw(self, directory: Path) -> "Figure":

        from sublim_interp.report.figures.pairs import pairs

        frame = read_cells(directory).merge(self.apart(directory), on="value", how="left")
        summary = RESULTS / self.grid.experiment / "summary.csv"
        untouched = None
        if summary.exists():
            published = dict(zip(*(read_table(summary)[column].to_list() for column in ("arm", "rate")), strict=True))
            untouched = published.get("base")
        return pairs(frame, untouched)
