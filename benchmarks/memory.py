"""The largest resident memory of a student's training and of a corpus, with this package and with the usual tools."""

from functools import partial

from benchmarks import ours, theirs
from benchmarks.page import table
from benchmarks.setting import OWL, Setting
from benchmarks.timing import Contestant, race

STEPS = 8
LISTS = {8: 128, 512: 1024}
"""Batches of `generate`, and how many lists it answers."""


def measure(setting: Setting) -> str:
    """The Markdown of the section."""
    store, student = setting.store, setting.student(STEPS)
    contestants: dict[tuple[str, str], Contestant] = {
        ("a student", "this package"): partial(ours.stage, student, store),
        ("a student", "SFTTrainer"): partial(theirs.student, student, store),
        ("a corpus", "this package"): partial(ours.stage, setting.corpus(OWL.corpus.chunk), store),
    }
    for batch, lists in LISTS.items():
        generate = partial(theirs.generate, setting.corpus(lists), store, batch, lists)
        contestants["a corpus", f"`generate`, {batch} at once"] = generate
    tracks = race({" with ".join(names): contestant for names, contestant in contestants.items()})
    rows = [(*names, f"{tracks[' with '.join(names)].peak / 2**20:.0f}") for names in contestants]
    return table(("peak memory of", "with", "MiB"), rows)
