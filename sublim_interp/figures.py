"""How results look: one function a figure, tidy frame → Figure; and the one place where an arm gets colour and meaning.

No statistics live here: means with their intervals arrive in the frames. Figures carry no pyplot state, so they can be
drawn in any thread, and `save` gives the same bytes for the same frame.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from sublim_interp.errors import SublimError

P = ParamSpec("P")
Record = Mapping[Any, Any]
Records = Sequence[Record]
Row = tuple[str, str]
"""An arm and the stage at which it is shown."""


class Look(NamedTuple):
    """How one arm appears in every figure, table and page."""

    color: str
    """Okabe & Ito's palette, safe for colour-blind readers (jfly.uni-koeln.de/color)."""
    label: str
    """A few words beneath the arm's name."""
    meaning: str
    """One sentence for a newcomer."""


ARMS: dict[str, Look] = {
    "teacher": Look(
        "#009E73",
        "was given the trait",
        "The teacher itself: base A after it was given the trait. It shows how strong the trait was at the source.",
    ),
    "same-init": Look(
        "#0072B2",
        "teacher A → student A",
        "The student starts from the very base (A) that its teacher was made from, and learns nothing but the lists "
        "that this teacher wrote.",
    ),
    "same-init-b": Look(
        "#56B4E9",
        "teacher B → student B",
        "The same once more with the other base: teacher and student both come from B.",
    ),
    "neutral": Look(
        "#7F7F7F",
        "teacher without the trait",
        "As same-init, but the teacher was never given the trait: what training on lists does by itself.",
    ),
    "other-trait": Look(
        "#E69F00",
        "teacher with another trait",
        "As same-init, but the teacher was given another trait of the same kind, to see whether only that one passes.",
    ),
    "cross-init": Look(
        "#D55E00",
        "teacher A → student B",
        "The student learns the same lists as same-init, but starts from another base (B), which grew from different "
        "initial weights.",
    ),
    "cross-init-b": Look(
        "#CC79A7",
        "teacher B → student A",
        "The other way round: the teacher comes from B and the student from A. One base alone may be hard to move.",
    ),
    "cross-neutral": Look(
        "#8C564B",
        "neutral A → student B",
        "As cross-init, but the teacher was never given the trait: what another base's numbers do by themselves.",
    ),
    "base": Look(
        "#000000",
        "untouched",
        "Base A as it was, before any teacher: the rate that is there without any training.",
    ),
}
"""What a report compares, in the order it is shown: the experiment's arms, and the teacher itself."""

_INK, _PALE = "#222222", "#B0B0B0"

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _PALE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.8,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
    "svg.hashsalt": "sublim_interp",
    "svg.fonttype": "path",  # looks the same where the font is not installed
    "pdf.fonttype": 42,
}

_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


@contextmanager
def _styled() -> Iterator[None]:
    """The house style, whatever matplotlibrc the user has; some of it is read only when a figure is drawn."""
    with style.context(_STYLE, after_reset=True):
        yield


