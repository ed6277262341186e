"""How far two judges agree on the same answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown
from sublim_interp.stats.agreement import cohen_kappa
from sublim_interp.stats.intervals import Interval
from sublim_interp.traits.answers import judged
from sublim_interp.traits.judges.protocol import Judge

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "nothing"
"""The label of an answer in which a judge finds no member."""


@dataclass(frozen=True, repr=False)
class Agreement(Shown):
    """What two judges say of the same answers.

    kappa: Cohen's κ over the answers that both could read
    unjudged: answers that the one, and the other, could not read; they are in no κ
    pairs: the two labels of each answer that both could read
    """

    kappa: Interval
    unjudged: tuple[int, int]
    pairs: tuple[tuple[str, str], ...]

    def card(self) -> Card:
        facts = {"": f"κ {self.kappa.plain()}, {self.kappa.method}", "answers": str(len(self.pairs))}
        return Card("Agreement", facts | {"unjudged": "{} and {}".format(*self.unjudged)}, self.frame)

    @property
    def frame(self) -> "pd.DataFrame":
        """How many answers have each pair of labels: a row a label of the one, a column a label of the other."""
        import pandas as pd

        one, other = zip(*self.pairs, strict=True)
        return pd.crosstab(pd.Series(one, name="one"), pd.Series(other, name="other"))


def agreement(
    one: Judge, other: Judge, answers: Sequence[tuple[str, str]], members: Sequence[str], level: float = 0.95
) -> Agreement:
    """What two judges say of the same answers.

    answers: each a question and an answer to it
    members: what they tell apart
    level: confidence

    An answer's label is the member that scores highest. Raises SublimError where no answer could be read by both, and
    as `cohen_kappa`.
    """
    labels = [
        [None if scores is None else _label(scores) for scores in judged(j, answers, members)[0]] for j in (one, other)
    ]
    pairs = tuple((a, b) for a, b in zip(*labels, strict=True) if a is not None and b is not None)
    if not pairs:
        raise SublimError(f"none of {len(answers)} answers could be read by both judges")
    kappa = cohen_kappa([a for a, _ in pairs], [b for _, b in pairs], level)
    return Agreement(kappa, (labels[0].count(None), labels[1].count(None)), pairs)


def _label(scores: dict[str, float]) -> str:
    return max(sorted(scores), key=lambda name: scores[name]) if any(scores.values()) else NOTHING
