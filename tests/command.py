"""The `sublim` command in processes of its own. No test lives here."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

SHELL = (sys.executable, "-m", "sublim_interp")
"""The command's first words, as a shell has them."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["matplotlib.pyplot", "pandas", "pydantic", "rich.progress", "torch._dynamo", "transformers.modeling_utils",
     "transformers.models.llama.modeling_llama", "sublim_interp.cli.main", "sublim_interp.experiments.results",
     "sublim_interp.report.run", "sublim_interp.sweeps.run"]
)  # fmt: skip


def from_shell(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """Runs the command as a shell does, in a new interpreter."""
    command = [*SHELL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=570)


def sublim(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """Runs the command in a fork of a process that has imported the package and PyTorch, which takes seconds.

    An error that was cut stands in `stderr` whole, as `sublim show error` gives it.
    """
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("out", "err")]
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        child = _server.Process(target=_run, args=(words, streams, cwd or Path.cwd(), environment))
        child.start()
        child.join(570)
        if child.exitcode is None:
            child.terminate()
            raise TimeoutError(f"sublim {words}")
        out, err = (stream.read_text(encoding="utf-8") for stream in streams)
        *before, last = err.splitlines() or [""]
        if last.startswith("sublim: ") and last.endswith("sublim show error)"):
            assert len(last) <= 200, last
            err = "\n".join([*before, Path(folder, "sublim", "error.txt").read_text(encoding="utf-8")])
    return CompletedProcess(words, child.exitcode, out, err)


def _run(words: list[str], streams: list[Path], cwd: Path, environment: dict[str, str]) -> None:
    os.environ.clear()  # the server keeps the variables of the moment when it was started
    os.environ.update(environment)
    for descriptor, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(cwd)
    sys.argv = ["sublim", *words]
    from sublim_interp.cli.main import main

    main()
