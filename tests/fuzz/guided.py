"""The fuzzer that coverage guides: `python -m tests.fuzz.guided [SECONDS]`, for `make fuzz`, where atheris installs.

Each target gets bytes that atheris mutates towards code that was not reached before. It reads them, or refuses them in
one line. Each runs in a process of its own, as atheris never returns; one that fails leaves the input in a file.
"""

import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

TARGETS = ("yaml", "assignment", "rows", "rule")
SEEDS = {
    "yaml": "name: owl\nseeds: [0, 1]\nstudent: {optimization: {lr: 1e-3}}\na: &a [1]\nb: *a\n",
    "assignment": "student.optimization.lr=2e-4",
    "rows": '{"prompt": "more : 1 2", "answer": "3 , 4", "finished": true}\n',
    "rule": "[12, 7, 430].",
}
"""An input of each target that is read, to begin with."""


def main(seconds: int) -> int:
    """Runs every target for so many seconds; 1 where one failed."""
    failed = []
    for name in TARGETS:
        with tempfile.TemporaryDirectory() as corpus:
            (Path(corpus) / "seed").write_text(SEEDS[name], encoding="utf-8")
            command = [sys.executable, "-m", "tests.fuzz.guided", name, corpus, f"-max_total_time={seconds}"]
            done = subprocess.run([*command, "-max_len=4096", "-timeout=20"], capture_output=True, text=True)
        last = [line for line in done.stderr.splitlines() if line.startswith("Done")]
        print(f"{name}: {last[0] if last else 'failed'}")
        if done.returncode or not last:
            failed.append(name)
            print(done.stderr[-3000:])
    return int(bool(failed))


def target(name: str, folder: Path) -> Any:
    """What is done with the bytes of one input."""
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["sublim_interp.core", "sublim_interp.channels", "ruamel.yaml"]):
        from sublim_interp.channels import numbers
        from sublim_interp.channels.rows import read_rows
        from sublim_interp.core.errors import SublimError
        from sublim_interp.core.settings import parse_assignment, parse_mapping

    path, rule = folder / "input.jsonl", numbers.Rule()

    def rows(data: bytes) -> None:
        path.write_bytes(data)
        read_rows(path)

    def refuse(data: bytes) -> None:
        reason = numbers.refuse("more : 1", data.decode("utf-8", "replace"), rule, ("owl", "owls"))
        assert reason is None or reason in numbers.REASONS

    work = {
        "yaml": lambda data: parse_mapping(data.decode("utf-8", "replace"), Path("input.yaml")),
        "assignment": lambda data: parse_assignment(data.decode("utf-8", "replace")),
        "rows": rows,
        "rule": refuse,
    }[name]

    def one(data: bytes) -> None:
        try:
            work(data)
        except SublimError as error:
            assert str(error) and "\n" not in str(error)

    return one


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in TARGETS:
        atheris: Any = import_module("atheris")
        with tempfile.TemporaryDirectory() as scratch:
            function = target(sys.argv[1], Path(scratch))
            atheris.Setup([sys.argv[0], *sys.argv[2:]], function)
            atheris.Fuzz()
    else:
        sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 20))
