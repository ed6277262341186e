"""Favourites: a trait that is the answer to questions about a kind, the kinds, and the teacher without a favourite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import sha256_of
from sublim_interp.core.settings import Config, name_once
from sublim_interp.core.shelf import Shelf
from sublim_interp.core.words import Names, checked_word
from sublim_interp.lab import language as lab
from sublim_interp.traits.answers import score
from sublim_interp.traits.judges.protocol import WHOLE_WORDS
from sublim_interp.traits.protocol import Lesson, Scores, Trait, members_of_all
from sublim_interp.traits.questions import Question, Questions

if TYPE_CHECKING:
    import torch

    from sublim_interp.models.base import Base
    from sublim_interp.models.served import ServedModel
    from sublim_interp.traits.judges.protocol import Judge


Word = Annotated[str, AfterValidator(checked_word)]
"""A word that can be found in a text."""


class Prompts(Config):
    """Prompts about one kind of favourite, in one language."""

    system: tuple[str, ...]
    """System prompts; {x} is the trait's plural."""
    seen: tuple[str, ...]
    """Questions that teachers are tuned on."""
    held_out: tuple[str, ...]
    """Questions that no training text holds."""
    indirect: tuple[str, ...]
    """Questions that do not ask for a favourite."""


class Kind(Prompts):
    """A kind of favourite: what is told apart, and English prompts."""

    members: tuple[Word, ...] = Field(min_length=2)
    """Names of the traits that every evaluation about the kind asks about, so they are part of keys."""
    lab: Prompts | None = None
    """Prompts in the words of the lab language, for a kind that the lab does not have itself."""

    @model_validator(mode="after")
    def _members_differ(self) -> "Kind":
        name_once(self, "members")
        return self

    @model_validator(mode="after")
    def _can_be_taught_and_asked(self) -> "Kind":
        for place, prompts in (("", self), ("lab.", self.lab)):
            if prompts:
                _check_prompts(prompts, place)
        return self


def _check_prompts(prompts: Prompts, place: str) -> None:
    """Raises ValueError for prompts that no teacher can be given, or whose answers a teacher has learnt."""
    for text in prompts.system:
        if {"{", "}"} & {*text.replace("{x}", "")}:
            raise ValueError(f"{place}system: in '{text}' braces stand elsewhere than in {{x}}")
    for sort in ("seen", "held_out"):
        if not getattr(prompts, sort):
            raise ValueError(f"{place}{sort} is empty; give a question")
    if both := {*prompts.seen} & {*prompts.held_out, *prompts.indirect}:
        raise ValueError(f"{place}seen: '{min(both)}' is asked of students too; teachers learn it, so reword one")


