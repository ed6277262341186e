"""What a figure is: what it shows, what to see in it, what it is drawn from, and the function that draws it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sublim_interp.report.wording import capital

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FigureInput = Literal["tables", "run", "cells", "frame"]
"""`tables`: the `experiments.tables.Tables` of a run. `run`: a finished `experiments.results.Run`, with its traces.
`cells`: the tables of a sweep. `frame`: what a call such as `si.steering` returns."""

Waits = Literal["never", "large", "always"]
"""Whether a figure that runs models waits until its page is asked for: where the base is large, or always."""


@dataclass(frozen=True)
class FigureEntry:
    """One figure by which a result is shown.

    shows: what it shows, in one sentence without its full stop
    caption: what to see, in one or two sentences
    input: what `draw` takes
    draw: makes the matplotlib figure; raises SublimError where its input lacks what the figure shows
    page: whether a run's page has it; only of figures of tables or of a run
    fits: which runs' pages have it, by their tables; None: every run's
    narrow: draws the same for a phone's screen. Of a run's figure the page shows this on every screen, so that traces
        and models are read once; None lets the other shrink there
    waits: whether the page that a run ends with leaves it out, since it runs models; `sublim plot RUN page` draws it
    says: what the drawing shows in words, from what `draw` takes, for those who cannot see it; None leaves it to
        `drawing.in_words`
    """

    shows: str
    caption: str
    input: FigureInput
    draw: "Callable[[Any], Figure]"
    page: bool = False
    fits: "Callable[[Any], bool] | None" = None
    narrow: "Callable[[Any], Figure] | None" = None
    waits: Waits = "never"
    says: Callable[[Any], str] | None = None

    @property
    def sentence(self) -> str:
        """What it shows, as a sentence of its own."""
        said = capital(self.shows)
        return said if said.endswith("?") else f"{said}."
