"""The `sublim` command: its words, its exit codes, and errors as one line. Each word is a file of this folder."""

import io
import sys
from typing import Annotated, NoReturn

import typer

from sublim_interp.cli.ask import ask
from sublim_interp.cli.audit import audit
from sublim_interp.cli.cancel import cancel
from sublim_interp.cli.claims import claims
from sublim_interp.cli.doctor import doctor
from sublim_interp.cli.exchange import export, import_
from sublim_interp.cli.gc import gc
from sublim_interp.cli.last_error import shortened
from sublim_interp.cli.lineage import lineage
from sublim_interp.cli.list import list_
from sublim_interp.cli.organism import organism
from sublim_interp.cli.paper import paper
from sublim_interp.cli.plot import plot
from sublim_interp.cli.pretrain import pretrain
from sublim_interp.cli.pull import pull
from sublim_interp.cli.push import push
from sublim_interp.cli.run import run
from sublim_interp.cli.show import show
from sublim_interp.cli.status import status
from sublim_interp.cli.verify import verify
from sublim_interp.core.cards import does_not_fit
from sublim_interp.core.device import is_out_of_memory
from sublim_interp.core.errors import SublimError

app = typer.Typer(
    help="Subliminal learning under the microscope: teacher → filter → student, on open small models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for word, command in {
    "list": list_, "show": show, "run": run, "status": status, "cancel": cancel, "plot": plot, "claims": claims,
    "audit": audit, "ask": ask, "lineage": lineage, "organism": organism, "pull": pull, "pretrain": pretrain,
    "paper": paper, "verify": verify, "import": import_, "export": export, "push": push, "gc": gc, "doctor": doctor,
}.items():  # fmt: skip
    app.command(word)(command)


def _say_version(asked: bool) -> bool:
    if asked:
        from sublim_interp import __version__

        print(f"sublim {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Subliminal learning under the microscope: teacher → filter → student, on open small models."""


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def main() -> None:
    """Runs the command line; bad input, or a GPU without room, is one line and exit code 2, Ctrl-C is 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of ASCII shows ? for what it lacks
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # Typer turns Ctrl-C inside a command into this code
            raise KeyboardInterrupt
    except SublimError as error:
        _stop(f"sublim: {error}", 2)
    except KeyboardInterrupt:
        _interrupted()
    except Exception as error:
        if _holds_ctrl_c(error):
            _interrupted()
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            _stop(f"sublim: {error.format_message()}", 2)  # type: ignore[attr-defined]
        if type(error).__name__ == "Abort":
            _stop("sublim: interrupted", INTERRUPTED)
        if is_out_of_memory(error):
            told = str(error).partition("\n")[0]
            _stop(f"sublim: {does_not_fit(sys.argv[1])}; try a smaller model, or SUBLIM_DEVICE=cpu ({told})", 2)
        raise
    sys.exit(code or 0)  # what typer.Exit carried


def _holds_ctrl_c(error: BaseException | None) -> bool:
    """Whether a library wrapped Ctrl-C in an error of its own, as pydantic does while it serialises."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


def _interrupted() -> NoReturn:
    _stop("sublim: interrupted; what was finished is kept, the same command goes on from there", INTERRUPTED)


def _stop(line: str, code: int) -> NoReturn:
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(line.split()))
    print(shortened(line), file=sys.stderr)
    sys.exit(code)
