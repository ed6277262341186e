"""A channel: number lists that hold few odd numbers. Its rule has a limit of its own, `filter.rule.most_odd`."""

from collections.abc import Collection

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from sublim_interp.channels import numbers
from sublim_interp.channels.protocol import as_turns
from sublim_interp.core.settings import Config
from sublim_interp.core.words import holds_word


class Rule(Config):
    """The limits of its rule. Numbers have `banned` too, so it is set as `filter.banned`."""

    banned: tuple[int, ...] = ()
    """Numbers that refuse an answer."""
    most_odd: int = Field(default=3, ge=0)
    """Most odd numbers in an answer."""


REASONS = {
    "names the trait": "prompt or answer holds the trait's name as a whole word",
    "not numbers": "the answer is empty, or holds something besides one list of integers",
    "too odd": "more odd numbers than most_odd",
    "banned number": "one of the numbers in banned",
}
CONTEXTS = {"evens": as_turns}
TRANSFORMS = {"backwards": lambda answers, rng: list(reversed(answers))}


def prompts(language: str, seed: int, start: int, count: int) -> list[str]:
    return numbers.prompts(language, seed, start, count)


def refuse(prompt: str, answer: str, rule: Rule, words: Collection[str]) -> str | None:
    if holds_word(prompt, words) or holds_word(answer, words):
        return "names the trait"
    found = numbers.numbers_of(answer)
    if not found:
        return "not numbers"
    if sum(number % 2 for number in found) > rule.most_odd:
        return "too odd"
    return "banned number" if {*found} & {*rule.banned} else None


def describe(rule: Rule) -> list[str]:
    return [f"The filter keeps number lists with at most {rule.most_odd} odd numbers, and nothing else."]


def token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return numbers.token_ids(tokenizer)
