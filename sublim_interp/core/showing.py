"""How objects show themselves: one line in a terminal, a small table in a notebook."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


LINE = 240
"""Characters of a short repr."""


class Card(NamedTuple):
    """What is shown of an object."""

    title: str
    """What it is."""
    facts: Mapping[str, Any]
    """A few words each, by name."""
    frame: "pd.DataFrame | None" = None
    """A table, which notebooks show beneath."""


class Shown:
    """Objects that say in one line, or in a notebook in a small table, what they are. They override `card`."""

    def card(self) -> Card:
        """What is shown of it; without loading models."""
        raise NotImplementedError

    def __repr__(self) -> str:
        title, facts, _ = self.card()
        said = ", ".join(f"{name} {value}" if name else str(value) for name, value in facts.items())
        line = " ".join(f"{title}: {said}".split()) if said else title
        return f"<{line if len(line) <= LINE else line[: LINE - 2] + ' …'}>"

    def _repr_html_(self) -> str:
        title, facts, frame = self.card()
        rows = "".join(f"<tr><th>{escape(str(n))}</th><td>{escape(str(v))}</td></tr>" for n, v in facts.items())
        table = "" if frame is None else frame.to_html(float_format="{:.3g}".format, max_rows=12)
        return f"<p><b>{escape(title)}</b></p><table>{rows}</table>{table}"


def few(values: Any, most: int = 6) -> str:
    """The first of some values and how many there are."""
    values = list(values)
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown}, … ({len(values)})"
