"""What the commands take on a store of 100,000 records, against one of 1,000: with its index, without it, and rebuilt."""

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.page import seconds, table
from sublim_interp.core.keys import digest_file, sha256_of, stage_key
from sublim_interp.core.store import Store

STAGES = ("teacher", "corpus", "filtered", "student", "evaluation")
PER_RUN = 20
"""Replicates of a run; each is a record of every stage."""
SIZES = (1_000, 100_000)


def fill(root: Path, count: int, seed: int = 0) -> None:
    """Writes a store of so many records: runs of replicates, of five stages each, with manifests as stages leave them."""
    rng = random.Random(seed)
    runs = max(1, round(count / (len(STAGES) * PER_RUN + 1)))
    for number in range(runs):
        inputs = {f"same-init/{i}/0": _replicate(root, number, i, rng) for i in range(PER_RUN)}
        experiment = {"trait": "owl", "bases": ["lab-small-0", "lab-small-1"], "seeds": list(range(PER_RUN))}
        _publish(root, "run", {"number": number}, inputs, {"name": f"run-{number}", "experiment": experiment})


def _replicate(root: Path, number: int, seed: int, rng: random.Random) -> str:
    key = "b" * 64
    for stage in STAGES:
        config = {"seed": seed, "number": number, "optimization": {"lr": rng.random(), "steps": 300, "batch": 128}}
        key = _publish(root, stage, config, {"input": key}, {"lists": 10_000})
    return key


def _publish(root: Path, stage: str, config: dict, inputs: dict[str, str], notes: dict) -> str:
    key = stage_key(stage, 1, config, inputs)
    path = root / stage / key[:16]
    path.mkdir(parents=True)
    (path / "weights.bin").write_bytes(key.encode())
    manifest = {
        "stage": stage,
        "key": key,
        "version": 1,
        "config": config,
        "inputs": inputs,
        "fingerprint": {"torch": "2.13.0", "device": "cpu", "threads": 1},
        "code": "0",
        "packages": {"python": "3.11"},
        "notes": notes,
        "resumed": False,
        "seconds": 1.0,
        "created": "2026-01-01T00:00:00+00:00",
        "files": {"weights.bin": {"bytes": 64, "sha256": digest_file(path / "weights.bin")}},
    }
    text = json.dumps({**manifest, "digest": sha256_of(manifest)}, sort_keys=True, indent=1) + "\n"
    (path / "manifest.json").write_text(text)
    return key


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]))
