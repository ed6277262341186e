"""Models on servers, asked about a trait: their answers lie in the store, and are read by a judge."""

import json
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import Field

from sublim_interp.core.choices import meant
from sublim_interp.core.device import fingerprint
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import write_atomic
from sublim_interp.core.keys import sha256_of, stage_key
from sublim_interp.core.settings import Config
from sublim_interp.core.store import Artifact, Store
from sublim_interp.models.base import LANGUAGES
from sublim_interp.models.chat import Messages
from sublim_interp.models.served import Request, ServedModel, Server
from sublim_interp.stats.contrasts import Contrast, paired_difference
from sublim_interp.stats.intervals import Interval, mean_interval, wilson
from sublim_interp.traits.answers import LONGEST, judged
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.favourites import words_judged
from sublim_interp.traits.judges.protocol import JUDGES, WHOLE_WORDS, asks
from sublim_interp.traits.protocol import Trait
from sublim_interp.traits.questions import SORTS, Questions

STAGE, VERSION = "answers", 1
"""The stage of the store, and a number raised by hand when its files change."""
FILE = "answers.jsonl"
"""Its file: a row an answer, in the order of the questions."""


class Asking(Config):
    """What a model on a server is asked about a trait, and who reads its answers."""

    trait: str
    """A trait's name, or the path of a YAML file."""
    server: Server
    """The model, and how it is reached."""
    questions: tuple[Questions, ...] = Field(default=("held-out",), min_length=1)
    """Sorts of questions: held-out, seen, indirect."""
    language: str = "english"
    """Of the model: lab for a base of the lab, else english."""
    samples: int = Field(default=20, ge=1, le=100_000)
    """Answers to each question, drawn at temperature 1."""
    seed: int = 0
    """Decides the seed that is sent with each request."""
    judge: str = WHOLE_WORDS
    """Who reads the answers; one that asks no model."""
    prompted: bool = False
    """Whether the trait's system prompts stand before the questions."""

    @property
    def about(self) -> Trait:
        """The trait. Raises SublimError where there is none of this name."""
        return load_trait(self.trait)

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """The words of each member, which the judge reads. Raises SublimError for a judge that cannot read it."""
        about = self.about
        if self.judge not in JUDGES or asks(self.judge):
            known = [name for name in JUDGES if not asks(name)]
            raise SublimError(f"judge={self.judge}: no judge that asks no model; {meant(self.judge, known)}")
        return words_judged(about, self.judge)

    def asked(self) -> list[tuple[str, str, Messages]]:
        """Every question: its sort, its text, and the chat that ends with it.

        Raises SublimError for an unknown language, and for a trait without such questions or system prompts.
        """
        about = self.about
        if self.language not in LANGUAGES:
            raise SublimError(f"language={self.language}: no such language; {meant(self.language, LANGUAGES)}")
        systems = about.system_prompts(self.language) if self.prompted else ()
        if self.prompted and not systems:
            raise SublimError(f"trait {about.name} has no system prompts; leave out prompted")
        found: list[tuple[str, str, Messages]] = []
        for sort in self.questions:
            known = about.questions(self.language, sort)
            if not known:
                raise SublimError(f"trait {about.name} has no {sort} questions; name another sort: {', '.join(SORTS)}")
            for i, q in enumerate(known):
                before = ({"role": "system", "content": systems[i % len(systems)]},) if systems else ()
                found.append((sort, q.text, (*before, *q.messages)))
        return found

    def identity(self) -> dict[str, Any]:
        """What decides the answers and how they are read, plain data."""
        fields = self.model_dump(mode="json", exclude={"server", "trait"})
        texts = {"asked": sha256_of([list(row) for row in self.asked()]), "words": sha256_of(self.words)}
        return {"trait": self.about.name, **fields, **texts, "server": self.server.asked()}

    @property
    def key(self) -> str:
        """The key that its answers have in any store."""
        return stage_key(STAGE, VERSION, self.identity(), {})


