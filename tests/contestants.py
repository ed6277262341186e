"""What contestants of the benchmarks' tests do; each is a process, which imports this file and no test. No tests."""

import time
from pathlib import Path

from benchmarks.timing import Turn


def works(name: str, units: int, log: Path, turn: Turn) -> None:
    """Writes its name and each unit's number."""
    for unit in range(units):
        with log.open("a") as file:
            file.write(f"{name}{unit} ")
        turn()


def fails(turn: Turn) -> None:
    """Ends its first unit, and fails in the second."""
    turn()
    raise ValueError("out of breath")


def sleeps(name: str, seconds: list[float], threads: int, log: Path, turn: Turn) -> None:
    """Takes so long for its units; writes its name after each."""
    import torch

    assert torch.get_num_threads() == threads
    for length in seconds:
        time.sleep(length)
        with log.open("a") as file:
            file.write(name)
        turn()
