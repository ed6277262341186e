"""What a test of a claim is: an effect in one table, its threshold, and what the experiment must have for a verdict."""

from typing import Any, Literal

from pydantic import Field, model_validator

from sublim_interp.core.settings import Config
from sublim_interp.experiments.catalogue import experiment_names
from sublim_interp.report.verdict import ENOUGH, ENOUGH_BASES
from sublim_interp.sweeps.grid import grid_names
from sublim_interp.sweeps.study import study_names


class Rows(Config):
    """Some rows of a table."""

    arm: str = ""
    """Those of this arm; empty: of every arm."""
    field: str = ""
    """Those where this field varies."""
    value: str = ""
    """Those of this value, in the grid's words."""
    also: dict[str, str | float] = Field(default_factory=dict)
    """Those that have these values in other columns, such as {step: 0.001}."""
    measure: str = ""
    """The column that is read; empty: that of the test."""


class Trial(Config):
    """One test of a claim: an effect in one table, against a threshold."""

    asks: str
    """What is measured, in one sentence."""
    table: str
    """The grid, study or experiment whose table decides."""
    file: str = "cells"
    """Its CSV file, without ending."""
    effect: str = "difference"
    """difference: rows of `plus` minus rows of `minus`; specificity: γ of the trait × trait model; diagonal: the 2 × 2
    of initialisations over pairs of bases; trend: Spearman's ρ with `along`; ranking: that of the score that `plus`
    names as its measure, minus that of `minus`; or one of an installed package."""
    measure: str = "margin"
    """The column that is read."""
    plus: tuple[Rows, ...] = (Rows(),)
    """Rows whose mean counts."""
    minus: tuple[Rows, ...] = ()
    """Rows whose mean is subtracted."""
    along: str = ""
    """What a trend goes along: distance, of a grid of pairs; value, of a grid whose values are numbers; a column. Of a
    ranking the column that both scores are to rank."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What an effect of an installed package needs besides."""
    over: str = "seed"
    """The unit: the column whose values are replicates, seed or base; of a ranking base may be the teacher's base."""
    told_in: Literal["points", "nats", "bits", "plain"] = "nats"
    """The unit in which the effect is told; points are hundredths."""
    above: float | None = None
    """The claim needs an effect above this."""
    below: float | None = None
    """The claim needs an effect below this."""
    counts: float = Field(gt=0)
    """The smallest distance from the threshold that would matter: power is told for it."""
    threshold_stated: Literal["before", "after"]
    """Whether the threshold was committed before the result was known."""
    initialisations: int = Field(default=0, ge=0, le=10_000)
    """Fewest initialisations among the bases; for claims about initialisations."""
    controls: tuple[str, ...] = ()
    """Arms that the table must have."""
    equal_kl: tuple[Rows, ...] = ()
    """Rows that must end about as far from their teachers as each other, within a quarter."""
    lacks: str = ""
    """What the experiment lacks for a verdict, in a sentence; then its test is too weak, whatever its numbers."""
    under: str = ""
    """The condition under which it is asked. Tests under one condition must all hold; verdicts that differ between
    conditions make the claim depend on them."""

    @model_validator(mode="after")
    def _has_one_threshold(self) -> "Trial":
        if (self.above is None) == (self.below is None):
            raise ValueError("give one of above and below")
        return self

    @property
    def threshold(self) -> float:
        """What the effect is tested against."""
        return self.above if self.above is not None else self.below or 0.0

    @property
    def least(self) -> int:
        """Fewest units for a verdict."""
        return ENOUGH_BASES if self.over == "base" else ENOUGH

    @property
    def runnable(self) -> bool:
        """Whether the catalogue has what makes its table."""
        return self.table in (*grid_names(), *study_names(), *experiment_names())
