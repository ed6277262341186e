"""Name → YAML: settings files by name, from this package's catalogue, from installed packages, or at a path."""

import os
from functools import cache, lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import giver
from sublim_interp.core.settings import Config, parse_mapping, read_mapping, read_text, validate

C = TypeVar("C", bound=Config)

CATALOGUE = Path(__file__).resolve().parent.parent / "catalogue"
GROUP = "sublim_interp.catalogue"
"""Entry points of this group name packages, whose folders experiments/, traits/, … are searched after our own."""


@cache
def catalogues() -> dict[Path, str]:
    """The folders that hold catalogues, each with its package: our own first, then installed packages by their names.

    Raises SublimError, with the package, for an entry point that names no package.
    """
    found = {CATALOGUE: "sublim-interp"}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        try:
            spec = find_spec(point.value)
        except ImportError:  # of the package that should hold it
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise SublimError(f"catalogue '{point.name}' of {giver(point)}: there is no package {point.value}")
        found |= {Path(folder): giver(point) for folder in spec.submodule_search_locations}
    return found


class Shelf(Generic[C]):
    """Settings files of one sort: `TRAITS.load("owl")`, or `TRAITS.load("my/koala.yaml")`.

    what: the sort in words, for errors: "trait"
    folder: its folder within each catalogue: "traits"
    kind: the settings that a file holds; its `name`, where it has one, is the file's
    marked_by: a field that a file of this sort alone has
    """

    def __init__(self, what: str, folder: str, kind: type[C], marked_by: str = "") -> None:
        self.what, self.folder, self.kind, self.marked_by = what, folder, kind, marked_by

    @property
    def paths(self) -> dict[str, Path]:
        """Every file by name; our own catalogue's counts before any other."""
        found: dict[str, Path] = {}
        for folder in (os.path.join(root, self.folder) for root in catalogues()):
            try:
                names = sorted(name for name in os.listdir(folder) if name.endswith(".yaml"))
            except (FileNotFoundError, NotADirectoryError):
                continue  # a catalogue need not have every folder
            for name in names:
                found.setdefault(name.removesuffix(".yaml"), Path(folder, name))
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._called(name))

    def _called(self, name: str) -> list[str]:
        """The files of this name, in the order of `catalogues`."""
        if os.path.basename(name) != name:
            return []
        paths = (os.path.join(root, self.folder, f"{name}.yaml") for root in catalogues())
        return [path for path in paths if os.path.exists(path)]

    def ours(self, name: str) -> bool:
        """Whether the file called `name` is one of this package's own catalogue, the first that is searched."""
        called = self._called(name)
        return bool(called) and Path(called[0]).parent.parent == next(iter(catalogues()))

    def means(self, name: str) -> bool:
        """Whether `name` is that of a file here, or of a YAML file of one's own that has the field of this sort."""
        return self.marked_by in read_mapping(Path(name)) if is_path(name) else name in self

    def names(self) -> tuple[str, ...]:
        """Names of all files, sorted."""
        return tuple(sorted(self.paths))

    def find(self, name: str) -> Path:
        """The file called `name`, or at the path `name`.

        Raises SublimError, with the known names, where none is; with both packages, where two others give this name.
        """
        if is_path(name):
            if not os.path.exists(name):
                raise SublimError(f"{self.what} '{name}': there is no such file in {Path.cwd()}")
            return Path(name)
        called = self._called(name)
        if not called:
            known = meant(name, self.names(), "sublim list", "known")
            raise SublimError(f"unknown {self.what} '{name}'; {known}; or give a YAML file of your own")
        first, *others = map(Path, called)
        if others and first.parent.parent != CATALOGUE:
            given = " and ".join(catalogues()[path.parent.parent] for path in (first, *others))
            raise SublimError(f"{self.what} '{name}' is given by {given}; rename one, or give a YAML file by its path")
        return first

    def load(self, name: str) -> C:
        """The settings of the file called `name`, as it is now.

        Raises SublimError as `find`, and for what the file may not hold.
        """
        path = self.find(name)
        return _parsed(self.kind, path, read_text(path))


@lru_cache(maxsize=256)
def _parsed(kind: type[C], path: Path, text: str) -> C:
    """The settings that a text holds: one and the same for equal texts, since settings are frozen."""
    given = {"name": path.stem} if "name" in kind.model_fields else {}
    return validate(kind, {**given, **parse_mapping(text, path)}, str(path))


def mapping_of(path: Path) -> dict[str, Any]:
    """What a YAML file holds; names of YAML and JSONL files in it that lie beside it are made paths to there."""
    return {name: _beside(value, path.parent, 4) for name, value in parse_mapping(read_text(path), path).items()}


def _beside(value: Any, folder: Path, depth: int) -> Any:
    """A value of a file in a folder, down to so many levels."""
    if depth and isinstance(value, dict):
        return {name: _beside(inner, folder, depth - 1) for name, inner in value.items()}
    if depth and isinstance(value, list):
        return [_beside(inner, folder, depth - 1) for inner in value]
    named = isinstance(value, str) and (is_path(value) or value.endswith(".jsonl"))
    near = named and os.path.isfile(folder / value)
    return str(folder / value) if near else value


def is_path(name: str) -> bool:
    """Whether a name is that of a YAML file of one's own rather than one of a catalogue."""
    return name.endswith((".yaml", ".yml"))
