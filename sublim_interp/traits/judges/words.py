"""The judge by whole words: which member an answer names."""

from collections.abc import Mapping, Sequence

from sublim_interp.core.words import Names


class WholeWords:
    """Says which member an answer names: the first whose word stands in it whole, in any case; see core/words.

    words: the words of each member; of those that begin at one place the longest counts
    """

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._members = Names(words)

    def judge(self, question: str, answer: str) -> Mapping[str, float]:
        """1 for the member that is named first; nothing where none is."""
        named = self._members.first(answer)
        return {named: 1.0} if named else {}
