"""An export: a title a line, the thing that was asked about first."""

from pathlib import Path

from sublim_interp.audit.lineage.graph import Lineage


def titles(found: Lineage, _path: Path, _key: Path | None) -> bytes:
    """Sort, name and key of everything, as text."""
    return "".join(f"{thing.title}\n" for thing in found.walk()).encode()
