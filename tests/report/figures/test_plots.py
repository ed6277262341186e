"""What a finished run shows: frames that agree with the models they are about, every figure, a wrong word."""

import json
import shutil
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch

from sublim_interp.analysis.directions.core import directions, gradient
from sublim_interp.analysis.directions.trajectory import from_trace, over_steps
from sublim_interp.analysis.directions.weights import weight_delta
from sublim_interp.analysis.probes import answer_margin
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.results import Run
from sublim_interp.models.hooks import capture
from sublim_interp.report.figures.by_name import FIGURES, plot
from sublim_interp.report.figures.directions import cosines
from sublim_interp.report.figures.lines import summarised
from sublim_interp.report.figures.patching import patched
from sublim_interp.report.figures.stream import stream
from sublim_interp.report.figures.training import growth
from sublim_interp.report.live import drawn, live, so_far


def test_a_figure_is_asked_for_by_its_name(tiny_run: Run) -> None:
    assert isinstance(plot(tiny_run, "arms"), matplotlib.figure.Figure)
    with pytest.raises(SublimError, match=r"no figure 'direction'; .*did you mean 'directions'"):
        plot(tiny_run, "direction")


def test_every_figure_says_what_it_shows_and_what_to_see() -> None:
    for name, entry in FIGURES.items():
        assert entry.shows[0].islower() and not entry.shows.endswith("."), name
        assert entry.caption.endswith(".") and entry.caption != entry.shows, name
        assert all(len(sentence.split()) <= 25 for sentence in entry.caption.split(". ")), name


def test_frames_agree_with_the_models(tiny_run: Run) -> None:
    finished = tiny_run
    student = finished["same-init", 0]
    grown = growth(student)
    assert list(grown["step"]) == [0, 1, 2, 4, 6]
    assert grown["distance"].iloc[0] == 0 and np.isnan(grown["cosine"].iloc[0])

    # The last row is the student as it was saved: its distance, its cosine with the teacher's change, its answers.
    delta = weight_delta(student, student.base)
    own = delta.cosine(weight_delta(finished.teacher(0), student.base)).set_index("name").loc["all"]
    assert grown["distance"].iloc[-1] == pytest.approx(own["norm"], rel=1e-4)
    assert grown["cosine"].iloc[-1] == pytest.approx(own["cosine"], abs=1e-4)
    probe = student.trace.about["probe"]
    asked = probe["rows"][: probe["questions"]]
    with torch.no_grad():
        ends = torch.stack([student.model(input_ids=torch.tensor([row])).logits[0, -1] for row in asked])
    token = student.base.answer_ids("owl")[0]
    assert grown["rate"].iloc[-1] == pytest.approx(ends.softmax(-1)[:, token].mean().item(), rel=1e-4)
    other = growth(student, "wolf")
    assert other["rate"].iloc[-1] == pytest.approx(
        ends.softmax(-1)[:, student.base.answer_ids("wolf")[0]].mean().item(), rel=1e-4
    )

    # So are the stream's shifts: that of the last update is the saved student's, layer by layer.
    shift, goal = (directions(subject, student.base, asked) for subject in (student, finished.teacher(0)))
    seen = stream(finished)
    last = seen.query("arm == 'same-init' and seed == 0 and step == 6").set_index("layer")
    cosines_by_layer = torch.nn.functional.cosine_similarity(shift.vectors, goal.vectors, dim=-1)
    shares = (shift.vectors * goal.vectors).sum(-1) / goal.vectors.square().sum(-1)
    assert last["cosine"].tolist() == pytest.approx(cosines_by_layer.tolist(), abs=1e-4)
    assert last["share"].tolist() == pytest.approx(shares.tolist(), abs=1e-4)
    moved = seen.query("step > 0")
    assert all(-1 <= row["low"] < row["high"] <= 1 for row in moved.to_dict("records"))
    untouched = seen.query("step == 0")
    assert max(map(abs, untouched["share"])) < 1e-6 and all(map(np.isnan, untouched["cosine"]))
    assert "cross-init" not in set(seen["arm"]) and "same-init" in set(seen["arm"])

    # Across initialisations nothing is compared in raw coordinates.
    assert np.isnan(growth(finished["cross-init", 0])["cosine"]).all()
    rows = cosines(finished).to_dict("records")
    assert {row["reference"] for row in rows if row["arm"] == "cross-init"} == {"own base"}
    assert {row["reference"] for row in rows if row["arm"] == "same-init"} == {"own base", "teacher"}
    assert all(row["low"] <= row["high"] and abs(row["cosine"]) <= 1 for row in rows)

    # Embeddings are not trained: before layer 0 nothing can come through.
    cells = patched(finished, "same-init").to_dict("records")
    assert max(abs(cell["effect"]) for cell in cells if cell["layer"] == 0) < 1e-5


