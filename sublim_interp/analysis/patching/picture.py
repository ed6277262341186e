"""A patching grid as a heat map: layer by position, head or module."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter

from sublim_interp.analysis.patching.cells import BY_PART
from sublim_interp.core.drawing import INK, in_style
from sublim_interp.core.errors import SublimError


@in_style
def patch_grid(frame: pd.DataFrame, labels: Sequence[str] | None = None, title: str = "") -> Figure:
    """Where does one model's trait get into another? Heat map: layer × position, head or module.

    frame: `PatchGrid.frame`; `recovered` is the share of the difference between the two models that a cell makes up
    labels: one name a place; else the tokens, where the frame has them
    title: before the words "share of the difference, in %"

    Raises SublimError for labels that are not one a place.
    """
    grid = frame.pivot(index="layer", columns="place", values="recovered")
    grid = grid.reindex(columns=list(dict.fromkeys(frame["place"])))
    kind = str(frame["kind"].iloc[0])
    axis = {**{k: part for k, (_, part) in BY_PART.items()}, "weights": "module"}.get(kind, "position, from the end")
    if labels is None and "token" in frame:
        labels = frame.drop_duplicates("place")["token"].to_list()
    words = [str(p) for p in grid.columns] if labels is None else list(labels)
    if len(words) != len(grid.columns):
        raise SublimError(f"patch_grid: {len(words)} labels for {len(grid.columns)} places")
    slanted = _is_slanted(words)
    height = 1.6 + 0.32 * len(grid) + (0.05 * max(map(len, words)) if slanted else 0)
    figure = Figure(figsize=(1.9 + 0.46 * len(words), height), layout="constrained")
    ax = figure.subplots()
    values = grid.to_numpy()
    reach = max(1.0, float(np.nanmax(np.abs(values))))
    image = heat(ax, grid, words, reach)
    ax.set_xlabel(axis)
    ax.set_ylabel("layer")
    ax.set_title(f"{title or f'{kind} patched'}: share of the difference, in %", pad=10)
    shares_bar(figure, image, ax)
    return figure


def heat(ax: Axes, grid: pd.DataFrame, words: Sequence[str], reach: float = 1.0) -> AxesImage:
    """Shares as coloured cells with their percentages, layer by place.

    grid: layer × place
    words: one a place, on the axis
    reach: the share with the darkest colour
    """
    values = grid.to_numpy()
    image = ax.imshow(values, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto", origin="lower")
    for row, column in np.argwhere(np.isfinite(values)):
        ink = "white" if abs(values[row, column]) > 0.6 * reach else INK
        ax.annotate(f"{100 * values[row, column]:z.0f}", (column, row), ha="center", va="center", color=ink, fontsize=7)
    slanted = _is_slanted(words)
    ax.set_yticks(range(len(grid)), [str(layer) for layer in grid.index])
    ax.set_xticks(range(len(words)), words, rotation=45 if slanted else 0, ha="right" if slanted else "center",
                  rotation_mode="anchor")  # fmt: skip
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def shares_bar(figure: Figure, image: AxesImage, axes: Any) -> None:
    """The scale of shares beside one or several heat maps."""
    reach = float(image.get_clim()[1] or 1.0)
    ticks = [-reach, -reach / 2, 0, reach / 2, reach]
    bar = figure.colorbar(image, ax=axes, aspect=12, pad=0.02, ticks=ticks, format=PercentFormatter(1, 0, " %"))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=0)


def _is_slanted(words: Sequence[str]) -> bool:
    return max(map(len, words)) > 4
