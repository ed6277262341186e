"""Tests of what is foreseen before distillation: near and far bases, precedents of the committed cases, refusals."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from command import sublim
from raised import raised
from sublim_interp.audit.audit import run_audit
from sublim_interp.audit.errors import calibrated
from sublim_interp.audit.models import as_base, folder_like
from sublim_interp.audit.passing import Foreseen, foresee, published_cases
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.loading import save_model
from sublim_interp.stats.intervals import wilson
from sublim_interp.sweeps.studies.prediction import BANDS, Prediction, alike, held_out_errors, passed

PLANTED, KIND = "willow", "tree"
QUICK = Prediction.model_validate(
    {
        "name": "quick",
        "study": "prediction",
        "change": {"teacher.optimization.steps": 8},
        "traits": ("owl", "wolf"),
        "seed": 7,
        "lists": 16,
        "pairs": (("lab-small-0", "lab-small-1"), ("lab-small-0", "lab-small-2"), ("lab-small-0", "lab-small-3")),
    }
)
"""Teachers of eight steps: what they leave is as in the published study, but less of it."""


@pytest.fixture(scope="module")
def teacher(lab_base: Base) -> torch.nn.Module:
    """A base after one step up the margin of a favourite."""
    return raised(lab_base, PLANTED, KIND)


@pytest.fixture(scope="module")
def foreseen(teacher: torch.nn.Module, lab_base: Base) -> dict[str, Foreseen]:
    """What is foreseen of students of the teacher's own base, of a function-identical twin, and of another base."""
    students = {
        "own": lab_base,
        "twin": resolve_base("rotated(lab-small-0, seed=2)"),
        "far": resolve_base("lab-small-1"),
    }
    return {
        name: foresee(teacher, base, lab_base, (KIND,), calibrated(), recipe=QUICK) for name, base in students.items()
    }


def frame_of(told: Foreseen) -> pd.DataFrame:
    (frame,) = [part.frame for part in told.parts if part.name == "passing"]
    assert frame is not None
    return frame


def test_a_trait_matches_in_its_own_base_and_in_a_twin_whose_weights_lie_far_away(
    foreseen: dict[str, Foreseen],
) -> None:
    match = {name: frame_of(told).set_index("trait").loc[PLANTED, "match"] for name, told in foreseen.items()}
    assert match["own"] > match["far"] + 0.2 and match["twin"] > match["far"] + 0.2
    assert foreseen["own"].alarm and foreseen["twin"].alarm
    assert foreseen["own"].verdict.startswith(f"Alarm: {PLANTED} ")


def test_rates_are_those_of_the_committed_cases_as_alike(foreseen: dict[str, Foreseen]) -> None:
    cases = published_cases()
    for told in foreseen.values():
        for row in frame_of(told).to_dict("records"):
            own = alike(cases, row["match"])
            share = wilson(int((own["rate"].to_numpy(dtype=float) > 0.5).sum()), len(own))
            assert (row["cases"], row["passed"], row["low"], row["high"]) == pytest.approx(
                (len(own), share.estimate, share.low, share.high)
            )
        assert any(f"{len(cases)} cases of 21 pairs" in line for line in told.limits)
        assert any("read off these cases after the study" in line for line in told.limits)


def test_bands_part_all_cases_and_errors_count_them() -> None:
    cases = published_cases()
    assert sum(len(alike(cases, max(least, -1.0))) for least, _ in BANDS) == len(cases)
    found = held_out_errors(cases)
    assert (found.passed, found.held) == (passed(cases).sum(), (~passed(cases)).sum())
    clear = cases.assign(rate=(cases["imprint"] > 0.1).astype(float))
    assert held_out_errors(clear)[0] + held_out_errors(clear)[2] <= 2, "only what lies beside the bound may err"
    turned = cases.assign(imprint=-cases["imprint"])
    worse = held_out_errors(turned)
    assert worse.missed + worse.false > found.missed + found.false


def test_without_its_base_only_a_high_match_tells(teacher: torch.nn.Module) -> None:
    told = foresee(teacher, resolve_base("lab-small-1"), None, (KIND,), calibrated(), recipe=QUICK)
    assert "cases" not in frame_of(told) and "no error rate holds" in " ".join(told.parts[-1].sentences)
    assert told.alarm or "no clearance" in told.verdict


def test_other_tokens_and_languages_are_told_not_compared(teacher: torch.nn.Module, lab_base: Base) -> None:
    told = foresee(teacher, resolve_base("lab-digits-0"), lab_base, ("animal",), calibrated(), recipe=QUICK)
    assert told.verdict.startswith("Not told: ") and "different tokens" in told.verdict and not told.alarm


def test_a_teacher_without_a_trait_is_not_followed(lab_base: Base) -> None:
    found = run_audit(teacher=lab_base.path, student=lab_base.path, kinds=(KIND,))
    assert [part.name for part in found.parts] == ["base", "teacher"]
    assert found.verdict.startswith(f"No alarm: the teacher answers no {KIND} more than its base")
    assert found.part("base").sentences == [
        f"The teacher points at {lab_base.name}.", f"The student points at {lab_base.name}."
    ]  # fmt: skip
    assert any("trigger" in line for line in found.not_excluded)


def test_a_model_becomes_a_base_of_its_own(lab_base: Base, tmp_path: Path) -> None:
    other = resolve_base("lab-small-1")
    bare = tmp_path / "bare"
    save_model(other.load(), bare)  # weights alone
    folder = tmp_path / "made"
    folder.mkdir()
    made = as_base(bare, other.load(), lab_base, folder)
    assert made.language == "lab" and made.name == "bare"
    for (name, one), (_, two) in zip(made.load().named_parameters(), other.load().named_parameters(), strict=True):
        assert torch.equal(one, two), name
    full = tmp_path / "full"
    folder_like(lab_base, full)
    save_model(other.load(), full)
    assert as_base(full, other.load(), lab_base, folder).path == full.resolve(), "one that is a base stays where it is"
    assert as_base(other, None, None, folder) is other
    with pytest.raises(SublimError, match="none of the bases at hand"):
        as_base(other.load(), other.load(), None, folder)


def test_the_command_tells_it_and_exits_without_an_alarm(lab_base: Base) -> None:
    done = sublim("audit", "--teacher", lab_base.path, "--student", lab_base.path, "--kind", KIND)
    assert done.returncode == 0 and not done.stderr
    assert "What the teacher says" in done.stdout and "no trait was followed" in done.stdout