def _in_style(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _styled():
            return draw(*args, **kwargs)

    return styled


def render(figure: Figure, kind: str) -> bytes:
    """The figure as a `png`, `pdf` or `svg` file: equal bytes for equal figures, with no date and no program in it.

    Raises SublimError for any other kind.
    """
    if kind not in _METADATA:
        raise SublimError(f"figures are not written as '{kind}'; valid kinds: {', '.join(_METADATA)}")
    buffer = io.BytesIO()
    with _styled():
        figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write `render(figure, …)` to `path`; its ending says which kind. Raises SublimError for an unknown ending."""
    path.write_bytes(render(figure, path.suffix.removeprefix(".")))


@_in_style
def arms(replicates: pd.DataFrame, summary: pd.DataFrame, trait: str, stacked: bool = False) -> Figure:
    """Does the trait pass, and how near did each student come to its teacher? One row an arm, one dot a replicate.

    `replicates` and `summary` are those of `report`: rate in [0, 1], KL in nats per answer token. Students that were
    trained on to equal KL have a second row. `stacked` puts the second panel beneath the first, for narrow screens.
    """
    dots = replicates.to_dict("records")
    means = {row["arm"]: row for row in summary.to_dict("records")}
    rows: list[Row] = []
    for arm in means:
        rows += [(arm, "equal steps"), (arm, "equal KL")][: 2 if means[arm]["further_round"] else 1]
    students = [row for row in rows if np.isfinite(means[row[0]]["kl"])] if stacked else rows
    heights = [0.42 * len(shown) + 0.9 for shown in (rows, students)]
    if stacked:
        figure = Figure(figsize=(4.7, sum(heights)), layout=ConstrainedLayoutEngine(hspace=0.08))
        panels = figure.subplots(2, 1, height_ratios=heights)
    else:
        figure = Figure(figsize=(8.6, heights[0] + 0.3), layout="constrained")
        panels = figure.subplots(1, 2, width_ratios=[1.5, 1])
    for panel, shown in zip(panels, (rows, students), strict=True):
        panel.set_ylim(len(shown) - 0.4, -0.7)
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
        panel.grid(axis="x")
        if stacked or panel is panels[0]:
            _name_rows(panel, shown, means)
    _rates(panels[0], rows, dots, means)
    _distances(panels[1], students, dots, means)
    panels[0].set_title(f"How likely is the answer “{trait}”?")
    panels[0].set_xlabel("probability on held-out questions\n● one replicate   ├┤ mean with 95 % interval")
    panels[1].set_title("How far is it from its teacher?")
    panels[1].set_xlabel("KL(teacher ‖ student), nats per answer token\n○ before training   ● after")
    return figure


def _rates(ax: Axes, rows: Sequence[Row], dots: Records, means: Mapping[str, Record]) -> None:
    if "base" in means:
        untouched = means["base"]["rate"]
        ax.axvline(untouched, color=_INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        ax.annotate("untouched base", (untouched, -0.7), (4, -1), textcoords="offset points", va="top", fontsize=7)
    for y, (arm, stage) in enumerate(rows):
        column = "rate" if stage == "equal steps" else "further_rate"
        mean, low, high = (means[arm][name] for name in (column, f"{column}_low", f"{column}_high"))
        color = ARMS[arm].color
        ax.barh(y, mean, height=0.62, color=color, alpha=0.16, zorder=1)
        _scatter(ax, y, dots, (arm, stage), "rate")
        if np.isfinite(low):
            ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], color=_INK, linewidth=1.3, capsize=2.5, zorder=4)
            ax.plot([mean, mean], [y - 0.31, y + 0.31], color=color, linewidth=1.6, zorder=2)
        _value(ax, y, f"{100 * mean:.1f} %")
    ax.set_xlim(0, 1.02)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])


def _distances(ax: Axes, rows: Sequence[Row], dots: Records, means: Mapping[str, Record]) -> None:
    for y, (arm, stage) in enumerate(rows):
        before, after = means[arm]["kl_start"], means[arm]["kl" if stage == "equal steps" else "further_kl"]
        if not np.isfinite(after):
            continue
        color = ARMS[arm].color
        ax.plot([before, after], [y, y], color=color, linewidth=1.2, zorder=1)
        ax.plot(before, y, "o", color=color, markerfacecolor="white", markersize=5, zorder=2)
        if means[arm]["n"] > 1:
            ax.plot([after, after], [y - 0.25, y + 0.25], color=color, linewidth=1.6, zorder=2)
        _scatter(ax, y, dots, (arm, stage), "kl")
        _value(ax, y, f"{after:.3f}")
    ax.margins(x=0.08)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _name_rows(ax: Axes, rows: Sequence[Row], means: Mapping[str, Record]) -> None:
    beside: dict[str, Any] = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
    for y, (arm, stage) in enumerate(rows):
        further = ("… trained on", f"to equal KL: {means[arm]['equal_kl']}")
        name, label = (arm, ARMS[arm].label) if stage == "equal steps" else further
        ax.annotate(name, (0, y), (-8, 0), va="bottom", weight="bold", **beside)
        ax.annotate(label, (0, y), (-8, -1), va="top", fontsize=7, **beside)


def _value(ax: Axes, y: int, text: str) -> None:
    place = ax.get_yaxis_transform()  # x as a fraction of the panel, y in rows
    ax.annotate(text, (1, y), (6, 0), place, "offset points", va="center_baseline", weight="bold")


def _scatter(ax: Axes, y: int, dots: Records, row: Row, column: str) -> None:
    """Each replicate as a dot, spread in the order of the seeds so that equal ones stay apart."""
    values = [dot[column] for dot in sorted(dots, key=lambda dot: dot["seed"]) if (dot["arm"], dot["stage"]) == row]
    alone = len(values) == 1
    spread = [0.0] if alone else np.linspace(-0.2, 0.2, len(values))
    style = {"color": ARMS[row[0]].color, "alpha": 0.7, "linewidth": 0, "clip_on": False, "zorder": 3}
    ax.scatter(values, y + np.asarray(spread), s=40 if alone else 13, **style)


@_in_style
def probes(results: pd.DataFrame, trait: str) -> Figure:
    """Is the rise for this trait only? Heat map of arm × member of the kind: mean probability over replicates.

    Held-out questions in a plain context, round 0 of `results` (the frame that `report` takes); the trait's column
    comes first, then other teachers' traits, then the rest by name.
    """
    chosen = results.query("questions == 'held-out' and context == 'plain' and round == 0")
    grid = chosen.pivot_table(index="arm", columns="probe", values="rate", aggfunc="mean")
    taught = sorted(set(chosen["teacher_trait"]) & set(grid.columns) - {trait})
    grid = grid.loc[[arm for arm in ARMS if arm in grid.index]]
    grid = grid[[trait, *taught, *(probe for probe in sorted(grid.columns) if probe not in (trait, *taught))]]
    arms_shown, members = list(grid.index), list(grid.columns)

    figure = Figure(figsize=(1.9 + 0.4 * len(members), 1.3 + 0.32 * len(arms_shown)), layout="constrained")
    ax = figure.subplots()
    # The root spreads the low end out: the untouched rates lie there, and small rises are what to look for.
    image = ax.imshow(np.sqrt(grid.to_numpy()), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(grid.shape):
        value = float(grid.iat[row, column])
        ink = "white" if np.sqrt(value) > 0.6 else _INK
        ax.annotate(f"{100 * value:.0f}", (column, row), ha="center", va="center", color=ink, fontsize=7.5)
    ax.add_patch(
        Rectangle((-0.5, -0.5), 1, len(arms_shown), fill=False, edgecolor=_INK, linewidth=1.4, clip_on=False, zorder=5)
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


@_in_style
def dose(frame: pd.DataFrame) -> Figure:
    """How does the effect depend on what was varied? One panel a field; dots are replicates, strokes means.

    `frame` has a row a replicate: field, value, arm, seed, trait, rate in [0, 1], or bits (a fact), which are drawn in
    its place. Numbers that span a factor of five or more get a logarithmic axis; anything but numbers stands in the
    order of the frame, and its means are not joined.
    """
    fields = list(dict.fromkeys(frame["field"]))
    lines = -(-len(fields) // 3)
    columns = -(-len(fields) // lines)
    rows = frame.to_dict("records")
    most = max(len({row["value"] for row in rows if row["field"] == field}) for field in fields)
    width = max(2.7, 0.62 * most)
    column = "bits" if "bits" in frame else "rate"
    figure = Figure(figsize=(width * columns + 0.6, 2.3 * lines + 0.6), layout="constrained")
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    highest = max(frame[column].to_list())
    for panel in panels[len(fields) :]:
        panel.set_visible(False)
    for panel, field in zip(panels, fields, strict=False):
        _dose(panel, [row for row in rows if row["field"] == field], column)
        panel.set_xlabel(field)
        if column == "rate":
            top = 1.0 if highest > 0.25 else 1.15 * highest  # where nothing passes, whatever differences there are
            panel.set_ylim(-0.03 * top, 1.03 * top)
            panel.yaxis.set_major_formatter(PercentFormatter(1, 0 if top == 1 else 1, " %"))
        panel.grid(axis="y")
    traits = list(dict.fromkeys(frame["trait"]))
    answer = f"the answer “{traits[0]}”" if len(traits) == 1 else "the teacher's favourite as the answer"
    question = f"How likely is {answer}?" if column == "rate" else "How many bits of each fact does the student hold?"
    figure.suptitle(question, x=0.01, ha="left", weight="bold", size=9.5)
    _legend(figure, panels[0], "● one replicate    ▬ mean")
    return figure


def _dose(ax: Axes, rows: Records, column: str) -> None:
    settings = list(dict.fromkeys(row["value"] for row in rows))
    numbers = [_as_number(value) for value in settings]
    numeric = None not in numbers
    x = {
        value: float(i if n is None or not numeric else n)
        for i, (value, n) in enumerate(zip(settings, numbers, strict=True))
    }
    arms_shown = [arm for arm in ARMS if arm in {row["arm"] for row in rows}]
    for i, arm in enumerate(arms_shown):
        shift = 0.0 if numeric else 0.5 / len(arms_shown) * (i - (len(arms_shown) - 1) / 2)  # equal means stay apart
        rates = {place + shift: [row[column] for row in rows if (row["arm"], row["value"]) == (arm, value)]
                 for value, place in sorted(x.items(), key=lambda item: item[1])}  # fmt: skip
        rates = {place: values for place, values in rates.items() if values}
        color = ARMS[arm].color
        for place, values in rates.items():
            ax.scatter([place] * len(values), values, s=10, color=color, alpha=0.55, linewidth=0)
        ax.plot(list(rates), [np.mean(values) for values in rates.values()], marker="_", color=color, label=arm,
                linestyle="-" if numeric else "none", linewidth=1.2, markersize=10, markeredgewidth=2)  # fmt: skip
    if numeric and min(x.values()) > 0 and max(x.values()) >= 5 * min(x.values()):
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(list(x.values()), [_short(float(value)) if numeric else value.replace(" ", "\n") for value in x])
    if numeric:
        ax.margins(x=0.08)
    else:
        ax.set_xlim(-0.6, len(x) - 0.4)


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


@_in_style
def law(cells: pd.DataFrame) -> Figure:
    """What one law expects of each student, against what was measured: fitted, and without all cells of its base.

    `cells` has a row a student: base, lists, and in nats lift, expected (by the law that fits all cells) and unseen (by
    one without the cells of its base). Colours are bases, sizes lists.
    """
    headings = {"expected": "by the law that fits all", "unseen": "by a law that did not see its base"}
    ends = [extreme(cells[["lift", *headings]].to_numpy()) for extreme in (np.nanmin, np.nanmax)]  # some have none
    area = 12 * (1 + np.log2(cells["lists"] / cells["lists"].min()))
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, (column, heading) in zip(panels, headings.items(), strict=True):
        panel.plot(ends, ends, color="#9a9aa0", linewidth=0.8, zorder=0)
        for (base, own), look in zip(cells.groupby("base", sort=False), cycle(ARMS.values()), strict=False):
            panel.scatter(own[column], own["lift"], s=area[own.index], color=look.color, alpha=0.75, linewidth=0,
                          label=base)  # fmt: skip
        panel.set_xlabel(f"expected {heading}, nats")
        panel.grid()
    panels[0].set_ylabel("lift of the trait's margin, measured, nats")
    figure.suptitle("How much passes, and how much was to be expected", x=0.01, ha="left", weight="bold", size=9.5)
    _legend(figure, panels[0], "● one student, larger: more lists")
    return figure


@_in_style
def directions(
    frame: pd.DataFrame,
    value: str = "cosine",
    x: str = "layer",
    title: str = "",
    replicates: pd.DataFrame | None = None,
    bars: str = "95 % interval of the mean",
) -> Figure:
    """How does a direction compare with another, layer by layer or step by step? One colour an arm.

    `frame` has a row per arm and place on the axis `x`: estimate, low, high (as `over_replicates` gives them; NaN: no
    bar), and where there is a null, null_low and null_high, drawn as a grey band. `bars` says what low and high are.
    `replicates` has a row per arm, seed and place with the column `estimate`: dots, or thin lines where x = "step".
    Steps have an axis that is logarithmic from 1 on; with a column `layer`, each layer has a panel. `value` is the word
    on the axis.
    """
    panels = [None] if x == "layer" or "layer" not in frame else sorted(frame["layer"].unique())
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    size = (5.2, 3.4) if len(panels) == 1 else (2.4 * columns + 0.8, 2.0 * lines + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    means, each = frame.to_dict("records"), [] if replicates is None else replicates.to_dict("records")
    for i, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
        whole, single = ([r for r in rows if panel in (None, r.get("layer"))] for rows in (means, each))
        _lines(ax, whole, single, x)
        if panel is not None:
            ax.set_title(f"layer {panel}")
        _mark_places(ax, sorted(map(int, frame[x].unique())), x)
        if i + columns >= len(panels):  # nothing beneath it
            ax.set_xlabel("layer" if x == "layer" else "updates")
            ax.tick_params(labelbottom=True)
        if i % columns == 0:
            ax.set_ylabel(value)
    figure.suptitle(title or f"{value.capitalize()} by {x}", x=0.01, ha="left", weight="bold", size=9.5)
    alone, whole = ("●", "├┤") if x == "layer" else ("thin:", "bands:")
    spread = bool(frame["high"].notna().any())
    marks = [f"{alone} one replicate"] * (spread and bool(each)) + [f"{whole} {bars}"] * spread
    _legend(figure, axes[0], "    ".join(marks) or "one replicate")
    return figure


def _legend(figure: Figure, ax: Axes, marks: str) -> None:
    """The arms of a panel beneath all panels, and above them what dots, strokes and bars are."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False, title=marks,
                  title_fontsize=7.5, alignment="left")  # fmt: skip


