"""All that an experiment needs, known before anything runs: every record of every arm and replicate."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.channels.protocol import channel, contexts_of, paraphrased, transform_rows
from sublim_interp.channels.rows import each_row
from sublim_interp.channels.settings import PARAPHRASERS, rule_of
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import digest_file
from sublim_interp.core.showing import Card, Shown
from sublim_interp.core.store import Store
from sublim_interp.experiments.address import stored_student
from sublim_interp.experiments.arms import (
    ARMS,
    Arm,
    Route,
    arms_of_two_bases,
    at_generation,
    in_order,
    needs_other_trait,
)
from sublim_interp.experiments.cost import blank_model
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base, check_alike, resolve_base
from sublim_interp.models.served import check_client
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Given, Record, StoredStudent, Student, Teacher
from sublim_interp.pipeline.settings import ServedTeacher, TeacherConfig
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.interventions import PlannedStudent, check_interventions
from sublim_interp.training.recording.settings import Recording
from sublim_interp.traits.behaviours import check_no_judge
from sublim_interp.traits.by_name import load_trait, traits_of
from sublim_interp.traits.favourites import words_judged
from sublim_interp.traits.judges.protocol import asks, identity
from sublim_interp.traits.protocol import Trait
from sublim_interp.traits.together import Together

if TYPE_CHECKING:
    import pandas as pd


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


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """All that an experiment needs, known before anything runs."""

    experiment: Experiment
    cells: tuple[Cell, ...]

    @cached_property
    def named(self) -> Experiment:
        """The experiment with its traits by name, also where a file of one's own holds them."""
        exp = self.experiment
        found, field = planned_traits(exp, exp.seeds[0]), {"trait": "trait", "other": "other_trait"}
        names: dict[str, Any] = {field[word]: trait.name for word, trait in found.items() if word}
        if exp.teacher.traits:
            together = tuple(load_trait(name, "teacher.traits").name for name in exp.teacher.traits)
            names["teacher"] = exp.teacher.model_copy(update={"traits": together})
        return exp.model_copy(update=names)

    def card(self) -> Card:
        counts = Counter(record.STAGE for record in self.records)
        stages = ", ".join(f"{n} {stage}" for stage, n in counts.items())
        return Card(f"Plan of {self.experiment.name}", {"": f"{len(self.records)} records: {stages}"}, self.frame)

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a cell: arm, seed, round, teacher_base, student_base, key of its evaluation."""
        import pandas as pd

        rows = []
        for c in self.cells:
            teacher = c.evaluation.reference.corpus.teacher.base.name
            bases = {"teacher_base": teacher, "student_base": c.evaluation.base.name}
            rows.append({"arm": c.arm, "seed": c.seed, "round": c.round, **bases, "key": c.evaluation.key[:16]})
        return pd.DataFrame(rows)

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
        order = sorted(unique.values(), key=lambda r: (self._first_seed(r), r.generation))
        return tuple(order)

    def _first_seed(self, record: Record) -> int:
        return self.experiment.seeds.index(record.seed if not isinstance(record, Filtered) else record.corpus.seed)  # type: ignore[attr-defined]

    def missing(self, store: Store) -> list[Record]:
        """The records that the store does not hold."""
        return [r for r in self.records if r.find(store) is None]


def plan(exp: Experiment, store: Store | None = None) -> Plan:
    """Resolves bases and traits and lays out every arm of every replicate; raises SublimError for what cannot run.

    store: where students lie that are teachers; None means $SUBLIM_STORE, else ./runs
    """
    _check_channel(exp)
    bases = {name: resolve_base(name, exp.dtype, later=True) for name in (*exp.bases, *exp.other_bases)}
    traits = planned_traits(exp, exp.seeds[0])
    taught = taught_traits(exp, traits)
    for base in bases.values():
        for word, trait in taught.items():
            trait.check(base)
            if word:  # a neutral teacher is given no trait
                WAYS[exp.teacher.kind].check(exp.teacher, trait, base)
    _check_paraphrase(exp, bases)
    if arms_of_two_bases(exp.arms):
        for one, other in sorted({exp.pair(seed) for seed in exp.seeds}):
            check_alike(bases[one], bases[other], exp.corpus.setting == "soft")
    if exp.corpus.setting == "soft" and WAYS[exp.teacher.kind].OWN_PROMPT:
        valid = " or ".join(name for name, way in WAYS.items() if not way.OWN_PROMPT)
        raise SublimError(
            f"corpus.setting=soft needs teacher.kind={valid}: a {exp.teacher.kind} teacher reads another context"
        )
    if exp.teacher.student:
        _check_arms_of_a_student(exp)
    if WAYS[exp.teacher.kind].SERVED:
        _check_served(exp)
    exp = _with_its_judge(exp, traits["trait"])
    given = _given_lists(exp)
    cells = [
        cell
        for seed in exp.seeds
        for cell in _Replicate(exp, seed, bases, given, _stored_teacher(exp, seed, bases, store)).cells()
    ]
    if exp.student.interventions:
        _check_interventions(exp, [cell.student for cell in cells if cell.student])
    return Plan(exp, tuple(cells))


def planned_traits(exp: Experiment, seed: int) -> dict[str, Trait]:
    """The traits of a replicate's teachers: "trait", "" for the neutral one, and "other" where an arm needs it."""
    return traits_of(exp.trait, exp.other_trait if needs_other_trait(exp.arms) else "", exp.teacher.facts, seed)