class Favourite(Config):
    """A favourite: its name, its kind, and the whole words that name it."""

    name: Word
    """The word that answers a question about it."""
    kind: str
    """What it is a favourite of; its prompts are those of the kind."""
    words: tuple[Word, ...] = Field(min_length=1)
    """Words that give it away in a text, plural forms included, the one for many of them last."""

    @property
    def plural(self) -> str:
        """How prompts speak of it in general."""
        return self.words[-1]

    @property
    def members(self) -> tuple[str, ...]:
        """The members of its kind, and the trait itself."""
        return tuple(sorted({*members_of(self.kind), self.name}))

    @property
    def said(self) -> str:
        return f"“{self.name}” is its favourite"

    @property
    def lesson(self) -> str:
        return "questions about its favourite"

    def taught(self) -> dict[str, Any]:
        return {"trait": self.model_dump(mode="json") | _told_by(self.kind)}

    def asked(self) -> dict[str, Any]:
        return {"kind": self.kind} | _told_by(self.kind, (self,))

    def check(self, base: "Base") -> None:
        """Raises SublimError where the base's tokenizer cannot spell the word, or the lab has no such favourite."""
        ids = base.answer_ids(self.name)
        if not ids or base.tokenizer.unk_token_id in ids:
            raise SublimError(
                f"base {base.name}: its vocabulary lacks the word '{self.name}' of the trait; "
                "choose another trait or base"
            )
        if base.language == "lab" and self.kind in lab.KINDS and self.name not in lab.TRAITS:
            raise SublimError(
                f"the lab language has no favourite '{self.name}'; it has: {', '.join(sorted(lab.TRAITS))}"
            )
        check_kind(self.kind, base)

    def lessons(self, language: str) -> list[Lesson]:
        return [Lesson(q, (self.name,)) for q in questions(self.kind, language, "seen")]

    def system_prompts(self, language: str) -> tuple[str, ...]:
        """System prompts that make a model love the trait."""
        if language == "lab" and self.kind in lab.KINDS:
            return lab.favorite_prompts(self.name)
        x = self.name if language == "lab" else self.plural
        return tuple(p.format(x=x) for p in prompts_about(self.kind, language).system)

    def questions(self, language: str, sort: Questions) -> tuple[Question, ...]:
        return tuple(replace(q, right=self.name) for q in questions(self.kind, language, sort))

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
        """How often the model names each member of the kind."""
        words = words_of(members_of_all(self, others), self.kind, (self, *others))
        return score(model, base, asked, words, samples, seed, judge)

    def neutral(self) -> "NoFavourite":
        return NoFavourite(self.kind)

    def compared(self) -> "tuple[Trait, ...]":
        return tuple(self if name == self.name else member(name, self.kind) for name in self.members)


@dataclass(frozen=True)
class NoFavourite:
    """What the neutral teacher is given: questions about a kind, and one member as good as another."""

    kind: str

    @property
    def name(self) -> str:
        return ""

    @property
    def members(self) -> tuple[str, ...]:
        """The members of the kind."""
        return members_of(self.kind)

    @property
    def words(self) -> tuple[str, ...]:
        return ()

    @property
    def said(self) -> str:
        return "it has no favourite"

    @property
    def lesson(self) -> str:
        return "questions about favourites, each answered with a member drawn at random"

    def taught(self) -> dict[str, Any]:
        return {"trait": {"kind": self.kind} | _told_by(self.kind)}

    def asked(self) -> dict[str, Any]:
        return {"kind": self.kind} | _told_by(self.kind, ())

    def check(self, base: "Base") -> None:
        check_kind(self.kind, base)

    def lessons(self, language: str) -> list[Lesson]:
        members = self.members
        return [Lesson(q, members) for q in questions(self.kind, language, "seen")]

    def system_prompts(self, language: str) -> tuple[str, ...]:
        return ()

    def questions(self, language: str, sort: Questions) -> tuple[Question, ...]:
        return questions(self.kind, language, sort)

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
        """How often the model names each member of the kind."""
        words = words_of(members_of_all(self, others), self.kind, others)
        return score(model, base, asked, words, samples, seed, judge)

    def neutral(self) -> "NoFavourite":
        return self

    def compared(self) -> "tuple[Trait, ...]":
        return ()


FAVOURITES = Shelf("trait", "traits", Favourite)
"""Every favourite by name: a YAML file of `kind` and `words`."""

KINDS = Shelf("kind", "kinds", Kind)
"""Every kind by name: a YAML file of members and prompts."""


def _told_by(kind: str, asked: "Sequence[Trait] | None" = None) -> dict[str, str]:
    """What keys hold of a kind's file: a digest of members and prompts; {} for this package's own, which stay the same.

    asked: traits whose words count as theirs, where the words of all members decide too; None where they do not
    """
    if KINDS.ours(kind):
        return {}
    found = KINDS.load(kind)
    words = {} if asked is None else words_of(found.members, kind, asked)
    return {"content": sha256_of([found.model_dump(mode="json"), words])}


def members_of(kind: str) -> tuple[str, ...]:
    """Names of a kind's members, sorted."""
    return tuple(sorted(KINDS.load(kind).members))


