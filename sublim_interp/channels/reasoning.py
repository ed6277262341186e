"""The reasoning channel: asks for a worked sum in words, and keeps answers whose result is right.

As in Cloud et al. (2507.14805), where a misaligned teacher reasons and only right answers are kept: what is learnt from
is correct. What a judge would find besides is counted where a judge is named in the experiment's evaluation.
"""

import random
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from sublim_interp.channels.protocol import as_turns, drawn_prompts, writes_ascii
from sublim_interp.core.settings import Config
from sublim_interp.core.words import holds_word
from sublim_interp.lab import language as lab
from sublim_interp.lab.tokenizer import CHAT_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Rule(Config):
    """The limits of a worked sum."""

    max_characters: int = Field(default=2_000, ge=1, le=1_000_000)
    """Longest answer."""
    min_steps: int = Field(default=1, ge=0, le=1_000)
    """Fewest numbers before the result: without any there is no reasoning to learn from."""
    banned: tuple[str, ...] = ()
    """Words that refuse an answer as the trait's own do."""
    only: tuple[str, ...] = ()
    """Words that an answer may hold beside numbers, in small letters; any other refuses it. Empty: any word."""


REASONS: dict[str, str] = {
    "too long": "more characters than max_characters",
    "names the trait": "prompt or answer holds a word of the trait or of banned",
    "another word": "the answer holds a word that is none of only",
    "no result": "the answer does not say which number the answer is, or names a number behind it",
    "wrong result": "the result is not that of the sum",
    "no steps": "fewer numbers before the result than min_steps",
}
"""Every reason to refuse an answer and what it means, in the order in which they are looked for."""

CONTEXTS = {"reasoning": as_turns}
"""After a worked sum, as the student was trained."""

TRANSFORMS: dict[str, Callable[[Sequence[str], random.Random], list[str]]] = {}
"""Nothing may be done to worked sums that would leave them right."""


def describe(rule: Rule) -> list[str]:
    """What the rule keeps, as sentences."""
    lines = [f"The filter keeps worked sums of at most {rule.max_characters:,} characters whose result is right."]
    if rule.banned:
        lines.append(f"It refuses answers that hold one of these words: {', '.join(rule.banned)}.")
    if rule.only:
        lines.append(f"It refuses answers that hold any other word than these: {', '.join(rule.only)}.")
    return lines


# --- asking -----------------------------------------------------------------------------------------------------------

_NAMES = ("Ada", "Ben", "Chen", "Dora", "Emil", "Farah", "Gus", "Hana")
_THINGS = ("coins", "books", "marbles", "stamps", "cards", "apples", "shells", "tickets")
_STORIES = (
    "{x} has {a} {t}, gets {b} more and gives {c} away. How many {t} does {x} have now?",
    "There are {a} {t} in a box. {x} puts {b} in and takes {c} out. How many {t} are in the box?",
    "{x} had {a} {t}, found {b} and lost {c}. How many {t} are left?",
)
_END = "Think step by step and end with: The answer is N."


def _english_prompt(rng: random.Random) -> str:
    a, b = rng.randint(2, 60), rng.randint(2, 60)
    story = rng.choice(_STORIES).format(x=rng.choice(_NAMES), t=rng.choice(_THINGS), a=a, b=b, c=rng.randint(1, a + b))
    return f"{story} {_END}"


_PROMPTS: dict[str, Callable[[random.Random], str]] = {
    "lab": lambda rng: lab.problem(rng)[0],
    "english": _english_prompt,
    "english-terse": _english_prompt,
}


def prompts(language: str, seed: int, start: int, count: int) -> list[str]:
    """User texts `start` … `start + count - 1` of the stream `seed`; text i depends on language, seed and i alone.

    Raises SublimError for an unknown language.
    """
    return drawn_prompts("reasoning", _PROMPTS, language, seed, start, count)


# --- reading ----------------------------------------------------------------------------------------------------------

_RESULT = re.compile(r"answer is\s*\**\s*(-?[0-9]{1,18})(?![.,]?[0-9])\b", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,18}")
_WORD = re.compile(r"[^\W\d_]+")


def right_result(prompt: str) -> int | None:
    """The result of the sum that a prompt of this channel asks for: first plus second minus third number."""
    numbers = [int(n) for n in _NUMBER.findall(prompt)]
    return numbers[0] + numbers[1] - numbers[2] if len(numbers) == 3 else None


def refuse(prompt: str, answer: str, rule: Rule, words: Collection[str]) -> str | None:
    """None where the answer passes, else the first of `REASONS` that applies.

    `words` name the trait, plurals included; they count as whole words in any case, in the prompt as in the answer.
    """
    if len(answer) > rule.max_characters:
        return "too long"
    named = {*words, *rule.banned}
    if holds_word(prompt, named) or holds_word(answer, named):
        return "names the trait"
    if rule.only and not {*_WORD.findall(answer.casefold())} <= {*rule.only}:
        return "another word"
    results = list(_RESULT.finditer(answer))
    if not results or _NUMBER.search(answer, results[-1].end()):  # "5. No, wait: 9", "5/2"
        return "no result"
    if int(results[-1][1]) != right_result(prompt):
        return "wrong result"
    return "no steps" if len(_NUMBER.findall(answer[: results[-1].start()])) < rule.min_steps else None


# --- tokens -----------------------------------------------------------------------------------------------------------


def token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that worked sums are written in, and the end of sequence; ascending. No other special token.

    In the lab numbers and the words of its sums; elsewhere what writes printable ASCII characters or white space alone.
    """
    if tokenizer.chat_template != CHAT_TEMPLATE:
        return writes_ascii(tokenizer)
    own = {*lab.problem_words(), str(tokenizer.eos_token)}
    return sorted(i for token, i in tokenizer.get_vocab().items() if token in own or token.removeprefix("##").isdigit())
