"""An update of a student against a bare PyTorch loop, and what recording adds to a training."""

from functools import partial

from benchmarks import ours
from benchmarks.page import digits, limit, seconds, table, times
from benchmarks.setting import OWL, Setting
from benchmarks.timing import Track, mean, race, ratio
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.training.recording.settings import Recording

BLOCKS = 8
STEPS = 513
"""Updates of each training. A recorder looks closely after 0, 1, 2, 4, … updates and the last: here as often as in a
whole student."""


def measure(setting: Setting) -> str:
    """The Markdown of the section."""
    student, store = setting.student(STEPS), setting.store
    tracks = race(
        {
            "bare": partial(ours.bare, student, store),
            "train": partial(ours.unrecorded, student, store),
            "learn": partial(ours.stage, student, store),
        }
    )
    bare, train = tracks["bare"].blocks(BLOCKS), tracks["train"].blocks(BLOCKS)
    over = ratio([s.cpu for s in train], [s.cpu for s in bare])
    by_wall = ratio([s.wall for s in train], [s.wall for s in bare])
    share = recording(tracks["learn"], tracks["train"], OWL.student.optimization.steps)
    ordinary = mean(tracks["learn"].units).cpu - mean(tracks["train"].units).cpu
    rows = [
        ("an update in a bare PyTorch loop", seconds(mean(bare).cpu), "", ""),
        (
            "an update in `train`, not recorded",
            seconds(mean(train).cpu),
            f"{times(over)} of the bare one (wall: {times(by_wall)})",
            limit(over.estimate, 1.1),
        ),
        (
            "recording a student",
            f"{seconds(ordinary)} more an update",
            f"{digits(100 * share.estimate)} % [{digits(100 * share.low)}, {digits(100 * share.high)}] of its training",
            limit(share.estimate, 0.03),
        ),
    ]
    return table(("what", "CPU time", "ratio", "target"), rows)


def recording(recorded: Track, unrecorded: Track, steps: int) -> Interval:
    """CPU time that recording adds to a training of so many updates, as a share of the training without it.

    The close looks and the start are taken as measured, ordinary updates are scaled up; the interval is theirs.
    """
    close = Recording().looks(1 + len(recorded.units))
    more = [a.cpu - b.cpu for a, b in zip(recorded.units, unrecorded.units, strict=True)]
    looked = [extra for done, extra in enumerate(more, 2) if done in close]
    ordinary = mean_interval([extra for done, extra in enumerate(more, 2) if done not in close])
    fixed = recorded.first.cpu - unrecorded.first.cpu + sum(looked)
    whole = steps * mean(unrecorded.units).cpu
    rest = steps - 1 - len(looked)

    def share(each: float) -> float:
        return (fixed + rest * each) / whole

    estimate, low, high = (share(x) for x in (ordinary.estimate, ordinary.low, ordinary.high))
    return Interval(estimate, low, high, ordinary.level, ordinary.n, ordinary.method)