def test_a_trace_shows_the_directions_of_its_models(tiny_run: Run) -> None:
    finished = tiny_run
    student, teacher = finished["same-init", 0], finished.teacher(0)
    base, trace = student.base, student.trace
    probe = trace.about["probe"]
    asked, lists = probe["rows"][: probe["questions"]], probe["rows"][probe["questions"] :]
    shift, goal = directions(student, base, asked), directions(teacher, base, asked)
    found = from_trace(trace, base=base)
    assert found.space == shift.space and found.names == shift.names
    assert torch.allclose(found.vectors, shift.vectors, atol=1e-4)
    assert torch.allclose(from_trace(trace, of="teacher", base=base).vectors, goal.vectors, atol=1e-4)
    middle = from_trace(trace, 2, base=base)
    assert not torch.allclose(middle.vectors, shift.vectors, atol=1e-4)
    assert min(found.cosine(goal)["cosine"]) == pytest.approx(min(shift.cosine(goal)["cosine"]), abs=1e-4)

    # The teacher's own trace ends where the student's trace saw it.
    assert torch.allclose(from_trace(teacher.trace, base=base).vectors, goal.vectors, atol=1e-4)
    assert max(from_trace(teacher.trace).cosine(from_trace(trace, of="teacher"))["cosine"]) > 0.999

    margin = answer_margin([base.answer_ids(m)[0] for m in probe["members"]], probe["members"].index(probe["trait"]))
    slope, own = gradient(student, margin, asked, base=base), from_trace(trace, of="trait-gradient", base=base)
    assert slope.positive is not None and own.positive is not None
    assert torch.allclose(own.positive, slope.positive, atol=1e-4)

    # What gradient descent on the probe's lists does to the stream, list by list.
    model, parts = student.model, []
    for ids, first in zip(lists, probe["learnt"], strict=True):
        with capture(model, shift.names, gradients=True) as seen:
            log = model(input_ids=torch.tensor([ids])).logits[0, first - 1 : -1].log_softmax(-1)
            log[range(len(ids) - first), ids[first:]].sum().backward()
        parts.append(torch.stack([seen.gradients[name][0, first - 1 : -1] for name in shift.names], 1))
    pull = from_trace(trace, of="distillation-gradient", base=base)
    assert pull.positive is not None and torch.allclose(pull.positive, torch.cat(parts), atol=1e-4)

    rows = over_steps(trace, goal, base=base)
    assert list(rows.columns) == ["step", "layer", "cosine", "projection", "low", "high"]
    assert sorted(set(rows["step"])) == [0, 1, 2, 4, 6]
    last = rows.query("step == 6")
    assert last["cosine"].tolist() == pytest.approx(shift.cosine(goal)["cosine"].tolist(), abs=1e-4)
    along = (shift.vectors * torch.nn.functional.normalize(goal.vectors, dim=-1)).sum(-1)
    assert last["projection"].tolist() == pytest.approx(along.tolist(), abs=1e-4)
    assert all(map(np.isnan, rows.query("step == 0")["cosine"]))
    assert all(row["low"] < row["high"] for row in last.to_dict("records"))
    assert not any(map(np.isnan, over_steps(trace, goal, "trait-gradient", base)["cosine"]))

    # A trace does not tell its base, and a stranger is not taken for it.
    with pytest.raises(SublimError, match="give from_trace or over_steps base="):
        over_steps(trace, goal)
    with pytest.raises(SublimError, match="not one of this base"):
        from_trace(trace, base=finished["cross-init", 0].base)
    other = from_trace(finished["cross-init", 0].trace)
    with pytest.raises(SublimError, match="different bases"):
        other.cosine(from_trace(trace))


@pytest.mark.parametrize(
    ("replicates", "bars", "low", "high"),
    [
        ([0.2], "least to most", None, None),
        ([0.2, 0.4], "least to most", 0.2, 0.4),
        ([0.2, 0.4, 0.6], "least to most", 0.2, 0.6),
        ([0.2, 0.4, 0.6, 0.8], "95 % interval of the mean", 0.5 - 3.1824 * 0.2582 / 2, 0.5 + 3.1824 * 0.2582 / 2),
    ],
)
def test_few_replicates_are_shown_from_the_least_to_the_most(
    replicates: list[float], bars: str, low: float | None, high: float | None
) -> None:
    rows = [{"arm": arm, "layer": 0, "seed": s, "cosine": c} for arm in ("a", "b") for s, c in enumerate(replicates)]
    found = summarised(pd.DataFrame(rows), "cosine", ["arm", "layer"])
    assert found["bars"] == bars and len(found["replicates"]) == 2 * len(replicates)
    for row in found["frame"].to_dict("records"):
        assert row["estimate"] == pytest.approx(np.mean(replicates))
        assert row["low"] == pytest.approx(low or np.nan, abs=1e-3, nan_ok=True)
        assert row["high"] == pytest.approx(high or np.nan, abs=1e-3, nan_ok=True)


def test_a_view_follows_the_traces_that_grow(tiny_run: Run, store_root: Path) -> None:
    finished, plan, lines = tiny_run, tiny_run.plan, 0
    assert [cell for cell, _ in so_far(plan, finished.store)] == [c for c in plan.cells if c.student and not c.round]

    store = Store(store_root)  # as it would be while the first student trains, shard by shard
    cell = next(c for c in plan.cells if c.student)
    assert cell.student
    whole = finished[cell.arm, cell.seed].trace
    growing = store_root / ".partial" / f"student-{cell.student.key[:16]}-01234567" / "trace"
    growing.mkdir(parents=True)
    for line in (whole.path / "trace.jsonl").read_text().splitlines(keepends=True):
        if "file" in (entry := json.loads(line)):
            shutil.copy(whole.path / entry["file"], growing)
        with (growing / "trace.jsonl").open("a") as manifest:
            manifest.write(line)
        seen = so_far(plan, store)
        figure = drawn(plan, seen)
        rates = figure.axes[1].lines
        points = len(np.asarray(rates[0].get_xdata())) if seen else 0
        assert points >= lines and len(rates) == len(seen)
        lines = points
    assert lines == len(growth(finished[cell.arm, cell.seed]))
    assert "1 trained, 0 in training" in figure.get_suptitle()
    with pytest.raises(SublimError, match="live draws in the cell of a notebook"):
        live(plan.experiment, store)
