"""The protocol of executors, and the registry of them: what `sublim run X --on NAME` may name."""

from abc import ABC, abstractmethod
from typing import ClassVar

from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry
from sublim_interp.core.store import Store
from sublim_interp.core.workers import Watch
from sublim_interp.experiments.executors.pieces import Work
from sublim_interp.experiments.executors.site import Site


class Executor(ABC):
    """Where pieces of work are done. One of your own derives from this; an entry point names its class.

    site: what the machines are
    processes: how many pieces at once, where this command does the work itself
    """

    detached: ClassVar[bool]
    """Whether `start` comes back while others do the work. Then what ends a run is one of the pieces."""

    def __init__(self, site: Site, processes: int = 2) -> None:
        self.site, self.processes = site, processes

    @abstractmethod
    def start(
        self, work: Work, store: Store, watch: Watch, skip: tuple[type[Exception], ...] = ()
    ) -> dict[str, Exception]:
        """Does the work, or has it begun.

        watch: told the name of each piece and the share of it that is done, where the work is done before it returns
        skip: errors that stop no other piece; any other error is raised, and ends all

        Returns the errors that were skipped, by the key of the piece that could not be made.
        """


def _is_executor(name: str, kind: type[Executor]) -> None:
    if not (isinstance(kind, type) and issubclass(kind, Executor)):
        raise SublimError(f"executor '{name}' is no class that derives from {Executor.__module__}.Executor")


_HERE = "sublim_interp.experiments.executors"
EXECUTORS: Registry[type[Executor]] = Registry(
    "executor",
    "sublim_interp.executors",
    {"local": f"{_HERE}.local:Local", "slurm": f"{_HERE}.jobs:Slurm", "background": f"{_HERE}.jobs:Background"},
    _is_executor,
)
"""Every executor by the name that `--on` takes."""
