"""What a channel is, and how one is found by name. No prompt and no rule of any one channel."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sublim_interp.channels.rows import Written
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry
from sublim_interp.core.settings import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@runtime_checkable
class Channel(Protocol):
    """How to ask a teacher for data, which rule refuses its answer, and what both mean in words.

    A module of this folder, or any object of another package.
    """

    @property
    def Rule(self) -> type[Config]:
        """The limits of its rule, each with its default. Where numbers have the same limit, it is that of `filter`."""
        ...

    @property
    def REASONS(self) -> Mapping[str, str]:
        """Every reason that `refuse` gives, and what it means."""
        ...

    @property
    def CONTEXTS(self) -> Mapping[str, Callable[[Written], tuple[dict[str, str], ...]]]:
        """Contexts of a question by name: each makes a kept answer the turns that stand before the question."""
        ...

    @property
    def TRANSFORMS(self) -> Mapping[str, Callable[[Sequence[str], random.Random], list[str]]]:
        """Changes of the kept answers by name, such as a shuffle: answers and a random state give as many answers."""
        ...

    def prompts(self, language: str, seed: int, start: int, count: int) -> list[str]:
        """User texts `start` … `start + count - 1` of the stream `seed`; text i depends on language, seed and i alone.

        Raises SublimError for a language that the channel has no prompts for.
        """
        ...

    def refuse(self, prompt: str, answer: str, rule: Any, words: Collection[str]) -> str | None:
        """Why an answer may not be learnt from: one of `REASONS`, or None where it may.

        rule: a `Rule`
        words: those that name the trait, plurals included
        """
        ...

    def describe(self, rule: Any) -> list[str]:
        """What the rule keeps, as sentences for the page."""
        ...

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The channel's own tokens and the end of sequence, ascending: distances and soft labels are over these."""
        ...


@runtime_checkable
class Paraphrased(Protocol):
    """What a channel may have besides: its answers and its prompts in other words."""

    def alternatives(self, answer: str, within: int, rule: Any) -> Sequence[tuple[str, ...]]:
        """An answer cut into pieces, each with every text that may stand there, what stands there first.

        within: how far a text may be from what stands there, in whatever unit the channel has
        rule: a `Rule`, which the other texts keep
        """
        ...

    def reword(self, prompt: str, language: str, rng: random.Random) -> str:
        """A prompt in other words that asks for the same; raises SublimError where there are none."""
        ...


def _check(name: str, thing: object) -> None:
    """Refuses a channel of another package that lacks something."""
    if not isinstance(thing, Channel):
        needed = sorted(name for name in vars(Channel) if not name.startswith("_"))
        lacking = ", ".join(n for n in needed if not hasattr(thing, n))
        raise SublimError(f"channel '{name}' lacks: {lacking}")


CHANNELS: Registry[Channel] = Registry(
    "channel",
    "sublim_interp.channels",
    {name: f"sublim_interp.channels.{name}" for name in ("numbers", "code", "reasoning")},
    _check,
)
"""Every channel by name."""


def channel(name: str) -> Channel:
    """The channel called `name`; raises SublimError for an unknown one."""
    return CHANNELS[name]


def drawn_prompts(
    name: str, makers: Mapping[str, Callable[[random.Random], str]], language: str, seed: int, start: int, count: int
) -> list[str]:
    """User texts `start` … `start + count - 1` of the stream `seed` of a channel, each drawn by itself.

    name: of the channel, part of what is drawn
    makers: by language, what makes a text of a random state

    Raises SublimError for a language without a maker.
    """
    if language not in makers:
        raise SublimError(f"channel {name} has no prompts in language '{language}'; languages: {', '.join(makers)}")
    return [makers[language](random.Random(f"channel/{name}/{seed}/{i}")) for i in range(start, start + count)]


PLAIN = "plain"
"""The context of a question that stands alone."""


def contexts_of(source: Channel) -> tuple[str, ...]:
    """Every context that a question can have in an experiment on a channel."""
    return (PLAIN, *source.CONTEXTS)


def transform_rows(rows: Sequence[Written], source: Channel, name: str, rng: random.Random) -> list[Written]:
    """The rows with their answers changed as `source.TRANSFORMS[name]` does it; prompts stay.

    Raises SublimError for an unknown name.
    """
    if name not in source.TRANSFORMS:
        raise SublimError(f"no such transform as '{name}'; {meant(name, source.TRANSFORMS)}")
    answers = source.TRANSFORMS[name]([row["answer"] for row in rows], rng)
    return [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]


def paraphrased(name: str) -> Paraphrased:
    """The channel called `name`, which has other words; raises SublimError for one that has none."""
    source = channel(name)
    if not isinstance(source, Paraphrased):
        raise SublimError(f"channel {name} cannot be paraphrased: it says no alternatives; numbers does")
    return source


def reword_rows(rows: Sequence[Written], source: Paraphrased, language: str, rng: random.Random) -> list[Written]:
    """The rows with their prompts in other words; answers stay. Raises SublimError as `Paraphrased.reword`."""
    return [{**row, "prompt": source.reword(row["prompt"], language, rng)} for row in rows]


def as_turns(row: Written) -> tuple[dict[str, str], ...]:
    """A teacher's answer as two turns of a chat: the prompt, and the answer."""
    return {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}


def added_texts(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """What each token that is not special adds to a text behind a digit, by its id, ascending.

    Alone it would say less: several tokenizers swallow a leading space, and of a lone one leave nothing.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    digit = tokenizer.encode("0", add_special_tokens=False)
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    before, *texts = tokenizer.batch_decode([digit, *([*digit, i] for i in ids)], clean_up_tokenization_spaces=False)
    return {i: text[len(before) :] for i, text in zip(ids, texts, strict=True)}


def writes_ascii(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that write printable ASCII characters or white space alone, and the end of sequence; ascending."""
    own = {i for i, text in added_texts(tokenizer).items() if text and all(_written(c) for c in text)}
    return sorted(own | {tokenizer.get_vocab()[str(tokenizer.eos_token)]})


def _written(char: str) -> bool:
    return char in "\n\t\r" or (char.isascii() and char.isprintable())
