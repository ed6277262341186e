"""Tests of suites: items are made as they would be alone, what is shared counts once, what does not fit is one line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sublim_interp.claims.schema import all_claims
from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import experiment_names
from sublim_interp.experiments.results import Run
from sublim_interp.sweeps.grid import grid_names
from sublim_interp.sweeps.study import study_names
from sublim_interp.sweeps.suite import SUITES, items, left_of, suite


@pytest.fixture
def both(tiny_run: Run, tmp_path: Path) -> str:
    """A suite of the tiny experiment, whose run is made, and of a grid that shares its teachers."""
    (tmp_path / "tiny.yaml").write_text(tiny_run.experiment.to_yaml())
    (tmp_path / "rates.yaml").write_text(
        "about: Does the rate matter?\nexperiment: tiny.yaml\nchange: {arms: [same-init]}\n"
        "axes: {student.optimization.lr: [0.004]}\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text("about: Both of mine.\nholds: [tiny.yaml, rates.yaml]\n")
    return str(path)


def test_a_suite_of_the_catalogue_holds_what_is_there() -> None:
    known = {*experiment_names(), *grid_names(), *study_names()}
    assert "rows" in SUITES.names()
    for name in SUITES.names():
        held = suite(name).holds
        assert set(held) <= known and len(set(held)) == len(held), name


def test_the_suite_of_the_claims_holds_all_that_their_tests_read() -> None:
    read = {test.table for claim in all_claims() for test in claim.tests if test.runnable}
    assert set(suite("on-trial").holds) == read


def test_its_items_are_made_and_a_second_time_nothing_is(both: str, tiny_run: Run, filled_root: Path) -> None:
    assert SUITES.means(both) and not SUITES.means("owl")
    planned = CliRunner().invoke(app, ["run", both, "--dry-run", "--store", str(filled_root)])
    assert planned.exit_code == 0 and "Both of mine" in planned.output and "of one core left" in planned.output
    tiny, rates = items(suite(both).holds, Store(filled_root))
    assert (tiny.sort, tiny.left, rates.sort) == ("run", 0.0, "sweep") and 0 < rates.left < rates.seconds
    assert not Store(filled_root).list("sweep")
    done = CliRunner().invoke(app, ["run", both, "--store", str(filled_root), "--processes", "1"])
    assert done.exit_code == 0, done.exception
    assert "tiny is in the store already" in done.output and "\nsweep " in done.output
    shown = CliRunner().invoke(app, ["show", both, "--store", str(filled_root)])
    assert "nothing is left to be made" in " ".join(shown.output.split())


def test_what_items_share_counts_once(both: str, tmp_path: Path) -> None:
    empty = Store.open(tmp_path / "none")
    tiny, rates = items(suite(both).holds, empty)
    assert max(tiny.left, rates.left) < left_of([tiny, rates]) < 0.9 * (tiny.left + rates.left)
    assert left_of([tiny, tiny]) == pytest.approx(tiny.left)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "trait=wolf"], "--set goes with one experiment, not with a suite"),
        (["--on", "slurm"], "--on goes with one experiment, not with a suite"),
    ],
)
def test_what_a_suite_does_not_take_is_one_line(both: str, words: list[str], says: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", both, *words, "--store", str(tmp_path / "none")])
    assert isinstance(done.exception, SublimError) and says in str(done.exception)


def test_an_item_that_cannot_be_made_is_named_before_anything_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("about: One is not there.\nholds: [smoke, gone.yaml]\n")
    done = CliRunner().invoke(app, ["run", str(path), "--store", str(tmp_path / "none")])
    assert isinstance(done.exception, SublimError) and "nothing is made" in str(done.exception)
    assert "gone.yaml" in str(done.exception) and not (tmp_path / "none").exists()
