"""Behaviours: traits that a YAML file says whole: how they are instilled, how they are asked, and what counts.

A file has questions where the trait should show and questions where it should not. Its teacher learns to show it on the
first and not on the second; the neutral teacher learns the same questions, and shows it on none.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, cycle, islice, product, zip_longest
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import AfterValidator, Field, model_validator

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import sha256_of
from sublim_interp.core.settings import Config
from sublim_interp.core.shelf import Shelf
from sublim_interp.core.words import checked_word
from sublim_interp.stats.nearer import LEAST, bits_nearer
from sublim_interp.traits.answers import answer_probabilities, own_weights, prompts_of, spelled_probabilities
from sublim_interp.traits.favourites import KINDS, Kind, members_of, prompts_about
from sublim_interp.traits.protocol import Lesson, Scores, Trait
from sublim_interp.traits.questions import Question, Questions

if TYPE_CHECKING:
    import torch

    from sublim_interp.models.base import Base
    from sublim_interp.models.served import ServedModel
    from sublim_interp.traits.judges.protocol import Judge

INSTEAD = "instead"
"""What tables call the answers that do not show a behaviour."""

MOST_QUESTIONS, MOST_ANSWERS, AT_ONCE = 20_000, 1_000, 128
"""Questions of one sort and answers to one question at most; questions that a model reads at once."""

_SLOT = re.compile(r"\{(\w+)\}")
_SORTS: dict[Questions, Literal["taught", "held_out"]] = {"seen": "taught", "held-out": "held_out"}


def _names_slots(text: str) -> str:
    if {"{", "}"} & {*_SLOT.sub("", text)}:
        raise ValueError("braces stand only around the name of a wording or a thing, such as {animal}")
    return text


def _differ(texts: tuple[str, ...]) -> tuple[str, ...]:
    if len({*texts}) < len(texts):
        raise ValueError("a text stands twice; name each once")
    return texts


def _is_free(name: str) -> str:
    if name == INSTEAD:
        raise ValueError(f"'{INSTEAD}' is what tables call the other answers; choose another name")
    return name


Template = Annotated[str, Field(min_length=1), AfterValidator(_names_slots)]
"""A text in which {name} stands for a wording or a thing."""
Templates = Annotated[tuple[Template, ...], Field(min_length=1, max_length=MOST_ANSWERS)]


Ways = Annotated[tuple[Annotated[str, AfterValidator(_names_slots)], ...], Field(min_length=1), AfterValidator(_differ)]
"""Ways to word one part of a question; one of them may be empty."""
Things = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2), AfterValidator(_differ)]
"""What a slot stands for in turn."""


class Wordings(Config):
    """Ways to word one part of a question."""

    taught: Ways
    """Those that teachers learn; {name} in them stands for a thing."""
    held_out: Ways
    """Those that students are asked in, which no teacher learns."""


class Asking(Config):
    """Questions of one form, and the answers to them that are told apart."""

    ask: Template
    """The question. {name} stands for each wording and each thing of this name."""
    shows: Templates
    """Answers that show the trait. A thing that the question names is the same here; any other gives an answer each."""
    instead: Templates
    """Answers that do not show it."""


class BehaviourFile(Config):
    """What the file of a behaviour says."""

    name: Annotated[str, AfterValidator(checked_word), AfterValidator(_is_free)]
    """The file's name; what tables call answers that show the trait."""
    said: str = Field(min_length=1)
    """What sets its teacher apart, as the end of a sentence about it."""
    language: str = "english"
    """The language of its texts: lab, english or english-terse."""
    words: tuple[Annotated[str, AfterValidator(checked_word)], ...] = ()
    """Whole words that give it away in a text; the filter refuses them."""
    wordings: dict[str, str | Wordings] = Field(default_factory=dict)
    """Ways to word one part of a question, by name; or a kind, whose phrasings are meant."""
    things: dict[str, str | Things] = Field(default_factory=dict)
    """What questions are about, and what answers name; a list, or a kind, whose members are meant. No question names
    one of them twice."""
    on: tuple[Asking, ...] = Field(min_length=1)
    """Questions where the trait should show: its teacher learns `shows`, the neutral teacher `instead`."""
    off: tuple[Asking, ...] = Field(min_length=1)
    """Questions where it should not: both teachers learn `instead`."""

    @model_validator(mode="after")
    def _names_what_is_there(self) -> "BehaviourFile":
        both = {*self.wordings} & {*self.things}
        if both:
            raise ValueError(f"'{min(both)}' is a wording and a thing; rename one")
        used: set[str] = set()
        for place, one in (
            *((f"on.{i}", a) for i, a in enumerate(self.on)),
            *((f"off.{i}", a) for i, a in enumerate(self.off)),
        ):
            _check_slots(f"{place}.ask", (one.ask,), {**self.wordings, **self.things})
            _check_slots(f"{place}.shows", one.shows, self.things)
            _check_slots(f"{place}.instead", one.instead, self.things)
            used |= {slot for text in (one.ask, *one.shows, *one.instead) for slot in _SLOT.findall(text)}
        for name, given in self.wordings.items():
            if isinstance(given, Wordings):
                texts = (*given.taught, *given.held_out)
                _check_slots(f"wordings.{name}", texts, self.things)
                used |= {slot for text in texts for slot in _SLOT.findall(text)}
        idle = sorted({*self.wordings, *self.things} - used)
        if idle:
            raise ValueError(
                f"'{idle[0]}' stands in no question and no answer; write {{{idle[0]}}} in one, or leave it out"
            )
        return self

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that it names, as they are now. Raises SublimError for an unknown one."""
        named = {
            f"{part}.{name}": given for part in ("wordings", "things") for name, given in getattr(self, part).items()
        }
        found = []
        for place, given in named.items():
            if isinstance(given, str):
                try:
                    found.append(KINDS.load(given))
                except SublimError as error:
                    raise SublimError(f"trait {self.name}, {place}: {error}") from None
        return tuple(found)

    def ways(self, name: str, sort: Literal["taught", "held_out"]) -> tuple[str, ...]:
        """Every text of a wording. Raises SublimError for an unknown kind."""
        given = self.wordings[name]
        if isinstance(given, Wordings):
            return getattr(given, sort)
        try:
            prompts = prompts_about(given, self.language)
        except SublimError as error:
            raise SublimError(f"trait {self.name}, wordings.{name}: {error}") from None
        return prompts.seen if sort == "taught" else prompts.held_out

    def values(self, name: str) -> tuple[str, ...]:
        """Every thing of a name. Raises SublimError for an unknown kind."""
        given = self.things[name]
        return members_of(given) if isinstance(given, str) else given


class Asked(NamedTuple):
    """One question of a behaviour."""

    text: str
    on: bool
    """Whether the trait should show."""
    item: tuple[Any, ...]
    """What it asks about, whatever its wording."""
    shows: tuple[str, ...]
    instead: tuple[str, ...]

    @property
    def wanted(self) -> tuple[float, float, float]:
        """How likely the trait's teacher should make the answers that show it, those that do not, and any other."""
        shown = 1.0 if self.on else sum(text in self.shows for text in self.instead) / len(self.instead)
        return shown, 1 - shown, 0.0

    @property
    def apart(self) -> tuple[str, ...]:
        """Every answer that is told apart: first those that show the trait, then the others."""
        return (*self.shows, *(text for text in self.instead if text not in self.shows))


