"""A grid mode: only the first and the last value of each field, in every combination."""

from collections.abc import Iterator
from itertools import product

from sublim_interp.experiments.schema import Experiment
from sublim_interp.sweeps.modes.fields import Fields


class Corners(Fields):
    """A cell for each corner of the axes; table and figure are those of a grid without a mode."""

    version, figure = 1, "corners"

    def cells(self) -> Iterator[tuple[str, str, Experiment]]:
        ends = [(values[0], values[-1]) for values in self.grid.worded.values()]
        for corner in product(*ends):
            changes = {field: value for field, (_, value) in zip(self.grid.axes, corner, strict=True)}
            yield " × ".join(changes), " × ".join(word for word, _ in corner), self.grid.centre.set(changes)
