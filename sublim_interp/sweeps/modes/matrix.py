"""What the modes bases and traits share: students by teacher, and the lift over their untouched base."""

from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any

from sublim_interp.core.store import Store
from sublim_interp.experiments.results import frames
from sublim_interp.sweeps.cells import GridCell
from sublim_interp.sweeps.grid import Grid

if TYPE_CHECKING:
    import pandas as pd


def require_one_axis(grid: Grid, axis: str) -> None:
    """ValueError unless `axis` is the only axis of the grid."""
    if tuple(grid.axes) != (axis,):
        raise ValueError(f"matrix={grid.matrix} needs axes.{axis} and no other axis")


def students_of(cells: Sequence[GridCell], store: Store, sides: Mapping[str, str], every_probe: bool) -> "pd.DataFrame":
    """One row per arm, teacher, student and seed, on held-out questions in a plain context, at equal steps.

    sides: the columns of results that say what `teacher` and `student` are
    every_probe: whether answers about all members of the kind count, or about the cell's own trait alone

    Returns arm, teacher, student, seed; rate in [0, 1]; margin, nats; lift: the rate over that of the student's
    untouched base, NaN where that base is not asked.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    untouched: dict[tuple[str, str, int], float] = {}
    for _, _, p in cells:
        results, _ = frames(p, store)
        asked = results.query("questions == 'held-out' and context == 'plain' and round == 0")
        for row in asked.to_dict("records"):
            where = row["student_base"], row["probe"], row["seed"]
            if row["arm"] == "base":
                untouched[where] = row["rate"]
            elif row["arm"] in ("same-init", "cross-init") and (every_probe or row["probe"] == p.named.trait):
                place = {name: row[side] for name, side in sides.items()}
                measures = {name: row[name] for name in ("seed", "rate", "margin")}
                rows.append({"arm": row["arm"], **place, **measures, "where": where})
    lifts = [row["rate"] - untouched.get(row.pop("where"), nan) for row in rows]
    return pd.DataFrame(rows).assign(lift=lifts)
