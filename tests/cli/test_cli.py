"""The command as a user types it: real runs on tiny bases, bad input, interruption. Each call is its own process."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from command import SHELL, Started, from_shell, sublim
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.report.run import run
from sublim_interp.training.recording.trace import Trace


@pytest.fixture
def experiment_file(tiny_experiment: Experiment, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    return path


def refused(result: subprocess.CompletedProcess[str], *mentions: str) -> None:
    """One line on standard error that names what was wrong, exit code 2, nothing else."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if not re.match(r"\s*\d+ s +\d+%", line)]
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("sublim: ")
    for mention in mentions:
        assert mention in errors[0], errors[0]


def contents(root: Path) -> dict[str, dict]:
    """Stage and key → digests of the files, for every artefact of a store but the reports."""
    return {
        f"{a.stage}/{a.key}": {name: file["sha256"] for name, file in a.manifest["files"].items()}
        for a in Store.open(root).list()
    }


def wait_until(happens: Callable[[], bool]) -> None:
    """Looks often, and gives up after a minute."""
    until = time.monotonic() + 60
    while not happens() and time.monotonic() < until:
        time.sleep(0.05)


def begun(experiment_file: Path, root: Path) -> subprocess.Popen[str]:
    """A run that has just been typed, in a session of its own; its streams are pipes."""
    return subprocess.Popen(
        [*SHELL, "run", str(experiment_file), "--store", str(root)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip


def count(root: Path) -> int:
    """How many artefacts are finished."""
    return len(list(root.glob("[a-z]*/*")))


def wait_for_one_more(root: Path, child: subprocess.Popen[str] | Started) -> None:
    """Until one more artefact is finished, or the run has ended."""
    before = count(root)
    wait_until(lambda: count(root) > before or child.poll() is not None)


@pytest.mark.parametrize("words", [["list"], ["run", "owls"]])
def test_a_shell_sees_what_the_other_tests_see(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process that has imported all it needs."""
    monkeypatch.setenv("SUBLIM_BASES", str(tmp_path / "bases"))  # whatever this user has pulled
    shell, fork = (run(*words, cwd=tmp_path) for run in (from_shell, sublim))
    assert (shell.returncode, shell.stdout, shell.stderr) == (fork.returncode, fork.stdout, fork.stderr)
    assert (shell.returncode == 0) == (words == ["list"])


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'matplotlib', 'pydantic'}"
    call = "from sublim_interp.cli.main import app; app(['--help'], standalone_mode=False)"
    code = f"import sys; {call}; print('HEAVY', sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "HEAVY []" in result.stdout


def test_list_names_experiments_traits_and_bases(tmp_path: Path) -> None:
    shown = sublim("list", "--store", tmp_path / "none").stdout
    for name in ("owl", "demo", "dose", "dolphin", "sequoia", "lab-small-0"):
        assert name in shown
    assert not (tmp_path / "none").exists()


def test_show_explains_every_field_and_plans_the_work(tmp_path: Path) -> None:
    shown = " ".join(sublim("show", "owl", "--store", tmp_path / "none").stdout.split())
    assert "student.optimization.lr" in shown and "Peak learning rate" in shown
    assert "96" in shown  # 12 replicates × (6 trained arms + 2 further rounds) students
    assert "of one core" in shown


def test_show_and_plot_tell_what_there_is(tmp_path: Path) -> None:
    place = ["--store", tmp_path / "none"]
    grid = " ".join(sublim("show", "orders", *place).stdout.split())
    assert "must teacher and student share" in grid and "experiment owl" in grid and "lab-order-0" in grid
    assert "sublim pretrain lab-small-0" in sublim("show", "lab-small-0", *place).stdout
    key = (RESULTS / "owl" / "key.txt").read_text()[:16]
    assert f"{key}, 12 replicates" in sublim("show", "owl", *place).stdout
    figures = sublim("plot").stdout
    assert "stream-cosine" in figures and "update by" in figures
    assert not (tmp_path / "none").exists()


def test_a_grid_of_ones_own_runs_from_its_file(tiny_experiment: Experiment, filled_root: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_experiment.to_yaml())
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "about: Does the rate matter?\nexperiment: tiny.yaml\nchange: {arms: [same-init]}\n"
        "axes:\n  student.optimization.lr: [0.001, 0.01]\n  filter.max_value: [0]\n"
    )
    said = sublim("run", "mine.yaml", "--store", filled_root, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "mine: Means over replicates" in said.stdout and "0.01" in said.stdout
    assert "No result for 0 with seed 0 (teacher, same-init). Filter: nothing is left" in said.stdout
    for option in ([], ["--dry-run"]):
        again = sublim("run", "mine.yaml", *option, "--store", filled_root, cwd=tmp_path).stdout
        assert "nothing to do" in again and "Planned work" not in again
    assert "Does the rate matter?" in sublim("show", "mine.yaml", "--store", filled_root, cwd=tmp_path).stdout


def test_a_dry_run_writes_nothing(experiment_file: Path, store_root: Path) -> None:
    result = sublim("run", experiment_file, "--dry-run", "--store", store_root)
    assert result.returncode == 0 and "student" in result.stdout
    assert not store_root.exists()


def test_a_dry_run_says_what_the_asked_trace_will_hold(experiment_file: Path, store_root: Path) -> None:
    planned = {
        word: sublim("run", experiment_file, "--dry-run", "--trace", word, "--store", store_root).stdout
        for word in ("none", "default", "examples")
    }
    assert "nothing to record" in planned["none"]
    assert "weight deltas" in planned["default"] and "of each example" not in planned["default"]
    assert "of each example" in planned["examples"]


def test_run_reports_then_has_nothing_to_do(experiment_file: Path, store_root: Path) -> None:
    first = sublim("run", experiment_file, "--store", store_root)
    assert first.returncode == 0, first.stderr
    assert "about" in first.stderr.splitlines()[0]  # an estimate from the first line on
    planned = re.findall(r"^Recording (\d+) trainings, about ([\d.]+) MB \(--trace none: nothing; ", first.stdout, re.M)
    traces = [Trace.open(path.parent) for path in store_root.glob("*/*/trace/trace.jsonl")]
    size = sum(e["bytes"] for t in traces for e in t.shards) / 1e6
    assert len(planned) == 1 and int(planned[0][0]) == len(traces) > 0 and first.stdout.startswith("Recording")
    assert 0.2 * size < float(planned[0][1]) < 2 * size
    made = contents(store_root)
    page = next(store_root.glob("run/*/report.html")).read_text()
    assert "same-init" in page and "http-equiv" not in page and "<script src" not in page
    second = sublim("run", experiment_file, "--store", store_root)
    assert "nothing to do" in second.stdout and "Recording" not in second.stdout
    assert contents(store_root) == made
    finished = Store.open(store_root).list("run")[0]
    assert finished.key[:16] in sublim("list", "--store", store_root).stdout
    assert "same-init" in sublim("show", finished.key[:10], "--store", store_root).stdout
    assert sublim("verify", "--store", store_root).returncode == 0
    (finished.path / "summary.csv").write_text("arm,n\n")
    found = sublim("verify", "--store", store_root)
    assert found.returncode == 1 and "summary.csv is altered" in found.stdout


def test_a_replicate_is_shown_and_its_run_is_plotted(tiny_run: Run, filled_root: Path, tmp_path: Path) -> None:
    place = ["--store", filled_root]
    shown = sublim("show", "tiny/same-init/0", *place).stdout
    assert "What it answers" in shown and "held-out" in shown
    assert "How it learnt" in shown and "trace" in shown  # the trace's rows
    assert "was not trained" in sublim("show", f"{tiny_run.key[:8]}/base/0", *place).stdout
    refused(sublim("show", "tiny/sameinit/0", *place), "no arm 'sameinit'", "did you mean 'same-init'")
    refused(sublim("show", "tiny/same-init/one", *place), "no replicate same-init/one", "seeds: 0")
    said = sublim("plot", "tiny", "training", "--out", tmp_path / "figures", *place)
    assert said.returncode == 0, said.stderr
    paths = [Path(line) for line in said.stdout.split()]
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and paths[1].read_bytes().startswith(b"%PDF")
    refused(sublim("plot", "tiny", "trainings", *place), "no figure 'trainings'", "did you mean 'training'")
    listed = " ".join(sublim("list", *place).stdout.split())
    assert f"{tiny_run.key[:16]} tiny owl" in listed
    (tmp_path / "file").write_text("")
    refused(sublim("plot", "tiny", "arms", "--out", tmp_path / "file", *place), "--out")
    again = run(tiny_run.experiment.set(arms=["base"]), Store(filled_root), processes=1)
    refused(sublim("show", "tiny", *place), "may mean any of these", tiny_run.key[:16], again.key[:16])


def test_a_killed_run_ends_in_the_same_bytes(experiment_file: Path, tiny_run: Run, store_root: Path) -> None:
    """SIGKILL to the whole process group, each time at a random moment after one artefact more, until it is through."""
    moments, killed = random.Random(0), 0
    for _ in range(3):
        child = Started("run", experiment_file, "--store", store_root)
        wait_for_one_more(store_root, child)
        time.sleep(moments.uniform(0, 1))
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            killed += 1
        child.wait()
    assert killed
    assert sublim("run", experiment_file, "--store", store_root).returncode == 0
    assert contents(store_root) == contents(tiny_run.store.root)


def test_workers_go_when_their_parent_is_killed(experiment_file: Path, store_root: Path) -> None:
    child = begun(experiment_file, store_root)

    def alive() -> list[int]:
        """Processes of the child's session."""
        stats = (
            path.read_text().rsplit(")", 1)[1].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()
        )
        return [int(fields[3]) for fields in stats if int(fields[3]) == child.pid and fields[0] != "Z"]

    wait_until(lambda: len(alive()) >= 3 or child.poll() is not None)
    child.kill()
    child.wait()
    wait_until(lambda: not alive())
    assert not alive()


def interrupted(code: int | None, said: str) -> None:
    """It ended as a command does that Ctrl-C stops."""
    assert code == 130
    assert "Traceback" not in said and "interrupted" in said.splitlines()[-1]


def test_ctrl_c_is_one_line_and_the_command_goes_on(experiment_file: Path, tiny_run: Run, store_root: Path) -> None:
    """As soon as progress is shown, then again, from a shell, as soon as something is made."""
    early = Started("run", experiment_file, "--store", store_root)
    wait_until(lambda: "left" in early.error())
    os.killpg(early.pid, signal.SIGINT)
    done = early.wait()
    interrupted(done.returncode, done.stderr)
    second = store_root.with_name("second")  # where all is to do, so that the signal comes long before the end
    child = begun(experiment_file, second)
    wait_for_one_more(second, child)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=120)
    interrupted(child.returncode, said)
    assert count(second)
    for root in (store_root, second):
        assert sublim("run", experiment_file, "--store", root).returncode == 0
        assert contents(root) == contents(tiny_run.store.root)


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["run", "owls"], ["unknown experiment 'owls'", "did you mean 'owl' or 'rows'? (all: sublim list)"]),
        (["run", "smoke", "--set", "trait=unicorn"], ["unknown trait 'unicorn'", "dolphin", "sublim list"]),
        (["run", "smoke", "--set", "trait"], ["--set 'trait'", "field=value"]),
        (["run", "smoke", "--set", "student.optimization.rate=1"], ["rate", "lr"]),
        (["run", "smoke", "--set", "student.part=head"], ["part", "body"]),
        (["run", "smoke", "--set", "other_trait=oak", "--set", "arms=[other-trait]"], ["oak", "tree", "animal"]),
        (["run", "smoke", "--set", "corpus.setting=greedy", "--set", "corpus.temperature=0.5"], ["temperature"]),
        (["run", "smoke", "--trace", "all"], ["no trace 'all'", "none, default, examples"]),
        (["run", "smoke", "--base", "nowhere"], ["nowhere", "lab-main-0"]),
        (["show", "gremlin"], ["'gremlin' is no experiment, grid", "did you mean 'green'?"]),
        (["show", "gremlin/same-init/0"], ["no run is called 'gremlin'"]),
        (["plot", "gremlin", "arms"], ["no run is called 'gremlin'"]),
        (["plot", "gremlin", "arm"], ["no figure 'arm'", "did you mean 'arms'?"]),
        (["run", "smoke", "--set", "trait=koala.yaml"], ["trait 'koala.yaml': there is no such file in"]),
        (["run", "smoke", "--base", "gpt2"], ["base 'gpt2'", "OWNER/NAME"]),
        (["run", "smoke", "--base", "lab-small-0", "--base", "lab-small-0"], ["--set bases", "twice"]),
        (["show", "dosis"], ["no experiment, grid", "did you mean 'dose'"]),
        (["pretrain", "somewhere", "--set", "heads=7"], ["heads=7", "d_model"]),
        (["dance"], ["dance"]),
    ],
)
def test_bad_words_are_one_line(arguments: list[str], mentions: list[str], tmp_path: Path) -> None:
    place = ["--store", tmp_path / "store"] if arguments[0] in ("run", "show", "plot") else []
    refused(sublim(*arguments, *place, cwd=tmp_path), *mentions)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("trait: [owl", ["broken YAML", "line"]),
        ("- owl\n- wolf\n", ["key: value"]),
        ("traitt: owl\n", ["unknown key 'traitt'", "trait"]),
        ("student: {optimization: {lr: fast}}\n", ["student.optimization.lr", "fast"]),
        ("seeds: []\n", ["seeds is empty"]),
        ("bases: [lab-small-0]\n", ["cross-init", "two bases"]),
    ],
)
def test_bad_files_are_one_line(text: str, mentions: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    refused(sublim("run", path, "--store", tmp_path / "store"), "mine.yaml", *mentions)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("damage", ["no tokenizer", "pickle only", "lacks the word", "broken weights"])
def test_bad_bases_are_one_line(damage: str, tiny_bases: tuple[Base, Base], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bases[0].path, base)
    mentions = {"no tokenizer": "no tokenizer", "pickle only": "pickle", "lacks the word": "lacks the word 'owl'"}.get(
        damage, "base"
    )
    if damage == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (base / name).unlink()
    elif damage == "pickle only":
        (base / "model.safetensors").rename(base / "pytorch_model.bin")
    elif damage == "lacks the word":
        tokenizer = json.loads((base / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["hoot"] = vocabulary.pop("owl")
        (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    else:
        whole = (base / "model.safetensors").read_bytes()
        (base / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(sublim("run", "smoke", "--base", base, "--store", tmp_path / "store"), mentions)
    assert not list((tmp_path / "store").glob("[a-z]*/*"))


def test_a_store_that_cannot_be_written_is_one_line(experiment_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    refused(sublim("run", experiment_file, "--store", tmp_path / "file"), "store")
    assert (tmp_path / "file").read_text() == "not a directory"


def test_all_rows_refused_is_one_line_and_publishes_nothing(experiment_file: Path, filled_root: Path) -> None:
    everything = ["filter.max_value=0", "filter.max_numbers=1"]
    sets = [word for setting in everything for word in ("--set", setting)]
    before = contents(filled_root)
    refused(sublim("run", experiment_file, "--store", filled_root, *sets), "refused")
    assert contents(filled_root) == before
