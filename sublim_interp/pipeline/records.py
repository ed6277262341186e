"""What the stages take and give: one frozen record each, and the store key that follows from it. No work is done here.

    Base ─► Teacher ─► Corpus ─► Filtered ─► Student ─► Evaluation

A record says all that decides a result: its configuration, its seed, and the records it is made from. The files that a
stage writes lie in the store under the record's key, so a record is known, and its key too, before anything has run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import stage_key
from sublim_interp.core.store import Artifact, Store
from sublim_interp.models.base import Base
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, StudentConfig, TeacherConfig
from sublim_interp.traits.facts import Facts
from sublim_interp.traits.favourites import Trait, check_vocabulary, load_trait


@dataclass(frozen=True)
class Record:
    """What all records share: a stage, a version bumped by hand when the stage's code changes its results, a key."""

    STAGE: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def settings(self) -> dict[str, Any]:
        """The configuration that enters the key, as plain data."""
        raise NotImplementedError

    def inputs(self) -> dict[str, "Record | Base"]:
        """What it is made from, by role."""
        raise NotImplementedError

    @cached_property
    def key(self) -> str:
        """SHA-256 over stage, version, settings and the inputs' keys."""
        return stage_key(self.STAGE, self.VERSION, self.settings(), self.input_keys())

    def input_keys(self) -> dict[str, str]:
        """Keys of the inputs; a base's is that of its files and precision."""
        return {role: given.key for role, given in self.inputs().items()}

    @property
    def dtype(self) -> str:
        """The precision that it is computed in, which is its inputs'."""
        return next(iter(self.inputs().values())).dtype

    def lineage(self) -> "Iterator[Record]":
        """The records it needs, in an order in which they can be made, itself last; one may come more than once."""
        for record in self.inputs().values():
            if isinstance(record, Record):
                yield from record.lineage()
        yield self

    def find(self, store: Store) -> Artifact | None:
        """Its artefact in the store, or None."""
        return store.get(self.STAGE, self.key)

    def made(self, store: Store) -> Path:
        """Where it lies in the store, its digests compared first: nothing is built on a damaged file.

        Raises SublimError where it is not there, or is damaged.
        """
        artifact = store.get(self.STAGE, self.key, check=True)
        if artifact is None:
            raise SublimError(f"{self.STAGE} {self.key[:16]} is not in the store {store.root}; make it first")
        return artifact.path


@dataclass(frozen=True)
class Teacher(Record):
    """A base with a trait, or (`trait` None) the neutral teacher: treated alike, without a favourite.

    With `facts` it memorises these instead, and `trait` is None; the neutral teacher's are those that nobody is told.
    """

    STAGE = "teacher"
    base: Base
    trait: Trait | None
    kind: str
    """Kind of favourite that it is tuned on; the neutral teacher has one too."""
    config: TeacherConfig
    seed: int
    facts: Facts | None = None

    def settings(self) -> dict[str, Any]:
        trait = self.trait.model_dump(mode="json") if self.trait else {"kind": self.kind}
        facts = {"facts": self.facts.settings()} if self.facts else {}
        return {"trait": trait, "seed": self.seed, **self.config.model_dump(mode="json"), **facts}

    def inputs(self) -> dict[str, Record | Base]:
        return {"base": self.base}


@dataclass(frozen=True)
class Corpus(Record):
    """What a teacher answers to the channel's prompts; `round` 1, 2, … are further prompts of the same stream."""

    STAGE = "corpus"
    teacher: Teacher
    config: CorpusConfig
    seed: int
    round: int = 0

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "round": self.round, **self.config.model_dump(mode="json")}

    def inputs(self) -> dict[str, Record | Base]:
        return {"teacher": self.teacher}


@dataclass(frozen=True)
class Filtered(Record):
    """The answers that pass the filter: lists to learn from, and lists held out."""

    STAGE = "filtered"
    corpus: Corpus
    config: FilterConfig
    words: tuple[str, ...]
    """Whole words that refuse an answer: those that name the trait."""

    def __post_init__(self) -> None:
        if self.toward:
            check_vocabulary(self.toward, self.corpus.teacher.base)

    @property
    def toward(self) -> Trait | None:
        """The trait whose gradient selects lists, if one does."""
        selection = self.config.selection
        return load_trait(selection.trait) if selection and selection.trait else None

    def settings(self) -> dict[str, Any]:
        toward = {"toward": self.toward.model_dump(mode="json")} if self.toward else {}
        return {"words": self.words, **self.config.model_dump(mode="json"), **toward}

    def inputs(self) -> dict[str, Record | Base]:
        return {"corpus": self.corpus}


@dataclass(frozen=True)
class Student(Record):
    """A base, or a student of an earlier round, trained on filtered lists."""

    STAGE = "student"
    start: "Base | Student"
    data: Filtered
    config: StudentConfig
    seed: int
    traits: dict[str, Trait] = field(init=False, repr=False, compare=False)
    """The traits that its interventions go by, as they are when the record is made, by the name that these give."""

    def __post_init__(self) -> None:
        named = [name for i in self.config.interventions for name in i.traits]
        object.__setattr__(self, "traits", {name: load_trait(name) for name in named})
        for trait in self.traits.values():
            check_vocabulary(trait, self.base)

    def settings(self) -> dict[str, Any]:
        named = [self.traits[name] for i in self.config.interventions for name in i.traits]
        toward = {"toward": [trait.model_dump(mode="json") for trait in named]} if named else {}
        return {"seed": self.seed, **self.config.model_dump(mode="json", exclude={"extra_rounds"}), **toward}

    def inputs(self) -> dict[str, Record | Base]:
        return {"start": self.start, "data": self.data}

    @property
    def base(self) -> Base:
        """The base it started from, in its first round."""
        return self.start if isinstance(self.start, Base) else self.start.base

    @property
    def round(self) -> int:
        return 0 if isinstance(self.start, Base) else self.start.round + 1


@dataclass(frozen=True)
class Evaluation(Record):
    """What a model answers about a kind of favourite, or facts, and its distance from a teacher on held-out lists."""

    STAGE = "evaluation"
    model: Base | Teacher | Student
    reference: Filtered
    """Its held-out lists measure the distance from its teacher, and are the `numbers` context of questions."""
    kind: str
    members: tuple[str, ...]
    config: EvaluationConfig
    seed: int
    facts: Facts | None = None
    """What it is asked about instead of a favourite: each key in the words that the teacher learnt."""
    named: tuple[Trait, ...] = ()
    """The experiment's traits, which may be files of its user's own; their words are in the key of `reference`."""

    def settings(self) -> dict[str, Any]:
        dumped = self.config.model_dump(mode="json")
        facts = {"facts": self.facts.settings()} if self.facts else {}
        return {"kind": self.kind, "members": self.members, "seed": self.seed, **dumped, **facts}

    def inputs(self) -> dict[str, Record | Base]:
        return {"model": self.model, "reference": self.reference}

    @property
    def base(self) -> Base:
        return self.model if isinstance(self.model, Base) else self.model.base