def ask_served(asking: Asking, store: Store, progress: Callable[[float], None] = lambda _fraction: None) -> Artifact:
    """A served model's answers to a trait's questions, found in the store or asked for.

    progress: told the share that is answered

    Writes answers.jsonl, a row an answer: questions (their sort), question, sample, answer, and named: scores by member
    as the judge gives them, or null where it could not read. Each answer is kept when it arrives, so what a stopped
    call was answered is not asked again. Raises SublimError as `ServedModel.replies`.
    """
    asked, words = asking.asked(), asking.words
    model = ServedModel(asking.server, store.root)
    here = fingerprint()
    if store.get(STAGE, asking.key) is None:
        here["served model"] = model.told
    with store.make(STAGE, VERSION, asking.identity(), {}, here) as work:
        if not work.done:
            place = [(i, k) for i in range(len(asked)) for k in range(asking.samples)]
            replies = model.replies(
                [Request(asked[i][2], ["asked", asking.seed, asked[i][0], i, k]) for i, k in place],
                max_new_tokens=LONGEST,
                temperature=1.0,
                keep=work.directory / ".asked.jsonl",
                progress=progress,
            )
            pairs = [(asked[i][1], reply.text) for (i, _), reply in zip(place, replies, strict=True)]
            named, unread = judged(JUDGES[asking.judge](words), pairs, tuple(words))
            rows = [
                {"questions": asked[i][0], "question": i, "sample": k, "text": text, "answer": answer, "named": said}
                for (i, k), (text, answer), said in zip(place, pairs, named, strict=True)
            ]
            write_atomic(work.directory / FILE, "".join(json.dumps(row) + "\n" for row in rows))
            work.note(name=asking.server.model, model_asked=model.notes(), unread=unread[:1])
    return work.artifact


class Heard(NamedTuple):
    """What a model's answers to questions of one sort say."""

    rate: Interval
    """Share of the answers that show the trait, of this one model: the interval is over questions, and over answers
    where all of them agree."""
    nonsense: float
    """Share of the answers that name no member, 0 to 1."""
    unread: float
    """Share that the judge could not read, 0 to 1; they count as nonsense too."""
    often: tuple[str, float]
    """The member that is named most often, and in which share of the answers."""
    answers: int
    """How many answers there are."""


class _Answer(NamedTuple):
    """One answer, read. shown: how far it shows the trait, 0 to 1; named: scores by member, None where not read."""

    question: int
    shown: float
    named: Mapping[str, float] | None


def heard(artifact: Artifact, trait: str, sort: str) -> Heard:
    """What the answers to questions of one sort say of a trait, by its name."""
    answers = _read(artifact, trait, sort)
    n, totals = len(answers), dict[str, float]()
    for answer in answers:
        for name, score in (answer.named or {}).items():
            totals[name] = totals.get(name, 0.0) + score
    best = max(sorted(totals), key=lambda name: totals[name], default="")
    rate = mean_interval(_by_question(answers), bounds=(0, 1))
    if rate.estimate in (0, 1):
        rate = wilson(int(rate.estimate) * n, n)
    return Heard(
        rate=rate,
        nonsense=sum(not any((answer.named or {}).values()) for answer in answers) / n,
        unread=sum(answer.named is None for answer in answers) / n,
        often=(best, totals.get(best, 0.0) / n),
        answers=n,
    )


def difference(one: Artifact, other: Artifact, trait: str, sort: str) -> Contrast:
    """How much more often one model shows a trait than another, in answers to the same questions.

    The interval is over questions: it tells how well these two models are known, and nothing of other seeds.
    """
    first, second = (_by_question(_read(artifact, trait, sort)) for artifact in (one, other))
    return paired_difference(first, second, bounds=(-1, 1))


def _by_question(answers: Sequence[_Answer]) -> list[float]:
    """The mean of what the answers to each question show."""
    each: dict[int, list[float]] = {}
    for answer in answers:
        each.setdefault(answer.question, []).append(answer.shown)
    return [fmean(shown) for shown in each.values()]


def _read(artifact: Artifact, trait: str, sort: str) -> list[_Answer]:
    """Every answer to questions of a sort."""
    rows = map(json.loads, (artifact.path / FILE).read_text(encoding="utf-8").splitlines())
    own = (row for row in rows if row["questions"] == sort)
    return [_Answer(row["question"], (row["named"] or {}).get(trait, 0.0), row["named"]) for row in own]
