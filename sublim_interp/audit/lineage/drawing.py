"""A lineage as a tree for the terminal, as a figure, and as a page."""

import base64
from collections import Counter
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from sublim_interp.audit.lineage.graph import MEANING, Lineage, Link, Thing
from sublim_interp.core.drawing import INK, in_style, render
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import write_atomic

if TYPE_CHECKING:
    from rich.tree import Tree

WIDTH = 100
"""Columns of the terminal that the tree takes at most."""

TOGETHER = 4
"""As many links of one sort and role a tree shows; of more it shows the first and counts the others."""

TALLEST = 150
"""Things in one column of a figure at most."""

COLORS = {
    "proven": "#0072B2",
    "weights proven": "#56B4E9",
    "damaged": "#D55E00",
    "unrecorded": "#7F7F7F",
    "not here": "#7F7F7F",
    "claimed": "#E69F00",
}
"""Of Okabe and Ito's palette, by what is known of a thing."""

_BOX = 0.72
"""Width of a box, as a share of its column."""

_LINES = {"proven": "-", "weights proven": "-", "damaged": "-", "unrecorded": "-", "not here": "--", "claimed": ":"}


def tree(found: Lineage, everything: bool = False) -> "Tree":
    """The lineage as a tree of lines of at most WIDTH columns; what stands further up already has no branches again.

    everything: whether links beyond TOGETHER are shown too
    """
    from rich.tree import Tree

    root = found.things[found.root]
    top = Tree(_line("", root, found.state(root), 0))
    seen = {root.id}
    todo = [(top, link, more, 1) for link, more in reversed(_grouped(found, root.id, everything))]
    while todo:
        branch, link, more, depth = todo.pop()
        if not link:
            branch.add(_cut(more, depth))
            continue
        thing = found.end(link)
        again = " (above)" if thing.id in seen and found.following(thing.id) else ""
        twig = branch.add(_line(link.role, thing, found.standing(link), depth, again))
        if thing.id not in seen:
            seen.add(thing.id)
            todo += [(twig, *after, depth + 1) for after in reversed(_grouped(found, thing.id, everything))]
    return top


def _grouped(found: Lineage, id: str, everything: bool) -> list[tuple[Link | None, str]]:
    """The links that a tree shows at a thing, and lines that count those that it does not."""
    groups: dict[tuple[str, str], list[Link]] = {}
    for link in found.following(id):
        groups.setdefault((link.role.partition("/")[0], found.end(link).sort), []).append(link)
    shown: list[tuple[Link | None, str]] = []
    for (role, sort), links in groups.items():
        few = everything or len(links) <= TOGETHER
        shown += [(link, "") for link in (links if few else links[:1])]
        if not few:
            states = Counter(map(found.standing, links[1:]))
            said = ", ".join(f"{n} {state}" for state, n in states.items())
            shown.append((None, f"{role}: {len(links) - 1} more of {sort}: {said}"))
    return shown


def _line(role: str, thing: Thing, standing: str, depth: int, after: str = "") -> str:
    said = f"{role}: {thing.title}" if role and role != thing.sort else thing.title
    state = standing.upper() if standing == "damaged" else standing
    return _cut(f"{said}, {state}{after}{f' · {thing.about}' if thing.about and not after else ''}", depth)


