"""docs/inside.md and docs/your-own.md run as they stand: Python blocks in order, on a tiny run; files; commands."""

import re
from pathlib import Path
from typing import Any

import pytest

import sublim_interp as si
from sublim_interp.cli.app import app
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import experiment, experiment_names
from sublim_interp.experiments.schema import Experiment
from sublim_interp.report.figures.registry import FIGURES
from sublim_interp.report.run import run
from sublim_interp.sweeps.grid import grid, grid_names, is_grid
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.training.interventions import Intervention
from sublim_interp.traits.favourites import load_trait

PAGE = Path(__file__).resolve().parents[2] / "docs" / "inside.md"
OWN = PAGE.with_name("your-own.md")


def blocks(language: str, page: Path = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_ones_own_files_are_what_the_page_says(
    tiny_experiment: Experiment, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBLIM_STORE", str(store_root))
    own_grid, own_trait = blocks("yaml", OWN)
    Path("my-grid.yaml").write_text(own_grid, encoding="utf-8")
    Path("koala.yaml").write_text(own_trait, encoding="utf-8")
    assert is_grid("my-grid.yaml") and len(plan_grid(grid("my-grid.yaml")).cells) == 4
    assert load_trait("koala.yaml").plural == "koalas"
    run(tiny_experiment)
    names: dict[str, Any] = {"si": si}
    for block in blocks("python", OWN):
        exec(block.replace('"tour"', '"tiny"').replace("300", "0"), names)
    assert names["refused"] == {"names the trait": 1} and len(names["kept"]) == 1
    assert (names["student"].written["refused"] != "").any()


def test_every_block_of_the_page_runs(
    tiny_experiment: Experiment, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *rest = blocks("python")
    assert 'run = si.run("tour")' in first and len(rest) >= 12
    experiment("tour")
    store = Store(store_root)
    names = {"si": si, "run": run(tiny_experiment, store)}
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(rest, 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)

    # Its experiment, cut down to the same tiny models, is one that can be run: each intervention removes something.
    (text,) = blocks("yaml")
    Path("my.yaml").write_text(text, encoding="utf-8")
    asked = experiment("my.yaml")
    kinds = [i.kind for i in asked.student.interventions]
    assert kinds == list(Intervention.model_fields["kind"].annotation.__args__)  # type: ignore[union-attr]
    student = tiny_experiment.student.model_copy(update={"interventions": asked.student.interventions})
    update = {"name": "inside", "arms": asked.arms, "seeds": asked.seeds, "student": student}
    finished = run(tiny_experiment.model_copy(update=update), store)
    assert finished["same-init", 0].answers["rate"].between(0, 1).all()


def test_every_command_of_the_page_is_one() -> None:
    commands = {c.name or c.callback.__name__ for c in app.registered_commands}  # type: ignore[union-attr]
    lines = re.findall(r"^    sublim (\w+) (\S+) *([\w-]*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) > 4
    for command, what, figure in lines:
        assert command in commands
        assert what.partition("/")[0] in {*experiment_names(), *grid_names()}
        if command == "plot":
            assert figure in FIGURES
        if "/" in what:
            _, arm, seed = what.split("/")
            assert arm in experiment("tour").arms and int(seed) in experiment("tour").seeds


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text(encoding="utf-8"))
    assert targets and all((PAGE.parent / t).exists() for t in targets)
