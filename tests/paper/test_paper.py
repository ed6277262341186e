"""Tests of the paper: it is what the committed results give, it is built alike twice, and what is stale is named."""

import json
import shutil
import subprocess
from dataclasses import replace
from importlib import util
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from sublim_interp.cli.paper import paper
from sublim_interp.core.drawing import render
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.paper import document
from sublim_interp.paper.check import GENERATED, check, quotable
from sublim_interp.paper.document import as_json, build
from sublim_interp.paper.latex import as_latex, escaped
from sublim_interp.paper.results import Result, collect, published_figure, slug
from sublim_interp.paper.text import read_text

PAPER = Path(__file__).resolve().parents[2] / "paper"
needs_typst = pytest.mark.skipif(util.find_spec("typst") is None, reason="the extra `paper` is not installed")


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """Everything that is published."""
    return collect()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the paper."""
    return Path(shutil.copytree(PAPER, tmp_path / "paper"))


def test_the_committed_paper_is_what_the_committed_results_give(results: dict[str, Result]) -> None:
    """Mended by `sublim paper`."""
    assert check(PAPER, results) == []


def test_every_published_run_and_sweep_is_shown_with_its_key(results: dict[str, Result]) -> None:
    published = {path.parent.name: path.read_text().strip() for path in RESULTS.glob("*/key.txt")}
    shown = read_text((PAPER / "main.typ").read_text()).shown
    assert set(published) <= set(shown) and len(set(shown)) == len(shown)
    assert {name: results[name].key for name in published} == published
    assert all(one.key and one.made for one in results.values())


@needs_typst
def test_the_paper_is_built_alike_twice(folder: Path, tmp_path: Path, results: dict[str, Result]) -> None:
    first = build(folder, tmp_path / "one", results)
    assert (folder / GENERATED).read_bytes() == (PAPER / GENERATED).read_bytes()
    few = {name: results[name] for name in ("owl", "dose", "claims")}
    (folder / "main.typ").write_text("".join(f'#import "template.typ": *\n#result("{name}")\n' for name in few))
    second, third = (build(folder, tmp_path / name, few) for name in ("two", "three"))
    assert [path.read_bytes() for path in second] == [path.read_bytes() for path in third]
    for path in second:  # a figure and a table do not depend on what else is drawn
        whole = tmp_path / "one" / path.relative_to(tmp_path / "two")
        assert path.parent == tmp_path / "two" or path.read_bytes() == whole.read_bytes()
    names = {str(path.relative_to(tmp_path / "one")) for path in first}
    of_owl = {"tables/owl.csv", "tables/owl.tex", "figures/owl.pdf"}
    assert {"paper.pdf", "numbers.tex", "skeleton.tex"} | of_owl <= names
    assert len([name for name in names if name.startswith("figures/")]) == sum(1 for r in results.values() if r.figure)
    assert (tmp_path / "one" / "paper.pdf").read_bytes().startswith(b"%PDF")
    table = (tmp_path / "one" / "tables" / "dose.csv").read_text()
    assert table.startswith(f"# sublim run dose, {results['dose'].key}\n")


def test_a_number_that_changes_is_named_with_the_sentence_that_quotes_it(
    folder: Path, tmp_path: Path, results: dict[str, Result]
) -> None:
    catalogue = tmp_path / "results"
    shutil.copytree(RESULTS / "owl", catalogue / "owl")
    summary = pd.read_csv(catalogue / "owl" / "summary.csv")
    summary.loc[summary["arm"] == "same-init", "rate"] = 0.5
    summary.to_csv(catalogue / "owl" / "summary.csv", index=False)
    found = check(folder, {**results, **collect(catalogue)})
    key = results["owl"].key[:16]
    name, says = "owl/same-init/answers-owl", "99.3 % is now 50.0 %"
    quoting = [line for line in found if f": stale number {name}: {says} ({key})" in line]
    line = 1 + (folder / "main.typ").read_text().split("\n").index(
        'A same-init student starts from its teacher\'s base. It says “owl” in #n("owl/same-init/answers-owl")'
    )
    assert any(f"main.typ:{line}: " in one and "“It says “owl” in 99.3 % [98.6, 99.9].”" in one for one in quoting)
    assert any("stale table owl, same-init, answers “owl”: 99.3 % [98.6, 99.9] is now 50.0 %" in line for line in found)
    assert any(line.startswith("stale figure owl") for line in found)
    assert not any("dose" in line for line in found), "what did not change is not named"


def test_a_number_that_no_sentence_quotes_is_named_too(folder: Path, results: dict[str, Result]) -> None:
    path = folder / GENERATED
    before = json.loads(path.read_text())
    before["entangled-numbers"]["numbers"]["setting/bases"] = "3"
    path.write_text(json.dumps(before))
    (found,) = check(folder, results)
    assert found.startswith(
        "stale number entangled-numbers/setting/bases, which no sentence quotes: 3 is now nothing ("
    )


def test_what_is_typed_unknown_missing_or_no_longer_published_is_named(
    folder: Path, results: dict[str, Result]
) -> None:
    main = folder / "main.typ"
    text = main.read_text().replace('#result("dose", figure-too: false)', "").rstrip("\n")
    line = text.count("\n") + 2
    main.write_text(text + '\nMost of them, 87 %, pass. It is #n("owl/no/such"). #result("gone")\n')
    found = check(folder, {name: one for name, one in results.items() if name != "masks"})
    assert f"main.typ:{line}: typed by hand, 87: “Most of them, 87 %, pass.”" in found
    assert f"main.typ:{line}: unknown number owl/no/such: “It is ‹owl/no/such›.”" in found
    assert any(line.startswith("not shown: dose") for line in found)
    assert {"not published: gone", "not published: masks"} <= set(found)
    stale = {**results, "owl": replace(results["owl"], key="0" * 64)}
    assert any("stale table owl, key (0000" in line for line in check(folder, stale))


@needs_typst
def test_what_cannot_be_built_is_one_line(folder: Path, tmp_path: Path, results: dict[str, Result]) -> None:
    main = folder / "main.typ"
    text = main.read_text()
    main.write_text(text + '\n#n("owl/same-init/answers-cat")\n')
    with pytest.raises(SublimError, match=r"quotes 'owl/same-init/answers-cat'.*near it: owl/same-init/answers-owl"):
        build(folder, tmp_path / "out", results)
    main.write_text(text + '\n#result("nothing")\n')
    with pytest.raises(SublimError, match=f"there is: {', '.join([*results][:8])}"):
        build(folder, tmp_path / "out", results)
    main.write_text(text + '\n#fig("bases")\n')
    with pytest.raises(SublimError, match="draws 'bases', which has no figure"):
        build(folder, tmp_path / "out", results)
    main.write_text('#import "template.typ": *\n#nowhere(1)\n')
    with pytest.raises(SublimError, match=r"typst refuses main\.typ: unknown variable: nowhere") as raised:
        build(folder, tmp_path / "out", {"dose": results["dose"]})
    assert "\n" not in str(raised.value) and not (tmp_path / "out" / "paper.pdf").exists()


def test_without_typst_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "find_spec", lambda _: None)
    with pytest.raises(SublimError, match=r"typst.*is not installed; pip install 'sublim-interp\[paper\]'"):
        document.require_typst()


def test_a_semicolon_that_typst_swallows_is_named(folder: Path, results: dict[str, Result]) -> None:
    main = folder / "main.typ"
    number = '#n("owl/same-init/answers-owl")'
    main.write_text(main.read_text() + f"\nIt is {number}; no more. It is ({number}); as said.\n")
    (found,) = [line for line in check(folder, results) if "semicolon" in line]
    assert "“It is 99.3 %; no more.”" in found


def test_the_command_exits_with_1_where_something_is_stale(
    folder: Path, results: dict[str, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sublim_interp.paper.results.collect", lambda: results)
    app = typer.Typer()
    app.command()(paper)
    fresh = CliRunner().invoke(app, ["--check", str(folder)])
    assert fresh.exit_code == 0 and "is what its results give" in fresh.output
    (folder / "main.typ").write_text((folder / "main.typ").read_text() + "\nIt is 99 % by now.\n")
    stale = CliRunner().invoke(app, ["--check", str(folder)])
    assert stale.exit_code == 1 and "typed by hand, 99: “It is 99 % by now.”" in stale.output
    nowhere = CliRunner().invoke(app, ["--check", str(folder / "generated")])
    assert isinstance(nowhere.exception, SublimError) and "needs a main.typ" in str(nowhere.exception)


def test_names_of_numbers_are_plain_and_their_values_survive_latex(results: dict[str, Result]) -> None:
    assert slug("trait's rate") == "traits-rate" and slug("5–7 × γ") == "5to7-x-gamma"
    numbers = quotable(results)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789/.-") for name in numbers)
    assert numbers["owl/same-init/answers-owl"] == "99.3 %"
    assert numbers["owl/same-init/answers-owl/range"] == "[98.6, 99.9]"
    assert numbers["capacity/teacher.facts/16/same-init/bits-in-all"] == "28.5"
    files = as_latex(results)
    latex = files["numbers.tex"]
    assert r"\@namedef{sublim@owl/same-init/answers-owl}{99.3 \%}" in latex
    assert f"% sublim run owl, {results['owl'].key}" in latex
    assert r"\input{tables/dose}" in files["skeleton.tex"] and "{figures/dose.pdf}" in files["skeleton.tex"]
    assert json.loads(as_json(results))["owl"]["numbers"] == dict(results["owl"].numbers)


def test_every_command_has_a_cost_and_the_key_of_what_it_makes(results: dict[str, Result]) -> None:
    rows = {command: (hours, key) for command, hours, key in results["commands"].rows}
    published = {f"sublim run {path.parent.name}": path.read_text()[:16] for path in RESULTS.glob("*/key.txt")}
    assert {command: key for command, (_, key) in rows.items() if command in published} == published
    assert all(float(hours) >= 0 for hours, _ in rows.values()), "what is published tells its cost"
    assert rows["sublim run owl"][0] == "2.4"


def test_verdicts_are_quoted_from_the_same_table_as_the_claims_page_shows(results: dict[str, Result]) -> None:
    numbers = results["claims"].numbers
    outcomes = ("supported", "supported-in-part", "contradicted", "depends-on", "too-weak-to-tell", "not-tried-yet")
    assert sum(int(numbers[name]) for name in outcomes) == int(numbers["claims"]) == len(results["claims"].rows)
    page = (PAPER.parent / "docs" / "results" / "claims.md").read_text()
    assert all(f"| {row[0]} | {row[1]} | {row[2]} |" in page for row in results["claims"].rows)


def test_a_published_figure_is_drawn_by_its_name_alone() -> None:
    assert published_figure("masks").axes
    with pytest.raises(SublimError, match=r"nothing published is called 'maks'.*masks"):
        published_figure("maks")


def test_latex_gets_no_character_that_its_base_cannot_set(results: dict[str, Result]) -> None:
    assert escaped("σ = 5 %, Δθ ≤ `x`, 漢 é") == r"$\sigma$ = 5 \%, $\Delta$$\theta$ $\le$ x, ? é"
    assert all(ord(character) < 0x180 for text in as_latex(results).values() for character in text)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_skeleton_compiles(tmp_path: Path, results: dict[str, Result]) -> None:
    few = {name: results[name] for name in ("owl", "animals", "law", "theorem", "claims", "audit", "bases")}
    for name, text in as_latex(few).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "figures").mkdir()
    for name, one in few.items():
        if one.drawn:
            (tmp_path / "figures" / f"{name}.pdf").write_bytes(render(one.drawn(), "pdf"))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "skeleton"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert made.returncode == 0, made.stdout[-2000:]
    assert (tmp_path / "skeleton.pdf").read_bytes().startswith(b"%PDF")