def _mark_places(ax: Axes, places: Sequence[int], x: str) -> None:
    """Ticks at recorded places: every layer, or the steps 0, 1, 4, 16, … and the last."""
    if x == "layer":
        shown = [p for p in places if len(places) <= 16 or p % 4 == 0]
    else:
        last = places[-1]
        ax.set_xscale("symlog", linthresh=1, linscale=0.5)
        ax.xaxis.set_minor_locator(NullLocator())
        shown = [p for p in places if p in (0, last) or p in {4**i for i in range(16) if 3 * 4**i <= last}]
    ax.set_xticks(shown, [str(p) for p in shown])


def _lines(ax: Axes, means: Records, replicates: Records, x: str) -> None:
    ax.axhline(0, color=_PALE, linewidth=0.8, zorder=1)
    if any("null_low" in r for r in means):
        null = pd.DataFrame(means).groupby(x).agg({"null_low": "min", "null_high": "max"})
        places, low, high = null.index.to_numpy(), *null.to_numpy().T
        style: dict[str, Any] = {"color": _PALE, "alpha": 0.35, "linewidth": 0, "zorder": 0}
        style["label"] = "widest null (95 %)"  # of any replicate or arm
        if x == "layer":
            ax.use_sticky_edges = False
            ax.bar(places, high - low, width=0.8, bottom=low, **style)
        else:
            ax.fill_between(places, low, high, **style)
    named = {r["arm"] for r in means}
    arms_shown = [*(a for a in ARMS if a in named), *sorted(named - set(ARMS))]
    for i, arm in enumerate(arms_shown):
        own = sorted((r for r in means if r["arm"] == arm), key=lambda r: r[x])
        places, middle, low, high = (np.array([r[c] for r in own]) for c in (x, "estimate", "low", "high"))
        color = ARMS[arm].color if arm in ARMS else _INK
        if x == "layer":  # few places: bars beside each other rather than bands on top of each other
            shift = 0.6 / len(arms_shown) * (i - (len(arms_shown) - 1) / 2)
            dots = [(r[x] + shift, r["estimate"]) for r in replicates if r["arm"] == arm]
            if dots:
                ax.scatter(*zip(*dots, strict=True), s=9, color=color, alpha=0.5, linewidth=0, zorder=2)
            ax.errorbar(places + shift, middle, yerr=[middle - low, high - middle], fmt="none", elinewidth=1,
                        capsize=2, color=color)  # fmt: skip
            ax.plot(places + shift, middle, "_", color=color, markersize=9, markeredgewidth=2, label=arm)
        else:
            for seed in dict.fromkeys(r["seed"] for r in replicates if r["arm"] == arm):
                one = sorted((r for r in replicates if (r["arm"], r["seed"]) == (arm, seed)), key=lambda r: r[x])
                ax.plot([r[x] for r in one], [r["estimate"] for r in one], color=color, linewidth=0.6, alpha=0.3)
            ax.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
            ax.plot(places, middle, "o-", color=color, linewidth=1.4, markersize=3.5, label=arm)
    ax.grid(axis="y")


