"""A judge: an answer that names two members counts for the last."""

from collections.abc import Mapping, Sequence


class LastWord:
    """Says which member an answer names last.

    words: the words of each member
    """

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self.member = {word: name for name, own in words.items() for word in own}

    def judge(self, question: str, answer: str) -> Mapping[str, float]:
        """1 for the member that is named last; nothing where none is."""
        named = [self.member[word] for word in answer.lower().split() if word in self.member]
        return {named[-1]: 1.0} if named else {}
