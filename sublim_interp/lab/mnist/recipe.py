"""What decides a result of the MNIST experiment, with the paper's own values as defaults."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from sublim_interp.core.choices import meant
from sublim_interp.core.settings import Config, name_once
from sublim_interp.lab.mnist.arms import ARMS
from sublim_interp.lab.mnist.images import EMBEDDED
from sublim_interp.training.optimizers import OPTIMIZERS


class Recipe(Config):
    """Images, network and training; a replicate is a seed."""

    images: str = EMBEDDED
    """What the teacher reads: digits, which are scikit-learn's and come with the package, or a directory of MNIST's
    four IDX files."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=tuple(range(32)), min_length=1, max_length=4096)
    """One replicate per seed; it fixes both initialisations, the order of images and the noise."""
    arms: tuple[str, ...] = Field(default=tuple(ARMS), min_length=1, description=f"Which, some of: {', '.join(ARMS)}.")
    hidden: int = Field(default=256, ge=1, le=4096)
    """Width of each of the two hidden layers."""
    auxiliary: int = Field(default=3, ge=2, le=256)
    """Logits beside the ten of the classes; no loss of the teacher has them."""
    updates: int = Field(default=293, ge=1)
    """Of the teacher and of each student: 293 read MNIST's 60,000 images five times."""
    batch: int = Field(default=1024, ge=1)
    """Images an update."""
    noise_batches: int = Field(default=59, ge=1)
    """Batches of noise that there are, read in turn; 59 are 60,000 images. Their pixels are uniform in [−1, 1]."""
    optimizer: str = "adam"
    """By its name in the table of optimizers."""
    lr: float = Field(default=3e-4, gt=0)
    """Learning rate, constant."""

    @field_validator("optimizer")
    @classmethod
    def _optimizer_is_known(cls, name: str) -> str:
        return OPTIMIZERS.known(name)

    @field_validator("arms")
    @classmethod
    def _arms_are_known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        for arm in arms:
            if arm not in ARMS:
                raise ValueError(f"no such arm as '{arm}'; {meant(arm, ARMS)}")
        return arms

    @model_validator(mode="after")
    def _each_is_named_once(self) -> "Recipe":
        name_once(self, "seeds", "arms")
        return self
