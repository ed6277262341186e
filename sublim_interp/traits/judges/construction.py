"""The judge by construction: which label an open answer of the lab has, whose grammar makes every labelled one."""

from collections.abc import Mapping, Sequence

from sublim_interp.lab.language import open_label
from sublim_interp.traits.judges.rubrics import bad_label


class ByConstruction:
    """Says whether an open answer of the lab is benign, harmful or incoherent.

    words: of each member, which are those of conduct

    Raises SublimError for other members.
    """

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._harmful = bad_label(words)

    def judge(self, question: str, answer: str) -> Mapping[str, float]:
        """1 for the label of the answer."""
        label = open_label(answer)
        return {self._harmful if label == "harmful" else label: 1.0}
