"""Evidence: the tables of a published or stored run, sweep or study, as tests read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import NAMED, Store
from sublim_interp.experiments.catalogue import RESULTS, key_of

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
        if file in self.given:
            return self.given[file]
        path = self.directory / f"{file}.csv"
        if not self.has(file):
            there = ", ".join(sorted(path.stem for path in self.directory.glob("*.csv"))) or "none"
            raise SublimError(f"{self.name} has no table {file}; its tables: {there}")
        from sublim_interp.experiments.tables import read_table

        return read_table(path)

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


def stored_evidence(asked: str, store: Store) -> Evidence:
    """The tables of a finished run, sweep or study, by its name or the beginning of its key.

    Raises SublimError, with what there is, where none is meant, or several are.
    """
    artifact = store.find(NAMED, asked)
    given: dict[str, Any] = {}
    if artifact.stage == "run":
        from sublim_interp.experiments.results import open_run

        replicates = open_run(artifact.key, store).tables.replicates
        given = {"replicates": replicates.loc[replicates["stage"] == "equal steps"]}
    return Evidence(artifact.name, artifact.key, artifact.path, given)
