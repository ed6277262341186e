"""A real SLURM of two nodes on this machine, for `make slurm` alone: `make test` does not look here."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from two_nodes import Cluster

collect_ignore_glob = [] if "SUBLIM_SLURM" in os.environ else ["test_*.py"]
HERE = Path(__file__).parent
CANNOT = 77
"""Exit code of start.sh where it cannot start, such as without root."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """SLURM, started; the tests are skipped where it cannot start."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its daemons end with the tests, however these end
    folder = tmp_path_factory.mktemp("slurm")
    for part in (folder, *folder.parents[:2]):
        part.chmod(0o755)  # munged works as a user of its own
    started = subprocess.run([HERE / "start.sh", folder], capture_output=True, text=True)
    try:
        if started.returncode == CANNOT:
            pytest.skip(started.stderr.strip().splitlines()[-1])
        assert started.returncode == 0, started.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield Cluster(folder)
    finally:
        subprocess.run([HERE / "stop.sh", folder], check=True)
