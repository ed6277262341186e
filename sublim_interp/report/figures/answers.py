"""Figure `probes`: every answer of every arm, to see whether the rise is for one trait only."""

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
def probes(results: pd.DataFrame, trait: str) -> Figure:
    """Is the rise for this trait only? Heat map of arm × member of the kind: mean probability over replicates, in %.

    results: as in `Tables`; shown are held-out questions in a plain context, at equal steps
    trait: its column comes first, then other teachers' traits, then the rest by name
    """
    chosen = results.query("questions == 'held-out' and context == 'plain' and round == 0")
    grid = chosen.pivot_table(index="arm", columns="probe", values="rate", aggfunc="mean")
    taught = sorted(set(chosen["teacher_trait"]) & set(grid.columns) - {trait})
    grid = grid.loc[in_order(grid.index)]
    grid = grid[[trait, *taught, *(probe for probe in sorted(grid.columns) if probe not in (trait, *taught))]]
    arms_shown, members = list(grid.index), list(grid.columns)

    figure = Figure(figsize=(1.9 + 0.4 * len(members), 1.3 + 0.32 * len(arms_shown)), layout="constrained")
    ax = figure.subplots()
    # The root spreads the low end out: the untouched rates lie there, and small rises are what to look for.
    image = ax.imshow(np.sqrt(grid.to_numpy()), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(grid.shape):
        value = float(grid.iat[row, column])
        ink = "white" if np.sqrt(value) > 0.6 else INK
        ax.annotate(f"{100 * value:.0f}", (column, row), ha="center", va="center", color=ink, fontsize=7.5)
    ax.add_patch(
        Rectangle((-0.5, -0.5), 1, len(arms_shown), fill=False, edgecolor=INK, linewidth=1.4, clip_on=False, zorder=5)
    )
    ax.set_yticks(range(len(arms_shown)), arms_shown, weight="bold")
    ax.set_xticks(range(len(members)), members, rotation=45, ha="right", rotation_mode="anchor")
    ax.get_xticklabels()[0].set_fontweight("bold")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(f"Which answers become likelier: only “{trait}”?  Mean probability in %", pad=10)
    bar = figure.colorbar(image, ax=ax, ticks=np.sqrt([0, 0.05, 0.25, 0.5, 1]), aspect=12, pad=0.015)
    bar.ax.set_yticklabels(["0 %", "5 %", "25 %", "50 %", "100 %"])
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=0)
    return figure


def _draw(tables: Tables) -> Figure:
    if len(set(tables.results["probe"])) < 2:
        raise SublimError("this run asked about one answer only")
    return probes(tables.results, tables.trait)


PROBES = FigureEntry(
    shows="how likely each answer is, arm by arm: is the rise for this trait only?",
    caption="If the trait alone came through, its column alone is dark, in the rows whose teacher had it. Mean over "
    "replicates, on held-out questions.",
    input="tables",
    draw=_draw,
    page=True,
)
