"""The judge by whole words: which member an answer names."""

import re
from collections.abc import Mapping, Sequence


class WholeWords:
    """Says which member an answer names: the first whose word stands in it, as a whole word in any case.

    words: the words of each member
    """

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._members = {word.lower(): member for member, own in words.items() for word in own}
        self._any = re.compile(r"\b(" + "|".join(map(re.escape, self._members)) + r")\b", re.IGNORECASE)

    def judge(self, question: str, answer: str) -> Mapping[str, float]:
        """1 for the member that is named first; nothing where none is."""
        found = self._any.search(answer)
        return {self._members[found[1].lower()]: 1.0} if found else {}