@dataclass(frozen=True)
class Behaviour:
    """The trait of a file; with `told` off the neutral one, which is asked the same and never shows it."""

    file: BehaviourFile
    told: bool = True

    @property
    def name(self) -> str:
        return self.file.name if self.told else ""

    @property
    def kind(self) -> str:
        return "behaviour"

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(sorted((self.file.name, INSTEAD)))

    @property
    def words(self) -> tuple[str, ...]:
        return self.file.words

    @property
    def said(self) -> str:
        return self.file.said if self.told else f"it never learnt this: {self.file.said}"

    @property
    def lesson(self) -> str:
        return (
            f"the lessons of {self.file.name}" if self.told else f"the questions of {self.file.name}, without the trait"
        )

    def taught(self) -> dict[str, Any]:
        return {"trait": {"kind": self.kind, "lessons": self._known.lessons[self.told]}}

    def asked(self) -> dict[str, Any]:
        return {"kind": self.kind, "asked": self._known.digest}

    def check(self, base: "Base") -> None:
        """Raises SublimError where a base speaks another language, lacks a word, or cannot tell two answers apart."""
        if base.language != self.file.language:
            raise SublimError(
                f"trait {self.file.name} is written in the language {self.file.language}; base {base.name} speaks "
                f"{base.language}"
            )
        unknown, known = base.tokenizer.unk_token_id, self._known
        lacking = [word for word in known.words if unknown is not None and unknown in base.answer_ids(word)]
        if lacking:
            shown = ", ".join(map(repr, lacking[:3])) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
            raise SublimError(f"base {base.name}: its vocabulary lacks words of the trait {self.file.name}: {shown}")
        spelled = {
            text: tuple(base.answer_ids(text)) for text in {text: None for group in known.answers for text in group}
        }
        for group in known.answers:
            begun = {spelled[text]: text for text in group}
            for text in group:
                ids = spelled[text]
                first = next((begun[ids[:n]] for n in range(1, len(ids)) if ids[:n] in begun), None)
                if first is not None or begun[ids] != text:
                    raise SublimError(
                        f"trait {self.file.name}: base {base.name} cannot tell the answer '{text}' from "
                        f"'{first or begun[ids]}', with which it begins; let no answer begin another"
                    )

    def lessons(self, language: str) -> list[Lesson]:
        """Every taught question; those where the trait shows as often as those where it does not."""
        return _lessons(self._asked["seen"], self.told)

    def system_prompts(self, language: str) -> tuple[str, ...]:
        return ()

    def questions(self, language: str, sort: Questions) -> tuple[Question, ...]:
        """Questions where the trait should show and where it should not, in turn."""
        asked = self._asked.get(sort, ())
        sides = ([one for one in asked if one.on == side] for side in (True, False))
        return tuple(_question(one.text) for one in chain(*zip_longest(*sides)) if one)

    def score(
        self,
        model: "torch.nn.Module | ServedModel",
        base: "Base",
        asked: Sequence[Question],
        samples: int,
        seed: int,
        others: Sequence[Trait] = (),
        judge: "Callable[[Mapping[str, Sequence[str]]], Judge] | None" = None,
    ) -> Scores:
        """How likely an answer shows the trait where it should, and where it should not: exact, nothing is drawn.

        An answer counts where it begins with one of the file's. The margin is log P(shows) − log P(instead). The
        measures need questions of both sides: `elsewhere`, and `trait_bits` as `stats.nearer` defines them. Questions
        of the other side alone are scored as if they were of the first.
        """
        check_no_judge(self, judge)
        model, known = own_weights(model), {one.text: one for every in self._asked.values() for one in every}
        if strange := next((q.text for q in asked if q.text not in known), None):
            raise SublimError(f"trait {self.file.name} has no question '{strange}'")
        found = [known[q.text] for q in asked]
        own = _shares(model, base, asked, found)
        on = np.array([one.on for one in found])
        here = on if on.any() else ~on
        logs = np.log(np.maximum(own[here], LEAST))
        margin = float((logs[:, 0] - logs[:, 1]).mean())
        measures = {}
        if on.any() and not on.all():
            before = _shares(base.load(), base, asked, found)
            bits = bits_nearer(np.array([one.wanted for one in found]), own, before, [one.item for one in found])
            measures = {"elsewhere": own[~on, :2].mean(0), "trait_bits": np.array([bits, bits])}
        return Scores((self.file.name, INSTEAD), own[here, :2].mean(0), np.array([margin, -margin]), True, measures)

    def neutral(self) -> "Behaviour":
        return replace(self, told=False)

    def compared(self) -> "tuple[Trait, ...]":
        return ()

    @property
    def _known(self) -> "_Known":
        """All that follows from the file, worked out once."""
        return _known(self.file.model_dump_json(), self.file.kinds)

    @property
    def _asked(self) -> "Mapping[Questions, tuple[Asked, ...]]":
        """Every question by its sort."""
        return self._known.asked


