"""A real SLURM of two nodes on this machine: what may befall its nodes. No test lives here."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PATIENCE = 1800


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.5)


class Cluster:
    """The two nodes, and what may befall them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def say(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def kill_node(self, node: str) -> None:
        """Kills all of a node's processes at once: its daemon, the jobs that run on it, and who watches over these.

        Each stands still before any dies, the watchers first: else one would report that its job has ended.
        """
        daemon = int((self.folder / f"slurmd-{node}.pid").read_text())
        mine = [p for p in psutil.process_iter() if _node_of(p) == node]
        watchers = [p for one in mine for p in one.parents() if p.name().startswith("slurmstepd")]
        pids = list(dict.fromkeys([*(p.pid for p in watchers), daemon, *(p.pid for p in mine)]))
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue

    def revive(self, node: str) -> None:
        """Starts a node again that was killed."""
        self.say("slurmd", "-N", node)
        wait_for(lambda: self.state(node) in ("idle", "mixed", "allocated"), f"{node} to come back")

    def state(self, node: str) -> str:
        """What SLURM thinks of a node."""
        return self.say("sinfo", "--noheader", "--nodes", node, "--partition=low", "--format=%T").strip()


def _node_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("SLURMD_NODENAME", "")
    except psutil.Error:
        return ""
