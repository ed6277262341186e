"""`python -m benchmarks [NAME …]`: runs all benchmarks, or some, and writes their sections of docs/benchmarks.md."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Before numpy or torch loads, and inherited by every process: one thread for each contestant.
os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks import (
    command,
    cost,
    experiment,
    large_store,
    memory,
    mnist,
    page,
    recording,
    replicas,
    shapes,
    smollm2,
    step,
)
from benchmarks.setting import Setting
from sublim_interp.core.store import Store


def patching(_: Setting) -> str:
    """The table that the benchmark of activation patching prints."""
    run = [sys.executable, "-m", "benchmarks.patching"]
    done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode:  # else what libraries say beside it is of no interest
        sys.exit(f"benchmarks.patching failed\n{done.stderr}")
    return done.stdout


BENCHMARKS = {
    "command": command.measure,
    "memory": memory.measure,
    "store": large_store.measure,
    "step": step.measure,
    "recording": recording.measure,
    "experiment": experiment.measure,
    "replicas": replicas.measure,
    "mnist": mnist.measure,
    "shapes": shapes.measure,
    "cost": cost.measure,
    "patching": patching,
    "smollm2": smollm2.measure,
}


def main() -> None:
    """Runs what is asked for, in a store of its own that is thrown away."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)}; none: all")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as directory:
        setting = Setting(Store(Path(directory)))
        for name in names:
            start, before = time.perf_counter(), page.conditions()
            text = f"{BENCHMARKS[name](setting)}\n\n{page.machine()}. {before}"
            print(f"\n{name}: {time.perf_counter() - start:.0f} s\n\n{text}", flush=True)
            written = page.replace_section(page.PAGE.read_text(encoding="utf-8"), name, text)
            page.PAGE.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
