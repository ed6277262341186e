"""The settings of the filter for all channels: duplicates, lists, held out. A channel's own rule is in its file."""

from typing import Any

from pydantic import Field, model_validator

from sublim_interp.channels import numbers
from sublim_interp.channels.protocol import Channel
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config, validate
from sublim_interp.training.settings import Selection

PARAPHRASERS = {
    "own": "The untouched base of whoever wrote them",
    "other": "The untouched other base of the replicate",
    "teacher": "Whoever wrote them",
}
"""Who may rewrite lists beside a base by its name, by what `filter.paraphrase.by` says."""


class Paraphrase(Config):
    """Which model rewrites the kept lists, and how closely."""

    by: str = "own"
    """own: the untouched base of who wrote the lists; other: the untouched other base of the replicate; teacher: who
    wrote them; or the name of a base."""
    within: int = Field(default=10, ge=1, le=1000)
    """How far a number may move; it stays from 0 to 999."""


class FilterConfig(numbers.Rule):
    """Which answers are kept. The limits of number lists are fields of it; those of other channels are in `rule`."""

    LATER = numbers.Rule.LATER | {"selection", "rule", "transform", "paraphrase", "reworded", "mix"}

    duplicates: bool = False
    """Whether equal pairs of prompt and answer may stay."""
    lists: int = Field(default=60_000, ge=1, le=100_000_000)
    """Most lists that a student learns from; the first that pass, in order."""
    held_out: int = Field(default=500, ge=2, le=100_000_000)
    """Kept lists set aside to measure the distance between teacher and student; no student trains on them."""
    selection: Selection | None = None
    """Some of the lists to learn from, such as {by: divergence, share: .25}; none: all of them."""
    transform: str = ""
    """What is done to the lists to learn from: for numbers shuffled-within, shuffled-across, sorted,
    digits-reversed or nudged. Held-out lists stay as they were written. Empty: nothing."""
    paraphrase: Paraphrase | None = None
    """A model that rewrites the lists to learn from, such as {by: own, within: 10}: each number in turn is drawn anew
    from the model's distribution behind prompt and new numbers, among those within so many of the one that was
    written. Held-out lists stay as they were written. none: nobody."""
    reworded: bool = False
    """Whether the prompts of the lists to learn from are put in other words: each in another phrasing of the channel
    that asks for the same. Answers stay, and held-out lists too."""
    mix: float = Field(default=0.0, ge=0, lt=1)
    """Share of the lists to learn from that are replaced by lists of the neutral teacher, 0 to below 1. Held-out lists
    stay the teacher's own. A student of the neutral teacher learns the same lists whatever it is."""
    rule: dict[str, Any] = Field(default_factory=dict)
    """Limits of the channel's own rule that are no fields here, for channels other than numbers."""

    @model_validator(mode="after")
    def _has_one_that_changes_its_lists(self) -> "FilterConfig":
        if self.transform and self.paraphrase:
            raise ValueError(f"transform={self.transform} and paraphrase both change the answers; choose one of them")
        return self


def rule_of(source: Channel, config: FilterConfig) -> Config:
    """The limits of a channel's rule: those that numbers have too are fields of the filter, others are in its `rule`.

    A limit of the same name that takes other values, such as words where numbers take integers, is another one.

    Raises SublimError, in one line, for what the channel's rule does not have or refuses.
    """
    own, flat = source.Rule.model_fields, numbers.Rule.model_fields
    shared = {name for name in flat if name in own and own[name].annotation == flat[name].annotation}
    for name in config.rule:
        if name in shared or (name in flat and name not in own):
            raise SublimError(f"filter.rule.{name}: write filter.{name}")
    for name, field in flat.items():
        if name not in shared and getattr(config, name) != field.default:
            limits = ", ".join(own) or "no limits"
            cure = f"write filter.rule.{name}" if name in own else f"the rule of the channel has {limits}"
            raise SublimError(f"filter.{name} has no effect: {cure}")
    given = {name: getattr(config, name) for name in shared}
    return validate(source.Rule, {**given, **config.rule}, "filter.rule")
