"""Fetches an open model: a wheel of the package index by pip, or the hub's files; checked, converted, whole or not."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import locked, one_line, sync
from sublim_interp.core.keys import digest_file
from sublim_interp.models.base import CARD, Base, adapter_folder, resolve_base
from sublim_interp.models.open_bases import (
    Found,
    Wheel,
    bases_folder,
    find_open_base,
    open_names,
    prepared_from,
)
from sublim_interp.models.prepared import apply_adapter

_PLACE = ("folder", "$SUBLIM_BASES", "")
_SPACE = 4
"""Bytes a parameter of a base that is converted: its weights are float32."""


def pull(name: str, tell: Callable[[str], object] = lambda line: None) -> Base:
    """Fetches the open model `name` to where `resolve_base` finds it; one that is there already is checked.

    name: of the catalogue, or a YAML file of one's own that describes a model
    tell: is given a line about what is being done

    Raises SublimError for an unknown name; where the package index or the hub does not give it; for a file of another
    digest; and where the disk is full or cannot be written. Nothing half-made is left.
    """
    found = find_open_base(name)
    if found is None:
        known = open_names()
        raise SublimError(f"no open model is called '{name}'; {meant(name, known, 'sublim pull')}")
    if found.about.prepared:
        return _prepared(found, pull(found.about.prepared.of, tell), tell)
    if found.about.wheel is None:
        tell(f"asking the hub for {found.hub}, revision {found.revision}")
        return resolve_base(f"{found.hub}@{found.revision}")
    wheel = found.about.wheel
    final = _placed(found, lambda scratch: _made(found, wheel, scratch, tell))
    base = _checked(final, wheel.base)
    for other in prepared_from(found.name):
        _prepared(other, base, tell)
    return base


def _placed(found: Found, make: Callable[[Path], Path]) -> Path:
    """The folder of a base, made where it is not there: by one process, all or nothing.

    make: makes it in a scratch folder, and gives its place there
    """
    folder = bases_folder()
    with one_line(f"{found.name} is not pulled to {folder}", place=_PLACE):
        final = folder / found.name
        with locked(folder / ".locks" / f"{found.name}.lock", found.name):
            for left in folder.glob(f".{found.name}~*"):  # by a process that was killed
                shutil.rmtree(left)
            if not final.is_dir():
                _check_space(folder, found)
                with tempfile.TemporaryDirectory(prefix=f".{found.name}~", dir=folder) as scratch:
                    make(Path(scratch)).rename(final)
                sync(folder)
    return final


def _prepared(found: Found, of: Base, tell: Callable[[str], object]) -> Base:
    """The prepared base, made of its open model where it is not there; its digest is checked."""
    assert found.about.prepared
    digest = found.about.prepared.base

    def make(scratch: Path) -> Path:
        tell(f"making {found.name} of {of.name}")
        apply_adapter(of, adapter_folder(found.name), scratch / "base")
        _checked(scratch / "base", digest)
        sync(scratch / "base")
        return scratch / "base"

    return _checked(_placed(found, make), digest)


def _check_space(folder: Path, found: Found) -> None:
    """Raises SublimError where the disk holds less than is needed for wheel, GGUF and base."""
    wheel = found.about.wheel
    needed = _SPACE * found.about.parameters + (2e6 * wheel.megabytes if wheel else 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SublimError(
            f"{found.name} needs {needed / 1e6:,.0f} MB in {folder}, {free / 1e6:,.0f} MB are free; "
            f"free some, or name a {_PLACE[0]} on another disk with {_PLACE[1]}"
        )


def _made(found: Found, wheel: Wheel, scratch: Path, tell: Callable[[str], object]) -> Path:
    """The finished base in a directory of `scratch`."""
    from sublim_interp.models.from_gguf import convert

    tell(f"downloading {wheel.package} {wheel.version}, {wheel.megabytes:g} MB, by pip")
    archive = _downloaded(wheel, scratch)
    tell(f"reading {wheel.file}")
    gguf = _unpacked(archive, wheel, scratch)
    archive.unlink()
    made = scratch / "base"
    made.mkdir()
    tell("dequantising it to float32")
    kinds = convert(gguf, made)
    _write_card(made, found, wheel, kinds)
    _checked(made, wheel.base)
    sync(made)
    return made


def _downloaded(wheel: Wheel, scratch: Path) -> Path:
    """The wheel, downloaded by pip as the user has set it up, its digest checked. Nothing of it is run."""
    wanted = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", wanted, "--no-deps", "--only-binary=:all:"]
    options = ["--dest", str(scratch), "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    asked = subprocess.run([*command, *options], capture_output=True, text=True, errors="replace")
    archives = list(scratch.glob("*.whl"))
    if asked.returncode or len(archives) != 1:
        lines = [line.strip() for line in asked.stderr.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("ERROR:")] or lines or ["no word of why"]
        raise SublimError(
            f"pip did not download {wanted} ({said[0].removeprefix('ERROR:').strip()}); is the package index in reach? "
            "`pip config list` shows which one is asked; PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER takes it from a folder"
        )
    _check_digest(archives[0].name, digest_file(archives[0]), wheel.sha256)
    return archives[0]


def _unpacked(archive: Path, wheel: Wheel, scratch: Path) -> Path:
    """The GGUF file of a wheel, its digest checked."""
    gguf = scratch / "model.gguf"
    taken = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as held, held.open(wheel.file) as source, gguf.open("wb") as target:
            while piece := source.read(1 << 20):
                taken.update(piece)
                target.write(piece)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise SublimError(f"{archive.name}: {wheel.file} cannot be taken out of it ({error})") from None
    _check_digest(wheel.file, taken.hexdigest(), wheel.gguf_sha256)
    return gguf


def _check_digest(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise SublimError(
            f"{what} has the SHA-256 {found}, not {wanted}: it is another file than the catalogue tells of, or was "
            "altered on its way; nothing of it is kept"
        )


def _checked(directory: Path, digest: str) -> Base:
    """The base in a directory, whose content must be what the catalogue says, if it says so."""
    base = resolve_base(str(directory))
    if digest and base.digest != digest:
        raise SublimError(
            f"base {directory} has the digest {base.digest}, not {digest}: its files are damaged, or made by a "
            "version of the package gguf that reads them differently; delete that directory and pull again"
        )
    return base


def _write_card(directory: Path, found: Found, wheel: Wheel, kinds: dict[str, int]) -> None:
    """Where the base comes from, for readers and for programs; no part of its digest."""
    entry = found.about
    source = {**wheel.model_dump(), "hub": found.hub, "licence": entry.licence, "tensors": kinds}
    card = {"language": "english", "parameters": entry.parameters, "source": source}
    (directory / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    tensors = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    (directory / "README.md").write_text(
        f"""---
license: {entry.licence.lower()}
base_model: {found.hub}
---
# {found.name}
{entry.about}

| | |
|---|---|
| model | [{found.hub}](https://huggingface.co/{found.hub}) |
| licence | {entry.licence} |
| taken from | the package {wheel.package} {wheel.version}, SHA-256 {wheel.sha256} |
| in it | {wheel.file}, SHA-256 {wheel.gguf_sha256} |
| quantisation | tensors: {tensors}; dequantised here to float32, so not the published weights |
| made by | `sublim pull {found.name}` |
""",
        encoding="utf-8",
    )
