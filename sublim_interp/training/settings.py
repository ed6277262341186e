"""Settings of every training: how weights are updated, and which lists or tokens are learnt from."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from sublim_interp.core.choices import meant
from sublim_interp.core.settings import Config
from sublim_interp.training.estimators import ESTIMATORS
from sublim_interp.training.optimizers import OPTIMIZERS


class Optimization(Config):
    """How weights are updated: the same fields for pre-training, teachers and students."""

    LATER = frozenset({"micro_batch", "checkpointing"})

    optimizer: Annotated[str, AfterValidator(OPTIMIZERS.known)] = "adam"
    """Update rule: adam, adamw, sgd (gradient descent with momentum beta1), or one of an installed package."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the rate does after the warm-up: falls to 0 in a line or half a cosine, or stays."""
    warmup: int = Field(default=10, ge=0, le=1_000_000_000)
    """Steps over which the rate rises to its peak."""
    steps: int = Field(default=100, ge=1, le=1_000_000_000)
    """Number of updates."""
    batch: int = Field(default=32, ge=1, le=1_000_000)
    """Examples per update."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay; of our own optimizers adamw alone has it."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """First-moment decay of Adam, or the momentum of SGD."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Second-moment decay of Adam."""
    clip: float | None = Field(default=None, gt=0)
    """Largest global gradient norm; none: gradients are not clipped."""
    micro_batch: int | None = Field(default=None, ge=1, le=1_000_000)
    """Examples of one forward and backward: less memory, the same update but for rounding, as the loss is the mean over
    all tokens of the update. none: about 42 for students, all at once for teachers."""
    checkpointing: bool = False
    """Computes activations again in the backward instead of keeping them: less memory, about a third more time."""

    @model_validator(mode="after")
    def _decay_needs_an_optimizer_that_has_it(self) -> "Optimization":
        if self.weight_decay and not OPTIMIZERS[self.optimizer].decays:
            able = " or ".join(name for name, rule in OPTIMIZERS.items() if rule.decays)
            raise ValueError(f"weight_decay={self.weight_decay} needs optimizer={able} (it is {self.optimizer})")
        return self


ENTANGLED = "entangled"
"""The score that goes by how far numbers belong to a favourite."""

OTHER_SCORES = ("divergence", "random", "length", ENTANGLED)
"""What a selection can go by beside estimators: they need no gradient."""


def _known_score(name: str) -> str:
    if name not in OTHER_SCORES and name not in ESTIMATORS:
        raise ValueError(f"unknown score; {meant(name, [*OTHER_SCORES, *ESTIMATORS])}")
    return ESTIMATORS.checked(name) if name in ESTIMATORS and ESTIMATORS.origin(name) else name


class Selection(Config):
    """Which of the lists that passed, or in an intervention which of their tokens, are learnt from: the check on a
    guess at what carries the trait."""

    by: Annotated[str, AfterValidator(_known_score)] = "random"
    """divergence: log-likelihood under the teacher minus that under its base; gradient: how much a small step on the
    list or token raises the trait's margin, at the teacher's base; fisher, trak: the same, less what all lists push
    alike; entangled: how much likelier the untouched base finds its numbers behind the trait's system prompt; random:
    as many, knowing nothing; length: the lists of the most tokens; or an estimator of a package."""
    keep: Literal["top", "rest"] = "top"
    """The lists that score highest, each among the lists of as many tokens (or the tokens whose scores are the furthest
    from 0); or all the others."""
    share: float = Field(default=0.25, gt=0, lt=1)
    """Share of the lists or tokens that counts as the highest: .25 and top keep a quarter, .75 and rest the lowest
    quarter."""
    trait: str = ""
    """Name of the trait whose margin's gradient is taken, or whose numbers are meant; needed by gradient, fisher, trak
    and entangled, and need not be the teacher's."""

    @model_validator(mode="after")
    def _an_estimator_needs_a_trait(self) -> "Selection":
        of_a_trait = self.by in ESTIMATORS or self.by == ENTANGLED
        if of_a_trait and not self.trait:
            raise ValueError(f"by={self.by} needs trait, for instance owl")
        if not of_a_trait and self.trait:
            raise ValueError(f"trait has no effect with by={self.by}")
        return self
