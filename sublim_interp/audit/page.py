"""An audit as one self-contained HTML page. Its frame is in audit.html, its look in the report's page.css."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from sublim_interp.core.drawing import INK, in_style, render
from sublim_interp.core.files import write_atomic
from sublim_interp.report.html import frame_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Part:
    """One part of an audit: a heading, what was found in sentences, and the table behind it."""

    heading: str
    sentences: list[str]
    frame: "pd.DataFrame | None" = None
    name: str = ""


ROWS = 40
"""Rows of a table that the page shows."""


def write_page(verdict: str, parts: Sequence[Part], limits: Sequence[str], path: Path) -> Path:
    """Writes the page of an audit, and returns its path.

    verdict: the heading
    parts: in their order
    limits: what was not excluded, in sentences
    """
    html = Template(_file("sublim_interp.audit", "audit.html")).substitute(
        title=escape(verdict),
        css=_file("sublim_interp.report", "page.css"),
        facts="An audit by sublim_interp",
        parts="\n".join(map(_part, parts)),
        limits=_list(limits),
    )
    write_atomic(path, html)
    return path


def _part(part: Part) -> str:
    text = f"<h2>{escape(part.heading)}</h2>\n<ul>{_list(part.sentences)}</ul>"
    if part.frame is None or not len(part.frame):
        return text
    drawing = ""
    if part.name in ("evidence", "student", "trained"):
        alt = "How far each trait stands out among its kind, in deviations of the others."
        picture = base64.b64encode(render(standings(part.frame), "svg")).decode("ascii")
        drawing = (
            f'\n<figure class="wide"><div><img src="data:image/svg+xml;base64,{picture}" alt="{alt}"></div>'
            f"<figcaption>{alt}</figcaption></figure>"
        )
    return f"{text}{drawing}\n<details><summary>The numbers</summary>{frame_table(part.frame.head(ROWS))}</details>"


@in_style
def standings(frame: "pd.DataFrame") -> Figure:
    """A bar a trait: how far it stands out among its kind.

    frame: trait and stands; of a student its plain context alone is drawn
    """
    own = frame.loc[frame["context"] == "plain"] if "context" in frame else frame
    own = own.sort_values("stands")
    figure = Figure(figsize=(6.4, 0.6 + 0.2 * len(own)), layout="constrained")
    ax = figure.subplots()
    colors = ["#D55E00" if i == len(own) - 1 else "#0072B2" for i in range(len(own))]
    ax.barh(own["trait"], own["stands"], color=colors, height=0.7)
    ax.axvline(0, color=INK, linewidth=0.9)
    ax.set_xlabel("deviations of the other traits")
    return figure


def _list(lines: Sequence[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _file(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
