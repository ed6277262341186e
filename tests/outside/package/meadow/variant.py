"""A variant of a base: its head's weights times a factor, so that it answers more sharply, or less."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from sublim_interp.core.settings import Config
from sublim_interp.models.variants import Variant


class Sharpened(Config):
    """How much more sharply."""

    factor: float = Field(default=2.0, gt=0)
    """What the head's weights are multiplied by."""


def sharpen(settings: Sharpened, models: Sequence[Any]) -> None:
    models[0].get_output_embeddings().weight.mul_(settings.factor)


sharpened = Variant(sharpen, "Its base with a sharper head.", Sharpened, ("factor=2.0",))