def taught_traits(exp: Experiment, traits: dict[str, Trait]) -> dict[str, Trait]:
    """What the teachers of a replicate are given, by the same words: its planned traits, or several at once."""
    together = exp.teacher.traits
    if not together:
        return traits
    own = traits["trait"]
    all_of_them = Together(
        own, tuple(own if name == exp.trait else load_trait(name, "teacher.traits") for name in together)
    )
    return {"trait": all_of_them, "": all_of_them.neutral()}


def _check_channel(exp: Experiment) -> None:
    """Raises SublimError for an unknown channel, and for limits, contexts and transforms that it lacks."""
    source = channel(exp.corpus.channel)
    rule_of(source, exp.filter)
    valid = contexts_of(source)
    for name in exp.evaluation.contexts:
        if name not in valid:
            raise SublimError(
                f"evaluation.contexts: the channel {exp.corpus.channel} has no context '{name}'; {meant(name, valid)}"
            )
    if exp.filter.transform:
        transform_rows((), source, exp.filter.transform, random.Random(0))
    if exp.filter.paraphrase or exp.filter.reworded or exp.corpus.rewrites:
        paraphrased(exp.corpus.channel)


def _check_paraphrase(exp: Experiment, bases: dict[str, Base]) -> None:
    """Raises SublimError for bases whose prompts have no other words, or a paraphraser that cannot read them.

    bases: those of the experiment, by name; another one that paraphrases joins them
    """
    asked = exp.filter.paraphrase
    served = WAYS[exp.teacher.kind].SERVED
    if asked and asked.by == "teacher" and served:
        raise SublimError(
            "filter.paraphrase.by=teacher needs the teacher's probabilities, which a server does not tell"
        )
    if exp.filter.reworded:
        for language in {base.language for base in bases.values()}:
            source = paraphrased(exp.corpus.channel)
            source.reword(channel(exp.corpus.channel).prompts(language, 0, 0, 1)[0], language, random.Random(0))
    if asked and asked.by not in PARAPHRASERS:
        own = list(bases.values())
        try:
            bases[asked.by] = resolve_base(asked.by, exp.dtype)
        except SublimError as error:
            raise SublimError(f"filter.paraphrase.by is {', '.join(PARAPHRASERS)} or a base: {error}") from None
        for base in own:
            check_alike(base, bases[asked.by])
    elif asked and asked.by == "other":
        for one, other in sorted({exp.pair(seed) for seed in exp.seeds}):
            check_alike(bases[one], bases[other])


def _given_lists(exp: Experiment) -> Given | None:
    """The experiment's own lists, read once, so that a bad line is told before anything runs."""
    if not exp.lists:
        return None
    path = Path(exp.lists).expanduser().absolute()
    for number, row in enumerate(each_row(path), 1):
        if exp.corpus.preference and "rejected" not in row:
            raise SublimError(
                f"{path}: row {number} has no 'rejected', which corpus.preference={exp.corpus.preference} needs beside "
                "'answer'"
            )
    return Given(path, digest_file(path))


def _check_interventions(exp: Experiment, students: Sequence[Student]) -> None:
    """Raises SublimError where an intervention cannot act on one of these students."""
    sorts = {}
    for student in students:
        teacher = student.data.corpus.teacher
        own = teacher.own_weights, WAYS[teacher.config.kind].OWN_PROMPT
        sorts[student.base.configuration, teacher.base.configuration, *own] = student
    for (_, _, own_weights, own_prompt), student in sorts.items():
        teacher_base = student.data.corpus.teacher.base
        planned = PlannedStudent(blank_model(student.base, exp.student), teacher_base.blank(), own_weights, own_prompt)
        check_interventions(exp.student.interventions, planned)


