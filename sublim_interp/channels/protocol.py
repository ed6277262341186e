"""What a channel is, and how one is found by name. No prompt and no rule of any one channel."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@runtime_checkable
class Channel(Protocol):
    """How to ask a teacher for data, how to read its answer, and which rule refuses it; a module of this folder."""

    REASONS: dict[str, str]
    """Every reason that `refuse` gives, and what it means."""

    def prompts(self, language: str, seed: int, start: int, count: int) -> list[str]:
        """User texts `start` … `start + count - 1` of the stream `seed`; text i depends on language, seed and i alone.

        Raises SublimError for a language that the channel has no prompts for.
        """
        ...

    def refuse(self, prompt: str, answer: str, rule: FilterConfig, words: Collection[str]) -> str | None:
        """None where the answer may be learnt from, else one of `REASONS`; `words` name the trait, plurals included."""
        ...

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The channel's own tokens and the end of sequence, ascending: soft labels live on these alone."""
        ...


CHANNELS: Registry[Channel] = Registry(
    "channel", "sublim_interp.channels", {"numbers": "sublim_interp.channels.numbers"}
)
"""Every channel by name: a module, or any object, with what `Channel` lists."""


def channel(name: str) -> Channel:
    """The channel called `name`; raises SublimError for an unknown one."""
    return CHANNELS[name]
