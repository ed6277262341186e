"""Tests of the study patching: a change planted in one module is found there alone; a whole run on small settings."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Replicate
from sublim_interp.report.figures.patches import patches
from sublim_interp.sweeps.studies.patching import ARMS, PLACES, Patched, replicate
from sublim_interp.sweeps.study import run_study, study

FEW = {
    "corpus.prompts": 96,
    "filter.held_out": 8,
    "teacher.optimization.steps": 40,
    "student.optimization.steps": 4,
    "bases": ["lab-small-0"],
}


class Planted(Replicate):
    """A student that is its base, but for the second layer's MLP; a neutral one is its base."""

    @property
    def model(self) -> PreTrainedModel:
        model = self.base.load()
        if self.arm == ARMS[0]:
            torch.manual_seed(0)
            for parameter in model.model.layers[1].mlp.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        return model


def test_a_change_planted_in_one_module_is_found_there_alone(tmp_path: Path) -> None:
    case = Patched(name="few", study="patching", seeds=(0,), change=FEW).case
    store = Store(tmp_path)
    found = replicate({c.arm: Planted(c, store) for c in plan(case, store).cells if c.arm in ARMS}, 0)
    rows, cells = pd.DataFrame(found["replicates"]), pd.DataFrame(found["patches"])
    holds = rows["piece"].isin(["layer 1", "all MLPs"]) & (rows["arm"] == ARMS[0])
    for way in ("enough", "needed"):
        assert rows.loc[holds, way].to_list() == pytest.approx([1, 1], abs=1e-4)
        assert rows.loc[~holds, way].abs().max() < 1e-4, "neither another part nor the neutral student"
    own = cells.loc[cells["arm"] == ARMS[0]]
    stream = own.loc[own["kind"] == "resid_pre"]
    assert set(stream["place"]) == set(range(-PLACES, 0))
    assert stream.loc[stream["layer"] < 2, "share"].abs().max() < 1e-4, "nothing differs before the changed layer"
    assert stream.loc[stream["layer"] == 2, "share"].abs().max() > 0.1
    module = own.loc[(own["kind"] == "weights") & (own["share"].abs() > 1e-4)]
    assert set(module["layer"]) == {1} and all(module["place"].str.startswith("mlp."))
    assert cells.loc[cells["arm"] == "neutral", "share"].abs().max() < 1e-4


def test_it_runs_whole(tmp_path: Path) -> None:
    asked = Patched(name="few", study="patching", seeds=(0,), change=FEW)
    made = run_study(asked, Store(tmp_path), processes=1).path
    rows = pd.read_csv(made / "replicates.csv")
    assert [row[0] for row in asked.table(made).rows] == list(rows["piece"].unique())
    assert rows.loc[rows["piece"] == "layer 0", "arm"].to_list() == [*ARMS]
    panels = [ax for ax in patches(pd.read_csv(made / "patches.csv")).axes if ax.images]
    assert [len(ax.texts) for ax in panels] == 3 * [3 * PLACES, 3 * 4, 3 * 9]
    assert study("patching").replicates == 12