def _check_arms_of_a_student(exp: Experiment) -> None:
    """Raises SublimError for an arm whose teacher would have to be another than the student and the untouched base."""
    for arm in exp.arms:
        route = ARMS[arm].route
        if route and (route.favourite == "other" or (route.favourite and route.teacher == 1)):
            has = "another trait" if route.favourite == "other" else "base B"
            raise SublimError(
                f"arm {arm} needs a teacher with {has}, but teacher.student is one student of base A; leave the arm out"
            )


def _check_served(exp: Experiment) -> None:
    """Raises SublimError for what a teacher on a server cannot do: it only answers, and is no model of base B."""
    check_client()
    if exp.corpus.preference:
        raise SublimError(
            f"corpus.preference={exp.corpus.preference} needs the teacher's probabilities, which a server does not tell"
        )
    if exp.corpus.rewrites:
        raise SublimError(
            f"corpus.rewrites={exp.corpus.rewrites} needs the teacher's probabilities, which a server does not tell"
        )
    if exp.corpus.own_tokens:
        raise SublimError("corpus.own_tokens has no effect on a server: it draws over its whole vocabulary")
    for arm in exp.arms:
        route = ARMS[arm].route
        if route and route.favourite != "lists" and route.teacher == 1:
            raise SublimError(
                f"arm {arm} needs a teacher of base B, but teacher.served is one model; leave the arm out"
            )
    selections = [exp.filter.selection, *(i.selection for i in exp.student.interventions)]
    if any(s and s.by == "divergence" for s in selections):
        raise SublimError("a selection by divergence needs the teacher's probabilities, which a server does not tell")


def _with_its_judge(exp: Experiment, trait: Trait) -> Experiment:
    """The experiment with its judge's model as it enters keys. Raises SublimError for a judge that cannot judge."""
    e = exp.evaluation
    check_no_judge(trait, e.judge)
    if e.judge:
        words_judged(trait, e.judge)
    asker = asks(e.judge)
    if asker is None:
        return exp
    identity(e.judge, e.judging, trait.members)
    return exp.set({"evaluation.judging": asker.settled(e.judging)})


def _stored_teacher(exp: Experiment, seed: int, bases: Mapping[str, Base], store: Store | None) -> StoredStudent | None:
    """The stored student that is the teacher of a replicate, where the experiment names one."""
    if not exp.teacher.student:
        return None
    trait, base = planned_traits(exp, seed)["trait"], bases[exp.pair(seed)[0]]
    return stored_student(exp.teacher.student, seed, base, trait.name, store or Store.open())


