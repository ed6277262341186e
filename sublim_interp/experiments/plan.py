"""All that an experiment needs, known before anything runs: every record of every arm and replicate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sublim_interp.channels.protocol import channel
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.arms import ARMS, arms_of_two_bases, needs_other_trait
from sublim_interp.experiments.cost import blank_model
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base, check_alike, resolve_base
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Record, Student, Teacher
from sublim_interp.training.interventions import PlannedStudent, check_interventions
from sublim_interp.training.recording.settings import Recording
from sublim_interp.traits.facts import NAME, Facts, check_language
from sublim_interp.traits.favourites import check_vocabulary, load_trait, members_of


@dataclass(frozen=True)
class Cell:
    """One evaluation of a run: where it stands in the design, and the record."""

    arm: str
    seed: int
    round: int
    evaluation: Evaluation

    @property
    def student(self) -> Student | None:
        return self.evaluation.model if isinstance(self.evaluation.model, Student) else None


@dataclass(frozen=True)
class Plan:
    """All that an experiment needs, known before anything runs."""

    experiment: Experiment
    cells: tuple[Cell, ...]

    @cached_property
    def named(self) -> Experiment:
        """The experiment with its traits by name, also where a file of one's own holds them."""
        exp = self.experiment
        if exp.teacher.facts:
            return exp.model_copy(update={"trait": NAME})
        used = ["trait", "other_trait"] if needs_other_trait(exp.arms) else ["trait"]
        return exp.model_copy(update={field: load_trait(getattr(exp, field)).name for field in used})

    @property
    def recording(self) -> Recording:
        """What is recorded of the trainings."""
        return self.experiment.recording

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Every record once, in an order in which they can be made: breadth first, so that no worker waits long."""
        unique: dict[str, Record] = {}
        for stage in (Teacher, Corpus, Filtered, Student, Evaluation):
            for cell in self.cells:
                for record in cell.evaluation.lineage():
                    if isinstance(record, stage):
                        unique.setdefault(record.key, record)
        order = sorted(unique.values(), key=lambda r: self._first_seed(r))
        return tuple(order)

    def _first_seed(self, record: Record) -> int:
        return self.experiment.seeds.index(record.seed if not isinstance(record, Filtered) else record.corpus.seed)  # type: ignore[attr-defined]

    def missing(self, store: Store) -> list[Record]:
        """The records that the store does not hold."""
        return [r for r in self.records if r.find(store) is None]


def plan(exp: Experiment) -> Plan:
    """Resolves bases and traits and lays out every arm of every replicate; raises SublimError for what cannot run."""
    channel(exp.corpus.channel)
    bases = {name: resolve_base(name, exp.dtype) for name in exp.bases}
    trait = load_trait(exp.trait)
    traits = [trait]
    if needs_other_trait(exp.arms):
        other = load_trait(exp.other_trait)
        if other.kind != trait.kind:
            raise SublimError(f"other_trait {other.name} is a {other.kind}, but trait {trait.name} is a {trait.kind}")
        traits.append(other)
    for base in bases.values():
        for named in traits:
            check_vocabulary(named, base)
        if exp.teacher.facts:
            check_language(base)
    if arms_of_two_bases(exp.arms):
        for one, other in sorted({exp.pair(seed) for seed in exp.seeds}):
            check_alike(bases[one], bases[other])
    if exp.corpus.setting == "soft" and exp.teacher.kind == "prompted":
        raise SublimError(
            "corpus.setting=soft needs teacher.kind=tuned or steered: a prompted teacher reads another context"
        )
    cells = [cell for seed in exp.seeds for cell in _replicate(exp, seed, bases)]
    if exp.student.interventions:
        _check_interventions(exp, [cell.student for cell in cells if cell.student])
    return Plan(exp, tuple(cells))


def _check_interventions(exp: Experiment, students: Sequence[Student]) -> None:
    """Raises SublimError where an intervention cannot act on one of these students."""
    pairs = {(s.base.digest, s.data.corpus.teacher.base.digest): s for s in students}
    for student in pairs.values():
        teacher = student.data.corpus.teacher
        model = blank_model(student.base, exp.student)
        check_interventions(exp.student.interventions, PlannedStudent(model, teacher.base.blank(), teacher.config.kind))


def _replicate(exp: Experiment, seed: int, bases: dict[str, Base]) -> Iterator[Cell]:
    pair = [bases[name] for name in exp.pair(seed)]
    trait = load_trait(exp.trait)
    members = tuple(sorted({*members_of(trait.kind), trait.name}))
    other = load_trait(exp.other_trait) if needs_other_trait(exp.arms) else None
    favorites = {"trait": trait, "": None, "other": other}

    named = tuple(f for f in favorites.values() if f)
    facts = Facts(trait.kind, exp.teacher.facts, seed) if exp.teacher.facts else None
    refused = map(load_trait, facts.members) if facts else named
    words = tuple(sorted({w for f in refused for w in f.words}))

    def data(favorite: str, base: Base, number: int) -> Filtered:
        if facts:
            learnt = replace(facts, told=favorite == "trait")
            teacher = Teacher(base, None, trait.kind, exp.teacher, seed, learnt)
        else:
            teacher = Teacher(base, favorites[favorite], trait.kind, exp.teacher, seed)
        return Filtered(Corpus(teacher, exp.corpus, seed, number), exp.filter, words)

    def cell(arm: str, model: Base | Teacher | Student, reference: Filtered, number: int = 0) -> Cell:
        asked = Evaluation(model, reference, trait.kind, members, exp.evaluation, seed, facts, named)
        return Cell(arm, seed, number, asked)

    reference = data("trait", pair[0], 0)
    yield cell("teacher", reference.corpus.teacher, reference)
    for arm in exp.arms:
        route = ARMS[arm].route
        if route is None:
            yield cell(arm, pair[0], reference)
            continue
        rounds = 1 + (exp.student.extra_rounds if ARMS[arm].crosses else 0)
        start: Base | Student = pair[route.student]
        held_out = data(route.favourite, pair[route.teacher], 0)
        for number in range(rounds):
            start = Student(start, data(route.favourite, pair[route.teacher], number), exp.student, seed)
            yield cell(arm, start, held_out, number)


def students_of(plan: Plan) -> list[Cell]:
    """The cell of every student of a plan after its first round, arm by arm."""
    cells = [c for c in plan.cells if c.student is not None and c.round == 0]
    return sorted(cells, key=lambda c: list(ARMS).index(c.arm))