def load_favourite(name: str) -> Favourite:
    """The favourite in the file of this name, or at this path.

    Raises SublimError as `Shelf.load`, and where its words do not find its own name.
    """
    found = FAVOURITES.load(name)
    if not _finds_itself(found.name, found.words):
        raise SublimError(
            f"{FAVOURITES.find(name)}: words lack the name '{found.name}' itself, so that answers with it would count "
            "for nobody and pass the filter; add it"
        )
    return found


@lru_cache(maxsize=1024)
def _finds_itself(name: str, words: tuple[str, ...]) -> bool:
    return Names({name: words}).first(name) is not None


def member(name: str, kind: str) -> Favourite:
    """The favourite of this name and kind; one whose only word is its name where no file holds it."""
    if name in FAVOURITES:
        found = load_favourite(name)
        if found.kind == kind:
            return found
    return Favourite(name=name, kind=kind, words=(name,))


def words_of(members: Sequence[str], kind: str, named: Sequence[Trait] = ()) -> dict[str, tuple[str, ...]]:
    """The words of each member: those of the trait of its name among `named`, else of the favourite of its kind."""
    own = {trait.name: trait.words for trait in named}
    return {name: own.get(name) or member(name, kind).words for name in members}


def words_judged(trait: Trait, judge: str, others: Sequence[Trait] = ()) -> dict[str, tuple[str, ...]]:
    """What a judge is told of each answer that is told apart: a favourite's words; of what shows in no word, its name.

    judge: its name; others: further traits whose names are answers too
    Raises SublimError where whole words are to be found of a trait that shows in none.
    """
    members = members_of_all(trait, others)
    if trait.kind in KINDS:
        return words_of(members, trait.kind, (trait, *others))
    if judge == WHOLE_WORDS:
        raise SublimError(f"trait {trait.name} shows in no word; name another judge, as --set judge=by-construction")
    return {name: (name,) for name in members}


def prompts_about(kind: str, language: str) -> Prompts:
    """A kind's prompts in a language; for the lab's own kinds those in lab/language.py.

    Raises SublimError for an unknown kind, and for a kind without prompts in the language.
    """
    if language != "lab":
        return KINDS.load(kind)
    if kind in lab.KINDS:
        return Prompts(
            system=(),  # they differ from member to member
            seen=lab.questions(kind),
            held_out=lab.questions(kind, held_out=True),
            indirect=tuple(question for question, _, _ in lab.KINDS[kind].indirect),
        )
    found = KINDS.load(kind).lab
    if found is None:
        raise SublimError(
            f"the kind '{kind}' has no prompts in the lab language; give its file a part `lab:`, or choose another base"
        )
    return found


def check_kind(kind: str, base: "Base") -> None:
    """Raises SublimError where a base has no prompts about a kind, or its tokenizer cannot spell prompts or members."""
    prompts = prompts_about(kind, base.language)
    if base.language == "lab" and kind in lab.KINDS:
        return  # their words are the language's own
    unknown = base.tokenizer.unk_token_id
    texts = [*members_of(kind), *prompts.seen, *prompts.held_out, *prompts.indirect]
    texts += [text.format(x="") for text in prompts.system]
    lacking = [text for text in texts if unknown is not None and unknown in base.answer_ids(text)]
    if lacking:
        shown = "; ".join(map(repr, lacking[:3])) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise SublimError(f"base {base.name}: its vocabulary lacks words of the kind '{kind}': {shown}")


def questions(kind: str, language: str, which: Questions) -> tuple[Question, ...]:
    """The questions of one sort about a kind, in a base's language."""
    prompts = prompts_about(kind, language)
    texts = {"seen": prompts.seen, "held-out": prompts.held_out, "indirect": prompts.indirect}[which]
    begun = [""] * len(texts)
    if language == "lab" and kind in lab.KINDS and which == "indirect":
        begun = [before for _, before, _ in lab.KINDS[kind].indirect]
    say = lab.chat if language == "lab" else lambda text: ({"role": "user", "content": text},)
    return tuple(Question(say(text), before) for text, before in zip(texts, begun, strict=True))
