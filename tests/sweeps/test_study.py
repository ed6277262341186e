"""Tests of studies: what one is, that it goes on where it was interrupted, and what the command says of it."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.executors.ledger import new_ledger
from sublim_interp.experiments.executors.worker import make_piece
from sublim_interp.lab.mnist.arms import ARMS
from sublim_interp.stats.intervals import Interval
from sublim_interp.sweeps.studies.mnist import Mnist, verdict
from sublim_interp.sweeps.study import find_study, published_study, run_study, study, study_names, study_work

QUICK = {"seeds": [0, 1], "hidden": 16, "batch": 32, "updates": 8, "noise_batches": 4}
SETS = [word for field, value in QUICK.items() for word in ("--set", f"{field}={value}")]
MNIST = Path(__file__).resolve().parents[1] / "data" / "mnist"


def told(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, SublimError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_the_command_lists_shows_runs_and_draws_a_study(tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "store")]
    assert "mnist" in told("list", *store)
    shown = told("show", "mnist", *SETS, *store)
    assert "auxiliary" in shown and "Planned work" in shown
    assert not (tmp_path / "store").exists(), "nothing is written by looking"
    first = told("run", "mnist", *SETS, *store)
    assert all(arm in first for arm in ARMS) and "Too weak to tell" in first
    assert "nothing to do" in told("run", "mnist", *SETS, *store)
    assert "nothing to do" in told("run", "mnist", *SETS, *store, "--dry-run")
    assert "0 damaged" in told("verify", *store)
    assert "no finished mnist" in refused("plot", "mnist", "mnist", *store)


def test_a_study_names_what_it_does_not_take() -> None:
    assert "--base: mnist is no experiment on language models" in refused("run", "mnist", "--base", "lab-small-0")
    assert "--images: 'smoke' reads no images" in refused("run", "smoke", "--images", ".")
    assert "no such arm as 'same'" in refused("run", "mnist", "--set", "arms=[same]", "--dry-run")
    assert "unknown optimizer" in refused("run", "mnist", "--set", "optimizer=adamm", "--dry-run")
    assert "seeds names something twice" in refused("run", "mnist", "--set", "seeds=[1,1]", "--dry-run")
    assert "fails=0.9 lies above passes=0.5" in refused("run", "mnist", "--set", "fails=.9", "--dry-run")
    assert "no train-images-idx3-ubyte" in refused("run", "mnist", "--images", "nowhere", "--dry-run")
    assert "mnist" in refused("run", "mnits")


def test_a_file_of_ones_own_is_a_study(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("study: mnist\nauxiliary: 5\n")
    mine = study(str(path))
    assert isinstance(mine, Mnist) and (mine.name, mine.auxiliary) == ("mine", 5)
    path.write_text("study: mnits\n")
    with pytest.raises(SublimError, match="unknown study 'mnits'; did you mean 'mnist'\\?"):
        study(str(path))


def test_an_experiment_of_ones_own_is_in_the_key_by_what_its_file_says(tmp_path: Path) -> None:
    """Else tables of the file as it was would be given for what it is now."""

    def key(lr: float, folder: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        asked = f"extends: owl\nseeds: [0]\nstudent: {{optimization: {{lr: {lr}}}}}\nabout: Anything.\n"
        (tmp_path / folder / "mine.yaml").write_text(asked)
        (tmp_path / folder / "within.yaml").write_text("study: inside\nexperiment: mine.yaml\nseeds: [0]\n")
        return study(str(tmp_path / folder / "within.yaml")).key

    assert key(0.1, "a") == key(0.1, "a") == key(0.1, "b"), "wherever it lies"
    assert key(0.1, "a") != key(0.2, "a")


def test_what_decides_no_number_is_in_no_key() -> None:
    s = study("mnist")
    assert s.set(name="other", about="?", passes=0.9, fails=0.1).key == s.key
    assert s.set(seeds=[1]).key != s.key != s.set(images=str(MNIST)).key


def test_an_interrupted_study_makes_no_arm_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s, store = study("mnist").set(QUICK), Store(tmp_path / "store")
    seen: list[str] = []

    def interrupt(name: str, fraction: float) -> None:
        seen.append(name)
        if name == "cross-init" and fraction == 1.0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(s, store, 1, interrupt)
    assert find_study(s, store) is None
    (partial,) = (tmp_path / "store" / ".partial").iterdir()
    rows = ".*.replicates.csv"
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob(rows)}
    assert 0 < len(kept) < len(ARMS)
    watched = {}
    monkeypatch.setattr(
        "sublim_interp.core.drawing.save",
        lambda figure, path: watched.update({p.name: p.stat().st_mtime_ns for p in path.parent.glob(rows)}),
    )
    made = run_study(s, store, 1)
    assert len(watched) == len(ARMS) and watched.items() >= kept.items()
    whole = run_study(s, Store(tmp_path / "again"), 2)
    texts = [(artifact.path / "replicates.csv").read_bytes() for artifact in (made, whole)]
    assert texts[0] == texts[1], "interrupted or not, one or two processes: equal bytes"
    assert [*pd.read_csv(whole.path / "replicates.csv")["arm"].unique()] == [*ARMS]


def test_a_job_makes_the_study_that_processes_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s, store = study("mnist").set(QUICK, arms=("same-init", "cross-init")), Store(tmp_path / "store")
    work = study_work(s, store, 2)
    ledger = new_ledger(store, work.name, work.key, "slurm")
    ledger.write()
    shares: list[float] = []
    make_piece(work.pieces[0], store.root, ledger.folder, "7", shares.append)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    made, here = find_study(s, store), run_study(s, Store(tmp_path / "here"), 1)
    assert made and made.manifest["files"] == here.manifest["files"] and made.key == work.key
    monkeypatch.setenv("PATH", "/nowhere")
    assert "there is no sbatch here" in refused("run", "mnist", *SETS, "--on", "slurm", "--store", str(tmp_path / "a"))


def interval(low: float, high: float, n: int = 32) -> Interval:
    return Interval((low + high) / 2, low, high, 0.95, n, "")


@pytest.mark.parametrize(
    "same, cross, said",
    [
        (interval(0.6, 0.7), interval(0.08, 0.12), "Supported"),
        (interval(0.3, 0.4), interval(0.08, 0.12), "Contradicted"),
        (interval(0.6, 0.7), interval(0.3, 0.4), "Contradicted"),
        (interval(0.45, 0.55), interval(0.08, 0.12), "Too weak to tell"),
        (interval(0.6, 0.7), interval(0.1, 0.3), "Too weak to tell"),
        (interval(0.6, 0.7, 4), interval(0.08, 0.12, 4), "Too weak to tell"),
    ],
)
def test_the_verdict_follows_the_thresholds(same: Interval, cross: Interval, said: str) -> None:
    assert verdict(same, cross, 0.5, 0.2).startswith(f"{said}: same-init students read ")


@pytest.mark.parametrize("name", [name for name in study_names() if published_study(name)])
def test_a_published_study_has_the_key_of_its_file(name: str) -> None:
    assert (RESULTS / name / "key.txt").read_text().strip() == study(name).key
