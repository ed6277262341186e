"""What is recorded of a training, and at which steps: the settings, and the words that stand for some of them."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.models.points import Stream

Schedule = (
    Literal["every", "log"]
    | Annotated[int, Field(ge=1, le=1_000_000_000)]
    | tuple[Annotated[int, Field(ge=0, le=1_000_000_000)], ...]
)
"""At which updates: each; the start, powers of 2 and the end; every so many; or those of a list."""


def due(when: Schedule, step: int, end: int | None) -> bool:
    """Whether a schedule means the state after `step` updates, of a training of `end` where that is known."""
    if when == "every":
        return True
    if when == "log":
        return step & (step - 1) == 0 or step == end
    return step % when == 0 if isinstance(when, int) else step in when


class Recording(Config):
    """What is recorded of a training, and how often; it changes no weight. What it costs is in docs/benchmarks.md."""

    keep: bool = True
    """Whether anything is recorded."""
    probe_steps: tuple[Annotated[int, Field(ge=0, le=1_000_000_000)], ...] = ()
    """After which updates a close look is taken, beside the start and the end; none given: after powers of 2."""
    stream: tuple[Stream, ...] = Field(default=("resid_post",), min_length=1)
    """Where in each layer the probe is seen; a place that a model lacks is left out."""
    hooks: dict[str, Schedule] = Field(default={})
    """Further hook points on the probe, by name or glob, each with its updates: `every`, `log` (powers of 2), a number
    (every so many) or a list. `{"blocks.1.*": log, "blocks.*.attn.hook_pattern": [0, 100]}`; with `.grad` behind the
    name, the gradient there. They are kept as asked for, in no budget."""
    examples: int = Field(default=0, ge=0, le=1_000_000_000)
    """Every so many updates each example's residuals are kept; 0: never."""
    positions: tuple[Annotated[int, Field(ge=-1_000_000, le=1_000_000)], ...] = Field(default=(-1,), min_length=1)
    """Which positions of an example: from its first token (0, 1, …) or from its last (-1, -2, …)."""
    stream_bytes: int = Field(default=300_000_000, ge=0)
    """Most bytes of residuals and gradients of the close looks, those at the references included. Beyond it they are
    kept in bfloat16, and where that is not enough at fewer of the looks: the start and the end always."""
    weight_bytes: int = Field(default=8 << 20, ge=0)
    """Most bytes of weight-sized tensors kept in full, over all steps; beyond it, at fewer of the close looks. Of
    lab-main's body, 2.5 MiB, the default keeps the end with both moments; of lab-small's, every close look."""
    series_weights: int = Field(default=1 << 24, ge=1)
    """Trained weights of which norms and projections are taken at every update; of n times as many, at every n-th."""
    moments: int = Field(default=10, ge=1, le=1_000_000_000)
    """At every so many of these updates the norms of the optimizer's moments are taken too."""
    shard: int = Field(default=100, ge=1, le=1_000_000)
    """Updates whose series make one file."""

    @model_validator(mode="before")
    @classmethod
    def _read_word(cls, data: Any) -> Any:
        """A word stands for a preset."""
        if not isinstance(data, str):
            return data
        if data not in PRESETS:
            raise ValueError(f"no recording '{data}'; choices: {', '.join(PRESETS)}, or a mapping of fields")
        return PRESETS[data].model_dump()

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, handler: Any, info: Any) -> Any:
        """In files a preset is written as its word."""
        if self.word and info.mode == "json":
            return self.word
        fields = handler(self)
        return fields if self.hooks else {name: value for name, value in fields.items() if name != "hooks"}

    @property
    def word(self) -> str:
        """The word that stands for it, or ""."""
        return next((word for word, preset in PRESETS.items() if preset == self), "")

    def every(self, parameters: int) -> int:
        """At every how many updates the norms and projections of so many trained weights are taken."""
        return max(1, -(-parameters // self.series_weights))

    def looks(self, steps: int) -> list[int]:
        """After which of `steps` updates a close look is taken, the start and the end included."""
        some = self.probe_steps or (2**i for i in range(steps.bit_length()))
        return sorted({0, *(step for step in some if step <= steps), steps})

    def affordable(self, steps: int, each: int, references: int = 0) -> tuple[list[int], bool]:
        """(after which updates a close look is taken within the budget, whether it is kept in bfloat16).

        steps: updates of the training
        each: bytes of one look's residuals and gradients in float32
        references: other models that see the probe once
        """
        looks = self.looks(steps)
        if (len(looks) + references) * each <= self.stream_bytes:
            return looks, False
        most = max(2, 2 * self.stream_bytes // each - references)
        if len(looks) <= most:
            return looks, True
        every = -(-(len(looks) - 1) // (most - 1))
        return sorted({0, *looks[::-1][::every]}), True

    def full(self, steps: int, parameters: int, kinds: int) -> list[int]:
        """Those of the close looks at which the delta of every trained weight is kept, as many as the budget allows.

        steps: updates of the training
        parameters: trained weights
        kinds: tensors of that size which are kept at the end: the delta and the optimizer's moments
        """
        some = [step for step in self.looks(steps) if step > 0]
        most = self.weight_bytes // (4 * parameters) - (kinds - 1) if parameters else len(some)
        if most <= 0:
            return []
        every = -(-len(some) // most)
        return sorted(some[::-1][::every])


PRESETS = {"none": Recording(keep=False), "default": Recording(), "examples": Recording(examples=10)}
"""Words for recordings: nothing, the default, or the residuals of each example of every tenth update too."""


def recording_of(trace: str) -> Recording:
    """The recording that a word of `PRESETS` stands for. Raises SublimError for another word."""
    if trace not in PRESETS:
        raise SublimError(f"no trace '{trace}'; choices: {', '.join(PRESETS)}")
    return PRESETS[trace]
