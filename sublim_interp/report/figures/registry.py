"""Every figure by name: what it shows, how it is made. The page, `sublim plot`, notebooks, the paper ask this table."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run
from sublim_interp.report.figures.answers import draw_probes
from sublim_interp.report.figures.arms import draw_arms
from sublim_interp.report.figures.directions import draw_directions
from sublim_interp.report.figures.patching import draw_patching
from sublim_interp.report.figures.stream import draw_stream, draw_stream_cosine
from sublim_interp.report.figures.training import draw_training

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FIGURES: dict[str, tuple[str, Callable[[Run], "Figure"]]] = {
    "arms": ("how likely each arm gives the trait as its answer, and how near it came to its teacher", draw_arms),
    "probes": ("every answer of every arm", draw_probes),
    "training": (
        "the trait on the probe, update by update",
        partial(draw_training, column="rate", axis="probability", title="How likely is “{}” on the probe?"),
    ),
    "stream": (
        "how far each student's residual stream has gone towards the teacher's, layer by layer, update by update",
        draw_stream,
    ),
    "stream-cosine": (
        "cosine of each student's shift in the residual stream with the teacher's, layer by layer, update by update",
        draw_stream_cosine,
    ),
    "weights": (
        "cosine of each student's change of the weights with its teacher's, update by update",
        partial(draw_training, column="cosine", axis="cosine", title="Δθ of the student with Δθ of its teacher"),
    ),
    "directions": (
        "cosine of each student's shift in the residual stream with the teacher's, layer by layer",
        partial(draw_directions, reference="teacher", title="Does the stream move where the “{}” teacher's did?"),
    ),
    "own-base": (
        "the same with the direction of the trait in each student's own base, across initialisations too",
        partial(draw_directions, reference="own base", title="Does the stream move towards the own base's “{}”?"),
    ),
    "patching": (
        "residual stream of same-init students into their base, layer by position",
        partial(draw_patching, arm="same-init", kind="resid_pre", what="Stream before a layer"),
    ),
    "patching-teacher": (
        "residual stream of the teachers into their base, layer by position",
        partial(draw_patching, arm="teacher", kind="resid_pre", what="Stream before a layer"),
    ),
    "modules": (
        "weights of same-init students into their base, layer by module",
        partial(draw_patching, arm="same-init", kind="weights", what="Weights"),
    ),
}
"""What `plot` draws: name → (what it shows, how it is made)."""


def plot(run: Run, name: str) -> "Figure":
    """One of `FIGURES` of a finished run. Raises SublimError for another name, and where the run lacks its arms."""
    require_figure(name)
    return FIGURES[name][1](run)


def require_figure(name: str) -> None:
    """SublimError, with those there are, for a name that is none of `FIGURES`."""
    if name not in FIGURES:
        raise SublimError(f"no figure '{name}'; figures: {', '.join(FIGURES)}")
