"""Artefacts from store to store: by digest, with all that they were made from, and nothing that is altered."""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sublim_interp.core.device import changes
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import copy_tree, one_line, sync
from sublim_interp.core.manifests import read_manifest
from sublim_interp.core.store import Artifact, Store
from sublim_interp.core.upkeep import lineage


@dataclass
class Taken:
    """What became of each artefact that was offered."""

    added: Counter[str] = field(default_factory=Counter)
    """How many were added, by stage."""
    there: int = 0
    """How many were there already, with the same files."""
    others: list[str] = field(default_factory=list)
    """A line for each that was there already with other files: the same key on another machine; it stays as it was."""
    refused: list[str] = field(default_factory=list)
    """A line for each that is altered or incomplete, and for each that was made from one that is."""
    prints: Counter[str] = field(default_factory=Counter)
    """How many of those added were made on another sort of machine than the first, by what differs."""


def take(source: Store, target: Store, keys: Iterable[str] | None = None) -> Taken:
    """Copies finished artefacts into a store, inputs first; what is there already stays as it is.

    source: where they lie
    target: the store that takes them; it is created where it does not exist
    keys: the first 16 digits of those that are wanted, with all that they were made from; None: everything

    Every file is compared with its digest before it is copied, and the copy again. An artefact that was made from one
    that is refused is refused too. Raises SublimError where the source holds nothing, or the target cannot be written.
    """
    index = source.index()
    damaged = source.damaged()
    if not index and not damaged:
        raise SublimError(f"{source.root} holds no artefact; give the folder of a store, such as ./runs")
    out = Taken(refused=[f"{path.parent.name} {path.name}: its manifest is altered" for path in damaged])
    bad = {path.name for path in damaged}
    first: dict[str, str | int] = {}
    for key in lineage(index, index if keys is None else keys):
        row = index[key]
        lost = [given for given in row.inputs if given in bad]
        artifact = Artifact(source.root / row.stage / key, read_manifest(source.root / row.stage / key)[0])
        problems = [f"was made from {lost[0]}, which is refused"] if lost else artifact.verify()
        if problems:
            bad.add(key)
            out.refused.append(f"{row.stage} {key}: {problems[0]}")
            continue
        mine = target.get(row.stage, artifact.key)
        if mine is None:
            _copy(artifact, target)
            out.added[row.stage] += 1
            made = artifact.manifest["fingerprint"]
            first = first or made
            if said := changes(first, made):
                out.prints[said] += 1
        elif mine.manifest["files"] == artifact.manifest["files"]:
            out.there += 1
        else:
            said = changes(mine.manifest["fingerprint"], artifact.manifest["fingerprint"]) or "the same machine's"
            out.others.append(f"{row.stage} {key}: other files under the same key ({said})")
    return out


def _copy(artifact: Artifact, target: Store) -> None:
    """Publishes a copy in one step, compared with its digests before."""
    short = f"{artifact.stage}-{artifact.key[:16]}"
    own = f"import-{os.getpid()}-{short}"  # what begins with `short` goes when the same key is published beside
    coming = target.root / ".partial" / own / artifact.stage / artifact.key[:16]
    final = target.root / artifact.stage / artifact.key[:16]
    with one_line(f"{short} is not taken into the store {target.root}"):
        try:
            copy_tree(artifact.path, coming)
            if problems := Artifact(coming, artifact.manifest).verify():
                raise SublimError(f"{short} changed while it was copied: {problems[0]}")
            for folder, _, files in os.walk(coming):
                for name in (*files, "."):
                    sync(Path(folder) / name)
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(coming, final)
            except OSError as error:  # somebody has just made it: the first to publish is kept
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            sync(final.parent)
        finally:
            shutil.rmtree(coming.parents[1], ignore_errors=True)