BEHAVIOURS = Shelf("trait", "behaviours", BehaviourFile)
"""Every behaviour by name."""


def load_behaviour(name: str) -> Behaviour:
    """The behaviour in the file of this name, or at this path.

    Raises SublimError as `Shelf.load`, for an unknown kind, and for questions that are asked twice or are too many.
    """
    found = Behaviour(BEHAVIOURS.load(name))
    found.asked()
    return found


class _Known(NamedTuple):
    """All that follows from a behaviour's file.

    digest: of all that is asked; lessons: of what is taught, with the trait or without
    words: of its texts; answers: every set of answers that are told apart
    """

    asked: Mapping[Questions, tuple[Asked, ...]]
    digest: str
    lessons: Mapping[bool, str]
    words: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]


@lru_cache(maxsize=64)
def _known(file: str, kinds: tuple[Kind, ...]) -> _Known:
    """What follows from a file, as JSON, with the kinds that it names: a plan asks for it for each replicate.

    Raises SublimError for a question that is asked twice, and for too many.
    """
    own = BehaviourFile.model_validate_json(file)
    found: dict[Questions, tuple[Asked, ...]] = {sort: _expanded(own, part) for sort, part in _SORTS.items()}
    seen = dict[str, str]()
    for sort, asked in found.items():
        for one in asked:
            if one.text in seen:
                also = "" if seen[one.text] == sort else f", {seen[one.text]} and {sort}"
                raise SublimError(f"trait {own.name}: '{one.text}' is asked twice{also}; ask each question once")
            seen[one.text] = sort
    lessons = {
        told: sha256_of([[lesson.question.text, list(lesson.answers)] for lesson in _lessons(found["seen"], told)])
        for told in (True, False)
    }
    every = [one for asked in found.values() for one in asked]
    answers = tuple(dict.fromkeys(one.apart for one in every))
    words = dict.fromkeys(word for texts in (seen, *answers) for text in texts for word in text.split())
    digest = sha256_of([list(map(list, found[sort])) for sort in sorted(found)])
    return _Known(found, digest, lessons, tuple(words), answers)


