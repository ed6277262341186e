"""Valid choices in an error: the names that are meant, else as many as a line holds and where the rest are."""

from collections.abc import Iterable
from difflib import get_close_matches

WIDTH = 110
"""Characters of a line that a list of choices may take."""


def meant(name: object, known: Iterable[str], see: str = "", word: str = "valid") -> str:
    """How an error about an unknown name ends.

    name: what was given
    known: the valid names
    see: what shows all of them, such as `sublim list`; "" where nothing does
    word: what the names are called

    Returns all names where a line holds them, and "did you mean 'owl'?" where some are near; of more names those that
    are near, else as many as the line holds.
    """
    names = list(dict.fromkeys(map(str, known)))
    near = get_close_matches(str(name).lower(), [n.lower() for n in names], n=3, cutoff=0.6)
    close = [repr(n) for low in near for n in names if n.lower() == low and n != name]
    asked = f"did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""
    if asked and len(", ".join(names)) > WIDTH:
        return f"{asked}{f' (all: {see})' if see else ''}"
    return f"{word}: {listed(names, see)}{f'; {asked}' if asked else ''}"


def listed(names: Iterable[str], see: str = "") -> str:
    """Names side by side, cut where the line is full, with their number and what shows the rest."""
    names = list(names)
    shown: list[str] = []
    for name in names:
        if shown and len(", ".join([*shown, name])) > WIDTH:
            return f"{', '.join(shown)}, … ({len(names)} in all{f': {see}' if see else ''})"
        shown.append(name)
    return ", ".join(shown) or "none"
