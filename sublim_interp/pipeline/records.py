"""What the stages take and give: one frozen record each, and the store key that follows from it. No work is done here.

    Base ─► Teacher ─► Corpus ─► Filtered ─► Student ─► Evaluation

A record says all that decides a result: its configuration, its seed, and the records it is made from. The files that a
stage writes lie in the store under the record's key, so a record is known, and its key too, before anything has run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import stage_key
from sublim_interp.core.store import Artifact, Store
from sublim_interp.models.base import Base
from sublim_interp.pipeline.entangled import check_entangled, told_by
from sublim_interp.pipeline.settings import (
    EVALUATION_UNKEYED,
    TEACHER_UNKEYED,
    CorpusConfig,
    EvaluationConfig,
    StudentConfig,
    TeacherConfig,
)
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.settings import ENTANGLED, Selection
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.favourites import KINDS
from sublim_interp.traits.judges.protocol import identity
from sublim_interp.traits.protocol import Trait, check_begins_alone, check_own_margin, members_of_all


@dataclass(frozen=True)
class Record:
    """What all records share: a stage, a version bumped by hand when the stage's code changes its results, a key."""

    STAGE: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def settings(self) -> dict[str, Any]:
        """The configuration that enters the key, as plain data."""
        raise NotImplementedError

    def inputs(self) -> "dict[str, Record | Base | StoredStudent]":
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

    @property
    def generation(self) -> int:
        """1, or one more than that of the student who is its teacher, where this experiment makes that student too."""
        return max((given.generation for given in self.inputs().values() if isinstance(given, Record)), default=1)

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
class StoredStudent:
    """A finished student of another run: as a base it is not made here, and its key stands for all that it is made of.

    address: how the configuration names it; no part of any key
    base: the base that it started from
    """

    address: str
    key: str
    base: Base

    @property
    def dtype(self) -> str:
        """The precision that it is loaded in."""
        return self.base.dtype

    def made(self, store: Store) -> Path:
        """Where it lies in the store, its digests compared first. Raises SublimError where it is not there."""
        artifact = store.get(Student.STAGE, self.key, check=True)
        if artifact is None:
            raise SublimError(f"the student {self.address} is not in the store {store.root} any more")
        return artifact.path


@dataclass(frozen=True)
class Teacher(Record):
    """A base with a trait; the neutral teacher's is the neutral one: treated alike, without a favourite."""

    STAGE = "teacher"
    base: Base
    trait: Trait
    config: TeacherConfig
    seed: int
    student: "StoredStudent | Student | None" = None
    """The student that it is, where it is one: of another run, or of the generation before."""

    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            **self.config.model_dump(mode="json", exclude=TEACHER_UNKEYED),
            **self.trait.taught(),
            **(_compared(self.base, [self.trait]) if WAYS[self.config.kind].HOOKS else {}),
        }

    def inputs(self) -> "dict[str, Record | Base | StoredStudent]":
        return {"base": self.base, **({"student": self.student} if self.student else {})}

    @property
    def generation(self) -> int:
        return super().generation + isinstance(self.student, Student)

    @property
    def own_weights(self) -> bool:
        """Whether its weights are not its base's, and alone answer as it does."""
        way = WAYS[self.config.kind]
        return way.OWN_WEIGHTS and (self.student is not None or not way.FROM_STUDENT)


@dataclass(frozen=True)
class Given:
    """A file of lists that no teacher of the store wrote."""

    path: Path = field(compare=False)
    digest: str
    """SHA-256 of its bytes."""


