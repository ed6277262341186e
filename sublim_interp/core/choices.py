"""Valid choices in an error: the names that are meant, else as many as a line holds and where the rest are."""

from collections.abc import Iterable
from difflib import get_close_matches

WIDTH = 110
"""Characters of a line that a list of choices may take."""


def meant(name: object, known: Iterable[str], see: str = "") -> str:
    """How an error about an unknown name ends.

    name: what was given
    known: the valid names
    see: what shows all of them, such as `sublim list`; "" where nothing does

    Returns "did you mean 'owl'?" where names are near, else "valid: …", cut where the line is full.
    """
    names = list(dict.fromkeys(map(str, known)))
    near = get_close_matches(str(name), names, n=3, cutoff=0.6)
    near += [n for n in names if n.lower() == str(name).lower() and n not in near]
    rest = f" (all: {see})" if see else ""
    if near:
        return f"did you mean {' or '.join(repr(n) for n in near[:3])}?{rest}"
    return f"valid: {listed(names, see)}"


def listed(names: Iterable[str], see: str = "") -> str:
    """Names side by side, cut where the line is full, with their number and what shows the rest."""
    names = list(names)
    shown: list[str] = []
    for name in names:
        if shown and len(", ".join([*shown, name])) > WIDTH:
            return f"{', '.join(shown)}, … ({len(names)} in all{f': {see}' if see else ''})"
        shown.append(name)
    return ", ".join(shown) or "none"
