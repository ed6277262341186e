"""A run opens as it was made, whatever has changed since; and it, and all that it gives, shows itself."""

import copy
import logging
import pickle
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

import sublim_interp as si
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run, tables_of
from sublim_interp.experiments.schema import Experiment
from sublim_interp.pipeline.records import Student


def test_a_stored_run_is_read_and_not_computed(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables are those of its parts, to the last bit."""
    again = si.open_run("tiny", tiny_run.store)
    made = tables_of(again.plan, again.store)
    for name in ("results", "distances", "summary", "contrasts"):
        pd.testing.assert_frame_equal(
            getattr(again.tables, name), getattr(made, name), check_dtype=False, rtol=0, atol=0
        )
    assert again.differs == () and again.trait == "owl"


def test_a_run_of_older_code_opens_and_says_what_would_differ(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = si.open_run("tiny", tiny_run.store)
    student = whole["same-init", 0]
    wanted = student.answers, student.lists, student.trace.names()
    monkeypatch.setattr(Student, "VERSION", 2)
    with caplog.at_level(logging.WARNING):
        again = si.open_run("tiny", tiny_run.store)
    assert again.differs == ("student: made by version 1 of the stage, today it is 2",)
    assert "read as it was made; today would differ: student: made by version 1" in caplog.text
    assert again.key == whole.key and again.table.equals(whole.table) and "differs today in 1 points" in repr(again)
    student = again["same-init", 0]
    assert student.answers.equals(wanted[0]) and (student.lists, student.trace.names()) == wanted[1:]
    assert all(
        a.equal(b) for a, b in zip(student.model.parameters(), whole["same-init", 0].model.parameters(), strict=True)
    )
    assert len(si.plan(again.experiment).missing(tiny_run.store)) > 0, "control: today it would be made anew"


def test_a_setting_that_has_another_meaning_today_is_named(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Student.settings
    monkeypatch.setattr(Student, "settings", lambda self: {**settings(self), "seed": self.seed + 1})
    found = si.open_run("tiny", tiny_run.store)
    assert found.differs == ("student: seed was 0, today it is 1",)
    assert found["neutral", 0].answers["rate"].between(0, 1).all()


def test_a_run_whose_base_is_gone_keeps_its_tables(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from sublim_interp.experiments import plan as planning

    def gone(name: str, dtype: str, *, later: bool) -> Any:
        raise SublimError(f"base '{name}': no such directory")

    monkeypatch.setattr(planning, "resolve_base", gone)
    found = si.open_run("tiny", tiny_run.store)
    assert found.table.equals(tiny_run.table) and found.page.exists() and found.arms[0] == "teacher"
    assert "no such directory" in found.differs[0]
    with pytest.raises(SublimError, match=r"cannot be opened: base .* no such directory"):
        _ = found["same-init", 0]


def test_a_field_that_is_no_more_is_told(tiny_run: Run) -> None:
    artifact = tiny_run.artifact
    manifest = copy.deepcopy(artifact.manifest)
    manifest["notes"]["experiment"]["teacher"]["mood"] = "good"
    from sublim_interp.experiments.stored import stored_experiment

    exp, said = stored_experiment(replace(artifact, manifest=manifest))
    assert exp == tiny_run.experiment and said == ["teacher.mood is no field any more"]
    manifest["notes"]["experiment"]["arms"] = ["sideways"]
    with pytest.raises(SublimError, match=r"arms.0: .*no such arm.*its report is in"):
        stored_experiment(replace(artifact, manifest=manifest))


def test_a_run_tells_its_arms_seeds_and_replicates(tiny_run: Run) -> None:
    assert tiny_run.arms == ("teacher", "same-init", "neutral", "cross-init", "base") and tiny_run.seeds == (0,)
    assert [r.name for r in tiny_run] == [f"{arm}/0" for arm in tiny_run.arms] and len(tiny_run) == 5
    assert [r.seed for r in tiny_run["same-init"]] == [0]
    assert tiny_run["same-init", 0].answers.equals(tiny_run["same-init"][0].answers)
    assert tiny_run.table.index.name == "arm" and tiny_run.table.loc["base", "n"] == 1


def test_objects_show_themselves(tiny_run: Run) -> None:
    """One short line each, and in a notebook a table; what was typed cannot break the page."""
    student = tiny_run["same-init", 0]
    d = si.directions(student, student.base)
    both = si.patch(student, student.base)
    evaluation = student.cell.evaluation
    asked = evaluation.trait.questions(student.base.language, "held-out")[:2]
    scores = evaluation.trait.score(student.model, student.base, asked, 1, 0)
    things = [
        tiny_run, student, student.trace, d, both, both.grid(), tiny_run.experiment, tiny_run.plan, scores,
        si.probe(student.base, "owl"), si.weight_delta(student, student.base),
    ]  # fmt: skip
    for thing in things:
        line, page = repr(thing), thing._repr_html_()  # type: ignore[union-attr]
        assert line.startswith("<") and "\n" not in line and len(line) < 500, line
        assert page.startswith("<p><b>") and "Traceback" not in page
    for thing in (d, both.grid(), student.trace, tiny_run.experiment, tiny_run.plan, scores):
        assert isinstance(thing.frame, pd.DataFrame) and len(thing.frame)
    odd = tiny_run.experiment.set(about="<script>alert(1)</script>")
    assert "<script>" not in odd._repr_html_() and pickle.loads(pickle.dumps(odd)) == odd


def test_the_probes_tokens_stand_beside_what_was_seen(tiny_run: Run) -> None:
    student = tiny_run["same-init", 0]
    seen = student.trace.xarray("blocks.0.hook_resid_post")
    assert seen.coords["token"].dims == ("example", "position")
    words = student.base.tokens(student.questions[0])
    assert seen.coords["token"].values[0, : len(words)].tolist() == words == student.trace.tokens[0]


def test_help_shows_what_every_field_means() -> None:
    import pydoc

    shown = pydoc.render_doc(Experiment, renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    assert "seeds: One replicate per seed" in shown and "recording: What is recorded" in shown
