"""Figure `diff`: which parts of a model changed what it answers, and along which direction, beside its controls."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.analysis.diff.parts import changed_parts
from sublim_interp.core.drawing import PALE, in_style
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.arms import ARMS, SPARE_COLORS
from sublim_interp.report.figures.protocol import FigureEntry

if TYPE_CHECKING:
    from sublim_interp.experiments.results import Run

SHOWN = 12
"""Parts that a figure shows."""


@in_style
def part_bars(parts: Mapping[str, pd.DataFrame], unit: str = "nats", title: str = "", metric: str = "margin") -> Figure:
    """What each part or direction alone does to the metric: one bar a model, one dot a seed.

    parts: by model, the one that is asked about first; frames of `changed_parts`, with a column seed where they are of
        several; or with a column effect, as of directions
    unit: of the metric
    metric: its name
    """
    means = {}
    for name, frame in parts.items():
        effect = frame["effect"] if "effect" in frame else frame["weights"].fillna(frame["output"])
        means[name] = frame.assign(effect=effect).groupby(["layer", "part"], sort=False)["effect"]
    first = next(iter(means.values())).mean()
    shown = list(first.sort_values(key=abs, ascending=False, kind="stable").index[:SHOWN])
    figure = Figure(figsize=(6.4, 0.8 + 0.24 * len(shown) * max(1.0, 0.6 * len(parts))), layout="constrained")
    ax = figure.subplots()
    thick = 0.8 / len(parts)
    spare = iter(SPARE_COLORS)
    for i, (name, group) in enumerate(means.items()):
        color = ARMS[arm].color if (arm := name.partition("/")[0]) in ARMS else next(spare, PALE)
        places = [-(row + (i - (len(parts) - 1) / 2) * thick) for row in range(len(shown))]
        average = group.mean()
        ax.barh(places, [average.get(key, float("nan")) for key in shown], thick * 0.9, color=color, label=name)
        for place, key in zip(places, shown, strict=True):
            each = group.get_group(key) if key in group.groups else []
            if len(each) > 1:
                ax.plot(each, [place] * len(each), "o", color="black", markersize=2.5, alpha=0.6)
    ax.axvline(0, color=PALE, linewidth=0.8)
    ax.set_yticks([-row for row in range(len(shown))], [f"layer {layer}, {part}" for layer, part in shown])
    ax.set_xlabel(f"change of the {metric}, {unit}".rstrip(", "))
    ax.set_title(title or "What each part alone does, put into the base")
    figure.legend(frameon=False, loc="outside lower center", ncols=min(3, len(parts)))  # within, it would lie on bars
    return figure


def of_run(run: "Run") -> Figure:
    """The parts of every student of same-init, neutral and other-trait that the run has. SublimError without any."""
    arms = [arm for arm in ("same-init", "neutral", "other-trait") if arm in run.arms]
    if not arms or arms[0] != "same-init":
        raise SublimError(f"run {run.experiment.name} has no same-init students, which this figure is of")
    found: dict[str, list[pd.DataFrame]] = {arm: [] for arm in arms}
    for arm in arms:
        for student in run[arm]:
            frame = changed_parts(student.base.load(), student.model, student.prompts, student.metric)
            found[arm].append(frame.assign(seed=student.seed))
    joined = {arm: pd.concat(frames, ignore_index=True) for arm, frames in found.items()}
    return part_bars(joined, title=f"Which part carries “{run.trait}” into the base?")


DIFF = FigureEntry(
    shows="what each part of the students' weights, and each head, alone does to the margin, beside the controls'",
    caption="A blue bar that is longer than the grey one is of a part that carries this trait.",
    input="run",
    draw=of_run,
)
