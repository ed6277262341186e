"""The command on terminals of all sorts: ASCII only, 40 columns, without colour, and with a reader that goes away."""

import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from fcntl import ioctl
from pathlib import Path

import pytest

from sublim_interp.experiments.results import Run

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def start(*arguments: object, env: Mapping[str, str] | None = None, stdout: int = subprocess.PIPE) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sublim_interp", *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **(env or {})},
    )  # fmt: skip


def seen_at(columns: int, *arguments: object, env: Mapping[str, str] | None = None) -> str:
    """What the command writes to a terminal of so many columns."""
    ours, its = pty.openpty()
    ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {"COLUMNS": "", "TERM": "xterm-256color", **(env or {})}
    process = start(*arguments, env=clean, stdout=its)
    os.close(its)
    said = b""
    try:
        while piece := os.read(ours, 1 << 16):
            said += piece
    except OSError:  # its end is closed
        pass
    os.close(ours)
    error = process.communicate()[1].decode()
    assert process.returncode == 0 and not error, error
    return said.decode()


def test_a_run_ends_well_on_a_terminal_of_ascii(tiny_run: Run) -> None:
    """The run is there already: what is left is its tables, with → and × in them."""
    path = tiny_run.store.root.parent / "ascii.yaml"
    path.write_text(tiny_run.experiment.to_yaml(), encoding="utf-8")
    process = start("run", path, "--store", tiny_run.store.root, env=ASCII)
    said, error = process.communicate()
    assert process.returncode == 0, error
    assert (
        b"nothing to do" in said and b"report  " in said and b"same-init" in said and b"UnicodeEncodeError" not in error
    )
    assert said.isascii()


def test_an_error_with_a_name_in_other_letters_is_one_line_on_ascii(tmp_path: Path) -> None:
    process = start("run", "сова.yaml", "--store", tmp_path, env=ASCII)
    error = process.communicate()[1]
    assert process.returncode == 2 and error.startswith(b"sublim: ") and error.count(b"\n") == 1


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As in `sublim pull | head -1`."""
    reader, writer = os.pipe()
    process = start("pull", stdout=writer)
    os.close(writer)
    os.close(reader)
    error = process.communicate()[1]
    assert process.returncode == 141 and not error


def test_a_narrow_terminal_cuts_nothing(tiny_run: Run) -> None:
    path = tiny_run.store.root.parent / "narrow.yaml"
    path.write_text(tiny_run.experiment.to_yaml(), encoding="utf-8")
    said = seen_at(40, "run", path, "--store", tiny_run.store.root)
    assert "…" not in said
    for arm in tiny_run.experiment.arms:
        assert arm in said
    assert str(tiny_run.page) in said, "a path that is broken over two lines cannot be copied"


@pytest.mark.parametrize(("env", "coloured"), [({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({}, True)])
def test_without_colour_where_that_is_asked_for(env: dict[str, str], coloured: bool) -> None:
    said = seen_at(100, "pull", env=env)
    colours = [f"\x1b[{n}" for n in (*range(30, 38), *range(90, 98))]
    assert not coloured or "\x1b[" in said, "positive control"
    assert coloured or not any(colour in said for colour in colours)
