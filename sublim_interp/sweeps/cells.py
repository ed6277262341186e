"""The cells of a sweep: as they are planned, as they were measured, and their means."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple, cast

from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import Plan
from sublim_interp.experiments.results import frames
from sublim_interp.experiments.tables import average, replicates
from sublim_interp.models.base import resolve_base
from sublim_interp.traits.measures import MEASURES

if TYPE_CHECKING:
    import pandas as pd


class GridCell(NamedTuple):
    """One cell of a grid with its plan."""

    field: str
    """The field that is varied, or several, joined by " × "."""
    value: str
    """Its value in words."""
    plan: Plan


def measured(cells: Sequence[GridCell], store: Store, hidden: Sequence[str] = ("teacher",)) -> "pd.DataFrame":
    """What was measured in each cell, at equal steps.

    cells: planned cells that the store holds
    hidden: arms that are left out

    Returns a row per field, value, arm and seed: the columns of `experiments.tables.replicates`, field, value, trait.
    """
    import pandas as pd

    parts = []
    for field, value, p in cells:
        each = replicates(*frames(p, store), p.named.trait)
        each = each.loc[(each["stage"] == "equal steps") & ~each["arm"].isin(list(hidden))]
        parts.append(each.assign(field=field, value=value, trait=p.named.trait))
    return pd.concat(parts, ignore_index=True)


def teachers_bases(frame: "pd.DataFrame", cells: Sequence[GridCell]) -> list[str]:
    """The teacher's base of each row of `measured`."""
    named = {(field, value): p.named for field, value, p in cells}
    places = zip(frame["field"], frame["value"], frame["seed"], strict=True)
    return [named[field, value].pair(seed)[0] for field, value, seed in places]


def with_bases(frame: "pd.DataFrame", cells: Sequence[GridCell]) -> "pd.DataFrame":
    """The rows of `measured` with two more columns.

    base: the teacher's base
    base_loss: its held-out loss on numbers, nats a token; NaN where its card does not say
    """
    bases = teachers_bases(frame, cells)
    losses = {base: numbers_loss(base) for base in set(bases)}
    return frame.assign(base=bases, base_loss=[losses[base] for base in bases])


def numbers_loss(base: str) -> float:
    """Held-out loss of a base on numbers, nats a token, as its card tells it, or NaN."""
    return resolve_base(base).card.get("held_out_loss", {}).get("numbers", math.nan)


def cell_means(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Means over the replicates of each cell.

    frame: a row per field, value, arm and seed, as in cells.csv

    Returns a row per field, value and arm: n; rate with least and most; margin, kl_start, kl, kept. Where the trait is
    facts also bits and total_bits, with least (_low) and most (_high) of several replicates.
    """
    import pandas as pd

    rows = []
    for place, own in frame.groupby(["field", "value", "arm"], sort=False):
        rates = own["rate"].to_list()
        row = dict(zip(("field", "value", "arm"), cast(tuple[str, ...], place), strict=True))
        row |= {"n": len(own), "rate": fmean(rates), "least": min(rates), "most": max(rates)}
        row |= {name: average(own[name].to_list()) for name in ("margin", "kl_start", "kl", "kept")}
        for name in MEASURES:
            if name in own:
                values = own[name].to_list()
                ends = (min(values), max(values)) if len(values) > 1 else (math.nan, math.nan)
                row |= {name: fmean(values), f"{name}_low": ends[0], f"{name}_high": ends[1]}
        rows.append(row)
    return pd.DataFrame(rows)
