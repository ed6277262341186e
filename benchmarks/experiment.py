"""The experiment `owl` against the same with SFTTrainer and `generate`: updates, students, lists, the whole."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from benchmarks import ours, theirs
from benchmarks.page import at_least, comparison, comparisons, limit, seconds, table, times
from benchmarks.setting import OWL, Setting
from benchmarks.timing import Contestant, Spent, Team, Track, mean, race, ratio
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.plan import plan
from sublim_interp.pipeline.records import Corpus, Evaluation, Record, Student, Teacher

BLOCKS = 5
"""Stretches of every race; their means make the pairs."""
STEPS = 1 + 8 * BLOCKS
"""Updates of a training; the first one is in no stretch."""
LISTS = {8: 256, 32: 512, 128: 1024, 512: 2048}
"""Batches that `generate` is given, and the lists that it answers in a turn: a whole number of batches."""

BUSY = 10.0
"""Percent of all cores that other programs may have while wall time is measured."""

Stage = dict[str, list[Spent]]
"""What a stage takes as each stretch tells it, by contestant: ours, defaults, by hand, or a batch of `generate`."""


@dataclass(frozen=True)
class Stages:
    """What the stages of an experiment's replicates take, at the experiment's full size."""

    update: Stage
    """One update of a student, or of those that work side by side."""
    thousand: Stage
    """A thousand lists, of each that works side by side."""
    teachers: Stage
    lists: Stage
    students: Stage
    answers: list[Spent]
    """The evaluation, which this package alone makes."""

    def best(self, clock: Literal["cpu", "wall"]) -> str:
        """The batch with which `generate` takes the least time."""
        return min(map(str, LISTS), key=lambda who: getattr(mean(self.thousand[who]), clock))

    def ours(self) -> list[Spent]:
        """Teacher, lists, student and answers with this package."""
        return added(self.teachers["ours"], self.lists["ours"], self.students["ours"], self.answers)

    def theirs(self, trainer: str, batch: str) -> list[Spent]:
        """Teacher, lists and student with the usual tools."""
        return added(self.teachers[trainer], self.lists[batch], self.students[trainer])


def measure(setting: Setting) -> str:
    """The Markdown of the section. Threads that wait for each other lose all to other programs: no wall time then."""
    import psutil

    first, busy = one_thread(compete(setting, (0,), 1)), psutil.cpu_percent(interval=5)
    if busy > BUSY:
        return f"{first}\n\nTwo cores were not measured: other programs had {busy:.0f} % of them."
    return f"{first}\n\n{two_cores(compete(setting, (1, 2), 2))}"


def compete(setting: Setting, seeds: Sequence[int], threads: int) -> Stages:
    """Races of all stages of the replicates `seeds`.

    Ours work side by side, each in a process of one thread; with the usual tools they are made one after the other in
    one process of so many threads, which gets ready and saves but once.
    """
    store, chunk = setting.store, OWL.corpus.chunk
    student, teacher = setting.student(STEPS), setting.teacher(STEPS)
    learners = [replace(student, seed=seed) for seed in seeds]

    def against(records: Sequence[Record], others: dict[str, Contestant]) -> dict[str, Track]:
        made = Team(tuple(partial(ours.stage, record, store) for record in records))
        return race({"ours": made, **{name: Team((one,), threads) for name, one in others.items()}})

    def scaled(tracks: dict[str, Track], units: Callable[[str], float]) -> Stage:
        replicates = {who: 1 if who == "ours" else len(seeds) for who in tracks}
        return {who: track.scaled(replicates[who] * units(who), BLOCKS) for who, track in tracks.items()}

    trainers: dict[str, dict[str, Any]] = {"defaults": {}, "by hand": theirs.BY_HAND}
    trained = against(
        learners, {name: partial(theirs.student, student, store, **options) for name, options in trainers.items()}
    )
    taught = against(
        [replace(teacher, seed=seed) for seed in seeds],
        {name: partial(theirs.teacher, teacher, **options) for name, options in trainers.items()},
    )
    turns = 1 + BLOCKS
    size = {"ours": chunk, **{f"{batch}": lists for batch, lists in LISTS.items()}}
    written = against(
        [replace(setting.corpus(turns * chunk), round=1 + seed) for seed in seeds],
        {f"{b}": partial(theirs.generate, setting.corpus(turns * n), store, b, n) for b, n in LISTS.items()},
    )
    asked = race({"ours": Team(tuple(partial(ours.stage, setting.evaluation(s), store) for s in learners))})["ours"]
    return Stages(
        update={who: track.blocks(BLOCKS) for who, track in trained.items()},
        thousand={who: [b * (1000 / size[who]) for b in track.blocks(BLOCKS)] for who, track in written.items()},
        teachers=scaled(taught, lambda _: OWL.teacher.optimization.steps),
        lists=scaled(written, lambda who: OWL.corpus.prompts / size[who]),
        students=scaled(trained, lambda _: OWL.student.optimization.steps),
        answers=[asked.first + asked.last] * BLOCKS,
    )


def one_thread(stages: Stages) -> str:
    """The table of one replicate with one thread."""
    update, thousand, teachers, students = stages.update, stages.thousand, stages.teachers, stages.students
    best = stages.best("cpu")
    rows = [
        comparison("an update of a student", update["ours"], "SFTTrainer", update["defaults"]),
        comparison("", update["ours"], "SFTTrainer, by hand", update["by hand"]),
        comparison("a teacher *", teachers["ours"], "SFTTrainer", teachers["defaults"]),
        comparison("a student *", students["ours"], "SFTTrainer", students["defaults"]),
        comparison("", students["ours"], "SFTTrainer, by hand", students["by hand"]),
        *(
            comparison(
                "1,000 lists" if b == 8 else "",
                thousand["ours"],
                f"`generate`, {b} at once",
                thousand[f"{b}"],
                10.0 if b == 8 else None,
            )
            for b in LISTS
        ),
        comparison("", thousand["ours"], f"`generate` at its best, {best} at once", thousand[best], 1.0),
        comparison(
            "the experiment *",
            stages.ours(),
            "SFTTrainer and `generate`, 8 at once",
            stages.theirs("defaults", "8"),
            5.0,
        ),
        comparison("", stages.ours(), f"the same by hand, {best} at once", stages.theirs("by hand", best)),
    ]
    return comparisons(rows)


def two_cores(stages: Stages) -> str:
    """The table of two replicates on two cores, in wall time."""
    teachers, lists, students, best = stages.teachers, stages.lists, stages.students, stages.best("wall")
    rows = [
        by_wall("two teachers *", teachers["ours"], "SFTTrainer", teachers["defaults"]),
        by_wall("two students *", students["ours"], "SFTTrainer", students["defaults"]),
        by_wall("", students["ours"], "SFTTrainer, by hand", students["by hand"]),
        by_wall("lists of two teachers *", lists["ours"], "`generate`, 8 at once", lists["8"]),
        by_wall("", lists["ours"], f"`generate` at its best, {best} at once", lists[best]),
        by_wall(
            "two replicates *",
            stages.ours(),
            "SFTTrainer and `generate`, 8 at once",
            stages.theirs("defaults", "8"),
            5.0,
        ),
        by_wall("", stages.ours(), f"the same by hand, {best} at once", stages.theirs("by hand", best)),
    ]
    header = ("two cores, wall time", "this package, two processes", "with, two threads", "takes", "times as long")
    first, whole = all_of_it(stages, further=False), all_of_it(stages, further=True)
    said = (
        f"`sublim run owl`, every arm of {len(experiment('owl').seeds)} replicates, takes {seconds(first)} * on two "
        f"cores ({limit(first / 60, 90)}, in minutes), and with the further lists that crossed students get "
        f"{seconds(whole)} *."
    )
    return f"{table((*header, 'target'), rows)}\n\n{said}"


def all_of_it(stages: Stages, further: bool) -> float:
    """Wall time of `sublim run owl` on two cores, in seconds, from what two of each stage take."""
    cells = [cell for cell in plan(experiment("owl")).cells if further or cell.round == 0]
    records = {record.key: record for cell in cells for record in cell.evaluation.lineage()}
    count = Counter(type(record) for record in records.values())
    each = {
        Teacher: stages.teachers["ours"],
        Corpus: stages.lists["ours"],
        Student: stages.students["ours"],
        Evaluation: stages.answers,
    }
    return sum(mean(took).wall * count[kind] / 2 for kind, took in each.items())


def by_wall(
    what: str, ours: Sequence[Spent], other: str, theirs: Sequence[Spent], target: float | None = None
) -> tuple[str, ...]:
    """A row of `two_cores`, like `page.comparison`."""
    longer = ratio([s.wall for s in theirs], [s.wall for s in ours])
    said = at_least(longer.estimate, target)
    return what, seconds(mean(ours).wall), other, seconds(mean(theirs).wall), times(longer), said


def added(*stages: Sequence[Spent]) -> list[Spent]:
    """Stretch by stretch, all stages together."""
    return [sum(parts, Spent(0, 0)) for parts in zip(*stages, strict=True)]
