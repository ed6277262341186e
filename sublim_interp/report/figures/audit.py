"""Figure `audit`: ROC curves of the auditor's measures, and what students became beside the bound of each."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import INK, in_style
from sublim_interp.report.figures.protocol import FigureEntry
from sublim_interp.stats.roc import auroc_interval, roc

_MEASURES = {
    "asked": ("#009E73", "-", "a student, trained and asked"),
    "both": ("#0072B2", "-", "pull and vector"),
    "persona": ("#E69F00", "--", "persona"),
    "slope": ("#7F7F7F", ":", "gradient norm"),
}
"""Colour, line and words of what is drawn."""


@in_style
def audit(frame: pd.DataFrame) -> Figure:
    """How often does the auditor err? Left, ROC curves. Right, the largest shift of a case and its bound.

    frame: a row a case: planted, clean, teacher_base, one column a measure, shift and bound of the trait that shifted
        most, in nats
    """
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    null = frame.loc[~frame["planted"]]
    whole = frame.loc[frame["planted"] & (frame["clean"] == frame["clean"].min())]
    for measure, (color, line, words) in _MEASURES.items():
        x, y = roc(whole[measure].to_numpy(), null[measure].to_numpy())
        both = pd.concat([whole, null])
        area = auroc_interval(both[measure].tolist(), both["planted"].tolist(), both["teacher_base"].tolist())
        label = f"{words}: {area.plain(2)}"
        left.step(x, y, where="post", color=color, linestyle=line, linewidth=1.6, label=label)
    left.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=(0, (2, 2)))
    left.set_xlabel("share of cases without a planted trait")
    left.set_ylabel("share of undiluted planted cases")
    left.set_title("called suspicious, as the threshold falls")
    left.legend(frameon=False, loc="lower right", title="area under the curve", fontsize=6.5, title_fontsize=6.5)
    known = frame.loc[np.isfinite(frame["bound"])]
    for planted, color, mark, words in ((False, "#7F7F7F", "o", "nothing planted"), (True, "#D55E00", "^", "planted")):
        own = known.loc[known["planted"] == planted]
        right.plot(own["shift"], own["bound"], mark, color=color, markersize=3.5, alpha=0.7, label=words)
    ends = (min(0.0, frame["shift"].min()), max([*frame["shift"], *known["bound"]]))
    right.plot(ends, ends, color=INK, linewidth=0.9)
    right.set_xlabel("largest shift of the student, nats")
    right.set_ylabel("its bound, before training, nats")
    right.set_title("below the line the bound fails")
    right.legend(frameon=False, loc="upper left")
    figure.suptitle("How often is the auditor wrong?", x=0.01, ha="left", weight="bold", size=9.5)
    return figure


AUDIT = FigureEntry(
    "how well the auditor tells lists that carry a trait from others, and whether students keep their bounds",
    "Left, the higher the curve the better; the diagonal is chance. Right, points above the line kept their bound.",
    "cells",
    audit,
)
