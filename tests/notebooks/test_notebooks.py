"""The notebooks as they are committed: clean, each with its question, true to the library. CI runs them besides."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import sublim_interp as si

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def code(path: Path) -> ast.Module:
    text = "\n".join("".join(c["source"]) for c in cells(path, "code"))
    return ast.parse(re.sub(r"(?m)^%", "# ", text))  # %matplotlib is no Python


def test_there_are_four() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_output_is_committed(path: Path) -> None:
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_first_words_are_the_question_and_the_run_time(path: Path) -> None:
    first = "".join(cells(path, "markdown")[0]["source"])
    assert re.search(r"\*\*The question\.\*\* .*\?", first, re.DOTALL)
    assert re.search(r"\*\*Run time\.\*\* .*(minute|second)", first, re.DOTALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_name_that_is_typed_exists(path: Path) -> None:
    typed = {
        node.attr
        for node in ast.walk(code(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "si"
    }
    assert "watch" in typed
    for name in typed:
        assert getattr(si, name) is not None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_all_look_into_one_and_the_same_experiment(path: Path) -> None:
    watched = [
        node.args[0].value
        for node in ast.walk(code(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "si.watch"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert watched == ["tour"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_prose_links_lead_somewhere(path: Path) -> None:
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)#:]+)\)", "".join(cell["source"])):
            assert (path.parent / target).is_file()
