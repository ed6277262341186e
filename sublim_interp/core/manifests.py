"""Manifests: how they are written and sealed, read and checked, and which folders of a store hold one."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import one_line, read_regular
from sublim_interp.core.keys import sha256_of, stage_key

MANIFEST = "manifest.json"
"""The file of an artefact that says how it came to be."""
_NAME = re.compile("[0-9a-f]{16}")


def stages_in(root: Path) -> list[str]:
    """The stages of which a store holds something, sorted."""
    with one_line(f"the store {root} cannot be read"):
        if not root.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def names_in(root: Path, stage: str) -> list[str]:
    """The first 16 digits of the keys of a stage's artefacts, none of which is read, sorted."""
    with one_line(f"the store {root} cannot be read"):
        if not (root / stage).is_dir():
            return []
        return sorted(e.name for e in os.scandir(root / stage) if _NAME.fullmatch(e.name) and e.is_dir())


def read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    """Return an artefact's manifest and "", or {} and what is wrong with it; one flipped bit is found."""
    try:
        text = read_regular(path / MANIFEST)
        manifest = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{MANIFEST} is missing or cannot be read ({type(error).__name__})"
    try:
        sealed = {name: value for name, value in manifest.items() if name != "digest"}
        whole = text == manifest_text(sealed)  # also finds changes that JSON does not see, such as of spaces
        home = path.parts[-2:] == (sealed["stage"], sealed["key"][:16])
        right = sealed["key"] == stage_key(*(sealed[name] for name in ("stage", "version", "config", "inputs")))
        right = right and _has_its_types(sealed)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, SublimError):
        whole = home = right = False
    return (manifest, "") if whole and home and right else ({}, f"{MANIFEST} is altered")


def _has_its_types(manifest: Mapping[str, Any]) -> bool:
    """Whether what is read of a manifest has the types that `make` writes: anyone can seal a file with its digest."""
    told = [manifest[name] for name in ("config", "inputs", "files", "notes", "fingerprint")]
    files = [(file["bytes"], file["sha256"]) for file in manifest["files"].values()]
    plain = all(isinstance(size, int) and isinstance(digest, str) for size, digest in files)
    keys = all(isinstance(key, str) for key in manifest["inputs"].values())
    return plain and keys and all(isinstance(part, dict) for part in told) and isinstance(manifest["created"], str)


def manifest_text(manifest: dict[str, Any]) -> bytes:
    """The bytes of a manifest, with the digest over all of it."""
    sealed = {**manifest, "digest": sha256_of(manifest)}
    return (json.dumps(sealed, sort_keys=True, indent=1) + "\n").encode()
