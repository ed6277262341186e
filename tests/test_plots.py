"""What a finished run shows: frames that agree with the models they are about, every figure, a wrong word."""

from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import torch

from sublim_interp.analysis.directions import weight_delta
from sublim_interp.config import Experiment
from sublim_interp.errors import SublimError
from sublim_interp.plots import FIGURES, cosines, growth, patched, plot
from sublim_interp.runs import Run, run
from sublim_interp.store import Store


def test_frames_and_figures_of_one_run(tiny_experiment: Experiment, store_root: Path) -> None:
    finished = run(tiny_experiment, Store(store_root))
    frames_agree_with_the_models(finished)
    for name in FIGURES:
        assert isinstance(plot(finished, name), matplotlib.figure.Figure)
    with pytest.raises(SublimError, match=r"no figure 'direction'; figures: arms, .*patching"):
        plot(finished, "direction")


def frames_agree_with_the_models(finished: Run) -> None:
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

    # Across initialisations nothing is compared in raw coordinates.
    assert np.isnan(growth(finished["cross-init", 0])["cosine"]).all()
    rows = cosines(finished).to_dict("records")
    assert {row["reference"] for row in rows if row["arm"] == "cross-init"} == {"own base"}
    assert {row["reference"] for row in rows if row["arm"] == "same-init"} == {"own base", "teacher"}
    assert all(row["low"] <= row["high"] and abs(row["cosine"]) <= 1 for row in rows)

    # Embeddings are not trained: before layer 0 nothing can come through.
    cells = patched(finished, "same-init").to_dict("records")
    assert max(abs(cell["effect"]) for cell in cells if cell["layer"] == 0) < 1e-5