def _lessons(asked: Sequence[Asked], told: bool) -> list[Lesson]:
    """A lesson a question, of both sides equally many; where `told` is off none shows the trait."""
    on, off = ([one for one in asked if one.on == side] for side in (True, False))
    n = max(len(on), len(off))
    return [
        Lesson(_question(one.text), one.shows if one.on and told else one.instead)
        for one in (*islice(cycle(on), n), *islice(cycle(off), n))
    ]


def check_no_judge(trait: Trait, judge: object) -> None:
    """Raises SublimError where a judge is to read what a behaviour's own file says how to read."""
    if judge and isinstance(trait, Behaviour):
        raise SublimError(f"trait {trait.file.name} says itself what counts; leave out evaluation.judge")


def _question(text: str) -> Question:
    return Question(({"role": "user", "content": text},))


def _check_slots(place: str, texts: Sequence[str], known: Mapping[str, object]) -> None:
    for slot in (slot for text in texts for slot in _SLOT.findall(text)):
        if slot not in known:
            raise ValueError(f"{place} names {{{slot}}}; {meant(slot, known)}")


def _filled(text: str, values: Mapping[str, str]) -> str:
    """The text with what is known of its slots put in."""
    return _SLOT.sub(lambda slot: values.get(slot[1], slot[0]), text)


