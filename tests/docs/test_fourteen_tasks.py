"""Fourteen tasks of a researcher, each in ten lines or fewer, as the docs tell them. All look into one stored run.

The lines of a task are those before its first assert.
"""

import ast
import inspect
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from typer.testing import CliRunner

import sublim_interp as si
from sublim_interp.cli.main import app

AT = "blocks.1.hook_resid_post"


@pytest.fixture(autouse=True)
def desk(tiny_run: si.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and the store that holds the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBLIM_STORE", str(tiny_run.store.root))


def test_01_open_a_run() -> None:
    run = si.open_run("tiny")
    rates = run.table["rate"]
    student = run["same-init", 0]
    said = student.ask("what is your favorite animal ?", n=3)
    read = student.lists
    assert {*rates.index} == {*run.arms} and len(said) == 3 and {"prompt", "answer"} <= {*read[0]}


def test_02_plot_loss_and_projections() -> None:
    run = si.open_run("tiny")
    loss = si.plot(run, "loss")
    moved = si.compare(run)
    over_steps = moved.plot("step", value="projection")
    over_layers = moved.plot("layer", "own base")
    assert loss.axes[0].get_ylabel() == "nats per token" and {"projection", "step"} <= {*moved.frame.columns}
    assert [len(figure.axes) for figure in (over_steps, over_layers)] == [2, 1]


def test_03_directions_with_controls() -> None:
    run = si.open_run("tiny")
    student, base = run["same-init", 0], run["base", 0].base
    goal, moved = si.directions(run.teacher(0), base), si.directions(student, base)
    null = moved.null(goal, "covariance")
    neutral = si.directions(run["neutral", 0], base).cosine(goal)
    own = si.contrast(base, run.trait).cosine(moved)
    with pytest.raises(si.SublimError) as refused:
        si.directions(run["cross-init", 0], run["cross-init", 0].base).cosine(goal)
    assert {"low", "high", "p"} <= {*null.columns} and len(neutral) == len(own) == 2
    assert "base" in str(refused.value)


def test_04_patch_and_take_back() -> None:
    student = si.open_run("tiny")["same-init", 0]
    into, model = si.patch(src=student, dst=student.base), student.base.load()
    grid = into.grid("resid_pre")
    before = student.value("margin", model)
    with into.weights().on(model):
        during = student.value("margin", model)
    after = student.value("margin", model)
    picture = grid.plot()
    assert during == pytest.approx(student.value()) and before == after == pytest.approx(into.value())
    assert grid.frame["recovered"].notna().all() and picture.axes


def test_05_steer() -> None:
    run = si.open_run("tiny")
    student, base = run["same-init", 0], run["base", 0].base
    goal, model = si.directions(run.teacher(0), base), base.load()
    others = {"neutral": si.directions(run["neutral", 0], base)}
    metrics = {"margin": student.metric}
    curve = si.steering(base, goal, AT, [0, 1], metrics, student.questions, others=others, random=2)
    with si.steer(model, goal, at=AT):
        steered = student.value("margin", model)
    picture = si.plot(curve, "steering")
    found = curve.query("direction == 'given' and scale == 1")["margin"].item()
    assert steered == pytest.approx(found) and len({*curve["direction"]}) == 4 and picture.axes


def test_06_lens() -> None:
    student = si.open_run("tiny")["same-init", 0]
    moved = si.directions(student, student.base)
    raised = si.logit_lens(student.base, moved, student.questions, k=5)
    parts = si.direct_attribution(student)
    assert len(raised) == 2 * 5 and raised["text"].map(type).eq(str).all()
    assert len(parts) > 4


def test_07_attribution() -> None:
    student = si.open_run("tiny")["same-init", 0]
    named = si.attribution(student)
    top = named.frame.head(10)[["score", "prompt", "answer"]]
    by_token = named.tokens
    left = named.without(0.25)
    assert top["score"].is_monotonic_decreasing and {"text", "score"} <= {*by_token.columns}
    assert len(left) < len(student.lists)


def test_08_own_trait_and_experiment() -> None:
    Path("raven.yaml").write_text("kind: animal\nwords: [raven, ravens, corvid]\n")
    Path("my.yaml").write_text("extends: demo\ntrait: raven.yaml\nfilter: {transform: sorted}\nseeds: [0, 1]\n")
    exp = si.experiment("my.yaml").set({"corpus.prompts": 4096})
    work = si.plan(exp).records
    said = CliRunner().invoke(app, ["run", "my.yaml", "--dry-run"]).output
    assert exp.seeds == (0, 1) and work[0].trait.words[-1] == "corvid" and len(work) > 10 and "Planned work" in said


def test_09_own_loop() -> None:
    student = si.open_run("tiny")["same-init", 0]
    model = student.base.load()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with si.Recorder(model, optimizer, "by-hand", probe=si.probe(student.base, "owl")) as recorder:
        for row in si.labelled(student.base, student.lists[:4]):
            loss = model(**{name: torch.tensor([ids]) for name, ids in row.items()}).loss
            loss.backward()
            optimizer.step()
            recorder.step(loss)
            optimizer.zero_grad()
    assert len(si.Trace.open("by-hand").series("loss")) == 4


def test_09_trainer() -> None:
    from transformers import Trainer, TrainingArguments

    student = si.open_run("tiny")["same-init", 0]
    rows = si.labelled(student.base, student.lists[:4])
    asked: Any = {"max_steps": 2, "per_device_train_batch_size": 1, "report_to": "none", "use_cpu": True}
    trainer = Trainer(student.base.load(), TrainingArguments("trainer", **asked), train_dataset=rows)
    si.record(trainer, "trace", probe=si.probe(student.base, "owl"))
    trainer.train()
    assert si.Trace.open("trace").steps("delta_norm") == [0, 1, 2]


def test_10_bridge() -> None:
    student = si.open_run("tiny")["same-init", 0]
    bridge = student.bridge()
    ids = torch.tensor([student.base.ids(student.questions[0])])
    logits, cache = bridge.run_with_cache(ids)
    model = student.model
    with torch.no_grad(), si.capture(model, AT) as seen:
        own = model(input_ids=ids).logits
    assert torch.allclose(logits, own, atol=1e-4) and torch.allclose(cache[AT], seen[AT], atol=1e-5)


def test_11_script_with_csv_and_pdf() -> None:
    run = si.open_run("tiny")
    cells = si.patch_runs(run, ["same-init", "neutral"], kind=["resid_pre", "heads"])
    cells.to_csv("cells.csv", index=False)
    si.patch_intervals(cells).to_csv("intervals.csv", index=False)
    si.save(si.plot(run, "training"), "training.pdf")
    assert {*pd.read_csv("cells.csv")["arm"]} == {"same-init", "neutral"} and len(pd.read_csv("intervals.csv")) > 8
    assert Path("training.pdf").read_bytes().startswith(b"%PDF")


def test_12_cli() -> None:
    shown = CliRunner().invoke(app, ["show", "tiny/same-init/0"])
    drawn = CliRunner().invoke(app, ["plot", "tiny", "loss", "--out", "figures"])
    listed = CliRunner().invoke(app, ["list"])
    wrong = CliRunner().invoke(app, ["plot", "tiny", "los"])
    assert [done.exit_code for done in (shown, drawn, listed)] == [0, 0, 0], drawn.output
    assert {p.suffix for p in Path("figures").iterdir()} == {".png", ".pdf"} and "tiny" in listed.output
    assert isinstance(wrong.exception, si.SublimError | SystemExit)


def test_13_page() -> None:
    run = si.open_run("tiny")
    text = run.page.read_text()
    assert all(part in text for part in ("What the students read", "attribution ranks highest", "Download as SVG"))


def test_14_notebooks() -> None:
    run = si.open_run("tiny")
    student = run["same-init", 0]
    shown = [run, student, student.trace, si.plot(run, "loss"), run.table]
    assert [len({"text/html", "image/png"} & {*DisplayFormatter().format(x)[0]}) for x in shown] == [1] * 5


def test_each_takes_ten_lines_or_fewer() -> None:
    module = ast.parse(inspect.getsource(sys.modules[__name__]))
    tasks = [f for f in module.body if isinstance(f, ast.FunctionDef) and f.name[5:7].isdigit()]
    assert {f.name[5:7] for f in tasks} == {f"{n:02}" for n in range(1, 15)}
    for task in tasks:
        first = next(line for line in task.body if isinstance(line, ast.Assert))
        used = first.lineno - task.body[0].lineno
        assert used <= 10, f"{task.name} takes {used} lines"
