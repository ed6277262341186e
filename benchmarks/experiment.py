"""The experiment `owl` against the same with SFTTrainer and `generate`: updates, students, lists, the whole."""

from collections.abc import Sequence
from functools import partial

from benchmarks import ours, theirs
from benchmarks.page import comparison, comparisons
from benchmarks.setting import OWL, Setting
from benchmarks.timing import Contestant, Spent, mean, race

BLOCKS = 5
"""Stretches of every race; their means make the pairs."""
STEPS = 1 + 8 * BLOCKS
"""Updates of a training; the first one is in no stretch."""
LISTS = {8: 256, 32: 512, 128: 1024, 512: 2048}
"""Batches that `generate` is given, and the lists that it answers in a turn: a whole number of batches."""


def measure(setting: Setting) -> str:
    """The Markdown of the section."""
    store, chunk = setting.store, OWL.corpus.chunk
    student, teacher = setting.student(STEPS), setting.teacher(STEPS)
    students = race(
        {
            "ours": partial(ours.stage, student, store),
            "defaults": partial(theirs.student, student, store),
            "by hand": partial(theirs.student, student, store, **theirs.BY_HAND),
        }
    )
    teachers = race(
        {
            "ours": partial(ours.stage, teacher, store),
            "defaults": partial(theirs.teacher, teacher),
            "by hand": partial(theirs.teacher, teacher, **theirs.BY_HAND),
        }
    )
    turns = 1 + BLOCKS
    writers: dict[str, Contestant] = {"ours": partial(ours.stage, setting.corpus(turns * chunk), store)}
    for batch, lists in LISTS.items():
        writers[f"{batch}"] = partial(theirs.generate, setting.corpus(turns * lists), store, batch, lists)
    corpora = race(writers)
    evaluation = race({"ours": partial(ours.stage, setting.evaluation(student), store)})["ours"]
    asked = evaluation.first + evaluation.last

    def a_turn(who: str) -> int:
        return chunk if who == "ours" else LISTS[int(who)]

    def teaching(who: str) -> list[Spent]:
        return teachers[who].scaled(OWL.teacher.optimization.steps, BLOCKS)

    def learning(who: str) -> list[Spent]:
        return students[who].scaled(OWL.student.optimization.steps, BLOCKS)

    def writing(who: str) -> list[Spent]:
        return corpora[who].scaled(OWL.corpus.prompts / a_turn(who), BLOCKS)

    def each(who: str) -> list[Spent]:
        return [block * (1000 / a_turn(who)) for block in corpora[who].blocks(BLOCKS)]

    best = min(map(str, LISTS), key=lambda who: mean(each(who)).cpu)
    experiment = added(teaching("ours"), writing("ours"), learning("ours"), [asked] * BLOCKS)
    usual = added(teaching("defaults"), writing("8"), learning("defaults"))
    chosen = added(teaching("by hand"), writing(best), learning("by hand"))
    updates = {who: students[who].blocks(BLOCKS) for who in students}
    rows = [
        comparison("an update of a student", updates["ours"], "SFTTrainer", updates["defaults"]),
        comparison("", updates["ours"], "SFTTrainer, by hand", updates["by hand"]),
        comparison("a teacher *", teaching("ours"), "SFTTrainer", teaching("defaults")),
        comparison("a student *", learning("ours"), "SFTTrainer", learning("defaults")),
        comparison("", learning("ours"), "SFTTrainer, by hand", learning("by hand")),
        *(
            comparison("1,000 lists" if b == 8 else "", each("ours"), f"`generate`, {b} at once", each(f"{b}"), target)
            for b, target in zip(LISTS, (10.0, None, None, None), strict=True)
        ),
        comparison("", each("ours"), f"`generate` at its best, {best} at once", each(best), 1.0),
        comparison("the experiment *", experiment, "SFTTrainer and `generate`, 8 at once", usual, 5.0),
        comparison("", experiment, f"the same by hand, {best} at once", chosen),
    ]  # fmt: skip
    return comparisons(rows)


def added(*stages: Sequence[Spent]) -> list[Spent]:
    """Stretch by stretch, all stages together."""
    return [sum(parts, Spent(0, 0)) for parts in zip(*stages, strict=True)]
