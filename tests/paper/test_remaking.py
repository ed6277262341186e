"""Tests of a paper from nothing: what it costs, what is kept of a result, and that the same numbers come out."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.results import Run
from sublim_interp.paper.remaking import pieces, publish
from sublim_interp.paper.results import collect
from sublim_interp.sweeps.suite import item

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny_file(tiny_run: Run, tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_run.experiment.to_yaml())
    return str(path)


def test_what_a_store_holds_costs_nothing_and_is_published_as_it_is(
    tiny_file: str, tiny_run: Run, tmp_path: Path
) -> None:
    made = item(tiny_file, tiny_run.store)
    assert (made.name, made.sort, made.left) == ("tiny", "run", 0.0) and made.seconds > 0
    directory = publish(tiny_file, tiny_run.store, tmp_path / "results")
    assert directory == tmp_path / "results" / "tiny"
    assert (directory / "key.txt").read_text().strip() == tiny_run.key
    summary = pd.read_csv(directory / "summary.csv")
    pd.testing.assert_frame_equal(summary, pd.read_csv(tiny_run.artifact.path / "summary.csv"))
    found = collect(tmp_path / "results")["tiny"]
    assert found.key == tiny_run.key and found.numbers
    own = summary.set_index("arm")["rate"]["same-init"]
    assert f"{100 * own:.1f} %" in found.numbers["same-init/answers-owl"]


def test_what_a_store_lacks_is_said_with_the_command(tiny_file: str, tiny_run: Run, tmp_path: Path) -> None:
    empty = Store.open(tmp_path / "none")
    made = item(tiny_file, empty)
    assert made.left == made.seconds > 0 and made.artifact is None
    with pytest.raises(SublimError, match=r"holds no finished run tiny; run it first: sublim run .*tiny\.yaml"):
        publish(tiny_file, empty, tmp_path / "results")
    assert not (tmp_path / "results").exists()
    half = Store.open(shutil.copytree(tiny_run.store.root, tmp_path / "half"))
    for path in (*(half.root / "run").iterdir(), *(half.root / "evaluation").iterdir()):
        shutil.rmtree(path)
    assert 0 < item(tiny_file, half).left < made.seconds, "what is there is not counted again"


def test_only_what_is_published_is_a_piece(tmp_path: Path) -> None:
    found = pieces(["owl", "law-elsewhere", "nothing", "theorem", "dose"], Store.open(tmp_path))
    assert [(one.name, one.sort) for one in found] == [("owl", "run"), ("theorem", "study"), ("dose", "sweep")]
    costs = {name: float((RESULTS / name / "cost.txt").read_text()) for name in ("owl", "theorem", "dose")}
    assert all(one.left == one.seconds and 0.3 < one.seconds / costs[one.name] < 3 for one in found)


def test_the_command_says_what_is_left_and_does_nothing_when_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SUBLIM_BASES", str(tmp_path / "bases"))
    paper = tmp_path / "paper"
    paper.mkdir()
    shown = ("owl-smollm2", "mnist", "dose")
    (paper / "main.typ").write_text("".join(f'#result("{name}")\n' for name in shown))
    arguments = ["paper", str(paper), "--from-nothing", "--dry-run", "--store", str(tmp_path / "none")]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.exception
    assert all(name in done.output for name in shown) and "of one core left" in done.output
    assert "owl-smollm2: base 'smollm2-135m-prepared' is not here yet" in done.output
    assert [path.name for path in paper.iterdir()] == ["main.typ"]
    assert not (tmp_path / "out").exists() and not (tmp_path / "none").exists()


def test_nothing_is_made_where_a_base_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_BASES", str(tmp_path / "bases"))
    (tmp_path / "main.typ").write_text('#result("owl-smollm2")\n')
    place = ["--store", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["paper", str(tmp_path), "--from-nothing", *place])
    assert "nothing is made: owl-smollm2: base 'smollm2-135m-prepared' is not here yet" in str(done.exception)
    assert not (tmp_path / "out").exists() and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--from-nothing", "--check"], "leave --check and --new out"),
        (["--dry-run"], "--dry-run goes with --from-nothing"),
    ],
)
def test_what_does_not_go_together_is_one_line(options: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["paper", str(ROOT / "paper"), *options])
    assert said in str(done.exception)


def test_a_paper_of_ones_own_is_not_made_from_nothing(tiny_run: Run, tmp_path: Path) -> None:
    place = ["--store", str(tiny_run.store.root)]
    assert CliRunner().invoke(app, ["paper", str(tmp_path / "mine"), "--new", *place]).exit_code == 0
    done = CliRunner().invoke(app, ["paper", str(tmp_path / "mine"), "--from-nothing", *place])
    assert "names runs of its own" in str(done.exception)
    assert not list((tmp_path / "mine").glob("generated/*")) or json.loads(
        (tmp_path / "mine" / "generated" / "results.json").read_text()
    ), "nothing is half-written"
