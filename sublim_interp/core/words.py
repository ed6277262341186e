"""Whole words in text: which of some names stands there first. The one matcher of filters and evaluations.

Text and words are compared as Unicode's compatibility caseless match has it (The Unicode Standard, D146): decomposed by
NFKD and case-folded on both sides. So "Ｏｗｌ", "OWL" and "owl" are one word, "LİON" and "lion" two. Any white space is
one space; characters that are not seen, such as a soft hyphen, do not hide a word.

A word is whole where nothing beside it goes on with it: no letter beside a letter, no digit beside a digit, no mark
behind. So "owl-like", "owl_2" and "7owl" name the owl, "fowl" does not; "c++" and emoji may stand beside anything, and
so may words in scripts that are written without spaces, such as Chinese and Thai.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache

import regex

_UNSEEN = r"\p{Default_Ignorable_Code_Point}"
_MARK = rf"[\p{{M}}--{_UNSEEN}]"
# Scripts without spaces: those whose lines are broken by a dictionary (SA: Thai, Lao, Khmer, …), Chinese and Japanese.
_LETTER = r"[\p{L}--[\p{Line_Break=SA}\p{Han}\p{Hiragana}\p{Katakana}]]"
_FLAG = r"\p{Regional_Indicator}"
_FIRST = {
    _LETTER: rf"(?<!{_LETTER}\p{{M}}{{,32}})",
    r"\p{N}": r"(?<!\p{N})",
    _FLAG: rf"(?<=(?<!{_FLAG})(?:{_FLAG}{_FLAG}){{,32}})",  # a flag is two letters, so a row of flags holds others
}
"""What may not stand before a word that begins so; looking back is bounded, so that time is in proportion to text."""
_LAST = {rf"{_LETTER}\p{{M}}*": rf"(?!{_LETTER})", r"\p{N}": r"(?!\p{N})"}
"""What may not follow a word that ends so."""


def folded(text: str) -> str:
    """The text as it is compared: equal for texts that differ in case, in compatibility forms or in white space."""
    for form in ("NFD", "NFKD"):
        text = unicodedata.normalize(form, text).casefold()
    return " ".join(unicodedata.normalize("NFKD", text).split())


def checked_word(word: str) -> str:
    """`word` itself, to check a settings field. Raises ValueError for one that is empty, or that cannot stand alone."""
    seen = _seen(word)
    if not seen or unicodedata.category(seen[0])[0] == "M":
        raise ValueError("a word needs a character that is seen and stands by itself")
    return word


def _seen(word: str) -> str:
    return folded(regex.sub(_UNSEEN, "", word, flags=regex.V1))


class Names:
    """Finds names in texts by the words of each.

    words: by name, the words that stand for it; a name without words is found nowhere

    Raises ValueError for a word as `checked_word`, and for one that stands for two names.
    """

    def __init__(self, words: Mapping[str, Iterable[str]]) -> None:
        named: dict[str, str] = {}
        for name, own in words.items():
            for word in own:
                other = named.setdefault(_seen(checked_word(word)), name)
                if other != name:
                    raise ValueError(f"the word '{word}' stands for '{other}' and for '{name}'")
        longest_first = sorted(named, key=lambda word: (-len(word), word))
        self._names = [named[word] for word in longest_first]
        self._any = regex.compile("|".join(f"({_whole(word)})" for word in longest_first) or r"(?!)", regex.V1)

    def first(self, text: str) -> str | None:
        """The name that `text` holds first, of those that begin there the one of the longest word; None for none."""
        found = self._any.search(folded(text))
        return self._names[found.lastindex - 1] if found and found.lastindex else None


def _whole(word: str) -> str:
    """A pattern for a folded word where it is whole."""
    parts = (rf"{_UNSEEN}*+".join(map(regex.escape, part)) for part in word.split())
    before = next((rule for edge, rule in _FIRST.items() if regex.match(edge, word, regex.V1)), "")
    after = next((rule for edge, rule in _LAST.items() if regex.search(rf"{edge}\Z", word, regex.V1)), "")
    return before + rf"[\s{_UNSEEN}]++".join(parts) + after + rf"(?!{_UNSEEN}*+{_MARK})"


@lru_cache
def _names(words: frozenset[str]) -> Names:
    return Names({"": words})


def holds_word(text: str, words: Iterable[str]) -> bool:
    """Whether a text holds one of some words as a whole word."""
    return _names(frozenset(words)).first(text) is not None
