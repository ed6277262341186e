"""Scored tokens as HTML: each on a tint, blue for what raises and orange for what lowers."""

from collections.abc import Iterable
from html import escape

import numpy as np

from sublim_interp.analysis.attribution.scores import TokenScores

_UP, _DOWN = "0, 114, 178", "213, 94, 0"


def marked(scores: TokenScores, lists: Iterable[int]) -> list[str]:
    """The scored tokens of some lists as HTML, a text a list.

    lists: their places among those that were scored

    Tints are relative to the 99th percentile of all scores; a token's own is its tooltip.
    """
    reach = float(np.quantile(np.abs(scores.values), 0.99)) or 1.0
    words, bounds = scores.texts, np.cumsum([0, *scores.lengths])
    found = []
    for place in lists:
        own = range(bounds[place], bounds[place + 1])
        found.append(" ".join(_tinted(words[i], float(scores.values[i]), reach) for i in own))
    return found


def _tinted(word: str, value: float, reach: float) -> str:
    depth = min(1.0, abs(value) / reach)
    tint = f"rgba({_UP if value > 0 else _DOWN}, {0.6 * depth:.2f})"
    return f'<span style="background: {tint}" title="{value:.3g}">{escape(word)}</span>'
