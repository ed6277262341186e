"""The `sublim` command in processes of its own. No test lives here."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess

SHELL = (sys.executable, "-m", "sublim_interp")
"""The command's first words, as a shell has them."""

_server = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Starts the process that commands are forks of, so that a run does not start it, whose workers are its forks too.

    It would then have imported less than commands need, and each would import it anew.
    """
    _server.set_forkserver_preload(
        ["matplotlib.pyplot", "pandas", "pydantic", "rich.progress", "torch._dynamo", "transformers.modeling_utils",
         "transformers.models.llama.modeling_llama", "sublim_interp.cli.main", "sublim_interp.experiments.results",
         "sublim_interp.report.run", "sublim_interp.sweeps.run"]
    )  # fmt: skip
    forkserver.ensure_running()


def from_shell(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """Runs the command as a shell does, in a new interpreter."""
    command = [*SHELL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=570)


class Started:
    """The command in a fork of a process that has imported the package and PyTorch, which takes seconds.

    The fork has a session of its own, whose number is `pid`.
    """

    def __init__(self, *arguments: object, cwd: Path | None = None) -> None:
        self.words = [str(argument) for argument in arguments]
        self.folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self.folder.name, name) for name in ("out", "err")]
        environment = {**os.environ, "XDG_CACHE_HOME": self.folder.name}
        given = (self.words, self._streams, cwd or Path.cwd(), environment)
        self._child = _server.Process(target=_run, args=given)
        self._child.start()
        self.pid = self._child.pid or 0

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._child.exitcode

    def error(self) -> str:
        """What it has written to standard error so far."""
        return self._streams[1].read_text(encoding="utf-8") if self._streams[1].exists() else ""

    def wait(self) -> CompletedProcess[str]:
        """What it said, once it has ended."""
        self._child.join(570)
        if self._child.exitcode is None:
            self._child.terminate()
            raise TimeoutError(f"sublim {self.words}")
        out, err = (s.read_text(encoding="utf-8") if s.exists() else "" for s in self._streams)
        return CompletedProcess(self.words, self._child.exitcode, out, err)


def sublim(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """What a command says that is `Started` and ends.

    An error that was cut stands in `stderr` whole, as `sublim show error` gives it.
    """
    started = Started(*arguments, cwd=cwd)
    with started.folder as folder:
        done = started.wait()
        *before, last = done.stderr.splitlines() or [""]
        if last.startswith("sublim: ") and last.endswith("sublim show error)"):
            assert len(last) <= 200, last
            whole = Path(folder, "sublim", "error.txt").read_text(encoding="utf-8")
            done.stderr = "\n".join([*before, whole])
    return done


def _run(words: list[str], streams: list[Path], cwd: Path, environment: dict[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that are a shell's background job ignore it
    os.environ.clear()  # the server keeps the variables of the moment when it was started
    os.environ.update(environment)
    for descriptor, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(cwd)
    sys.argv = ["sublim", *words]
    from sublim_interp.cli.main import main
    from sublim_interp.core import workers

    workers._METHOD = "fork"  # all that workers import is here; another fork server would import it again
    os.fork = _fork
    main()


def _fork(fork: Callable[[], int] = os.fork) -> int:
    """A fork that an interrupt waits for: in what Python does before and after one, it would be ignored.

    The worker that it makes hears none: an interrupt is for the whole group, and would end it in its parent's code.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pid = fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that waits is dropped
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
