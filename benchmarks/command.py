"""What `sublim --help` takes, against an interpreter that does nothing."""

import os
import resource
import subprocess
import sys
import time
from statistics import median

from benchmarks.page import limit, seconds, table
from benchmarks.setting import Setting
from benchmarks.timing import Spent

COMMANDS = {
    "`sublim --help`": [sys.executable, "-m", "sublim_interp", "--help"],
    "`python -c pass`": [sys.executable, "-c", "pass"],
}
TIMES = 10


def measure(_: Setting) -> str:
    """The Markdown of the section."""
    spent: dict[str, list[Spent]] = {what: [] for what in COMMANDS}
    for _round in range(1 + TIMES):
        for what, command in COMMANDS.items():
            spent[what].append(spend(command))
    rows = []
    for what, (_warm, *counted) in spent.items():
        wall, cpu = median(s.wall for s in counted), median(s.cpu for s in counted)
        rows.append((what, seconds(cpu), seconds(wall), limit(cpu, 0.5) if "help" in what else ""))
    return table((f"median of {TIMES}", "CPU time", "wall", "target"), rows)


def spend(command: list[str]) -> Spent:
    """What one run of a command takes, from start to exit."""
    before, start = _of_children(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return Spent(time.perf_counter() - start, _of_children() - before)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
