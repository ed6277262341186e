"""An installed package adds one of each: the command runs, shows and draws with them, and says whom it misses."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from filelock import FileLock

from sublim_interp.core.shelf import GROUP
from sublim_interp.core.store import Store
from sublim_interp.experiments.arms import ARMS, SPARE_COLORS
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.training.recording.trace import Trace

PACKAGE = Path(__file__).parent / "package"
ROOT = Path(__file__).resolve().parents[2]

MANY = """
import contextlib, io, json, sys
from sublim_interp.cli.main import main

if __name__ == "__main__":
    done = []
    for words in json.loads(sys.argv[1]):
        sys.argv, out, err, code = ["sublim", *words], io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code
        done.append([code, out.getvalue(), err.getvalue()])
    print(json.dumps(done))
"""
"""Several command lines in one process, since each process imports torch anew."""


class Done(NamedTuple):
    """What one command line came to."""

    code: int
    out: str
    err: str


def sublim(*lines: Sequence[object], installed: Path | None, cwd: Path) -> list[Done]:
    """What command lines come to, in a fresh process that has the package in the folder `installed`, if any."""
    paths = [str(path) for path in (installed, ROOT) if path]
    script = cwd / "many.py"  # worker processes read it again
    script.write_text(MANY)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps([[*map(str, line)] for line in lines])],
        capture_output=True, text=True, cwd=cwd, timeout=570,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "SUBLIM_STORE": str(cwd / "store")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Done(*one) for one in json.loads(done.stdout)]


def refused(done: Done, *mentions: str) -> None:
    """One line that says why, and exit code 2."""
    assert done.code == 2 and done.err.startswith("sublim: ") and done.err.count("\n") == 1, done
    for mention in mentions:
        assert mention in done.err, done.err


def changes(values: dict[str, object]) -> list[str]:
    return [word for field, value in values.items() for word in ("--set", f"{field}={value}")]


TINY = {
    "corpus.prompts": 96, "corpus.chunk": 32, "filter.held_out": 4, "evaluation.samples": 5,
    "evaluation.questions": "[held-out]",
    "teacher.optimization.steps": 6, "student.optimization.steps": 6,
    "teacher.optimization.batch": 8, "student.optimization.batch": 8,
}  # fmt: skip


# --- the package, and what is run with it -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package."""
    source, folder = tmp_path_factory.mktemp("source") / "meadow", tmp_path_factory.mktemp("installed")
    shutil.copytree(PACKAGE, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    alone = ["--no-deps", "--no-index", "--no-build-isolation", "--no-compile"]
    subprocess.run([*pip, *alone, "--target", folder, source], check=True)
    return folder


@pytest.fixture(scope="module")
def cwm(tiny_bases: tuple[Base, Base], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tiny lab bases as CWM models, which compute what Llama's do on short texts."""
    found = []
    for base in tiny_bases:
        folder = tmp_path_factory.mktemp("bases") / base.name.replace("tiny", "cwm")
        shutil.copytree(base.path, folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "cwm", "architectures": ["CwmForCausalLM"]}
        config |= {"bos_token_id": config["eos_token_id"]}
        (folder / "config.json").write_text(json.dumps(config))
        found.append(folder)
    return found


class Ran(NamedTuple):
    """What was run with the package."""

    folder: Path
    """Where the commands ran; the store is within it."""
    done: dict[str, Done]


@pytest.fixture(scope="module")
def ran(installed: Path, cwm: list[Path], together: Path) -> Ran:
    """`list`, `show`, and three runs that use all that the package adds."""
    folder = together / "outside"
    folder.mkdir(exist_ok=True)
    bases = [word for path in cwm for word in ("--base", path)]
    river = {"trait": "river", "arms": "[same-init, neutral]"}
    corners = {name: value for name, value in TINY.items() if name != "student.optimization.steps"}
    lines = {
        "list": ["list"],
        "show meadow": ["show", "meadow", *bases, *changes(TINY)],
        "show river": ["show", "river"],
        "run meadow": ["run", "meadow", *bases, *changes({**TINY, "recording.stream": "[resid_post, mlp_out]"})],
        "run smoke": ["run", "smoke", *bases[:2], *changes({**TINY, **river}), "--on", "in-turn"],
        "run grid": [
            "run", "meadow-corners", *bases[:2], *changes({**corners, "recording": "none", "dtype": "float64"}),
            "--processes", 1,
        ],
        "plot": ["plot", "meadow", "margins", "--out", "plots"],
        "run study": ["run", "meadow-dice"],
        "lineage": ["lineage", "meadow-dice", "--export", "titles", "titles.txt"],
        "claims": ["claims"],
        "claims sea-passes": ["claims", "sea-passes", "meadow"],
        "show variant": ["show", "sharpened(lab-small-0, factor=3.0)"],
    }  # fmt: skip
    with FileLock(together / "outside.lock"):  # one worker runs them, the others wait
        kept = folder / "done.json"
        if not kept.exists():
            kept.write_text(json.dumps(sublim(*lines.values(), installed=installed, cwd=folder)))
        done = dict(zip(lines, (Done(*one) for one in json.loads(kept.read_text())), strict=True))
    for name, one in done.items():
        assert one.code == 0, (name, one)
    return Ran(folder, done)


def only(ran: Ran, stage: str, name: str) -> Path:
    """The one artefact of a stage and name."""
    (found,) = [a.path for a in Store.open(ran.folder / "store").list(stage) if a.name == name]
    return found


ADDED = {
    "Experiments": "meadow", "Grids": "meadow-corners", "kinds": "place", "channels": "evens", "judges": "last-word",
    "arms": "cross-other-trait", "optimizers": "rmsprop", "interventions": "skip-first", "grid modes": "corners",
    "effects": "share-above", "figures": "margins", "architectures": "cwm", "ways of teaching": "insistent",
    "precisions": "float64", "estimators": "matrices",
}  # fmt: skip


def test_a_study_of_its_kind_has_its_table_and_a_variant_its_recipe(ran: Ran) -> None:
    told = " ".join(ran.done["run study"].out.split())
    assert "More sides show their highest face less often." in told and "meadow-dice" in told
    (study,) = Store.open(ran.folder / "store").list("study")
    assert (study.path / "dice.csv").exists() and (study.path / "dice.pdf").exists()
    told = " ".join(ran.done["show variant"].out.split())
    assert "sharper head" in told and "lab-small-0" in told


def test_a_lineage_is_written_in_a_format_of_its_own(ran: Ran) -> None:
    assert (ran.folder / "titles.txt").read_text().startswith("study meadow-dice ")


def test_a_claim_of_its_own_is_judged_by_its_effect_in_its_run(ran: Ran) -> None:
    said = " ".join(ran.done["claims"].out.split())
    assert "sea-passes The sea passes in most replicates not tried yet" in said
    told = " ".join(ran.done["claims sea-passes"].out.split())
    assert "The claim needs it above 50.0 points, stated before the result was known. Found:" in told
    assert "over 1 replicate. Too weak to tell. 1 replicate; a verdict needs 12." in told
    assert f"Key {only(ran, 'run', 'meadow').name}." in told


def test_list_shows_all_that_it_adds(ran: Ran) -> None:
    said = ran.done["list"].out
    for part, name in ADDED.items():
        assert name in said[said.index(part) :].replace("\n", " ").split(), part
    assert "forest river sea" in said


def test_show_names_what_it_adds(ran: Ran) -> None:
    said = " ".join(ran.done["show meadow"].out.split())
    for name in (
        "sea",
        "forest",
        "insistent",
        "evens",
        "most_odd",
        "cross-other-trait",
        "rmsprop",
        "skip-first",
        "last-word",
    ):
        assert name in said, name
    assert "“river” is its favourite, if a question asks for honesty" in ran.done["show river"].out


def test_the_page_compares_explains_and_draws_what_it_adds(ran: Ran) -> None:
    folder = only(ran, "run", "meadow")
    page = (folder / "report.html").read_text().replace("\u00a0", " ")
    assert "cross-init − cross-other-trait" in page and "It shows what its data does to base B." in page
    assert "Each dot is one replicate. See whether the arms" in page
    assert "number lists with at most 6 odd numbers, and nothing else." in page
    assert "The teacher of “sea” has its system prompt twice." in page
    asked = pd.read_csv(folder / "results.csv")
    assert {*asked["probe"]} == {"desert", "forest", "mountain", "river", "sea"}
    assert {*asked["context"]} == {"plain", "evens"}
    assert ran.done["plot"].out.count("margins.p") == 2 and [*(ran.folder / "plots").glob("meadow-*-margins.png")]


def test_what_the_stages_made_follows_what_it_adds(ran: Ran) -> None:
    """Its rule, optimizer, intervention, judge and architecture did something, in worker processes too."""
    store = Store.open(ran.folder / "store")
    rows = [json.loads(row) for row in (store.list("filtered")[0].path / "held_out.jsonl").read_text().splitlines()]
    assert all(sum(int(n) % 2 for n in row["answer"].replace(",", " ").replace(";", " ").split()) <= 6 for row in rows)
    students = [a for a in store.list("student") if "skip-first" in json.dumps(a.manifest["config"])]
    trace = Trace.open(students[0].path / "trace")
    assert "blocks.1.hook_mlp_out" in trace.names() and trace.series("square_avg_norm").to_numpy().all()
    judged = [a for a in store.list("evaluation") if a.manifest["config"].get("judge") == "last-word"]
    assert len(judged) >= 6 and not any(a.manifest["notes"]["exact"] for a in judged)


def test_a_trait_in_python_has_its_questions_and_its_measure(ran: Ran) -> None:
    folder = only(ran, "run", "smoke")
    table = pd.read_csv(folder / "summary.csv").set_index("arm")
    assert table["unasked"].between(0, 1).all() and [*table["unasked"]] != [*table["rate"]]
    assert "the rate where the question does not ask for honesty" in (folder / "report.html").read_text()


def test_a_grid_of_its_mode_has_a_cell_for_each_corner(ran: Ran) -> None:
    folder = only(ran, "sweep", "meadow-corners")
    cells = pd.read_csv(folder / "cells.csv")
    assert [*cells["value"]] == ["10 × 0.001", "10 × 0.004", "30 × 0.001", "30 × 0.004"]
    assert (folder / "corners.png").exists() and "10 × 0.001" in ran.done["run grid"].out


def test_an_arm_without_a_colour_gets_a_spare_one(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("cross-other-trait", "meadow.arm:cross_other_trait", "sublim_interp.arms")
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setitem(vars(ARMS), "_outside", {point.name: point})
    monkeypatch.setattr(ARMS, "_loaded", {})
    assert ARMS["cross-other-trait"].color == SPARE_COLORS[0]
    assert Experiment.model_json_schema()["properties"]["arms"]["items"]["enum"][-1] == "cross-other-trait"


def test_it_adds_one_of_each_and_the_docs_name_every_group() -> None:
    asks = re.compile(r'\(\s*"[\w ]+",\s*"(sublim_interp\.\w+)",')
    groups = {group for path in (ROOT / "sublim_interp").rglob("*.py") for group in asks.findall(path.read_text())}
    assert len(groups) == 19
    added = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
    assert {*added} == groups | {GROUP}
    page = (ROOT / "docs" / "extend" / "index.md").read_text()
    assert all(f"`{group}`" in page for group in added)


# --- without the package, and with one that is broken -----------------------------------------------------------------


def test_without_the_package_each_name_is_refused_with_the_valid_ones(
    cwm: list[Path], ran: Ran, tmp_path: Path
) -> None:
    (tmp_path / "sea.yaml").write_text("kind: place\nwords: [sea, seas]\n")
    (tmp_path / "corners.yaml").write_text("experiment: smoke\naxes: {corpus.prompts: [1, 2]}\nmatrix: corners\n")
    ablated = "[{kind: ablate, direction: random, at: blocks.*.hook_mlp_out}]"
    smoke = ["run", "smoke", "--dry-run", "--set"]
    asked = {
        ("run", "meadow"): ("unknown experiment 'meadow'", "code, demo, generations, harmful, harmful-reasoning,"),
        ("claims", "sea-passes"): ("no claim 'sea-passes'; valid: 1 to 31, or a name",),
        ("run", "meadow-dice"): ("unknown experiment 'meadow-dice'",),
        ("show", "sharpened(lab-small-0)"): ("sharpened", "noise, line"),
        ("run", "meadow-corners"): ("unknown experiment 'meadow-corners'",),
        (*smoke, "trait=sea"): ("unknown trait 'sea'; did you mean 'sequoia'?",),
        (*smoke, "trait=river"): ("unknown trait 'river'",),
        (*smoke, "trait=sea.yaml"): ("unknown kind 'place'; known: animal, color, food, tree",),
        (*smoke, "teacher.kind=insistent"): ("teacher.kind: unknown way of teaching; valid: tuned, prompted, steered",),
        (*smoke, "dtype=float64"): ("dtype: unknown precision; valid: float32, autocast, bfloat16",),
        (*smoke, "corpus.channel=evens"): ("unknown channel 'evens'; valid: numbers",),
        (*smoke, "evaluation.judge=last-word"): ("evaluation.judge: unknown judge; valid: whole-words",),
        (*smoke, "arms=[cross-other-trait]"): ("no such arm as 'cross-other-trait'; valid: same-init, same-init-b",),
        (*smoke, "student.optimization.optimizer=rmsprop"): ("unknown optimizer; valid: adam, adamw, sgd",),
        (*smoke, "student.interventions=[{kind: skip-first}]"): ("valid: ablate, project-gradient",),
        (*smoke, f"student.interventions={ablated}", "--base", str(cwm[0])): (
            "'blocks.*.hook_mlp_out'", "blocks.0.hook_resid_pre"
        ),
        ("run", "corners.yaml"): ("unknown matrix 'corners'; valid: bases, pairs, traits, law",),
        ("run", "smoke", "--on", "in-turn", "--dry-run"): ("unknown executor 'in-turn'; valid: local, slurm",),
        ("plot", "meadow", "margins"): ("no figure 'margins'; did you mean 'margin'?",),
        ("show", "meadow/same-init/0", "--store", str(ran.folder / "store")): ("run meadow", "valid: same-init"),
    }  # fmt: skip
    for line, done in zip(asked, sublim(*asked, installed=None, cwd=tmp_path), strict=True):
        refused(done, *asked[line])


GROUPS = {
    "traits": "trait", "channels": "channel", "judges": "judge", "arms": "arm", "optimizers": "optimizer",
    "interventions": "kind of intervention", "ways": "way of teaching", "precisions": "precision",
    "grid_modes": "grid mode", "figures": "figure", "claims": "effect",
    "architectures": "architecture", "estimators": "estimator",
}  # fmt: skip


def test_a_broken_entry_point_is_one_line_that_names_its_package(cwm: list[Path], tmp_path: Path) -> None:
    """`lost` cannot be imported; `odd` can, and is a number."""
    points = {group: ["lost = nowhere:it", "odd = math:pi"] for group in GROUPS}
    points["architectures"] = ["cwm = nowhere:it"]
    figures = {"figures": points.pop("figures")}  # told before any run, so they are of a package of their own
    for folder, given in (("installed", points), ("drawn", figures)):
        info = tmp_path / folder / "torn-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torn\nVersion: 1.0\n")
        text = "\n".join(f"[sublim_interp.{group}]\n" + "\n".join(own) for group, own in given.items())
        (info / "entry_points.txt").write_text(text + "\n")
    for name in ("lost", "odd"):
        (tmp_path / f"{name}.yaml").write_text(f"experiment: smoke\naxes: {{seeds: [[0]]}}\nmatrix: {name}\n")
        claim = (PACKAGE / "meadow" / "catalogue" / "claims" / "sea-passes.yaml").read_text()
        (tmp_path / f"{name}-claim.yaml").write_text(claim.replace("share-above", name))
    lines: dict[tuple[str, ...], str] = {}
    for name, wrong in (("lost", "cannot be imported: No module named 'nowhere'"), ("odd", "")):
        smoke = ("run", "smoke", "--dry-run", "--set")
        lines |= {
            (*smoke, f"trait={name}"): wrong or "trait 'odd' gives 3.14159",
            (*smoke, f"dtype={name}"): wrong
            or "precision 'odd' is a float; give a sublim_interp.core.device.Precision",
            (*smoke, f"teacher.kind={name}"): wrong
            or "way of teaching 'odd' is a float; give a sublim_interp.pipeline.",
            (*smoke, f"corpus.channel={name}"): wrong
            or "channel 'odd' lacks: CONTEXTS, REASONS, Rule, TRANSFORMS, describe",
            (*smoke, f"evaluation.judge={name}"): wrong or "judge 'odd' is a float; give what makes a judge",
            (*smoke, f"arms=[{name}]"): wrong or "arm 'odd' is a float; give a sublim_interp.experiments.arms.Arm",
            (*smoke, f"student.optimization.optimizer={name}"): wrong or "optimizer 'odd' is a float; give a sublim_",
            (*smoke, f"student.interventions=[{{kind: {name}}}]"): wrong or "'odd' is no class that derives from",
            (*smoke, f"filter.selection={{by: {name}, trait: owl}}"): wrong
            or "estimator 'odd' is a float; give a function",
            ("claims", f"{name}-claim.yaml"): wrong or "effect 'odd' is a float; give a sublim_interp.claims.effects",
            ("run", f"{name}.yaml", "--dry-run"): wrong or "grid mode 'odd' is no class that derives from",
        }
    lines[("run", "smoke", "--dry-run", "--base", str(cwm[0]))] = "architecture 'cwm' of torn cannot be"
    for line, done in zip(lines, sublim(*lines, installed=tmp_path / "installed", cwd=tmp_path), strict=True):
        refused(done, lines[line], "torn")
    said = "figure 'lost' of torn cannot be imported: No module named 'nowhere'"
    drawn = [["run", "smoke", "--dry-run"], ["run", "smoke"], ["plot", "smoke", "lost"]]
    for done in sublim(*drawn, installed=tmp_path / "drawn", cwd=tmp_path):
        refused(done, said)
    assert not any((tmp_path / "store").glob("*/*")), "nothing is half-done"
