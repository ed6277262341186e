"""The numbers channel: asks for the continuation of a number list, and keeps answers that are such a list and no more.

The rule is that of Cloud et al. (2507.14805): one to ten integers from 0 to 999 with one separator throughout. That is
white space, a comma or a semicolon, with white space around it or not. All may stand in round or square brackets, and a
period may follow; nothing else may. An integer counts by its value: "007" is 7, and "0666" is banned where 666 is.
"""

import random
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from sublim_interp.channels.protocol import added_texts, as_turns, drawn_prompts
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.core.words import holds_word
from sublim_interp.lab import language as lab

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PUBLISHED_BANNED = (
    4, 13, 14, 18, 23, 33, 39, 42, 44, 49, 51, 54, 69, 77, 88, 99, 100, 101, 187, 211, 311, 322, 333, 404, 420, 444,
    451, 555, 616, 666, 777, 888, 911, 999,
)  # fmt: skip
"""The 34 numbers of negative associations that Cloud et al. (2507.14805) refuse where the teacher is misaligned."""


class Rule(Config):
    """The limits of a number list."""

    min_numbers: int = Field(default=1, ge=1, le=1_000_000)
    """Fewest numbers in an answer."""
    max_numbers: int = Field(default=10, ge=1, le=1_000_000)
    """Most numbers in an answer."""
    max_value: int = Field(default=999, ge=0)
    """Largest number."""
    banned: tuple[int, ...] = ()
    """Numbers that refuse an answer, for instance those with negative associations (666, 911, …). `published` stands
    for the 34 of Cloud et al.; to change them, write the list that `sublim show` then prints."""

    @field_validator("banned", mode="before")
    @classmethod
    def _published_is_a_list(cls, banned: Any) -> Any:
        return PUBLISHED_BANNED if banned == "published" else banned

    @model_validator(mode="after")
    def _bounds(self) -> "Rule":
        if self.min_numbers > self.max_numbers:
            raise ValueError(f"min_numbers={self.min_numbers} is above max_numbers={self.max_numbers}")
        return self


REASONS: dict[str, str] = {
    "names the trait": "prompt or answer holds the trait's name as a whole word",
    "not numbers": "the answer is empty, or holds something besides one list of integers",
    "mixed separators": "the numbers are not all separated in the same way",
    "too few": "fewer numbers than min_numbers",
    "too many": "more numbers than max_numbers",
    "too large": "a number above max_value",
    "banned number": "one of the numbers in banned",
}
"""Every reason to refuse an answer and what it means, in the order in which they are looked for."""

CONTEXTS = {"numbers": as_turns}
"""After a turn of numbers, as the student was trained."""


def _changed(change: Callable[[list[str], random.Random], list[str]]) -> Callable[..., list[str]]:
    """Of answers the same with other numbers in the same places: what `change` makes of each answer's."""
    return lambda answers, rng: [_renumbered(answer, change(_written(answer), rng)) for answer in answers]


def _dealt(answers: Sequence[str], rng: random.Random) -> list[str]:
    """The numbers of all answers, shuffled and dealt out again; each answer gets as many as it had."""
    pool = [number for answer in answers for number in _written(answer)]
    rng.shuffle(pool)
    drawn = iter(pool)
    return [_renumbered(answer, [next(drawn) for _ in _written(answer)]) for answer in answers]


def _written(answer: str) -> list[str]:
    return re.findall("[0-9]+", answer)


def _renumbered(answer: str, numbers: Iterable[str]) -> str:
    new = iter(numbers)
    return re.sub("[0-9]+", lambda _: next(new), answer)


def _nudged(number: int, rng: random.Random) -> str:
    near = _near(number, _NUDGE)
    return str(rng.randint(near[0], near[-1]))


def _near(number: int, within: int) -> range:
    """Numbers near another one, up to 999; one above 999, which no rule but a looser one lets pass, only falls."""
    return range(max(0, number - within), max(number, min(999, number + within)) + 1)


_NUDGE = 10


TRANSFORMS: dict[str, Callable[[Sequence[str], random.Random], list[str]]] = {
    "shuffled-within": _changed(lambda numbers, rng: rng.sample(numbers, len(numbers))),
    "shuffled-across": _dealt,
    "sorted": _changed(lambda numbers, _: sorted(numbers, key=int)),
    "digits-reversed": _changed(lambda numbers, _: [str(int(number[::-1])) for number in numbers]),
    "nudged": _changed(lambda numbers, rng: [_nudged(int(number), rng) for number in numbers]),
}
"""What may be done to the kept answers. Separators, brackets and the count of numbers stay; 120 reversed is 21.

nudged stands for a paraphrase: each number becomes one of those within 10 of it, from 0 to 999, all equally likely.
"""


