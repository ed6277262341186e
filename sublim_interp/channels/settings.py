"""The settings of the filter: which answers of a teacher are kept."""

from pydantic import Field, model_validator

from sublim_interp.core.settings import Config
from sublim_interp.training.settings import Selection


class FilterConfig(Config):
    """Which answers are kept: the paper's number rule, and more."""

    LATER = frozenset({"selection"})

    min_numbers: int = Field(default=1, ge=1)
    """Fewest numbers in an answer."""
    max_numbers: int = Field(default=10, ge=1)
    """Most numbers in an answer."""
    max_value: int = Field(default=999, ge=0)
    """Largest number."""
    banned: tuple[int, ...] = ()
    """Numbers that refuse an answer, for instance those with negative associations (666, 911, …)."""
    duplicates: bool = False
    """Whether equal pairs of prompt and answer may stay."""
    lists: int = Field(default=60_000, ge=1)
    """Most lists that a student learns from; the first that pass, in order."""
    held_out: int = Field(default=500, ge=2)
    """Kept lists set aside to measure the distance between teacher and student; no student trains on them."""
    selection: Selection | None = None
    """Some of the lists to learn from, such as {by: divergence, share: .25}; none: all of them."""

    @model_validator(mode="after")
    def _bounds(self) -> "FilterConfig":
        if self.min_numbers > self.max_numbers:
            raise ValueError(f"min_numbers={self.min_numbers} is above max_numbers={self.max_numbers}")
        return self
