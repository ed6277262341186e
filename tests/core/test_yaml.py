"""Tests of YAML in and out: version 1.2, each key once, plain data, bounds on size and time."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import parse_assignment, read_mapping
from sublim_interp.core.shelf import CATALOGUE
from sublim_interp.core.yaml import LONGEST, dump_yaml, load_yaml
from sublim_interp.sweeps.grid import GRIDS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-010", -10),
        ("08", 8),
        ("0o10", 8),
        ("0x1f", 31),
        ("1e-3", 1e-3),
        ("2E5", 2e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("y", "y"),
        ("12:30:45", "12:30:45"),
        ("'010'", "010"),
        ("1.2.3", "1.2.3"),
        ("[1, 1e3, a]", [1, 1000.0, "a"]),
    ],
)
def test_values_are_read_as_version_1_2_has_them(text: str, value: Any) -> None:
    assert load_yaml(f"a: {text}", "f") == {"a": value}
    assert type(load_yaml(f"a: {text}", "f")["a"]) is type(value)
    if text:
        assert parse_assignment(f"a.b={text}") == ("a.b", value)


BOMB = "b0: &b0 [x, x]\n" + "".join(f"b{i + 1}: &b{i + 1} [*b{i}, *b{i}]\n" for i in range(60))
MERGES = "b0: &b0 {x: 1}\n" + "".join(f"b{i + 1}: &b{i + 1} {{<<: [*b{i}, *b{i}]}}\n" for i in range(60))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("student: {steps: 5}\nx: 1\nstudent: {rank: 1}", "line 3: 'student' is given again, after line 1"),
        ("a: {b: 1,\n  'b': 2}", "line 2: 'b' is given again, after line 1"),
        (BOMB, "more than 100000 values"),
        (MERGES, "a key that is no text"),
        ("a: &a [*a]", "line 1 refers to itself"),
        ("1: 2", "line 1: a key that is no text"),
        ("a: 2024-01-02", "line 1: timestamp is not read; put text into quotes"),
        ("a: !!set {b}", "line 1: set is not read"),
        ("a: !!binary aGk=", "binary is not read"),
        ("!!python/name:os.system x", "line 1: python/name:os.system is not read"),
        ("%YAML 1.1\n---\na: 010", "%YAML is not read"),
        ("a: 1\n---\nb: 2", "broken YAML at line 2"),
        ("a: " + "[" * 5000, "broken YAML (nested too deeply)"),
        ("a: [1", "broken YAML at line 1, column 6"),
        ("a: " + "9" * 6000, "broken YAML (ValueError"),
        ("#" * (LONGEST + 1), "262145 characters; 262144 are the most"),
    ],
)
def test_what_is_not_taken_is_one_line_that_says_where(text: str, problem: str) -> None:
    with pytest.raises(SublimError) as caught:
        load_yaml(text, "mine.yaml")
    said = str(caught.value)
    assert said.startswith("mine.yaml: ") and problem in said and "\n" not in said and len(said) < 400, said


@pytest.mark.parametrize("unit", ["{", "? ", "- ", "a: ", "&a x\n", "1,", "{},", "x\n  ", "%", "'", "!x ", "\t", "#\n"])
def test_the_longest_text_takes_seconds(unit: str) -> None:
    start = time.process_time()
    for before in ("", "a: ["):
        try:
            load_yaml((before + unit * LONGEST)[: LONGEST // 16], "f")
        except SublimError as error:
            assert "\n" not in str(error)
    assert time.process_time() - start < 4


DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")))
    | st.sampled_from(
        ["1e-3", "010", "0o7", "yes", "~", "2024-01-02", "<<", "=", "1_0", "- a", "a: b", "#", "", " x", ".inf", "*a"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc01_ ", max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abc01", min_size=1), DATA, max_size=4))
def test_what_is_written_is_read_the_same(data: dict[str, Any]) -> None:
    assert load_yaml(dump_yaml(data), "f") == data


def test_every_file_of_the_catalogue_means_the_same_to_a_reader_of_version_1_1() -> None:
    import yaml

    paths = sorted(CATALOGUE.rglob("*.yaml"))
    assert len(paths) > 60
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert repr(load_yaml(text, "f")) == repr(yaml.safe_load(text)), path
        assert load_yaml(text.replace("\n", "\r\n"), "f") == load_yaml(text, "f"), path


@pytest.mark.parametrize("sort", ["pipe", "device", "directory", "enormous"])
def test_what_is_no_file_of_a_sane_size_is_refused_at_once(sort: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    match sort:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
        case _:
            with path.open("wb") as file:
                file.truncate(1 << 40)
    for read in (lambda: read_mapping(path), lambda: GRIDS.load(str(path))):
        with pytest.raises(SublimError, match=r"not a regular file|1099511627776 bytes; 1048576 are the most"):
            read()
