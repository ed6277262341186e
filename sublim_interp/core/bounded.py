"""Runs a function in a fork of this process, so that code from a file takes a stated time and memory at most."""

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

SECONDS = 10
"""Seconds of computing that code from a file may take."""
BYTES = 2 << 30
"""Bytes that it may take beside what the process has."""

_PATIENCE = 30
"""Times SECONDS that are waited by the clock: the machine may be busy, and a fork may hang without computing."""


def bounded(work: Callable[[], str]) -> str:
    """What `work` returns, computed in a fork of this process within SECONDS and BYTES.

    Where the system cannot fork, `work` runs here and unbounded. Raises TimeoutError for what takes longer, MemoryError
    for what takes more, ChildProcessError for a crash, and RuntimeError for any exception of `work`, with its words.
    """
    if not hasattr(os, "fork"):
        return work()
    inlet, outlet = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the fork computes and ends
        child = os.fork()
    if child == 0:
        os.close(inlet)
        _answer(work, outlet)
    os.close(outlet)
    with os.fdopen(inlet) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM):
        raise TimeoutError(f"it takes more than {SECONDS} seconds")
    if not told:
        raise ChildProcessError("it ends the process that runs it")
    word, text = json.loads(told)
    if word == "done":
        return text
    raise {"memory": MemoryError, "crash": ChildProcessError}.get(word, RuntimeError)(text)


def _answer(work: Callable[[], str], outlet: int) -> None:
    """The fork's life: limits, the work, its answer as JSON, and the end."""
    import resource

    told: list[str] = []
    try:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else the library warns of the fork
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what is to be said comes back through the pipe
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS * _PATIENCE)
        resource.setrlimit(resource.RLIMIT_CPU, (_spent() + SECONDS, resource.RLIM_INFINITY))
        if (have := Path("/proc/self/statm")).exists():
            size = int(have.read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, resource.RLIM_INFINITY))
        told = ["done", work()]
    except MemoryError:
        told = ["memory", f"it takes more than {BYTES >> 30} GiB of memory"]
    except BaseException as error:  # it must not go on as a second copy of the caller; Rust's panics are no Exception
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        told = ["raised" if isinstance(error, Exception) else "crash", reason]
    finally:
        try:
            with os.fdopen(outlet, "w") as pipe:
                pipe.write(json.dumps(told) if told else "")
        finally:
            os._exit(0)


def _spent() -> int:
    """Seconds that this process has computed so far, rounded up; a fork begins at 0."""
    used = os.times()
    return int(used.user + used.system) + 1
