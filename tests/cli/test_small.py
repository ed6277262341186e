"""The small words of the command line: version, long errors, all figures, files that extend and lie beside others."""

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, model_serializer
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

import sublim_interp as si
from fake_card import FULL, Told, tell_of
from sublim_interp.cli.main import app, main
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.cost import planned_memory
from sublim_interp.experiments.results import Run
from sublim_interp.report.figures.by_name import run_figures


def said(*words: str) -> str:
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_it_says_its_version() -> None:
    assert said("--version") == f"sublim {si.__version__}"


def test_a_long_error_is_a_short_line_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sublim", "run", "demo", "--set", "trait=" + "x" * 300])
    with pytest.raises(SystemExit) as ended:
        main()
    line = capsys.readouterr().err
    assert ended.value.code == 2 and len(line) <= 201 and line.endswith("(all of it: sublim show error)\n")
    whole = said("show", "error")
    assert (
        len(whole) > 200 and whole.startswith(line[:100].strip()) and list(tmp_path.iterdir()) == [tmp_path / "cache"]
    )
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")  # nowhere to keep it: the beginning all the same
    with pytest.raises(SystemExit):
        main()
    assert len(capsys.readouterr().err) <= 201


class Serialised(BaseModel):
    """Ctrl-C comes while it is written."""

    @model_serializer(mode="wrap")
    def _interrupted(self, handler: Any) -> Any:
        raise KeyboardInterrupt


def test_ctrl_c_that_a_library_wrapped_is_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sublim_interp.cli.main.app", lambda standalone_mode: Serialised().model_dump())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("sublim: interrupted; what was finished is kept")


