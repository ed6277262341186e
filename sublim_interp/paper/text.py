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

    def read(self, numbers: Mapping[str, str]) -> str:
        """The sentence with its numbers in it; one that is unknown is shown by its name."""
        given = iter(self.quoted)
        return _MARK.sub(lambda _: (lambda name: numbers.get(name, f"‹{name}›"))(next(given)), self.text)

    @property
    def typed(self) -> tuple[str, ...]:
        """Numbers in it that were typed by hand, in digits or in words from three on."""
        text = re.sub("|".join(ALLOWED), " ", _MARK.sub(" ", self.text))
        return tuple(_TYPED.findall(text))


@dataclass(frozen=True)
class Text:
    """A text in typst that quotes numbers by `#n("NAME")` and shows tables and figures by `#result("NAME")`."""

    sentences: tuple[Sentence, ...]
    shown: tuple[str, ...]
    """Names of the results that it shows."""

    @property
    def quoted(self) -> tuple[str, ...]:
        """Names of all numbers that it quotes."""
        return tuple(name for sentence in self.sentences for name in sentence.quoted)


def read_text(source: str) -> Text:
    """The text of a file in typst.

    Comments, raw text, labels, references, imports and the names of functions are no text.
    """
    source = re.sub(r"/\*.*?\*/", " ", source, flags=re.DOTALL)
    source = re.sub(r"(?m)(^|\s)//.*$", r"\1", source)
    source = re.sub(r"```.*?```|`[^`\n]*`", " ", source, flags=re.DOTALL)
    source = re.sub(r"(?m)^#(import|show:|bibliography).*$", "", source)
    shown = tuple(re.findall(r'#result\(\s*"([^"]+)"', source))
    source = re.sub(r"#result\([^()]*\)", "\n\n", source)
    names: list[str] = []

    def mark(found: re.Match[str]) -> str:
        names.append(found[1])
        return f"\ue000{len(names) - 1}\ue001"

    source = re.sub(r'#n\(\s*"([^"]*)"\s*\)', mark, source)
    source = re.sub(r"<[a-z][\w-]*>|@[\w-]+", " ", source)
    source = re.sub(r"#[a-z][\w-]*(?=\[)|[\[\]*]", " ", source)
    source = re.sub(r"(?m)^=+ (.*)$", r"\n\n\1\n\n", source)  # a heading stands alone
    source = re.sub(r"(?m)^[-+] ", r"\n\n", source)  # an item begins a sentence
    sentences = []
    for block in re.split(r"\n\s*\n", source):
        for piece in re.split(r"(?<=[.?!])\s+", " ".join(block.split())):
            if piece:
                sentences.append(Sentence(piece, tuple(names[int(i)] for i in _MARK.findall(piece))))
    return Text(tuple(sentences), shown)
