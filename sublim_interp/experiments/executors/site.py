"""What a cluster asks of its jobs, as one YAML file: partition, account, modules, limits."""

import os
from typing import Literal

from pydantic import Field

from sublim_interp.core.settings import Config
from sublim_interp.core.shelf import Shelf

CHOICE = "SUBLIM_SITE"
"""The environment variable that names the site where `--site` does not."""


class Site(Config):
    """One cluster as its users know it. Nothing of it enters a key: where a record was made does not change what it is.

    Fields that are empty are not asked for, so that the cluster's own defaults hold.
    """

    name: str = ""
    """Its name."""
    about: str = ""
    """What it is, in one sentence."""
    partition: str = ""
    """SLURM's partition, as `sinfo` names it."""
    account: str = ""
    """SLURM's account, as `sacctmgr show associations` names it."""
    qos: str = ""
    """SLURM's quality of service."""
    modules: tuple[str, ...] = ()
    """Loaded by `module load` before a job works."""
    lines: tuple[str, ...] = ()
    """Shell lines before a job works, such as `export HF_HOME=/scratch/hf`."""
    python: str = ""
    """The Python of the jobs; empty: the one that runs this command, which must lie where every node sees it."""
    sbatch: dict[str, str | int] = Field(default_factory=dict)
    """Further options of sbatch by their long names, such as `constraint: avx512`."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where models are put. Each job asks for one GPU where it is cuda."""
    cores: int = Field(default=1, ge=1, le=64)
    """Cores of a job: as many pieces of its work are done at once, each by one thread."""
    memory: float = Field(default=0.0, ge=0)
    """GiB of a job. 0: as the cost model expects."""
    hours: float = Field(default=24.0, gt=0)
    """The longest time that a job may ask for. A longer training is cut, requeued, and goes on from where it was."""
    pack: float = Field(default=1.0, ge=0)
    """Hours of work that one job takes together, so that many small pieces are few jobs. 0: a job for each piece."""
    slack: float = Field(default=3.0, ge=1)
    """How many times the expected duration a job asks for."""
    warning: int = Field(default=120, ge=5, le=86_400)
    """Seconds before the end of its time at which a job is warned, and has itself requeued."""
    restarts: int = Field(default=50, ge=0, le=1_000_000)
    """How often a job that ran out of time goes on."""
    at_once: int = Field(default=100, ge=1, le=1_000_000)
    """Jobs of one array that may run at the same time."""
    array: int = Field(default=1000, ge=1, le=1_000_000)
    """Jobs of one array at most; `scontrol show config` has it as MaxArraySize."""
    locks: bool = True
    """Whether file locks of the store reach all nodes. false: jobs work in folders of their own, first writer wins."""


SITES = Shelf("site", "sites", Site)
"""Every site by name."""


def site_of(name: str | None) -> Site:
    """The site called `name`, or in a YAML file; without a name that of `$SUBLIM_SITE`, else a plain one.

    Raises SublimError for a name that is none, and for what the file may not hold.
    """
    return SITES.load(name or os.environ.get(CHOICE) or "plain")
