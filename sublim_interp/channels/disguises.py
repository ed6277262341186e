"""Names in disguise: readings of a text in which a name stands that it does not show. Plain names are in core/words.

Where a published replication of subliminal learning leaked, it leaked so: in an identifier, reversed, encoded.
"""

import base64
import binascii
import codecs
import unicodedata
from collections.abc import Callable, Collection, Iterator
from functools import cache

import regex

from sublim_interp.core.words import folded, holds_word

_LEET = str.maketrans("013457@$", "oieastas")
_LEET_L = str.maketrans("013457@$", "oleastas")
_PARTS = regex.compile(
    r"\p{Lu}+(?=\p{Lu}\p{Ll})|\p{Lu}?[\p{Ll}\p{M}]+|\p{Lu}+|[\p{Lo}\p{Lm}\p{Lt}\p{M}]+|\p{N}+|[^\p{L}\p{N}]+"
)
_LONGEST_SPACED = 16
"""Longest word that is found among other letters that stand apart; longer ones must stand there alone."""


def split_identifiers(text: str) -> str:
    """The text with a space between the parts of its identifiers: `myOwlCount` and `OWL_2` give my Owl Count, OWL 2."""
    return " ".join(_PARTS.findall(unicodedata.normalize("NFC", text).replace("_", " ")))


def _whole_and_split(text: str) -> Iterator[str]:
    """`OWLs` is a word as it stands, `myOwl` where it is split."""
    yield text
    yield split_identifiers(text)


@cache
def _look_alikes() -> dict[int, str]:
    """Characters that look like a Latin letter → that letter, by Unicode's confusables (UTS #39)."""
    from confusable_homoglyphs.confusables import confusables_data

    found = {}
    for char, alike in confusables_data.items():
        letters = [a["c"] for a in alike if len(a["c"]) == 1 and a["c"].isascii() and a["c"].isalpha()]
        if len(char) == 1 and not char.isascii() and letters:
            found[ord(char)] = letters[0]
    return found


def _letters_alike(text: str) -> Iterator[str]:
    plain = text.translate(_look_alikes())
    if plain != text:
        yield from _whole_and_split(plain)
    if regex.search(r"(?<=\p{L})[013457@$]|[013457@$](?=\p{L})", plain):
        yield from _whole_and_split(plain.translate(_LEET))
        yield from _whole_and_split(plain.translate(_LEET_L))


def _spaced(text: str) -> Iterator[str]:
    for run in regex.findall(r"(?<!\p{L})\p{L}(?:[^\p{L}\p{N}]{1,3}\p{L}){2,}(?!\p{L})", text):
        letters = regex.sub(r"[^\p{L}]", "", run)
        yield letters
        ends = range(3, _LONGEST_SPACED + 1)  # the letter of a variable beside them must not hide a word
        yield " ".join(letters[i : i + n] for i in range(len(letters) - 2) for n in ends if i + n <= len(letters))


def _reversed(text: str) -> Iterator[str]:
    yield from _whole_and_split(text[::-1])
    yield split_identifiers(text)[::-1]


def _rot13(text: str) -> Iterator[str]:
    yield from _whole_and_split(codecs.encode(text, "rot13"))


def _base64(text: str) -> Iterator[str]:
    for run in regex.findall(r"[A-Za-z0-9+/_-]{4,}", text):
        padded = run + "=" * (-len(run) % 4)
        for read in (base64.b64decode, base64.urlsafe_b64decode):
            try:
                yield from _shown(read(padded))
            except (binascii.Error, ValueError):
                continue


def _hex(text: str) -> Iterator[str]:
    for run in regex.findall(r"(?<![0-9a-fA-F])(?:[0-9a-fA-F]{2}[\s:,-]{0,2}){3,}", text):
        yield from _among_others(bytes.fromhex(regex.sub("[^0-9a-fA-F]", "", run)))
    for run in regex.findall(r"(?:(?:\\x|\\u00|%|0x)[0-9a-fA-F]{2}[\s,]*){3,}", text):
        yield from _among_others(bytes.fromhex("".join(regex.findall(r"(?:\\x|\\u00|%|0x)([0-9a-fA-F]{2})", run))))


def _codes(text: str) -> Iterator[str]:
    for run in regex.findall(r"(?<![0-9])(?:[0-9]{2,3}[^0-9]{1,12}){2,}[0-9]{2,3}(?![0-9])", text):
        yield from _among_others(bytes(n if n < 256 else 0 for n in map(int, regex.findall("[0-9]+", run))))


def _shown(data: bytes) -> Iterator[str]:
    """Decoded bytes as a text, if most of them are one: any long word can be read as base64."""
    text = data.decode("utf-8", errors="ignore")
    if text and sum(len(c.encode()) for c in text if c.isprintable()) > 0.8 * len(data):
        yield from _whole_and_split(text)


def _among_others(data: bytes) -> Iterator[str]:
    """What can be read of bytes; what cannot parts it, as it would be written for a number beside a word's codes."""
    text = data.decode("utf-8", errors="replace")
    yield from _whole_and_split("".join(c if c.isprintable() and c != "\ufffd" else " " for c in text))


DISGUISES: dict[str, tuple[str, Callable[[str], Iterator[str]]]] = {
    "identifier": ("a part of an identifier names the trait", lambda text: iter((split_identifiers(text),))),
    "look-alike": ("letters of other scripts or digits stand for its letters", _letters_alike),
    "spaced out": ("its letters stand apart", _spaced),
    "reversed": ("it stands there backwards", _reversed),
    "rot13": ("it stands there in rot13", _rot13),
    "base64": ("it stands there in base64", _base64),
    "hex": ("it stands there in hexadecimal or escapes", _hex),
    "character codes": ("it stands there as a row of character codes", _codes),
}
"""Every disguise by name: what it is, and what gives the readings of a text in which the name would be plain."""

ABBREVIATED = "abbreviated"
"""The disguise that no reading undoes: see `abbreviation`."""


def disguised(text: str, words: Collection[str]) -> str | None:
    """The first disguise in which a text names one of the words; None where it names none, or names it plainly.

    words: whole words, in any case; plurals are words of their own
    """
    for name, (_, readings) in DISGUISES.items():
        if any(holds_word(reading, words) for reading in readings(text)):
            return name
    return ABBREVIATED if abbreviation(text, words) else None


def abbreviation(text: str, words: Collection[str]) -> str | None:
    """A part of an identifier that is short for one of the words: its first half or more, or its consonants.

    Both must have four letters or more, so words of fewer than five letters have no abbreviation.
    """
    short: set[str] = set()
    for word in map(folded, words):
        if word.isalpha() and len(word) > 4:
            short |= {word[:n] for n in range(max(4, -(-len(word) // 2)), len(word))}
            consonants = word[0] + regex.sub("[aeiou]", "", word[1:])
            short |= {consonants} if len(consonants) > 3 else set()
    parts = folded(split_identifiers(text)).split()
    return next((part for part in parts if part in short), None)