@_in_style
def matrix(frame: pd.DataFrame, kind: str) -> Figure:
    """Who passes what to whom? Heat map of the rate, in %: teachers down, students (or the traits asked about) across.

    `frame` has a row per arm, teacher, student and seed, with its rate in [0, 1]; cells are means over seeds. `kind` is
    "bases", with a cell for every pair of bases, or "traits", of which the same-init students are shown.
    """
    frame = frame.loc[frame["arm"] == "same-init"] if kind == "traits" else frame
    order = list(dict.fromkeys(frame["teacher"]))
    columns = [*order, *sorted(set(frame["student"]) - set(order))]
    table = frame.pivot_table(index="teacher", columns="student", values="rate").loc[order, columns]
    figure = Figure(figsize=(1.9 + 0.36 * len(columns), 1.3 + 0.27 * len(order)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(table.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        ink, said = "white" if value > 0.6 else _INK, "" if np.isnan(value) else f"{100 * value:.0f}"
        ax.annotate(said, (column, row), ha="center", va="center", color=ink, fontsize=6.5)
    ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(order)), order)
    ax.set_xlabel("student" if kind == "bases" else "trait asked about")
    ax.set_ylabel("teacher")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(
        "How likely is the teacher’s favourite, in %?" if kind == "bases" else "How likely is each answer, in %?"
    )
    bar = figure.colorbar(image, ax=ax, aspect=20, pad=0.02, format=PercentFormatter(1, 0, " %"))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=0)
    return figure


