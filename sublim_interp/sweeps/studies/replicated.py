"""What studies of an experiment's replicates share: its recipe, what differs of it, and seeds, one replicate each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from sublim_interp.core.settings import changed, name_once
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import resolve_base
from sublim_interp.sweeps.piecewise import Piecewise

if TYPE_CHECKING:
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.results import Replicate


class Replicated(Piecewise):
    """A study of replicates of an experiment."""

    experiment: str = "owl"
    """Whose recipe teachers, lists and students have."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields of that experiment that differ."""
    seeds: tuple[int, ...] = Field(min_length=1, max_length=10_000)
    """One replicate each, on bases as the experiment pairs them."""

    @model_validator(mode="after")
    def _names_seeds_once(self) -> "Replicated":
        name_once(self, "seeds")
        return self

    @property
    def replicates(self) -> int:
        return len(self.seeds)

    def pieces(self) -> Mapping[str, tuple[int]]:
        return {f"seed {seed}": (seed,) for seed in self.seeds}

    def inputs(self) -> dict[str, str]:
        return {name: resolve_base(name).digest for name in self.case.bases}

    @property
    def given(self) -> dict[str, Any]:
        """Fields of the experiment that the study needs as they are, unless `change` says otherwise."""
        return {}

    @property
    def case(self) -> Experiment:
        """The experiment whose replicates these are."""
        values = {"name": "case", "seeds": [*self.seeds], **self.given}
        return changed(experiment(self.experiment), {**values, **self.change}, "change {}")

    def students(
        self, seed: int, arms: Sequence[str], store: "Store", progress: Progress, share: float
    ) -> "dict[str, Replicate]":
        """The students of a seed, by arm. What the store lacks of them is made.

        share: of the work of the piece, which making them is
        """
        from sublim_interp.experiments.results import Replicate
        from sublim_interp.pipeline.make import make

        cells = {cell.arm: cell for cell in plan(self.case, store).cells if cell.seed == seed and cell.arm in arms}
        for done, arm in enumerate(arms, 1):
            student = cells[arm].student
            assert student is not None
            make(student, store)
            progress(share * done / len(arms))
        return {arm: Replicate(cells[arm], store) for arm in arms}