def _cut(line: str, depth: int) -> str:
    """A line that a terminal can show, within WIDTH; each level of a tree takes four columns."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    room = WIDTH - 4 * depth
    return line if len(line) <= room else f"{line[: max(room, 20) - 1]}…"


@in_style
def figure(found: Lineage) -> Figure:
    """The lineage from left to right, as it was made. A line is whole where digests prove it, dotted for a claim.

    Raises SublimError where a column would hold more than TALLEST things.
    """
    columns = _columns(found)
    tallest = max(map(len, columns))
    if tallest > TALLEST:
        raise SublimError(f"{len(found.things)} things are too many to draw; name a replicate, or take --json")
    fig = Figure(figsize=(max(2.9 * len(columns), 5.6), 0.62 * tallest + 1.3))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(-0.12, len(columns) - 0.02)
    ax.set_ylim(-1.2, tallest + 0.6)
    order = columns if found.down else columns[::-1]
    places = {
        thing.id: (float(x), tallest - (tallest - len(column)) / 2 - y - 0.5)
        for x, column in enumerate(order)
        for y, thing in enumerate(column)
    }
    for link in found.links:
        standing = found.standing(link)
        (x0, y0), (x1, y1) = places[link.parent], places[link.child]
        ax.add_patch(_arrow((x0 + _BOX, y0), (x1, y1), standing))
    for thing in found.things.values():
        x, y = places[thing.id]
        color = COLORS[found.state(thing)]
        bold = "bold" if thing.id == found.root else "normal"
        ax.add_patch(_box(x, y, color))
        ax.text(x + 0.02, y + 0.1, _short(thing.title, 36), fontsize=7.6, va="center", color=INK, weight=bold, zorder=3)
        ax.text(x + 0.02, y - 0.19, _short(thing.about, 44), fontsize=6, va="center", color="#555555", zorder=3)
    states = {*map(found.state, found.things.values()), *map(found.standing, found.links)}
    for i, state in enumerate(state for state in COLORS if state in states):
        ax.plot([0.45 * i, 0.45 * i + 0.09], [-0.8, -0.8], _LINES[state], color=COLORS[state], linewidth=1.6)
        ax.text(0.45 * i + 0.11, -0.8, state, fontsize=7.5, va="center")
    return fig


def _box(x: float, y: float, color: str):
    from matplotlib.patches import FancyBboxPatch

    shape = "round,pad=0,rounding_size=0.03"
    return FancyBboxPatch((x, y - 0.36), _BOX, 0.72, shape, facecolor="white", edgecolor=color, linewidth=1.2, zorder=2)


def _arrow(start: tuple[float, float], end: tuple[float, float], standing: str):
    """From a parent to a child; one that passes over columns is bent, so that it is seen beside their boxes."""
    from matplotlib.patches import FancyArrowPatch

    span = end[0] - start[0]
    bend = f"arc3,rad={-0.45 / span:.3f}" if span > 1 else "arc3,rad=0"
    style = {"linestyle": _LINES[standing], "color": COLORS[standing], "linewidth": 1.1, "alpha": 0.8, "zorder": 1}
    return FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=8, shrinkA=0, shrinkB=1, connectionstyle=bend, **style
    )


def _columns(found: Lineage) -> list[list[Thing]]:
    """Every thing in the column of its longest way from the root, the root first."""
    depth = {found.root: 0}
    todo = [found.root]
    while todo:  # what is reached again by a longer way moves on, with what follows it; there are no circles
        id = todo.pop()
        for link in found.following(id):
            after = found.end(link).id
            if depth.get(after, -1) < depth[id] + 1:
                depth[after] = depth[id] + 1
                todo.append(after)
    columns: list[list[Thing]] = [[] for _ in range(max(depth.values()) + 1)]
    for thing in found.walk():
        columns[depth[thing.id]].append(thing)
    return columns


def _short(text: str, most: int) -> str:
    text = "".join(c for c in text if c.isprintable())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def page(found: Lineage, path: Path) -> None:
    """Writes the lineage as one self-contained HTML page: what was found, the figure, a row a thing."""
    roles: dict[str, list[str]] = {}
    for link in found.links:
        roles.setdefault(link.child, []).append(f"{link.role}: {found.things[link.parent].title}")
    rows = "".join(
        _row(
            {
                "thing": f"{t.sort} {t.name}".strip(),
                "key or digest": t.id if t.is_digest else "",
                "known": found.state(t),
                "about": t.about,
                "made from": "; ".join(roles.get(t.id, ())),
                "problems": "; ".join([*t.problems, *(f"{name} is in no record" for name in t.unproven)]),
            }
        )
        for t in found.walk()
    )
    here = files("sublim_interp.audit.lineage")
    css = files("sublim_interp.report").joinpath("page.css").read_text(encoding="utf-8")
    title = f"What {'descends from' if found.down else 'was made into'} {found.asked}?"
    html = Template(here.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(_short(title, 300)),
        css=css,
        finding="".join(f"<li>{escape(line)}</li>" for line in found.finding),
        meaning="".join(f"<dt>{word}</dt><dd>{escape(text)}</dd>" for word, text in MEANING.items()),
        figure=base64.b64encode(render(figure(found), "svg")).decode("ascii"),
        alt=escape(" ".join(found.finding), quote=True),
        rows=rows,
    )
    write_atomic(path, html)


def _row(cells: Mapping[str, str]) -> str:
    return "<tr>" + "".join(f'<td class="words">{escape(text)}</td>' for text in cells.values()) + "</tr>"
