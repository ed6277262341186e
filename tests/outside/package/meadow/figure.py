"""A figure on the page of every run: the margin of each replicate, arm by arm."""

from matplotlib.figure import Figure

from sublim_interp.core.drawing import in_style
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.tables import Tables, replicates
from sublim_interp.report.figures.protocol import FigureEntry


@in_style
def draw(tables: Tables) -> Figure:
    each = replicates(tables.results, tables.distances, tables.trait)
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    ax = figure.subplots()
    for arm in dict.fromkeys(each["arm"]):
        own = each.loc[each["arm"] == arm, "margin"]
        ax.scatter(own, [arm] * len(own), color=ARMS[arm].color, s=18)
    ax.set_xlabel("margin of the trait, nats")
    return figure


margins = FigureEntry(
    shows="margin of each replicate",
    caption="Each dot is one replicate. See whether the arms' dots lie apart.",
    input="tables",
    draw=draw,
    page=True,
)
