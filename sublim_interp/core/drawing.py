"""The house style of every figure, and figures as files of equal bytes."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import ParamSpec

import numpy as np
from matplotlib import rcParams, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from sublim_interp.core.errors import SublimError

P = ParamSpec("P")


INK, PALE = "#222222", "#B0B0B0"
"""Of text and marks; of axes and what lies behind them."""


_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
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

_BACKENDS = {"png": "agg", "pdf": "pdf", "svg": "svg"}
"""Kind → matplotlib's backend, imported where it is needed."""


@contextmanager
def _styled() -> Iterator[None]:
    """The house style, whatever matplotlibrc the user has; some of it is read only when a figure is drawn."""
    with style.context(_STYLE, after_reset=True):
        yield


def in_style(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorates a function that draws a figure: in the house style, and notebooks show it without pyplot."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _styled():
            figure = draw(*args, **kwargs)
        figure._repr_png_ = partial(small_png, figure)  # type: ignore[attr-defined]
        return figure

    return styled


def small_png(figure: Figure) -> bytes:
    """The figure as a small PNG, as a notebook keeps it: some 20 kB."""
    from PIL import Image

    small = io.BytesIO()
    with Image.open(io.BytesIO(render(figure, "png", _NOTEBOOK_DPI))) as image:
        image.convert("RGB").quantize(_NOTEBOOK_COLORS).save(small, "png", optimize=True)
    return small.getvalue()


_NOTEBOOK_DPI, _NOTEBOOK_COLORS = 100, 256


def render(figure: Figure, kind: str, dpi: float | int | None = None) -> bytes:
    """The figure as a file: equal bytes for equal figures, with no date and no program in it.

    kind: `png`, `pdf` or `svg`; raises SublimError for another
    dpi: dots an inch; as for print where not given
    """
    if kind not in _METADATA:
        raise SublimError(f"figures are not written as '{kind}'; valid kinds: {', '.join(_METADATA)}")
    buffer, before, own_dpi = io.BytesIO(), figure.canvas, figure.dpi
    canvas = import_module(f"matplotlib.backends.backend_{_BACKENDS[kind]}").FigureCanvas(figure)
    try:
        with _styled():
            figure.dpi = dpi or rcParams["savefig.dpi"]
            # `savefig` draws everything twice: once for the layout, which each drawing makes anyway.
            getattr(canvas, f"print_{kind}")(buffer, metadata=_METADATA[kind])
    finally:
        figure.dpi = own_dpi
        figure.set_canvas(before)
    return buffer.getvalue()


def save(figure: Figure, path: Path | str) -> None:
    """Writes a figure as a file: equal bytes for equal figures.

    path: its ending says which kind: png, pdf or svg; SublimError for another
    """
    Path(path).write_bytes(render(figure, Path(path).suffix.removeprefix(".")))


def in_words(figure: Figure) -> str:
    """What a figure of lines or of a heat map shows, read off the drawing: where lines start and end, what is highest.

    Returns "" for other figures.
    """
    said = []
    for ax in figure.axes:
        title = ax.get_title(loc="left") if len(figure.axes) > 1 else ""
        lines = [line for line in ax.lines if not str(line.get_label()).startswith("_") and np.size(line.get_xdata())]
        ends = [f"{line.get_label()} from {_first_and_last(line.get_ydata())}" for line in lines]
        if ends:
            said.append(f"{f'{title}: ' if title else ''}{'; '.join(ends)}.")
        elif ax.images and ax.get_title(loc="left"):
            said.append(f"{ax.get_title(loc='left')}. Highest: {_highest(ax)}.")
    return " ".join(said)


def _first_and_last(values: object) -> str:
    numbers = [float(v) for v in np.asarray(values)]
    return f"{numbers[0]:.2f} to {numbers[-1]:.2f}".replace("-", "−")


def _highest(ax: Axes) -> str:
    """The three highest cells of a heat map, by the words of its axes and the numbers in its cells."""
    columns, rows = ([t.get_text() for t in labels] for labels in (ax.get_xticklabels(), ax.get_yticklabels()))
    cells = {(int(text.xy[0]), int(text.xy[1])): text.get_text() for text in ax.texts if isinstance(text, Annotation)}
    values = np.asarray(ax.images[0].get_array())
    order = sorted(cells, key=lambda place: -float(values[place[1], place[0]]))
    names = ax.get_ylabel(), ax.get_xlabel()
    named = [" ".join(filter(None, names[:1])) + f" {rows[y]}, {columns[x]}: {cells[x, y]}" for x, y in order[:3]]
    return "; ".join(part.strip() for part in named)