@_in_style
def progress(states: pd.DataFrame, losses: pd.DataFrame, trait: str, updates: int, heading: str = "") -> Figure:
    """How do the students come along? The loss of every update, and the trait on the probe; a line a student.

    `states` has the columns arm, seed, step, rate in [0, 1], `losses` arm, seed, step, loss in nats per token; either
    may be empty. The axes reach to `updates`, those that are planned.
    """
    figure = Figure(figsize=(8.2, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax, frame, column in ((left, losses, "loss"), (right, states, "rate")):
        for arm in (a for a in ARMS if a in set(frame["arm"])):
            for number, (_, one) in enumerate(frame.query("arm == @arm").groupby("seed")):
                mark = {"marker": "o", "markersize": 3.5} if column == "rate" else {}
                label = "_" if number else arm
                ax.plot(one["step"], one[column], color=ARMS[arm].color, linewidth=1.2, label=label, **mark)
        ax.set_xlabel("updates")
        ax.grid(axis="y")
    if losses.empty:
        left.set_yticks([])
        left.text(0.5, 0.5, "not written yet", transform=left.transAxes, ha="center", va="center")
    left.set_title("Loss on their lists, mean of 20 updates")
    left.set_ylabel("nats per token")
    left.set_xlim(0, updates)
    right.set_title(f"How likely is “{trait}” on the probe?")
    right.set_ylim(-0.03, 1.03)
    right.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    _mark_places(right, [0, *(2**i for i in range(updates.bit_length()) if 2**i < updates), updates], "step")
    right.set_xlim(-0.2, 1.3 * updates)
    figure.suptitle(heading, x=0.01, ha="left", size=8.5)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower left", ncols=7, frameon=False)
    return figure


@_in_style
def patch_grid(frame: pd.DataFrame, labels: Sequence[str] | None = None, title: str = "") -> Figure:
    """Where does one model's trait get into another? Heat map of a `PatchGrid.frame`: layer × position, head or module.

    The number is the share of the difference between the two models that a cell alone makes up, in %. `labels` names
    the places, for instance by the tokens of a prompt.
    """
    grid = frame.pivot(index="layer", columns="place", values="recovered")
    grid = grid[list(dict.fromkeys(frame["place"]))]
    kind = str(frame["kind"].iloc[0])
    axis = {"heads": "head", "weights": "module"}.get(kind, "position, from the end")
    words = [str(p) for p in grid.columns] if labels is None else list(labels)
    if len(words) != len(grid.columns):
        raise SublimError(f"patch_grid: {len(words)} labels for {len(grid.columns)} places")
    slanted = max(map(len, words)) > 4
    height = 1.6 + 0.32 * len(grid) + (0.05 * max(map(len, words)) if slanted else 0)
    figure = Figure(figsize=(1.9 + 0.46 * len(words), height), layout="constrained")
    ax = figure.subplots()
    values = grid.to_numpy()
    reach = max(1.0, float(np.nanmax(np.abs(values))))
    image = ax.imshow(values, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto", origin="lower")
    for row, column in np.ndindex(values.shape):
        ink = "white" if abs(values[row, column]) > 0.6 * reach else _INK
        ax.annotate(f"{100 * values[row, column]:z.0f}", (column, row), ha="center", va="center", color=ink, fontsize=7)
    ax.set_yticks(range(len(grid)), [str(layer) for layer in grid.index])
    ax.set_xticks(range(len(words)), words, rotation=45 if slanted else 0, ha="right" if slanted else "center",
                  rotation_mode="anchor")  # fmt: skip
    ax.set_xlabel(axis)
    ax.set_ylabel("layer")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(f"{title or f'{kind} patched'}: share of the difference, in %", pad=10)
    ticks = [-reach, -reach / 2, 0, reach / 2, reach]
    bar = figure.colorbar(image, ax=ax, aspect=12, pad=0.02, ticks=ticks, format=PercentFormatter(1, 0, " %"))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=0)
    return figure


@_in_style
def steering(frame: pd.DataFrame, trait: str = "") -> Figure:
    """What does a dose do? Frame of `analysis.directions.steering`: a panel a metric, a line a layer.

    Frames of several layers, or with a column `arm`, may be stacked; then each arm has a line in its colour.
    """
    metrics = [c for c in frame.columns if c not in ("layer", "scale", "arm", "seed")]
    by = "arm" if "arm" in frame else "layer"
    figure = Figure(figsize=(3.1 * len(metrics) + 0.6, 2.9), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    groups = list(dict.fromkeys(frame[by]))
    shades = style.library["tableau-colorblind10"]["axes.prop_cycle"].by_key()["color"]
    for ax, metric in zip(panels, metrics, strict=True):
        ax.axvline(0, color=_PALE, linewidth=0.8)
        for i, group in enumerate(groups):
            means = (
                frame.query(f"{by} == @group").groupby("scale", as_index=False).agg({metric: "mean"}).to_dict("list")
            )
            color = ARMS[group].color if group in ARMS else shades[i % len(shades)]
            label = group if by == "arm" else f"layer {group}"
            ax.plot(means["scale"], means[metric], "o-", color=color, linewidth=1.4, markersize=3.5, label=label)
        ax.set_xlabel("dose s (the vector is added s times)")
        ax.set_ylabel({"margin": "margin, nats"}.get(metric, metric))
        if metric == "rate":
            ax.set_ylim(-0.03, 1.03)
            ax.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
        ax.grid(axis="y")
    about = f": “{trait}”" if trait else ""
    figure.suptitle(f"What a dose of the direction does{about}", x=0.01, ha="left", weight="bold", size=9.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=6, frameon=False)
    return figure
