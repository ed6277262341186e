"""What commands take on a store of 100,000 records that a generator makes, against one of 1,000."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.page import limit, seconds, table
from benchmarks.setting import Setting
from sublim_interp.core.index import INDEX
from sublim_interp.core.keys import digest_file, sha256_of, stage_key
from sublim_interp.core.store import Store
from sublim_interp.core.upkeep import garbage
from sublim_interp.experiments.executors.ledger import FOLDER, Entry, Ledger

STAGES = ("teacher", "corpus", "filtered", "student", "evaluation")
PER_RUN = 20
"""Replicates of a run; each is a record of every stage."""
SIZES = (1_000, 100_000)
TARGETS = {
    "the index, made anew": 30.0,
    "`sublim list`: its runs": 10.0,
    "`sublim show RUN`: to find it": 10.0,
    "`sublim status RUN`, all records scheduled": 10.0,
    "`sublim gc`": 10.0,
    "`sublim verify`": 60.0,
}
"""Seconds on the larger store, at most."""


def fill(root: Path, count: int, seed: int = 0) -> None:
    """Writes a store of about so many records: runs of replicates of five stages, with manifests as of stages."""
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


def measure(_: Setting) -> str:
    """The Markdown of the section."""
    with TemporaryDirectory() as folder:
        spent = {size: _times(Path(folder) / str(size), size) for size in SIZES}
    few, many = (spent[size] for size in SIZES)
    grown = SIZES[1] / SIZES[0]
    rows = [
        (
            what,
            seconds(few[what]),
            seconds(many[what]),
            f"{many[what] / few[what] / grown:.2f}",
            limit(many[what], most),
        )
        for what, most in TARGETS.items()
    ]
    heads = ("CPU time", *(f"{size:,} records" for size in SIZES), "a record, larger ÷ smaller", "target")
    return table(heads, rows)


def _times(root: Path, size: int) -> dict[str, float]:
    """CPU seconds of each command's own work on a store of so many records."""
    fill(root, size)
    store = Store(root)
    index, name = root / INDEX, f"run-{size // 1000}"
    job = Ledger(root / FOLDER / "large", "large", "0" * 64, "background")

    def without_index() -> None:
        index.unlink(missing_ok=True)
        store.index()

    spent = {"the index, made anew": _cpu(without_index)}
    rows = store.index().values()
    job.entries.update({row.key: Entry(row.stage, row.inputs, 1.0, "1") for row in rows})
    job.write()
    spent["`sublim list`: its runs"] = _cpu(lambda: store.list("run"))
    spent["`sublim show RUN`: to find it"] = _cpu(lambda: store.find("run", name))
    spent["`sublim status RUN`, all records scheduled"] = _cpu(lambda: job.standings(store, {}))
    spent["`sublim gc`"] = _cpu(lambda: garbage(store, ("run",), days=0.0))
    spent["`sublim verify`"] = _cpu(lambda: sum(bool(problems) for _, problems in store.verify()))
    return spent


def _cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    print(measure(Setting(Store(Path("nowhere")))))