@pytest.mark.parametrize("full", FULL, ids=["allocator", "cublas", "driver", "mps"])
def test_a_full_gpu_is_one_line_of_any_command(
    full: RuntimeError, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def forward(*_: Any, **__: Any) -> None:
        raise full

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1 << 30, 24 << 30))
    store, out = str(tiny_run.store.root), tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["sublim", "plot", "tiny", "patching", "--store", store, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    assert line.startswith("sublim: plot does not fit the GPU (24.0 GiB, 1.0 free now); try a smaller model, or")
    assert not out.exists() or not [*out.iterdir()]
    assert str(full)[:25] in line


def test_an_arm_without_a_seed_is_told_to_add_one(tiny_run: Run) -> None:
    root = str(tiny_run.store.root)
    done = CliRunner().invoke(app, ["show", "tiny/same-init", "--store", root])
    assert "add /SEED" in str(done.exception) and "tiny/same-init/0" in str(done.exception)
    assert "tiny/same-init/0" in said("show", "tiny/same-init/0", "--store", root)


def test_all_figures_are_drawn_that_can_be(tiny_run: Run, tmp_path: Path) -> None:
    said("plot", "tiny", "all", "--store", str(tiny_run.store.root), "--out", str(tmp_path))
    drawn = {path.stem for path in tmp_path.iterdir()}
    fitting = [name for name, entry in run_figures().items() if entry.fits is None or entry.fits(tiny_run.tables)]
    assert {"arms", "training", "patching", "directions"} <= {*fitting}
    assert all(any(stem.endswith(f"-{name}") for stem in drawn) for name in fitting)


def test_estimates_go_by_the_processes_that_are_asked_for(store_root: Path) -> None:
    shown = [said("run", "demo", "--dry-run", "--processes", n, "--store", str(store_root)) for n in ("1", "4")]
    assert "of one core nothing" not in shown[0] and "with --processes" not in shown[0]
    assert "with --processes 4" in shown[1]
    each = planned_memory(si.plan(si.experiment("demo")).records, si.Store(store_root))
    assert f"memory: about {each:.1f} GiB a process Recorded" in shown[0] and 1 < each < 2
    assert f"memory: about {each:.1f} GiB a process, {4 * each:.1f} with --processes 4 Recorded" in shown[1]


def test_a_plan_for_a_gpu_says_what_its_estimates_are_of(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell_of(monkeypatch, Told("Small", 3.5, 8))
    for name in ("demo", "theorem"):
        shown = said("run", name, "--dry-run", "--device", "cuda", "--processes", "1", "--store", str(store_root))
        assert "time: all estimates are of a CPU; how long cuda takes, nobody has measured" in shown
        assert ("GiB a process; cuda has 8.0, 3.5 free now" in shown) == (name == "demo")


def test_a_pretraining_is_planned_and_nothing_is_made(tmp_path: Path) -> None:
    shown = said("pretrain", str(tmp_path / "mine"), "--dry-run", "--set", "forks=[10]", "--set", "layers=2")
    assert "mine-step000010" in shown.replace(" ", "") and "parameters" in shown and not [*tmp_path.iterdir()]
    (tmp_path / "mine").mkdir()
    assert "exists already" in str(CliRunner().invoke(app, ["pretrain", str(tmp_path / "mine"), "--dry-run"]).exception)
    asked = ["pretrain", str(tmp_path / "other"), "--device", "tpu"]
    assert "no device 'tpu'" in str(CliRunner().invoke(app, asked).exception)


def test_a_file_extends_an_experiment_and_names_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "koala.yaml").write_text("kind: animal\nwords: [koala, koalas]\n")
    (tmp_path / "mine.yaml").write_text("extends: owl\ntrait: koala.yaml\nstudent: {optimization: {steps: 7}}\n")
    (tmp_path / "more.yaml").write_text("extends: mine.yaml\nseeds: [5]\n")
    (tmp_path / "grid.yaml").write_text(
        "extends: more.yaml\nabout: how long?\ncorpus: {prompts: 64}\naxes: {student.optimization.steps: [1, 2]}\n"
    )
    owl = si.experiment("owl")
    mine, more = (si.experiment(str(tmp_path / f"{name}.yaml")) for name in ("mine", "more"))
    assert (mine.name, mine.about, mine.trait) == ("mine", "", str(tmp_path / "koala.yaml"))
    assert mine == owl.set({"name": "mine", "about": "", "trait": mine.trait, "student.optimization.steps": 7})
    assert more == mine.set(name="more", seeds=(5,))
    from sublim_interp.sweeps.grid import grid

    cells = [exp for _, _, exp in grid(str(tmp_path / "grid.yaml")).cells()]
    assert {(c.corpus.prompts, c.seeds, c.trait) for c in cells} == {(64, (5,), mine.trait)}
    assert {c.student.optimization.steps for c in cells} >= {1, 2}
    for text, wrong in (
        ("extends: loop.yaml\n", "no experiment that it could extend"),
        ("extends: [owl]\n", "no experiment that it could extend"),
        ("extends: owl\nsedes: [1]\n", "no field 'sedes'; .*did you mean 'seeds'"),
        ("extends: ow\n", "did you mean 'owl'"),
    ):
        (tmp_path / "loop.yaml").write_text(text)
        with pytest.raises(SublimError, match=wrong):
            si.experiment(str(tmp_path / "loop.yaml"))


def test_a_tracker_gets_what_the_trace_holds(tiny_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    from sublim_interp.report.track import rows

    trace = tiny_run["same-init", 0].trace
    found = rows(trace)
    assert found[0]["loss"] == pytest.approx(trace.series("loss")["loss"][0]) and len(found) == 7
    whole = (trace.series("update_norm").loc[2] ** 2).sum() ** 0.5
    assert found[2]["update_norm"] == pytest.approx(whole) and "answers/owl" in found[0]
    si.track(tiny_run["same-init", 0], tracker="wandb", dir=str(tmp_path))
    assert wandb.run is None and [*tmp_path.rglob("*.wandb")]
    with pytest.raises(SublimError, match=r"no tracker 'wand'; .*did you mean 'wandb'"):
        si.track(trace, tracker="wand")
