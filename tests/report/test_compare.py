"""Tests of `si.compare`: arms beside each other by layer and step."""

import pytest

import sublim_interp as si
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run


def test_every_student_is_beside_the_others_with_what_it_may_be_compared_with(tiny_run: Run) -> None:
    found = si.compare(tiny_run, tiny_run.seeds[0])
    arms = {name: {*rows["arm"]} for name, rows in found.frame.groupby("reference")}
    assert arms == {"own base": {"same-init", "neutral", "cross-init"}, "teacher": {"same-init", "neutral"}}
    student = tiny_run["same-init", tiny_run.seeds[0]]
    steps = {*student.trace.steps("blocks.0.hook_resid_post")}
    assert {*found.frame["step"]} == steps and {*found.frame["layer"]} == {*range(student.base.shape["layers"])}
    end = found.frame.query("arm == 'same-init' and reference == 'teacher' and step == step.max()")
    goal = si.from_trace(student.trace, of="teacher", base=student.base)
    moved = si.from_trace(student.trace, base=student.base)
    assert end["cosine"].tolist() == pytest.approx(moved.cosine(goal)["cosine"].tolist())
    assert found.last["n"].eq(1).all() and "arms same-init" in repr(found)


def test_its_figure_shows_one_reference_at_a_time(tiny_run: Run) -> None:
    found = si.compare(tiny_run)
    by_layer, by_step = found.plot(reference="own base"), found.plot("step", value="projection")
    assert len(by_layer.axes) == 1 and len([ax for ax in by_step.axes if ax.get_visible()]) == 2
    labels = by_step.legends[0].get_texts()
    assert [text.get_text() for text in labels] == ["same-init", "neutral"], "a crossed student has no such teacher"
    with pytest.raises(SublimError, match="no reference 'teachers'; valid: teacher, own base"):
        found.plot(reference="teachers")
    with pytest.raises(SublimError, match="has no seed 7"):
        si.compare(tiny_run, 7)
