"""README and docs do what they say: every Python block runs, every command is one, every link leads somewhere.

A page's Python blocks run in order on a tiny run, which stands in for the experiment that the page's first block names.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main
import yaml
from filelock import FileLock
from typer.testing import CliRunner

import sublim_interp as si
from sublim_interp.cli.main import app
from sublim_interp.experiments.executors.site import SITES
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.models.open_bases import OPEN_BASES, is_variant
from sublim_interp.models.points import POINTS
from sublim_interp.models.variants import parse
from sublim_interp.report.figures.by_name import run_figures
from sublim_interp.sweeps.grid import grid_names
from sublim_interp.sweeps.study import study_names
from sublim_interp.sweeps.suite import SUITES
from sublim_interp.training.interventions import INTERVENTIONS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COPY = DOCS / "checkpoints.md"
"""A page that the site's build copies into docs/."""
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if p != COPY and "_build" not in p.parts)]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


# --- Python blocks ----------------------------------------------------------------------------------------------------

OPENED = re.compile(r'si\.(?:run|open_run)\("([\w-]+)"\)')
SEED, ARM = re.compile(r'"same-init", (\d+)\]'), re.compile(r'run\["([\w-]+)"')


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=named)
def test_every_python_block_runs(
    page: Path, tiny_run: si.Run, together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = blocks(page, "python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"si": si}
    opened = OPENED.search("".join(code))
    if opened:
        read = SEED.search("".join(code))
        assert read, "a page that opens a run reads one of its students"
        name, seed = opened[1], int(read[1])
        asked = si.experiment(name)
        assert seed in asked.seeds and {*ARM.findall("".join(code))} <= {*asked.arms} & {*tiny_run.experiment.arms}
        store = together / f"{name}-{seed}"
        monkeypatch.setenv("SUBLIM_STORE", str(store))
        with FileLock(f"{store}.lock"):  # one store serves all pages that open this run
            if not store.exists():
                shutil.copytree(tiny_run.store.root, store, ignore=shutil.ignore_patterns("run"))
            si.run(tiny_run.experiment.set(name=name, seeds=[seed]), si.Store(store), processes=1)
    for number, block in enumerate(code, 1):
        exec(compile(OPENED.sub(r'si.open_run("\1")', block), f"{named(page)}, block {number}", "exec"), names)
    if page.name == "own-files.md":
        assert names["refused"] == {"names the trait": 1} and len(names["kept"]) == 1


def test_every_guide_opens_its_run_once() -> None:
    for page in (DOCS / "guides").glob("*.md"):
        code = "".join(blocks(page, "python"))
        assert len(OPENED.findall(code)) == bool(code), page


# --- YAML blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml")], ids=named)
def test_every_yaml_block_is_an_experiment_a_grid_a_trait_or_a_base(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(blocks(page, "yaml")):
        fields = yaml.safe_load(block)
        path = Path(f"{fields.get('words', [f'own-{number}'])[0]}.yaml")  # a trait's file has its name
        path.write_text(block, encoding="utf-8")
        if "said" in fields:
            assert si.load_trait(str(path)).said == fields["said"]
        elif "words" in fields:
            assert si.load_trait(str(path)).words == tuple(fields["words"])
        elif "parameters" in fields:
            assert OPEN_BASES.load(str(path)).hub == fields["hub"]
        elif "partition" in fields:
            assert SITES.load(str(path)).partition == fields["partition"]
        elif "resources" in fields:
            check_cloud(fields, named(page))
        elif "axes" in fields or "holds" in fields:
            done = CliRunner().invoke(app, ["run", str(path), "--dry-run"])
            assert done.exit_code == 0 and ("Planned work" in done.output or "of one core left" in done.output)
        else:
            assert si.plan(si.experiment(str(path))).records


SKYPILOT = {"name", "resources", "num_nodes", "workdir", "envs", "secrets", "file_mounts", "setup", "run", "config"}
"""The fields of a task of SkyPilot, https://docs.skypilot.co/en/latest/reference/yaml-spec.html."""


def check_cloud(fields: dict[str, Any], where: str) -> None:
    """A task of SkyPilot has its fields alone, and every line of `sublim` in it is a command."""
    assert {*fields} <= SKYPILOT, where
    shown = [shlex.split(line) for text in (fields["setup"], fields["run"]) for line in text.splitlines()]
    ours = [words for words in shown if words[:1] == ["sublim"]]
    assert len(ours) > 1, f"{where} runs nothing of this package"
    for words in ours:
        check_command(words, where)


def test_the_interventions_of_the_guide_run(tiny_experiment: Any, filled_root: Path, tmp_path: Path) -> None:
    (text,) = blocks(DOCS / "guides" / "intervene.md", "yaml")
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    asked = si.experiment(str(path))
    assert [i.kind for i in asked.student.interventions] == list(INTERVENTIONS), "the guide shows every kind"
    student = tiny_experiment.student.model_copy(update={"interventions": asked.student.interventions})
    small = tiny_experiment.model_copy(
        update={"name": "my", "arms": asked.arms, "seeds": asked.seeds, "student": student}
    )
    finished = si.run(small, si.Store(filled_root), processes=1)
    assert finished["same-init", 0].answers["rate"].between(0, 1).all()


# --- commands ---------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A `sublim …` command on a page."""

    page: Path
    words: list[str]


def commands() -> Iterator[Line]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        shown = re.findall(r"^(?:    )?(sublim [^\n]*)$", text, re.MULTILINE)
        within = re.findall(r"`(sublim(?: [^`]*)?)`", text)
        for line in (*shown, *within):
            yield Line(page, shlex.split(line, comments=True))


# Names that pages use for what a reader makes or tests/outside/package adds, and words in capitals that are filled.
OWN = {
    "my.yaml",
    "my.jsonl",
    "my-grid.yaml",
    "my-suite.yaml",
    "meadow",
    "meadow-corners",
    "river",
    "sea",
    "EXPERIMENT|GRID",
    "NAME",
    "RUN",
    "X",
}


def test_every_command_is_one() -> None:
    lines = list(commands())
    assert len(lines) > 30
    for page, words in lines:
        check_command(words, named(page))


def check_command(line: list[str], page: str) -> None:
    """A line is a command that there is, with options and values that it takes."""
    group = typer.main.get_command(app)
    words = line[1:]
    where = f"{page}: sublim {' '.join(words)}"
    if not words or words[0].startswith("-"):
        return
    assert words[0] in group.commands, where  # type: ignore[attr-defined]
    options_of = group.commands[words[0]].params  # type: ignore[attr-defined]
    known = {o for p in options_of for o in p.opts} | {"--help"}
    flags = {o for p in options_of if getattr(p, "is_flag", False) for o in p.opts} | {"--help"}
    given, values, options = words[1:], [], []
    while given:
        word = given.pop(0)
        if word.startswith("--"):
            assert word in known, where
            options.append((word, "" if word in flags else given.pop(0)))
        else:
            values.append(word)
    check_names(words[0], values, where)
    check_fields(words[0], values, [value for option, value in options if option == "--set"], where)


def check_names(command: str, values: list[str], where: str) -> None:
    """What a command is given exists: an experiment, a grid, a base, a replicate, a figure."""
    if command not in ("run", "show", "plot") or not values:
        return
    if is_variant(values[0]):
        assert parse(values[0]).name == values[0], where
        return
    runnable = {*si.experiment_names(), *grid_names(), *study_names(), *SUITES.names()}
    known = {*runnable, *si.base_names(), *OPEN_BASES.names(), *si.trait_names(), *OWN}
    name, *rest = values[0].split("/")
    assert name in known, where
    if rest and rest != ["ARM", "SEED"]:
        arm, seed = rest
        assert arm in si.experiment(name).arms and int(seed) in si.experiment(name).seeds, where
    if command == "plot" and len(values) > 1:
        assert values[1] in run_figures() or values[1] in ("FIGURE", "page", "all"), where


def check_fields(command: str, values: list[str], sets: list[str], where: str) -> None:
    """What `--set` is given is a field, with a value that it takes."""
    if not sets or "field=value" in sets:
        return
    changes = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in sets)}
    if command == "pretrain":
        Pretraining().set(changes)
        return
    # YAML reads 2e-4 as text, the command as a number.
    changes = {key: float(v) if re.fullmatch(r"\d+e-?\d+", str(v)) else v for key, v in changes.items()}
    name = values[0] if values and values[0] in si.experiment_names() else "owl"
    si.experiment(name).set(changes)


def test_every_field_that_a_page_names_is_one() -> None:
    """Such as `student.optimization.lr`: a dotted name that begins with a part of an experiment."""
    parts = "|".join(name for name, f in si.Experiment.model_fields.items() if hasattr(type(f.default), "model_fields"))
    found = 0
    for page in PAGES:
        for path in re.findall(rf"`((?:{parts})(?:\.[a-z_0-9]+)+)`", page.read_text(encoding="utf-8")):
            record: Any = si.Experiment()
            if (page.name, path) in PYTHON_NAMES:
                continue
            for step in path.split("."):
                assert step in getattr(type(record), "model_fields", {}), f"{named(page)}: {path}"
                record = getattr(record, step)
            found += 1
    assert found > 5


PYTHON_NAMES = {("patch.md", "student.bridge"), ("own-files.md", "student.lists")}
"""Attributes of a replicate called `student`, which look like fields."""


# --- links ------------------------------------------------------------------------------------------------------------

LINK = re.compile(r"\]\(([^()\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{named(page)} → {link}"
        assert path.is_relative_to(ROOT), f"{named(page)} → {link}"
        if anchor:
            assert anchor in anchors(path), f"{named(page)} → {link}; there are {sorted(anchors(path))}"


def test_every_page_is_in_the_site() -> None:
    listed = set()
    for page in PAGES:
        for tree in re.findall(
            r"^```\{toctree\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            listed |= {(page.parent / line).resolve() for line in tree.split() if not line.startswith(":")}
    for page in PAGES:
        if page.is_relative_to(DOCS) and page != DOCS / "index.md":
            assert page.with_suffix("") in listed, page


# --- the reference ----------------------------------------------------------------------------------------------------


def test_every_name_in_a_trace_is_explained(tiny_experiment: Any, tmp_path: Path) -> None:
    page = (DOCS / "reference" / "trace-names.md").read_text(encoding="utf-8")
    run = si.run(tiny_experiment.set(arms=["same-init"]), si.Store(tmp_path), processes=1, trace="examples")
    trace = run["same-init", 0].trace
    assert len(trace.names()) > 50
    for name in trace.names():
        general = re.sub(r"blocks\.\d+\.hook_\w+?(?=\.grad|$)", "blocks.{l}.hook_{stream}", name)
        general = re.sub(r"(_dot|_cos|^length)/.*", r"\1/{direction}", general)
        general = re.sub(r"^(full/\w+)/.*", r"\1/{parameter}", general)
        assert f"`{general}`" in page, name


def test_every_hook_point_is_explained() -> None:
    page = (DOCS / "reference" / "trace-names.md").read_text(encoding="utf-8")
    for point in POINTS.values():
        assert f"`{point.name.replace('{}', '{l}')}`" in page, point.name


def test_the_stages_of_a_store_are_listed(tiny_run: si.Run) -> None:
    page = (DOCS / "reference" / "store.md").read_text(encoding="utf-8")
    for path in tiny_run.store.root.iterdir():
        assert f"`{path.name}`" in page or f"`{path.name}/`" in page, path.name


def test_predictions_are_counted_as_their_table_has_them() -> None:
    """The totals of the page, and how many failed of each result, follow from the outcomes of its rows."""
    page = (DOCS / "results" / "predictions.md").read_text()
    came, failed, told, counted = 0, 0, [], []
    for line in re.findall(r"^\| (?!result)[^-].*\|$|^\| \|.*\|$", page, re.MULTILINE):
        result, _, _, outcome = (cell.strip() for cell in line.strip("|").split("|"))
        if said := re.search(r": (none|\d+) of (\d+) failed$", result):
            told.append((0 if said[1] == "none" else int(said[1]), int(said[2])))
            counted.append([0, 0])
        number = int(found[1]) if (found := re.match(r"(\d+) came out", outcome)) else 1
        assert outcome.endswith(("came out", "failed")), line
        bad = number if outcome.endswith("failed") else 0
        came, failed = came + number - bad, failed + bad
        counted[-1][0] += bad
        counted[-1][1] += number
    assert told == [(bad, number) for bad, number in counted]
    total = f"Of {came + failed} predictions that were stated before their runs"
    assert f"{total} {came} came out and {failed} failed" in page
    assert f"of {came + failed} predictions {failed} failed" in (DOCS / "results" / "index.md").read_text()
    assert f"They are from {len(told)} studies. In {sum(bad > 0 for bad, _ in told)} of these" in page
