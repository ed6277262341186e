"""The notebooks as committed: with outputs, clean, plain, true to the library. CI runs them besides."""

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
    return ast.parse("\n".join("".join(c["source"]) for c in cells(path, "code")))


OWN = {"05": "published_figure", "06": "published_figure", "07": "run_audit", "08": "from_trace"}
"""Notebooks that need no run of tour, with what each calls; the others look into that run."""


def test_all_are_there_each_with_a_number_of_its_own() -> None:
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert numbers == sorted({*numbers}) and {"01", "02", "03", "04", "05", "06", "07", "08"} <= {*numbers}


PLACE = re.compile(r"(?<![\w.:/<])(?:/[\w.-]+){2,}|[A-Z]:\\\\|file://")
"""A place on somebody's machine."""


def texts(cell: dict[str, Any]) -> str:
    """All that a cell shows as text."""
    shown = [one.get("text", []) for one in cell["outputs"]]
    for one in cell["outputs"]:
        shown += [value for kind, value in one.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join("".join(text) for text in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_committed_small_and_clean(path: Path) -> None:
    """`make notebooks` writes them anew."""
    for number, cell in enumerate(cells(path, "code"), 1):
        assert cell["execution_count"] == number and "execution" not in cell["metadata"]
        kinds = {one["output_type"] for one in cell["outputs"]}
        assert kinds and kinds <= {"stream", "display_data", "execute_result"}, "".join(cell["source"])
        assert all(one.get("name", "stdout") == "stdout" for one in cell["outputs"])
        assert not PLACE.search(texts(cell)), PLACE.search(texts(cell))
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_prose_with_short_calls(path: Path) -> None:
    text = "".join("".join(c["source"]) for c in cells(path, "code"))
    assert "matplotlib" not in text and "def " not in text
    assert all(len(c["source"]) <= 12 for c in cells(path, "code"))
    prose = [re.sub(r"\]\([^)]*\)", "]", "".join(c["source"])) for c in cells(path, "markdown")]
    for sentence in re.split(r"(?<=[.?!:])\s+|\n\n", "\n\n".join(prose)):
        assert len(sentence.split()) <= 25, sentence
    assert re.search(r"\*\*The finding\.\*\* ", prose[0])
    assert prose[-1].startswith("## Try this on your own model") or "\n## Try this on your own model\n" in prose[-1]


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
    assert OWN.get(path.name[:2], "watch") in typed
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
    assert watched == ([] if path.name[:2] in OWN else ["tour"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_prose_links_lead_somewhere(path: Path) -> None:
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)#:]+)\)", "".join(cell["source"])):
            assert (path.parent / target).is_file()
