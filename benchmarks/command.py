"""What it takes until something is there: `sublim --help`, the import, the first run that is opened."""

import os
import resource
import subprocess
import sys
import time
from statistics import median

from benchmarks.page import limit, seconds, table
from benchmarks.setting import Setting
from benchmarks.timing import Spent
from sublim_interp.core.store import Store
from sublim_interp.report.run import run

TIMES = 5
OPEN = """
import os, sys, time, sublim_interp as si
wall, cpu = time.perf_counter(), sum(os.times()[:4])
si.open_run("smoke", si.Store.open(sys.argv[1]))
print(time.perf_counter() - wall, sum(os.times()[:4]) - cpu)
"""
"""A process that opens its first run, and prints what that took: wall and CPU time, in seconds."""


def measure(setting: Setting) -> str:
    """The Markdown of the section."""
    root = setting.store.root / "opened"
    run("smoke", Store(root), processes=1, trace="none")
    commands = {
        "`sublim --help`": (["-m", "sublim_interp", "--help"], 0.5),
        "`import sublim_interp`": (["-c", "import sublim_interp"], 0.3),
        "the first `open_run` of a process": (["-c", OPEN, str(root)], 3.0),
        "`python -c pass`": (["-c", "pass"], None),
    }
    spent: dict[str, list[Spent]] = {what: [] for what in commands}
    for _round in range(1 + TIMES):
        for what, (command, _most) in commands.items():
            spent[what].append(spend([sys.executable, *command]))
    rows = []
    for what, (_warm, *counted) in spent.items():
        wall, cpu, most = median(s.wall for s in counted), median(s.cpu for s in counted), commands[what][1]
        rows.append((what, seconds(cpu), seconds(wall), "" if most is None else limit(cpu, most)))
    return table((f"median of {TIMES}", "CPU time", "wall", "target"), rows)


def spend(command: list[str]) -> Spent:
    """What one run of a command takes, from start to exit, or what the command says that its work took."""
    before, start = _of_children(), time.perf_counter()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    if OPEN in command:
        return Spent(*map(float, done.stdout.split()))
    return Spent(time.perf_counter() - start, _of_children() - before)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