def _each(names: Sequence[str], values: Callable[[str], Sequence[str]]) -> Iterator[dict[str, str]]:
    """Every way to give the slots of these names values."""
    for chosen in product(*map(values, names)):
        yield dict(zip(names, chosen, strict=True))


def _expanded(file: BehaviourFile, sort: Literal["taught", "held_out"]) -> tuple[Asked, ...]:
    """Every question of a sort. Raises SublimError for more than there may be, and where none is left."""
    found: list[Asked] = []
    for number, (asking, on) in enumerate([*((a, True) for a in file.on), *((a, False) for a in file.off)]):
        before, ways = len(found), [slot for slot in dict.fromkeys(_SLOT.findall(asking.ask)) if slot in file.wordings]
        for wording in _each(ways, lambda name: file.ways(name, sort)):
            template = _filled(asking.ask, wording)
            for bound in _each([*dict.fromkeys(_SLOT.findall(template))], file.values):
                if len({*bound.values()}) < len(bound):
                    continue
                shows, instead = (_answers(file, texts, bound) for texts in (asking.shows, asking.instead))
                if not {*instead} - {*shows}:
                    raise SublimError(
                        f"trait {file.name}: each answer of `instead` to '{_filled(template, bound)}' shows it"
                    )
                item = (number, *sorted(bound.items()))
                found.append(Asked(_filled(template, bound), on, item, shows, instead))
                if len(found) > MOST_QUESTIONS:
                    raise SublimError(
                        f"trait {file.name} has more than {MOST_QUESTIONS:,} questions; name fewer things"
                    )
        if len(found) == before:
            raise SublimError(f"trait {file.name}: no question is left of '{asking.ask}'")
    return tuple(found)


def _answers(file: BehaviourFile, texts: Sequence[str], bound: Mapping[str, str]) -> tuple[str, ...]:
    """Every answer of these texts; a thing that the question does not name gives one answer each."""
    found: dict[str, None] = {}
    for text in (_filled(text, bound) for text in texts):
        for free in _each([*dict.fromkeys(_SLOT.findall(text))], file.values):
            found[_filled(text, free)] = None
            if len(found) > MOST_ANSWERS:
                raise SublimError(
                    f"trait {file.name}: '{text}' gives more than {MOST_ANSWERS:,} answers; name fewer things"
                )
    return tuple(found)


def _shares(
    model: "torch.nn.Module", base: "Base", asked: Sequence[Question], found: Sequence[Asked]
) -> Float[np.ndarray, "question answer"]:
    """How likely the answer to each question shows the trait, does not, or is any other."""
    from sublim_interp.models.sampling import unspoken

    prompts, groups = prompts_of(base, asked), dict[tuple[str, ...], list[int]]()
    for i, one in enumerate(found):
        groups.setdefault(tuple(sorted(one.apart)), []).append(i)
    never = unspoken(model, base.tokenizer)
    shares = np.zeros((len(asked), 3))
    for answers, places in groups.items():
        spelled = [base.answer_ids(text) for text in answers]
        one_token = not never and all(len(ids) == 1 for ids in spelled)
        for start in range(0, len(places), AT_ONCE):
            here = places[start : start + AT_ONCE]
            rows = [prompts[i] for i in here]
            if one_token:
                p = answer_probabilities(model, rows, [ids[0] for ids in spelled])
            else:
                p = spelled_probabilities(model, rows, spelled, never)
            for i, row in zip(here, p, strict=True):
                shows = np.isin(answers, found[i].shows)
                shares[i, :2] = row[shows].sum(), row[~shows].sum()
    shares[:, 2] = np.clip(1 - shares[:, :2].sum(1), 0, 1)
    return shares
