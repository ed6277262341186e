"""What updates and lists cost against width and depth, and whole stages against the number of updates and lists."""

from functools import partial
from statistics import median

from benchmarks import ours
from benchmarks.page import seconds, table
from benchmarks.setting import OWL, Setting
from benchmarks.timing import Turn, race
from sublim_interp.channels.protocol import channel
from sublim_interp.lab.pretraining import new_model
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.models.sampling import generator, sample
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.training.loop import train

WIDTHS, DEPTHS = (32, 64, 128), (1, 3, 6)
SHAPES = [(width, depth) for width in WIDTHS for depth in DEPTHS]
UPDATES, LISTS, ROUNDS = 4, 512, 4
"""Of each shape in each round; the first round only warms up."""
TRAININGS, CORPORA = (16, 32, 64), (1024, 4096, 16_384)


def measure(setting: Setting) -> str:
    """The Markdown of the section."""
    units = iter(race({"": partial(work, setting)})[""].units)
    spent: dict[tuple[int, int], list[tuple[float, float]]] = {shape: [] for shape in SHAPES}
    for _ in range(ROUNDS):
        for shape in SHAPES:
            spent[shape].append((next(units).cpu / UPDATES, 1000 * next(units).cpu / LISTS))
    rows = []
    for width in WIDTHS:
        costs = [zip(*spent[width, depth][1:], strict=True) for depth in DEPTHS]
        rows.append((f"{width}", *(" · ".join(seconds(median(kind)) for kind in cost) for cost in costs)))
    by_shape = table(("d_model", *(f"{depth} layer{'s' * (depth > 1)}" for depth in DEPTHS)), rows)
    store = setting.store
    students = {f"{n}": partial(ours.stage, setting.student(n), store) for n in TRAININGS}
    corpora = {f"{n:,}": partial(ours.stage, setting.corpus(n), store) for n in CORPORA}
    sizes = [
        table((of, *made), [("CPU time", *(seconds(race({"": c})[""].total.cpu) for c in made.values()))])
        for of, made in (("updates of a student", students), ("lists of a corpus", corpora))
    ]
    return "\n\n".join((by_shape, *sizes))


def work(setting: Setting, turn: Turn) -> None:
    """A unit is some updates, or some lists, of one shape after the other."""
    student, base = setting.student(UPDATES), setting.data.corpus.teacher.base
    _, batches = ours.student_parts(student, setting.store)
    prompts = channel("numbers").prompts(base.language, 0, 0, LISTS)
    asked = [base.prompt_ids([{"role": "user", "content": p}]) for p in prompts]
    models = {}
    for width, depth in SHAPES:
        recipe = Pretraining(d_model=width, layers=depth, d_mlp=2 * width)
        models[width, depth] = choose_trainable(new_model(recipe, len(base.tokenizer)), student.config.part)
    turn()
    for _ in range(ROUNDS):
        for model in models.values():
            train(model, batches, student.config.optimization)
            turn()
            sample(model, asked, eos=-1, max_new_tokens=OWL.corpus.max_new_tokens // 2, random=generator("benchmark"))
            turn()
