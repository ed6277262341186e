"""Evidence: the tables of a published or stored run, sweep or study, as tests read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Artifact, Store
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.sweeps.published import key_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Evidence:
    """The tables of one run, sweep or study.

    name: of its experiment, grid or study
    key: its key
    directory: where its CSV files lie
    given: tables by name that stand in place of files
    """

    name: str
    key: str
    directory: Path
    given: "Mapping[str, pd.DataFrame]" = field(default_factory=dict)

    def has(self, file: str) -> bool:
        """Whether it has the table of a file, without ending."""
        return file in self.given or (self.directory / f"{file}.csv").exists()

    def table(self, file: str) -> "pd.DataFrame":
        """The table of a file, without ending; `value` is text. Raises SublimError where it is not there."""
        import pandas as pd

        if file in self.given:
            return self.given[file]
        path = self.directory / f"{file}.csv"
        if not self.has(file):
            there = ", ".join(sorted(path.stem for path in self.directory.glob("*.csv"))) or "none"
            raise SublimError(f"{self.name} has no table {file}; its tables: {there}")
        return pd.read_csv(path, dtype={"value": str})

    def distances(self) -> "pd.DataFrame":
        """How far the bases of each cell of a grid of pairs lie apart: value, distance.

        Raises SublimError for what is no such grid.
        """
        from sublim_interp.sweeps.grid import grid, grid_names
        from sublim_interp.sweeps.modes.pairs import Pairs

        mode = grid(self.name).mode if self.name in grid_names() else None
        if not isinstance(mode, Pairs):
            raise SublimError(f"{self.name} is no grid of pairs, so its bases have no distances")
        return mode.apart(self.directory)


def published_evidence(name: str, results: Path = RESULTS) -> Evidence | None:
    """The published tables of an experiment, grid or study, or None."""
    directory = results / name
    return Evidence(name, key_of(directory), directory) if (directory / "key.txt").exists() else None


def find_stored(asked: str, store: Store) -> Artifact:
    """A finished run, sweep or study of the store, by its name or the beginning of its key.

    Raises SublimError, with what there is, where none is meant, or several are.
    """
    found = {stage: store.matches(stage, asked) for stage in ("run", "sweep", "study")}
    many = [artifact for artifacts in found.values() for artifact in artifacts]
    if len(many) == 1:
        return many[0]
    there = many or [artifact for stage in found for artifact in store.list(stage)]
    said = ", ".join(f"{artifact.key[:16]} {artifact.name}" for artifact in there[-12:]) or "none"
    if many:
        raise SublimError(f"'{asked}' may mean any of these, give (more of) the key of one: {said}")
    raise SublimError(f"no run, sweep or study is called '{asked}' in {store.root}; there is: {said}")


def stored_evidence(asked: str, store: Store) -> Evidence:
    """The tables of what `find_stored` finds. Raises SublimError as that does."""
    artifact = find_stored(asked, store)
    given: dict[str, Any] = {}
    if artifact.stage == "run":
        from sublim_interp.experiments.results import open_run

        replicates = open_run(artifact.key, store).tables.replicates
        given = {"replicates": replicates.loc[replicates["stage"] == "equal steps"]}
    return Evidence(artifact.name, artifact.key, artifact.path, given)
