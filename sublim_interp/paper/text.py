"""The paper's text as it is checked: its sentences, the numbers they quote, and digits that somebody typed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

ALLOWED = (
    r"2 × 2",  # the name of a design
    r"\b\d{4}\.\d{4,5}\b",  # an arXiv number
    r"\((?:19|20)\d\d\)",  # a year
)
"""Digits that a sentence may hold though nobody generated them."""

_WORDS = (
    "three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million"
)
_TYPED = re.compile(rf"\d[\d.,]*(?<=\d)|\b(?:{_WORDS})\b", re.IGNORECASE)
_MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Sentence:
    """One sentence of the text."""

    text: str
    """As it is written, with a mark for each number that it quotes."""
    quoted: tuple[str, ...]
    """Names of the numbers that it quotes."""
    line: int
    """The line of the file that it begins in, from 1."""

    def read(self, numbers: Mapping[str, str]) -> str:
        """The sentence with its numbers in it; one that is unknown is shown by its name."""
        given = iter(self.quoted)
        return _MARK.sub(lambda _: (lambda name: numbers.get(name, f"‹{name}›"))(next(given)), self.text)

    @property
    def typed(self) -> tuple[str, ...]:
        """Numbers in it that were typed by hand, in digits or in words from three on."""
        text = re.sub("|".join(ALLOWED), " ", _MARK.sub(" ", self.text))
        return tuple(_TYPED.findall(text))

    @property
    def loses(self) -> bool:
        """Whether a semicolon stands right behind a number: typst takes it for the end of the call, and prints none."""
        return "\ue001;" in self.text


@dataclass(frozen=True)
class Text:
    """A text in typst: `#n("NAME")` quotes a number, `#result("NAME")` shows a table, `#fig("NAME")` a figure alone."""

    sentences: tuple[Sentence, ...]
    shown: tuple[str, ...]
    """Names of the results whose tables it shows."""
    drawn: tuple[str, ...]
    """Names of the results whose figures it shows alone."""

    @property
    def quoted(self) -> tuple[str, ...]:
        """Names of all numbers that it quotes."""
        return tuple(name for sentence in self.sentences for name in sentence.quoted)


def read_text(source: str) -> Text:
    """The text of a file in typst.

    Comments, raw text, labels, references, imports and the names of functions are no text.
    """
    source = _blank(r"/\*.*?\*/", source, re.DOTALL)
    source = _blank(r"(?m)(?:(?<=\s)|^)//.*$", source)
    source = _blank(r"```.*?```|`[^`\n]*`", source, re.DOTALL)
    source = _blank(r"(?m)^#(?:import|show|set|bibliography).*$", source)
    shown = tuple(re.findall(r'#result\(\s*"([^"]+)"', source))
    drawn = tuple(name for given in re.findall(r"#fig\(([^()]*)\)", source) for name in re.findall(r'"([^"]+)"', given))
    source = _blank(r"#(?:result|fig)\([^()]*\)", source, put=_APART)
    names: list[str] = []

    def mark(found: re.Match[str]) -> str:
        names.append(found[1])
        return f"\ue000{len(names) - 1}\ue001" + _lines(found)

    source = re.sub(r'#n\(\s*"([^"]*)"\s*\)', mark, source)
    source = _blank(r"<[a-z][\w-]*>|@[\w-]+", source)
    source = _blank(r"#[a-z][\w-]*(?=\[)|[\[\]*]", source)
    source = re.sub(r"(?m)^=+ (.*)$", rf"{_APART}\1{_APART}", source)  # a heading stands alone
    source = re.sub(r"(?m)^[-+] ", _APART, source)  # an item begins a sentence
    sentences = []
    for found in re.finditer(rf"[^\s{_APART}](?:(?!\n\s*\n|{_APART}|(?<=[.?!])\s).)*", source, re.DOTALL):
        piece = " ".join(found[0].split())
        quoted = tuple(names[int(i)] for i in _MARK.findall(piece))
        sentences.append(Sentence(piece, quoted, 1 + source.count("\n", 0, found.start())))
    return Text(tuple(sentences), shown, drawn)


_APART = "\ue002"
"""Stands where one sentence ends and another begins, whatever is written there."""


def _lines(found: re.Match[str]) -> str:
    """As many line breaks as it has, so that what follows stays on its line."""
    return "\n" * found[0].count("\n")


def _blank(pattern: str, source: str, flags: int = 0, put: str = " ") -> str:
    """The source without what the pattern finds, every line where it was."""
    return re.sub(pattern, lambda found: put + _lines(found), source, flags=flags)