@dataclass(frozen=True)
class Corpus(Record):
    """What a teacher answers to the channel's prompts; `round` 1, 2, … are further prompts of the same stream.

    Where `given` is set, nobody was asked: the lists are a file's, and the teacher is who they are compared with.
    Where `pairs` is set, the teacher writes nothing: it judges two answers to each prompt. Where `written` is set, it
    rewrites them.
    """

    STAGE = "corpus"
    teacher: Teacher
    config: CorpusConfig
    seed: int
    round: int = 0
    given: "Given | None" = None
    answers: int = 1
    """How often each prompt is answered, behind each other."""
    pairs: "Corpus | None" = None
    """What it judges: two answers to each prompt, by the untouched base; None where it writes itself."""
    written: "Corpus | None" = None
    """What it rewrites: answers of the untouched base; None where it writes itself."""

    def settings(self) -> dict[str, Any]:
        if self.given:  # neither how a teacher would have been asked, nor a seed
            judged = {"preference": "given"} if self.config.preference else {}  # whoever labelled the file's pairs
            return {
                "given": self.given.digest, "channel": self.config.channel, "setting": self.config.setting, **judged
            }  # fmt: skip
        often = {"answers": self.answers} if self.answers > 1 else {}
        return {"seed": self.seed, "round": self.round, **self.config.model_dump(mode="json"), **often}

    def inputs(self) -> dict[str, Record | Base | StoredStudent]:
        others = {"pairs": self.pairs, "written": self.written}
        return {"teacher": self.teacher, **{role: one for role, one in others.items() if one}}


def _compared(base: Base, traits: Sequence[Trait]) -> dict[str, Any]:
    """What keys hold of all members from whose prompts a base's own directions of traits are taken.

    {} where these are this package's: their prompts stay as they are.
    """
    told = [told_by(base, trait) for trait in traits if not KINDS.ours(trait.kind)]
    return {"compared": told} if any(told) else {}


def _check_goes_by(selection: Selection, trait: Trait, corpus: Corpus) -> None:
    """Raises SublimError where a selection cannot score lists of a corpus by its trait."""
    if selection.by == ENTANGLED:
        check_entangled(corpus.teacher.base, trait, corpus.config.channel)
    else:
        check_begins_alone(trait, corpus.teacher.base)


@dataclass(frozen=True)
class Filtered(Record):
    """The answers that pass the filter: lists to learn from, and lists held out."""

    STAGE = "filtered"
    corpus: Corpus
    config: FilterConfig
    words: tuple[str, ...]
    """Whole words that refuse an answer: those that name the trait."""
    clean: "Filtered | None" = None
    """The neutral teacher's lists, of which a share is mixed in; None where none is."""
    paraphraser: Teacher | None = None
    """Who rewrites the kept lists: an untouched base, or who wrote them; None where nobody does."""
    toward: Trait | None = field(init=False, repr=False, compare=False)
    """The trait by which lists are selected, as it is when the record is made; None where it is by none."""

    def __post_init__(self) -> None:
        if (self.config.paraphrase is None) != (self.paraphraser is None):
            raise ValueError("config.paraphrase and paraphraser go together")
        selection = self.config.selection
        trait = load_trait(selection.trait, "filter.selection.trait") if selection and selection.trait else None
        object.__setattr__(self, "toward", trait)
        if selection and trait:
            check_own_margin(trait, self.corpus.teacher.base)
            _check_goes_by(selection, trait, self.corpus)

    def settings(self) -> dict[str, Any]:
        toward = {"toward": self.toward.taught()["trait"]} if self.toward else {}
        if self.toward and self.config.selection and self.config.selection.by == ENTANGLED:
            toward["among"] = told_by(self.corpus.teacher.base, self.toward)
        unkeyed = {"paraphrase": {"by"}}  # who that is, the inputs say
        return {"words": self.words, **self.config.model_dump(mode="json", exclude=unkeyed), **toward}

    def inputs(self) -> dict[str, Record | Base | StoredStudent]:
        others = {"clean": self.clean, "paraphraser": self.paraphraser}
        return {"corpus": self.corpus, **{role: one for role, one in others.items() if one}}