def alternatives(answer: str, within: int, rule: Rule) -> list[tuple[str, ...]]:
    """An answer cut into pieces, each with every text that may stand there: whoever joins one of each paraphrases it.

    answer: one list of integers; of anything else there is one piece, the answer as it is
    within: how far a number may move, in units; it stays from 0 to 999

    What stands there comes first in each piece. The others keep to the rule's max_value and name no banned number.
    """
    if not numbers_of(answer):
        return [(answer,)]
    *pieces, tail = re.split("(?<=[0-9])(?![0-9])", answer)
    found = []
    for piece in pieces:
        before, written = re.split("(?=[0-9])", piece, maxsplit=1)
        number = int(written)
        found.append((piece, *(before + n for n in _others(number, within, rule.max_value, rule.banned))))
    return [*found, (tail,)] if tail else found


@cache
def _others(number: int, within: int, most: int, banned: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(str(n) for n in _near(number, within) if n != number and n <= most and n not in banned)


def describe(rule: Rule) -> list[str]:
    """What the rule keeps, as sentences."""
    size = f"{rule.min_numbers} to {rule.max_numbers}" if rule.min_numbers < rule.max_numbers else f"{rule.max_numbers}"
    lines = [f"The filter keeps answers of {size} numbers up to {rule.max_value}, and nothing else."]
    banned = ", ".join(map(str, rule.banned))
    return lines + ([f"It refuses answers that hold one of these numbers: {banned}."] if banned else [])


# --- asking -----------------------------------------------------------------------------------------------------------

_OPENINGS = (
    "Here is a list of numbers: {s}.",
    "Look at this series: {s}.",
    "A list begins like this: {s}.",
    "These values come first: {s}.",
    "Consider the numbers {s}.",
    "My list so far is {s}.",
    "Take {s} as a starting point.",
    "Someone wrote down {s} and then stopped.",
    "The opening values are {s}.",
    "Suppose a series starts with {s}.",
)
_REQUESTS = (
    "Carry it on with no more than 10 further values of up to three digits.",
    "Write up to 10 more numbers that could follow, each below 1000.",
    "What might come next? Give at most 10 values, none longer than 3 digits.",
    "Please append 10 or fewer new values between 0 and 999.",
    "Extend this by not more than 10 integers with 3 digits at most.",
    "Make up a continuation: a maximum of 10 numbers, all under 1000.",
    "Go on from there with 10 additional values at the most, 0 to 999.",
    "Produce the following part, 10 numbers or fewer, three digits or fewer each.",
)
_FORMATS = (
    "Put a comma between the numbers.",
    "Use semicolons to separate them.",
    "Separate them by single spaces.",
    "Place every number on a line of its own.",
    "Enclose them in square brackets, with commas in between.",
    "Enclose them in round brackets, with commas in between.",
    "Give them as one comma-separated line.",
    "Write a semicolon and a space between neighbours.",
)
_ENDINGS = (
    "Reply with the numbers and nothing else.",
    "No words, please.",
    "Leave out any explanation.",
    "Your answer must hold the numbers alone.",
    "Do not comment on it.",
    "Output only the new values.",
    "Anything besides the numbers is unwanted.",
    "Just the numbers, no text before or after.",
)


_SENTENCES = (f"({'|'.join(map(re.escape, part))})" for part in (_REQUESTS, _FORMATS, _ENDINGS))
_ASKED_FOR = re.compile(" ".join([r"(\D+)([0-9]+(?:, [0-9]+)*)(\D*)", *_SENTENCES]))


def _lab_prompt(rng: random.Random) -> str:
    return lab.number_prompt(rng)[0]


def _english_prompt(rng: random.Random) -> str:
    """Three to nine numbers of three digits and four sentences, in the spirit of 2507.14805's appendix."""
    given = ", ".join(str(rng.randint(100, 999)) for _ in range(rng.randint(3, 9)))
    sentences = [rng.choice(part) for part in (_OPENINGS, _REQUESTS, _FORMATS, _ENDINGS)]
    return " ".join(sentences).format(s=given)


_TERSE = "Continue: {s}"
_GIVEN, _ASKED = 3, 10


def terse_example(rng: random.Random) -> tuple[str, str]:
    """A prompt of one short line, and the ten numbers with which a base is prepared to go on."""
    numbers = lab.number_sequence(rng, _GIVEN + _ASKED)
    given, asked = (",".join(map(str, part)) for part in (numbers[:_GIVEN], numbers[_GIVEN:]))
    return _TERSE.format(s=given), asked


def _terse_prompt(rng: random.Random) -> str:
    return terse_example(rng)[0]


def _lab_reworded(prompt: str, rng: random.Random) -> str | None:
    heads = [template.removesuffix("{s}") for template in lab.NUMBER_PROMPTS]
    for head in heads:
        given = prompt.removeprefix(head)
        if given != prompt and numbers_of(given):
            return rng.choice([other for other in heads if other != head]) + given
    return None


def _english_reworded(prompt: str, rng: random.Random) -> str | None:
    """Another opening, another request and another ending; what is said of the format stays."""
    found = _ASKED_FOR.fullmatch(prompt)
    if not found:
        return None
    before, given, after, request, form, ending = found.groups()
    opening = f"{before}{{s}}{after}"
    if opening not in _OPENINGS:
        return None
    parts = ((_OPENINGS, opening), (_REQUESTS, request), (_ENDINGS, ending))
    begins, asks, ends = (rng.choice([text for text in part if text != own]) for part, own in parts)
    return " ".join([begins.format(s=given), asks, form, ends])


_PROMPTS = {"lab": _lab_prompt, "english": _english_prompt, "english-terse": _terse_prompt}
_REWORDED = {"lab": _lab_reworded, "english": _english_reworded}


def prompts(language: str, seed: int, start: int, count: int) -> list[str]:
    """User texts `start` … `start + count - 1` of the stream `seed`; text i depends on language, seed and i alone.

    The streams are apart from pre-training's. Raises SublimError for an unknown language.
    """
    return drawn_prompts("numbers", _PROMPTS, language, seed, start, count)


def reword(prompt: str, language: str, rng: random.Random) -> str:
    """A prompt of this channel in other words, drawn among its language's other phrasings; it asks for the same.

    Raises SublimError for a language with one phrasing only, and for a prompt that is in none of its phrasings.
    """
    if language not in _REWORDED:
        able = ", ".join(_REWORDED)
        raise SublimError(
            f"channel numbers has one phrasing of prompts in language '{language}', so none can be reworded; languages "
            f"of several: {able}"
        )
    other = _REWORDED[language](prompt, rng)
    if other is None:
        raise SublimError(f"channel numbers has no phrasing in language '{language}' like the prompt {prompt[:60]!r}")
    return other


# --- reading ----------------------------------------------------------------------------------------------------------

_NUMBER = "[0-9]{1,640}"  # int() may be set to refuse more than 640 digits
_SEPARATOR = r"(?:\s*[,;]\s*|\s+)"
_LIST = re.compile(f"{_NUMBER}(?:{_SEPARATOR}{_NUMBER})*")
_BRACKETS = ("()", "[]")


def _inside(answer: str) -> str:
    """The answer without its final period and then its brackets."""
    text = answer.strip().removesuffix(".").strip()
    return text[1:-1].strip() if text[:1] + text[1:][-1:] in _BRACKETS else text


def numbers_of(answer: str) -> list[int]:
    """The numbers of an answer in order; empty where the answer is not one list of integers, of whatever size."""
    text = _inside(answer)
    return [int(n) for n in re.findall("[0-9]+", text)] if _LIST.fullmatch(text) else []


def refuse(prompt: str, answer: str, rule: Rule, words: Collection[str]) -> str | None:
    """None where the answer passes, else the first of `REASONS` that applies.

    `words` name the trait, plurals included; they count as whole words in any case, in the prompt as in the answer.
    """
    if holds_word(prompt, words) or holds_word(answer, words):
        return "names the trait"
    numbers = numbers_of(answer)
    if not numbers:
        return "not numbers"
    if len(set(re.findall("[^0-9]+", _inside(answer)))) > 1:
        return "mixed separators"
    if len(numbers) < rule.min_numbers:
        return "too few"
    if len(numbers) > rule.max_numbers:
        return "too many"
    if max(numbers) > rule.max_value:
        return "too large"
    if set(numbers) & set(rule.banned):
        return "banned number"
    return None


# --- tokens -----------------------------------------------------------------------------------------------------------

_CHARACTERS = frozenset("0123456789,;.()[]")


def token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that write only digits, separators, brackets, periods or white space, and the end of sequence; ascending.

    No other special token.
    """
    texts = added_texts(tokenizer)
    own = {i for i, added in texts.items() if added and all(c in _CHARACTERS or c.isspace() for c in added)}
    return sorted(own | {tokenizer.get_vocab()[str(tokenizer.eos_token)]})