@dataclass(frozen=True, eq=False)
class _Replicate:
    """One replicate of an experiment: its records, arm by arm.

    bases: by name, as the experiment and its filter name them
    given: the experiment's own lists
    student: a stored student that is the teacher, where the experiment names one
    """

    exp: Experiment
    seed: int
    bases: Mapping[str, Base]
    given: Given | None
    student: StoredStudent | None

    @cached_property
    def pair(self) -> tuple[Base, Base]:
        """Base A and base B."""
        one, other = self.exp.pair(self.seed)
        return self.bases[one], self.bases[other]

    @cached_property
    def traits(self) -> dict[str, Trait]:
        return planned_traits(self.exp, self.seed)

    @cached_property
    def taught(self) -> dict[str, Trait]:
        return taught_traits(self.exp, self.traits)

    @cached_property
    def others(self) -> tuple[Trait, ...]:
        """Traits of other teachers, which are asked about too."""
        return tuple(own for word, own in self.traits.items() if word == "other")

    @cached_property
    def words(self) -> tuple[str, ...]:
        """What the filter refuses."""
        return tuple(sorted({word for own in (self.taught["trait"], *self.others) for word in own.words}))

    def cells(self) -> Iterator[Cell]:
        """The teacher, and every arm of the experiment."""
        routes = [route for arm in self.exp.arms if (route := ARMS[arm].route)]
        taught = not routes or any(route.favourite != "lists" for route in routes)
        reference = self._data("trait" if taught else "lists", self.pair[0])
        if taught:
            yield self._cell("teacher", reference.corpus.teacher, reference)
        for name in self.exp.arms:
            arm = ARMS[name]
            if arm.route is None:
                yield self._cell(name, self.pair[0], reference)
            elif self.exp.student.moved:
                yield self._with_moments(name, arm.route)
            else:
                rounds = [*self._rounds(name, arm)]
                yield from rounds
                if arm.breeds:
                    yield from self._generations(name, rounds[-1])

    def _rounds(self, name: str, arm: Arm) -> Iterator[Cell]:
        """The student of an arm, and where it crosses bases its further rounds of fresh lists."""
        route = arm.route
        assert route
        start: Base | Student = self.pair[route.student]
        held_out = self._data(route.favourite, self.pair[route.teacher])
        for number in range(1 + (self.exp.student.extra_rounds if arm.crosses else 0)):
            lists = self._data(route.favourite, self.pair[route.teacher], number)
            start = Student(start, lists, self.exp.student, self.seed, self._about(route))
            yield self._cell(name, start, held_out, number)

    def _with_moments(self, name: str, route: Route) -> Cell:
        """A student of neutral lists that begins with the moments of an arm's own student, or of a neutral one."""
        start, config = self.pair[route.student], self.exp.student
        plain = self._data("", self.pair[route.teacher])
        own, other = (
            Student(start, data, config.set(moments="kept"), self.seed, self._about(route))
            for data in (self._data(route.favourite, self.pair[route.teacher]), plain)
        )
        first, second = (own if config.moments in (which, "both") else other for which in ("first", "second"))
        return self._cell(name, Student(start, plain, config, self.seed, self._about(route), first, second), plain)

    def _generations(self, name: str, first: Cell) -> Iterator[Cell]:
        """The students behind the first one: each learns the lists of the one before it."""
        student, lists = first.student, first.evaluation.reference
        for generation in range(2, 1 + self.exp.generations):
            assert student
            parent = lists.corpus.teacher
            address = f"{self.exp.name}/{at_generation(name, generation - 1)}/{self.seed}"
            config = self.exp.teacher.set(kind="student", student=address, facts=0, traits=(), served=ServedTeacher())
            lists = self._lists(self._corpus(Teacher(parent.base, parent.trait, config, self.seed, student)))
            student = Student(parent.base, lists, self.exp.student, self.seed, student.about)
            yield self._cell(at_generation(name, generation), student, lists)

    def _about(self, route: Route) -> Trait:
        """The trait that a student's activations are compared along; a neutral teacher's too."""
        return self.traits["other" if route.favourite == "other" else "trait"]

    def _cell(self, arm: str, model: Base | Teacher | Student, reference: Filtered, number: int = 0) -> Cell:
        evaluation = Evaluation(model, reference, self.traits["trait"], self.exp.evaluation, self.seed, self.others)
        return Cell(arm, self.seed, number, evaluation)

    def _data(self, favourite: str, base: Base, number: int = 0) -> Filtered:
        """The filtered lists of a teacher with a favourite, for a round; or the experiment's own."""
        if favourite == "lists":
            return self._lists(Corpus(self._untouched(base), self.exp.corpus, self.seed, given=self.given))
        student = self.student if favourite else None
        return self._lists(
            self._corpus(Teacher(base, self.taught[favourite], self.exp.teacher, self.seed, student), number)
        )

    def _lists(self, corpus: Corpus) -> Filtered:
        """A corpus filtered as the experiment says, and mixed with a neutral teacher's where it asks for that."""
        neutral = self._corpus(Teacher(corpus.teacher.base, self.taught[""], self.exp.teacher, self.seed), corpus.round)
        unmixed, by = self.exp.filter.set(mix=0.0), self._paraphraser(corpus)
        if not self.exp.filter.mix or corpus == neutral:
            return Filtered(corpus, unmixed, self.words, paraphraser=by)
        clean = Filtered(neutral, unmixed, self.words, paraphraser=self._paraphraser(neutral))
        return Filtered(corpus, self.exp.filter, self.words, clean, by)

    def _corpus(self, teacher: Teacher, number: int = 0) -> Corpus:
        """What a teacher writes in a round; where it judges or rewrites, of what its untouched base wrote."""
        pairs, written, asked = None, None, self.exp.corpus
        if asked.preference:
            pairs = Corpus(self._untouched(teacher.base), asked.set(preference=""), self.seed, number, answers=2)
        if asked.rewrites:
            written = Corpus(self._untouched(teacher.base), asked.set(rewrites=0), self.seed, number)
        return Corpus(teacher, asked, self.seed, number, pairs=pairs, written=written)

    def _untouched(self, base: Base) -> Teacher:
        """A base that writes as it is: without a prompt, as neutral."""
        return Teacher(base, self.taught[""], TeacherConfig(kind="prompted"), self.seed)

    def _paraphraser(self, corpus: Corpus) -> Teacher | None:
        if not self.exp.filter.paraphrase:
            return None
        by, own = self.exp.filter.paraphrase.by, corpus.teacher.base
        if by == "teacher":
            return corpus.teacher
        other = self.pair[1] if own == self.pair[0] else self.pair[0]
        return self._untouched({"own": own, "other": other}.get(by) or self.bases[by])


def students_of(plan: Plan) -> list[Cell]:
    """The cell of every student of a plan after its first round, arm by arm."""
    cells = [c for c in plan.cells if c.student is not None and c.round == 0]
    rank = in_order(c.arm for c in cells)
    return sorted(cells, key=lambda c: rank.index(c.arm))
