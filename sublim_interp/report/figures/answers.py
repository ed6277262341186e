"""Figure `probes`: every answer of every arm, to see whether the rise is for one trait only."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.arms import in_order
from sublim_interp.experiments.tables import Tables
from sublim_interp.report.figures.protocol import FigureEntry


@in_style
def probes(results: pd.DataFrame, trait: str, upright: bool = False) -> Figure:
    """Is the rise for this trait only? Heat map of arm × member of the kind: mean probability over replicates, in %.

    results: as in `Tables`; shown are held-out questions in a plain context, at equal steps
    trait: its column comes first, then other teachers' traits, then the rest by name
    upright: a row a member and a column an arm, for narrow screens
    """
    chosen = results.query("questions == 'held-out' and context == 'plain' and round == 0")
    grid = chosen.pivot_table(index="arm", columns="probe", values="rate", aggfunc="mean")
    taught = sorted(set(chosen["teacher_trait"]) & set(grid.columns) - {trait})
    grid = grid.loc[in_order(grid.index)]
    grid = grid[[trait, *taught, *(probe for probe in sorted(grid.columns) if probe not in (trait, *taught))]]
    rows_shown, columns_shown = list(grid.index), list(grid.columns)
    own = len(rows_shown), 1
    if upright:
        grid, rows_shown, columns_shown, own = grid.T, columns_shown, rows_shown, (1, len(rows_shown))

    size = 1.9 + 0.4 * len(columns_shown), (1.6 if upright else 1.3) + 0.32 * len(rows_shown)
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    # The root spreads the low end out: the untouched rates lie there, and small rises are what to look for.
    image = ax.imshow(np.sqrt(grid.to_numpy()), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(grid.shape):
        value = float(grid.iat[row, column])
        ink = "white" if np.sqrt(value) > 0.6 else INK
        ax.annotate(f"{100 * value:.0f}", (column, row), ha="center", va="center", color=ink, fontsize=7.5)
    ax.add_patch(
        Rectangle((-0.5, -0.5), own[1], own[0], fill=False, edgecolor=INK, linewidth=1.4, clip_on=False, zorder=5)
    )
    ax.set_yticks(range(len(rows_shown)), rows_shown, weight="normal" if upright else "bold")
    ax.set_xticks(range(len(columns_shown)), columns_shown, rotation=45, ha="right", rotation_mode="anchor")
    (ax.get_yticklabels() if upright else ax.get_xticklabels())[0].set_fontweight("bold")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    long = f"Which answers become likelier: only “{trait}”?  Mean probability in %"
    ax.set_title(f"Only “{trait}”?  Probability in %" if upright else long, pad=10)
    bar = figure.colorbar(image, ax=ax, ticks=np.sqrt([0, 0.05, 0.25, 0.5, 1]), aspect=12, pad=0.015)
    bar.ax.set_yticklabels(["0 %", "5 %", "25 %", "50 %", "100 %"])
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=0)
    return figure


def _draw(tables: Tables, upright: bool = False) -> Figure:
    if len(set(tables.results["probe"])) < 2:
        raise SublimError("this run asked about one answer only")
    return probes(tables.results, tables.trait, upright)


PROBES = FigureEntry(
    shows="how likely each answer is, arm by arm: is the rise for this trait only?",
    caption="If the trait alone came through, the framed cells alone are dark, for arms whose teacher had it. "
    "Means over replicates, on held-out questions.",
    input="tables",
    draw=_draw,
    page=True,
    narrow=partial(_draw, upright=True),
)
