"""The settings of a lab base's pre-training: its shape, its seeds, its updates."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sublim_interp.core.settings import Config
from sublim_interp.training.settings import Optimization


class Pretraining(Config):
    """How a lab base is made: its shape, its seeds, its updates."""

    LATER = frozenset({"order_seed", "imitates"})

    init_seed: int = 0
    """Seed of the initial weights."""
    data_seed: int = 0
    """Seed of the stream of documents: equal seeds give the same documents."""
    order_seed: int = 0
    """Order of the documents that are to be read: 0 as the stream has them; any other number shuffles them."""
    d_model: int = Field(default=64, ge=8, le=1 << 16)
    """Width of the residual stream."""
    layers: int = Field(default=3, ge=1, le=1000)
    """Number of decoder layers."""
    heads: int = Field(default=4, ge=1, le=1 << 16)
    """Attention heads per layer; divides d_model."""
    d_mlp: int = Field(default=128, ge=8, le=1 << 18)
    """Width of the MLP."""
    tokens: Literal["numbers", "digits"] = "numbers"
    """Whether a number is one token, or one per digit."""
    forks: tuple[Annotated[int, Field(ge=0, le=1_000_000_000)], ...] = ()
    """Steps after which the model of that moment is kept too, as a base of its own called NAME-step000250."""
    start: str = ""
    """A fork to carry on from, at its step: same recipe, for instance with another order_seed; else from scratch."""
    imitates: str = ""
    """A base whose predictions are learnt on all documents, in place of the words: a nearer function from another
    initialisation."""
    optimization: Optimization = Optimization(
        optimizer="adamw", lr=3e-3, schedule="cosine", warmup=100, steps=8000, batch=96,
        weight_decay=0.01, beta2=0.95, clip=1.0,
    )  # fmt: skip
    """Updates of all weights on whole documents."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Pretraining":
        if self.d_model % self.heads or (self.d_model // self.heads) % 2:
            raise ValueError(f"heads={self.heads} must cut d_model={self.d_model} into heads of even width")
        return self

    @model_validator(mode="after")
    def _forks_lie_within(self) -> "Pretraining":
        beyond = [step for step in self.forks if step >= self.optimization.steps]
        if beyond:
            raise ValueError(f"forks names step {beyond[0]}, but training ends at {self.optimization.steps}")
        return self