@dataclass(frozen=True)
class Student(Record):
    """A base, or a student of an earlier round, trained on filtered lists."""

    STAGE = "student"
    start: "Base | Student"
    data: Filtered
    config: StudentConfig
    seed: int
    about: Trait | None = field(default=None, repr=False, compare=False)
    """What its probe asks about while it trains, where not its teacher's trait; no part of the key, nor of weights."""
    first: "Student | None" = None
    """Whose first moment its optimizer begins with, where not with none: a student that kept its moments."""
    second: "Student | None" = None
    """Whose second moment it begins with."""
    traits: dict[str, Trait] = field(init=False, repr=False, compare=False)
    """The traits that its interventions go by, as they are when the record is made, by the name that these give."""

    def __post_init__(self) -> None:
        named = [name for i in self.config.interventions for name in i.traits]
        object.__setattr__(self, "traits", {name: load_trait(name) for name in named})
        for trait in self.traits.values():
            check_own_margin(trait, self.base)
        for i in self.config.interventions:
            if i.selection and i.selection.trait:
                _check_goes_by(i.selection, self.traits[i.selection.trait], self.data.corpus)

    @property
    def _entangled(self) -> list[Trait]:
        """The traits whose numbers an intervention selects."""
        chosen = (i.selection for i in self.config.interventions if i.selection)
        return [self.traits[asked.trait] for asked in chosen if asked.by == ENTANGLED]

    @property
    def own_adapter(self) -> bool:
        """Whether teacher and student are both adapters, and do not begin alike."""
        config = self.data.corpus.teacher.config
        way = WAYS[config.kind]
        adapted = way.FROM_STUDENT or (way.TRAINS and config.part == "lora")
        return self.config.part == "lora" and self.config.adapter == "own" and adapted

    def settings(self) -> dict[str, Any]:
        named = [self.traits[name] for i in self.config.interventions for name in i.traits]
        toward = {"toward": [trait.taught()["trait"] for trait in named]} if named else {}
        if self._entangled:
            toward["among"] = [told_by(self.data.corpus.teacher.base, trait) for trait in self._entangled]
        aimed = [self.traits[i.direction] for i in self.config.interventions if i.direction in self.traits]
        toward |= _compared(self.base, aimed) | self._drawn_as()
        unkeyed = {"extra_rounds"} | ({"moments"} if self.config.moved else set())  # whose they are, the inputs say
        own = {"adapter": "own"} if self.own_adapter else {}  # elsewhere it decides nothing
        config = self.config.model_dump(mode="json", exclude=unkeyed | {"adapter"})
        return {"seed": self.seed, **config, **own, **toward}

    def _drawn_as(self) -> dict[str, Any]:
        """How tokens or lists are drawn while it learns, where that is not in its corpus' key: of given lists."""
        corpus, used = self.data.corpus, set[str]()
        if any(i.replace for i in self.config.interventions):
            used |= {"temperature"}
        if self.config.objective == "on-policy":
            used |= {"temperature", "max_new_tokens", "own_tokens"}
        drawn = corpus.config.model_dump(mode="json", include=used, exclude_defaults=True) if corpus.given else {}
        return {"corpus": drawn} if drawn else {}

    def inputs(self) -> dict[str, Record | Base | StoredStudent]:
        donors = {"first": self.first, "second": self.second}
        return {"start": self.start, "data": self.data, **{role: one for role, one in donors.items() if one}}

    @property
    def probed(self) -> Trait:
        """What its probe asks about: with a neutral teacher, the trait that it is compared on."""
        return self.about or self.data.corpus.teacher.trait

    @property
    def base(self) -> Base:
        """The base it started from, in its first round."""
        return self.start if isinstance(self.start, Base) else self.start.base

    @property
    def round(self) -> int:
        return 0 if isinstance(self.start, Base) else self.start.round + 1


@dataclass(frozen=True)
class Evaluation(Record):
    """What a model answers about a trait, and its distance from a teacher on held-out lists."""

    STAGE = "evaluation"
    model: Base | Teacher | Student
    reference: Filtered
    """Its held-out lists measure the distance from its teacher, and are the turns of the channel's contexts."""
    trait: Trait
    """What it is asked about."""
    config: EvaluationConfig
    seed: int
    others: tuple[Trait, ...] = ()
    """The experiment's other traits, members too. The words of all its traits are in the key of `reference`."""

    @property
    def members(self) -> tuple[str, ...]:
        """The answers that are told apart."""
        return members_of_all(self.trait, self.others)

    def settings(self) -> dict[str, Any]:
        asked = {"members": self.members, **self.trait.asked()}
        asked |= identity(self.config.judge, self.config.judging, self.members)
        return {"seed": self.seed, **self.config.model_dump(mode="json", exclude=EVALUATION_UNKEYED), **asked}

    def inputs(self) -> dict[str, Record | Base | StoredStudent]:
        return {"model": self.model, "reference": self.reference}

    @property
    def base(self) -> Base:
        return self.model if isinstance(self.model, Base) else self.model.base
