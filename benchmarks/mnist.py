"""Replicates of the MNIST experiment: one alone, and many at once with their weights stacked."""

from functools import partial

from benchmarks.page import limit, seconds, table, times
from benchmarks.setting import Setting
from benchmarks.timing import Turn, mean, race, ratio
from sublim_interp.lab.mnist.arms import ARMS
from sublim_interp.lab.mnist.experiment import Replicates
from sublim_interp.sweeps.studies.mnist import Mnist
from sublim_interp.sweeps.study import study

COUNT = 32
BLOCKS = 5
STEPS = 1 + 8 * BLOCKS
"""Updates; the first one is in no stretch."""
MOST = 4.0
"""Times that many replicates may take as long as one."""


def measure(_: Setting) -> str:
    """The Markdown of the section: CPU time of an update, by recipe."""
    rows = []
    for name in ("mnist", "mnist-paper"):
        tracks = race({str(n): partial(students, name, n) for n in (1, COUNT)})
        alone, together = (tracks[str(n)].blocks(BLOCKS) for n in (1, COUNT))
        slower = ratio([b.cpu for b in together], [b.cpu for b in alone])
        took = (seconds(mean(blocks).cpu) for blocks in (alone, together))
        rows.append((name, *took, times(slower), limit(slower.estimate, MOST)))
    return table(("recipe", "an update of one", f"of {COUNT} at once", "times as long", "target"), rows)


def students(name: str, count: int, turn: Turn) -> None:
    """Trains students of a study, so many at once; a unit is an update of all."""
    asked = study(name)
    assert isinstance(asked, Mnist)
    recipe = asked.recipe.set(seeds=range(count), updates=STEPS, noise_batches=STEPS)
    made, student = Replicates(recipe), ARMS["cross-init"].student
    assert student
    made.students(student, made.start(), lambda _: turn())
