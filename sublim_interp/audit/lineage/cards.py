"""What a model's or a data set's own papers say of its parents. They claim it; no digest proves it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import read_regular
from sublim_interp.core.settings import read_text
from sublim_interp.core.yaml import load_yaml

CARD = "README.md"
"""Its front matter, between two lines of three dashes, is the card of the Hugging Face hub."""

_LONGEST, _MOST, _BYTES = 200, 20, 1 << 20
"""Characters of a name, names of a card and bytes of a JSON file that are read at most."""

_ROLES = {"base_model": "base", "datasets": "data", "source_datasets": "data"}


class Claim(NamedTuple):
    """One parent that a card names."""

    role: str
    """base or data."""
    name: str
    by: str
    """The file that says so."""


def claims(directory: Path) -> tuple[list[Claim], list[str]]:
    """The parents that the papers in a directory name, and a line for each paper that cannot be read.

    README.md's front matter has base_model, datasets and source_datasets; adapter_config.json and config.json name the
    model from which they were saved. Nothing that stands there can end the reading of the rest.
    """
    found: list[Claim] = []
    problems: list[str] = []
    for name, read in ((CARD, _front_matter), ("adapter_config.json", _json), ("config.json", _json)):
        path = directory / name
        if not path.exists():
            continue
        try:
            data = read(path)
        except SublimError as error:
            problems.append(" ".join(str(error).split())[:300])
            continue
        fields = _ROLES if name == CARD else {"base_model_name_or_path": "base", "_name_or_path": "base"}
        for field, role in fields.items():
            found += [Claim(role, text, name) for text in _names(data.get(field))]
    return list({(c.role, c.name): c for c in reversed(found)}.values())[::-1], problems


def _names(value: Any) -> Iterator[str]:
    """The names in a field: text or a list of texts, without what no terminal shows; others are no names."""
    for item in (value if isinstance(value, list) else [value])[:_MOST]:
        if isinstance(item, str):
            shown = "".join(c for c in item if c.isprintable()).strip()[:_LONGEST]
            if shown:
                yield shown


def _front_matter(path: Path) -> dict[str, Any]:
    text = read_text(path).replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    head, end, _ = text.removeprefix("---\n").partition("\n---")
    data = load_yaml(head, str(path)) if end else None
    return data if isinstance(data, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _BYTES:
            raise SublimError(f"{path}: {path.stat().st_size} bytes; {_BYTES} are the most")
        data = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise SublimError(f"{path} cannot be read ({type(error).__name__})") from None
    return data if isinstance(data, dict) else {}
