"""Runs a function in a fork of this process, so that what a file brings takes a stated time and memory at most."""

import json
import os
import signal
import warnings
from collections.abc import Callable, Generator, Iterator
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
    raise _failure(word, text)


def bounded_lines(work: Callable[[], Iterator[str]], most: int = BYTES) -> Generator[str, None, None]:
    """The texts that `work` yields, one by one, computed in a fork of this process that takes `most` bytes beside what
    the process has. Its time has no limit.

    Where the system cannot fork, `work` runs here and unbounded. Raises MemoryError for what takes more,
    ChildProcessError for a crash, and RuntimeError for any exception of `work`, with its words.
    """
    if not hasattr(os, "fork"):
        yield from work()
        return
    inlet, outlet = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as in `bounded`
        child = os.fork()
    if child == 0:
        os.close(inlet)
        _tell(work, outlet, most)
    os.close(outlet)
    try:
        with os.fdopen(inlet) as pipe:
            for line in pipe:
                word, text = json.loads(line)
                if word == "done":
                    return
                if word != "line":
                    raise _failure(word, text)
                yield text
    finally:  # a fork that is left before its end meets a closed pipe, and ends
        os.waitpid(child, 0)
    raise ChildProcessError("it ends the process that runs it")


def _failure(word: str, text: str) -> Exception:
    return {"memory": MemoryError, "crash": ChildProcessError}.get(word, RuntimeError)(text)


def _tell(work: Callable[[], Iterator[str]], outlet: int, most: int) -> None:
    """The life of a fork that tells line by line."""
    try:
        with os.fdopen(outlet, "w") as pipe:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                _limit_memory(most)
                for text in work():
                    pipe.write(json.dumps(["line", text]) + "\n")
                told = ["done", ""]
            except BaseException as error:
                told = _told_of(error, most)
            pipe.write(json.dumps(told) + "\n")
    finally:
        os._exit(0)


def _told_of(error: BaseException, most: int) -> list[str]:
    """What a fork says of an exception: its sort and its words. Rust's panics are no Exception."""
    if isinstance(error, MemoryError):
        return ["memory", f"it takes more than {most / (1 << 30):g} GiB of memory"]
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ["raised" if isinstance(error, Exception) else "crash", reason]


def _limit_memory(most: int) -> None:
    """Allows this process so many bytes beside what it has, where the system tells how much that is."""
    import resource

    if (have := Path("/proc/self/statm")).exists():
        size = int(have.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + most, resource.RLIM_INFINITY))


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
        _limit_memory(BYTES)
        told = ["done", work()]
    except BaseException as error:  # it must not go on as a second copy of the caller
        told = _told_of(error, BYTES)
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
