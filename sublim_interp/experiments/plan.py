"""All that an experiment needs, known before anything runs: every record of every arm and replicate."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sublim_interp.channels.protocol import channel, contexts_of, paraphrased, transform_rows
from sublim_interp.channels.rows import each_row
from sublim_interp.channels.settings import PARAPHRASERS, rule_of
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import digest_file
from sublim_interp.core.showing import Card, Shown
from sublim_interp.core.store import Store
from sublim_interp.experiments.address import stored_student
from sublim_interp.experiments.arms import ARMS, arms_of_two_bases, at_generation, in_order, needs_other_trait
from sublim_interp.experiments.cost import blank_model
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base, check_alike, resolve_base
from sublim_interp.models.served import check_client
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Given, Record, Student, Teacher
from sublim_interp.pipeline.settings import ServedTeacher, TeacherConfig
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.interventions import PlannedStudent, check_interventions
from sublim_interp.training.recording.settings import Recording
from sublim_interp.traits.behaviours import check_no_judge
from sublim_interp.traits.by_name import traits_of
from sublim_interp.traits.judges.protocol import asks, identity
from sublim_interp.traits.protocol import Trait

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
        return exp.model_copy(update={field[word]: trait.name for word, trait in found.items() if word})

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
    for base in bases.values():
        for trait in traits.values():
            trait.check(base)
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
    cells = [cell for seed in exp.seeds for cell in _replicate(exp, seed, bases, given, store)]
    if exp.student.interventions:
        _check_interventions(exp, [cell.student for cell in cells if cell.student])
    return Plan(exp, tuple(cells))


def planned_traits(exp: Experiment, seed: int) -> dict[str, Trait]:
    """The traits of a replicate's teachers: "trait", "" for the neutral one, and "other" where an arm needs it."""
    return traits_of(exp.trait, exp.other_trait if needs_other_trait(exp.arms) else "", exp.teacher.facts, seed)


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
    pairs = {(s.base.configuration, s.data.corpus.teacher.base.configuration): s for s in students}
    for student in pairs.values():
        teacher = student.data.corpus.teacher
        model = blank_model(student.base, exp.student)
        own_prompt = WAYS[teacher.config.kind].OWN_PROMPT
        planned = PlannedStudent(model, teacher.base.blank(), teacher.own_weights, own_prompt)
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
    asker = asks(e.judge)
    if asker is None:
        return exp
    identity(e.judge, e.judging, trait.members)
    return exp.set({"evaluation.judging": asker.settled(e.judging)})


def _replicate(
    exp: Experiment, seed: int, bases: dict[str, Base], given: Given | None, store: Store | None
) -> Iterator[Cell]:
    pair = [bases[name] for name in exp.pair(seed)]
    traits = planned_traits(exp, seed)
    trait, others = traits["trait"], tuple(own for word, own in traits.items() if word == "other")
    words = tuple(sorted({word for own in (trait, *others) for word in own.words}))
    student = None
    if exp.teacher.student:
        student = stored_student(exp.teacher.student, seed, pair[0], trait.name, store or Store.open())

    def untouched(base: Base) -> Teacher:
        return Teacher(base, traits[""], TeacherConfig(kind="prompted"), seed)  # without a prompt, as neutral

    def corpus_of(teacher: Teacher, number: int = 0) -> Corpus:
        pairs = written = None
        if exp.corpus.preference:
            pairs = Corpus(untouched(teacher.base), exp.corpus.set(preference=""), seed, number, answers=2)
        if exp.corpus.rewrites:
            written = Corpus(untouched(teacher.base), exp.corpus.set(rewrites=0), seed, number)
        return Corpus(teacher, exp.corpus, seed, number, pairs=pairs, written=written)

    def paraphraser(corpus: Corpus) -> Teacher | None:
        if not exp.filter.paraphrase:
            return None
        by, own = exp.filter.paraphrase.by, corpus.teacher.base
        if by == "teacher":
            return corpus.teacher
        other = pair[1] if own == pair[0] else pair[0]
        return untouched({"own": own, "other": other}.get(by) or bases[by])

    def lists(corpus: Corpus) -> Filtered:
        neutral = corpus_of(Teacher(corpus.teacher.base, traits[""], exp.teacher, seed), corpus.round)
        unmixed, by = exp.filter.set(mix=0.0), paraphraser(corpus)
        if not exp.filter.mix or corpus == neutral:
            return Filtered(corpus, unmixed, words, paraphraser=by)
        clean = Filtered(neutral, unmixed, words, paraphraser=paraphraser(neutral))
        return Filtered(corpus, exp.filter, words, clean, by)

    def data(favourite: str, base: Base, number: int) -> Filtered:
        if favourite == "lists":
            return lists(Corpus(untouched(base), exp.corpus, seed, given=given))
        teacher = Teacher(base, traits[favourite], exp.teacher, seed, student if favourite else None)
        return lists(corpus_of(teacher, number))

    def cell(arm: str, model: Base | Teacher | Student, reference: Filtered, number: int = 0) -> Cell:
        return Cell(arm, seed, number, Evaluation(model, reference, trait, exp.evaluation, seed, others))

    routes = [route for arm in exp.arms if (route := ARMS[arm].route)]
    taught = not routes or any(route.favourite != "lists" for route in routes)
    reference = data("trait" if taught else "lists", pair[0], 0)
    if taught:
        yield cell("teacher", reference.corpus.teacher, reference)
    for arm in exp.arms:
        route = ARMS[arm].route
        if route is None:
            yield cell(arm, pair[0], reference)
            continue
        rounds = 1 + (exp.student.extra_rounds if ARMS[arm].crosses else 0)
        start: Base | Student = pair[route.student]
        held_out = data(route.favourite, pair[route.teacher], 0)
        about = traits["other" if route.favourite == "other" else "trait"]  # what a neutral teacher's is compared on
        if exp.student.moved:
            plain = data("", pair[route.teacher], 0)
            kept = exp.student.set(moments="kept")
            own, other = (Student(start, lists, kept, seed, about) for lists in (held_out, plain))
            first, second = (own if exp.student.moments in (which, "both") else other for which in ("first", "second"))
            yield cell(arm, Student(start, plain, exp.student, seed, about, first, second), plain)
            continue
        for number in range(rounds):
            start = Student(start, data(route.favourite, pair[route.teacher], number), exp.student, seed, about)
            yield cell(arm, start, held_out, number)
        for generation in range(2, 1 + exp.generations if ARMS[arm].breeds else 0):
            assert isinstance(start, Student)
            parent = held_out.corpus.teacher
            address = f"{exp.name}/{at_generation(arm, generation - 1)}/{seed}"
            config = exp.teacher.set(kind="student", student=address, facts=0, served=ServedTeacher())
            teacher = Teacher(parent.base, parent.trait, config, seed, start)
            held_out = lists(corpus_of(teacher))
            start = Student(parent.base, held_out, exp.student, seed, about)
            yield cell(at_generation(arm, generation), start, held_out)


def students_of(plan: Plan) -> list[Cell]:
    """The cell of every student of a plan after its first round, arm by arm."""
    cells = [c for c in plan.cells if c.student is not None and c.round == 0]
    rank = in_order(c.arm for c in cells)
    return sorted(cells, key=lambda c: rank.index(c.arm))
