"""Study recovered: a vector trained on a steered teacher's lists, beside the vector that steered it. No student."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from sublim_interp.core.settings import name_once
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.tables import read_table
from sublim_interp.report.wording import capital, count
from sublim_interp.stats.intervals import mean_interval
from sublim_interp.sweeps.piecewise import Rows, store_of
from sublim_interp.sweeps.studies.replicated import Replicated
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch.nn import Module

    from sublim_interp.core.store import Store
    from sublim_interp.training.batches import Batch

ARMS = {
    "same-init": "lists of the teacher that the vector steered",
    "neutral": "lists of the same base, steered by nothing",
}
"""Whose lists vectors are trained on; the second is the control."""

AT_ONCE, HEARD = 64, 8
"""Lists an update, and batches on which the gain is measured."""


class Recovered(Replicated):
    """Trains steering vectors on lists of steered teachers."""

    VERSION, FIGURE, TABLES = 1, "recovered", ("steps",)

    updates: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(default=(25, 50, 100, 200), min_length=1)
    """After how many updates vectors are compared, the last one for the verdict."""
    rate: float = Field(default=0.05, gt=0)
    """Adam's rate."""

    @model_validator(mode="after")
    def _coherent(self) -> "Recovered":
        name_once(self, "updates")
        if list(self.updates) != sorted(self.updates):
            raise ValueError(f"updates={list(self.updates)} must rise")
        return self

    def seconds(self) -> float:
        return 10 + 5e-3 * self.case.corpus.prompts + 0.2 * self.updates[-1]

    @property
    def given(self) -> dict[str, Any]:
        return {"arms": [*ARMS], "teacher.kind": "steered"}

    def frames(self, directory: Path) -> "dict[str, pd.DataFrame]":
        steps = super().frames(directory)["steps"]
        last = steps.loc[steps["update"] == self.updates[-1]].drop(columns="update")
        return {"replicates": last, "steps": steps}

    def measure(self, directory: Path, progress: Progress, *which: int) -> Mapping[str, Rows]:
        (seed,) = which
        return {"steps": replicate(self, seed, store_of(directory), progress)}

    def table(self, directory: Path) -> SweepTable:
        frame = read_table(directory / "replicates.csv")
        rows = []
        found = {}
        for arm, own in frame.groupby("arm", sort=False):
            found[arm] = mean_interval(own["cosine"].to_list(), bounds=(-1, 1))
            nats = mean_interval(own["gain"].to_list())
            rows.append((str(arm), *(minus(i.plain()) for i in (found[arm], nats))))
        one, other = (found[arm] for arm in ARMS)
        said = "is above" if one.low > other.high else "is not told apart from"
        return SweepTable(
            f"Vectors trained on lists of steered teachers, beside the vector that steered them: means over "
            f"{count(one.n, 'replicate')} with 95 % intervals.",
            ("arm", "cosine with the teacher's vector", "gain in nats a token"),
            rows,
            [
                f"By its interval the cosine from the teacher's lists {said} that from neutral ones.",
                *(f"{capital(arm)}: {meaning}." for arm, meaning in ARMS.items()),
                "Gain: how much likelier the vector makes the lists it was trained on.",
            ],
        )  # fmt: skip

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        return FIGURES[self.FIGURE].draw(read_table(directory / "steps.csv"))


def replicate(study: Recovered, seed: int, store: "Store", progress: Progress) -> list[dict[str, Any]]:
    """Trains a vector on the lists of each arm, which are made where the store lacks them: a row an arm and update."""
    import torch

    from sublim_interp.analysis.directions.fitted import fitting
    from sublim_interp.analysis.probes import frozen
    from sublim_interp.channels.rows import read_rows
    from sublim_interp.models.hooks import added, hook_name
    from sublim_interp.pipeline.make import make
    from sublim_interp.pipeline.teach import steering_vector
    from sublim_interp.training.batches import collate, tokenize
    from sublim_interp.training.recording.settings import PRESETS

    cells = {c.arm: c for c in plan(study.case, store).cells if c.seed == seed}
    rows, goal = [], None
    for place, arm in enumerate(ARMS):
        cell = cells[arm]
        assert cell.student is not None
        make(cell.student.data, store, recording=PRESETS["none"])
        base, teacher = cell.evaluation.base, cell.student.data.corpus.teacher
        goal = steering_vector(teacher, store) if goal is None else goal
        examples = tokenize(base, read_rows(cell.student.data.made(store) / "kept.jsonl"))
        batches = [collate(examples[i : i + AT_ONCE], base.pad) for i in range(0, len(examples), AT_ONCE)]
        model, at = base.load(), hook_name(teacher.config.layer, "resid_pre")
        with frozen(model):
            before = _mean_loss(model, batches[:HEARD])
            last = study.updates[-1]
            for update, vector in enumerate(islice(fitting(model, batches, at, study.rate), last), 1):
                progress((place + update / last) / len(ARMS))
                if update not in study.updates:
                    continue
                with added(model, vector, at):
                    gain = before - _mean_loss(model, batches[:HEARD])
                found = vector.detach().to(goal)
                cosine, length = torch.cosine_similarity(found, goal, dim=0), found.norm() / goal.norm()
                rows.append(
                    {"seed": seed, "base": base.name, "arm": arm, "update": update, "cosine": float(cosine),
                     "length": float(length), "gain": gain}
                )  # fmt: skip
    return rows


def _mean_loss(model: "Module", batches: "Sequence[Batch]") -> float:
    """Mean over batches of the cross-entropy of their labelled tokens, in nats."""
    import torch

    from sublim_interp.analysis.one_step import text_loss

    with torch.no_grad():
        return sum(float(text_loss(batch)(model)) for batch in batches) / len(batches)
