"""Tables of pages as HTML: rows become cards where there is no room for a table."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

import pandas as pd


class Column(NamedTuple):
    """One column of a table on the page."""

    heading: str
    """In a few words."""
    more: str = ""
    """A smaller line beneath it."""
    means: str = ""
    """What it means: told where the keyboard or the mouse stops on it."""
    words: bool = False
    """Whether its cells are words, which begin at the left."""
    dot: str = ""
    """A colour before it; "" for none."""
    label: str = ""
    """Stands beside a cell where there is no room for a table; "" for the heading."""


def html_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], name: str = "") -> str:
    """A table whose rows become cards where there is no room for it.

    rows: markup; the first cell of each names the row
    name: begins the ids of what the columns mean, where they mean something

    The roles are those that the elements have anyway: a browser may forget them where rows are no table rows.
    """
    head = []
    for c in columns:
        dot = f'<span class="dot" style="background: {c.dot}"></span>' if c.dot else ""
        more = f"<small>{escape(c.more)}</small>" if c.more else ""
        means = f' tabindex="0" aria-describedby="{term_id(name, c)}" data-means="{escape(c.means)}"' if c.means else ""
        side = ' class="words"' if c.words else ""
        head.append(f'<th scope="col" role="columnheader"{side}{means}>{dot}{escape(c.heading)}{more}</th>')
    lines = []
    for first, *rest in rows:
        cells = [f'<th scope="row" role="rowheader">{first}</th>']
        for c, cell in zip(columns[1:], rest, strict=True):
            side = ' class="words"' if c.words else ""
            cells.append(f'<td role="cell" data-label="{escape(c.label or c.heading)}"{side}>{cell}</td>')
        lines.append(f'<tr role="row">{"".join(cells)}</tr>')
    return (
        f'<div class="frame"><table role="table"><thead role="rowgroup"><tr role="row">{"".join(head)}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(lines)}</tbody></table></div>'
    )


def term_id(name: str, column: Column) -> str:
    """The id of what a column means."""
    return f"{name}-{re.sub(r'[^a-z0-9]+', '-', column.heading.lower()).strip('-')}"


def frame_table(frame: pd.DataFrame, raw: Sequence[str] = ()) -> str:
    """A frame as HTML, its first column naming the rows; what a heading has in brackets, a control, stands beneath it.

    raw: columns that are markup
    """
    columns = []
    for name in map(str, frame.columns):
        value, _, control = name.removesuffix(")").partition(" (")
        numbers = pd.api.types.is_numeric_dtype(frame[name])
        columns.append(Column(value, control, words=not numbers, label=name))
    rows = [
        [str(value) if name in raw else _cell(value) for name, value in zip(frame.columns, row, strict=True)]
        for row in frame.itertuples(index=False)
    ]
    return html_table(columns, rows)


def _cell(value: Any) -> str:
    """A value as a table has it; nothing where there is none."""
    if not isinstance(value, float):
        return escape(str(value))
    return "" if value != value else f"{value:z.3f}".replace("-", "\N{MINUS SIGN}")
