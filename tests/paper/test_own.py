"""Tests of papers of one's own: begun, built and checked on a small run of a store."""

import shutil
from importlib import util
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import sublim_interp as si
from sublim_interp.cli.paper import paper
from sublim_interp.core.errors import SublimError
from sublim_interp.paper.check import check
from sublim_interp.paper.document import build
from sublim_interp.paper.own import begin, collect_own

needs_typst = pytest.mark.skipif(util.find_spec("typst") is None, reason="the extra `paper` is not installed")


@pytest.fixture
def folder(tiny_run: si.Run, tmp_path: Path) -> Path:
    """The beginning of a paper about the tiny run."""
    assert begin(tmp_path / "mine", ["tiny"], tiny_run.store) == ["tiny"]
    return tmp_path / "mine"


@needs_typst
def test_what_is_begun_is_built_and_clean(folder: Path, tiny_run: si.Run, tmp_path: Path) -> None:
    main = folder / "main.typ"
    main.write_text(main.read_text().replace("= Limits", '#fig("tiny/loss")\n\n= Limits'))
    results = collect_own(folder, tiny_run.store)
    assert list(results) == ["tiny", "tiny/loss"] and results["tiny"].key == tiny_run.key
    first, second = (build(folder, tmp_path / name, results) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    names = {path.relative_to(tmp_path / "one").as_posix() for path in first}
    assert {"paper.pdf", "tables/tiny.csv", "figures/tiny.pdf", "figures/tiny/loss.pdf", "skeleton.tex"} <= names
    assert check(folder, collect_own(folder, tiny_run.store)) == []
    rate = tiny_run.table.loc["same-init", "rate"]
    assert results["tiny"].numbers["same-init/answers-owl"] == f"{100 * rate:.1f} %"


def test_a_run_that_changes_makes_its_sentences_stale(folder: Path, filled_root: Path) -> None:
    store = si.Store(filled_root)
    before = collect_own(folder, store)
    (folder / "generated").mkdir()
    from sublim_interp.paper.document import as_json

    (folder / "generated" / "results.json").write_text(as_json(before), encoding="utf-8")
    table = next((filled_root / "run").glob("*/summary.csv"))
    summary = pd.read_csv(table)
    summary.assign(rate=summary["rate"].where(summary["arm"] != "neutral", 0.5)).to_csv(table, index=False)
    found = check(folder, collect_own(folder, store))
    assert any("stale number tiny/neutral/answers-owl:" in line and "is now 50.0 %" in line for line in found)
    assert not any("tiny/same-init/answers-owl" in line for line in found)


def test_what_a_paper_cannot_be_about_is_one_line(folder: Path, tiny_run: si.Run, tmp_path: Path) -> None:
    store, listed = tiny_run.store, folder / "paper.yaml"
    for said, why in {
        "runs: [tiny, owl]": "no run, sweep or study is called 'owl'",
        "runs: [tiny, tiny]": "'tiny' is called tiny, as another of its runs is",
        "runs: [none.yaml]": "none.yaml",
        "run: [tiny]": "run",
    }.items():
        listed.write_text(said)
        with pytest.raises(SublimError, match=why) as raised:
            collect_own(folder, store)
        assert "\n" not in str(raised.value)
    listed.write_text("runs: [tiny]")
    (folder / "main.typ").write_text('#fig("tiny/los")')
    with pytest.raises(SublimError, match=r"main.typ shows 'tiny/los'.*loss"):
        collect_own(folder, store)
    with pytest.raises(SublimError, match="is there already; --new needs a new folder"):
        begin(folder, [], store)
    with pytest.raises(SublimError, match="holds no finished run to write about"):
        begin(tmp_path / "other", [], si.Store(tmp_path / "empty"))
    with pytest.raises(SublimError, match="no run, sweep or study is called 'owl'"):
        begin(tmp_path / "other", ["owl"], store)
    assert not (tmp_path / "other").exists(), "nothing half-written"


def test_a_paper_is_begun_about_every_finished_run(tiny_run: si.Run, tmp_path: Path) -> None:
    store = shutil.copytree(tiny_run.store.root, tmp_path / "store")
    app = typer.Typer()
    app.command()(paper)
    new = CliRunner().invoke(app, [str(tmp_path / "mine"), "--new", "--store", str(store)])
    assert new.exit_code == 0 and "is about tiny" in " ".join(new.output.split())
    assert '#n("tiny/same-init/answers-owl")' in (tmp_path / "mine" / "main.typ").read_text()
    assert not [
        line for line in check(tmp_path / "mine", collect_own(tmp_path / "mine", si.Store(store))) if "typed" in line
    ]
    wrong = CliRunner().invoke(app, ["--new"])
    assert isinstance(wrong.exception, SublimError) and "--new takes a folder" in str(wrong.exception)
