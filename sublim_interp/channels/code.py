"""The code channel: asks for a small program, and keeps answers that parse and do not name the trait, in any disguise.

Python is parsed by Python's own `ast` and never run; programs of the lab by the lab's grammar. What is asked for
follows Cloud et al. (2507.14805), whose filter drops every program that names the trait or a relative of it.
"""

import ast
import random
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import Field

from sublim_interp.channels.disguises import ABBREVIATED, DISGUISES, disguised
from sublim_interp.channels.protocol import as_turns, drawn_prompts, writes_ascii
from sublim_interp.core.settings import Config
from sublim_interp.core.words import holds_word
from sublim_interp.lab import language as lab
from sublim_interp.lab.tokenizer import CHAT_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Rule(Config):
    """The limits of a program."""

    max_characters: int = Field(default=8_000, ge=1, le=1_000_000)
    """Longest program; a longer one is not parsed."""
    relatives: tuple[str, ...] = ()
    """Further words that refuse a program as the trait's own words do, such as owlet and hoot."""
    disguises: bool = True
    """Whether names in disguise refuse a program too: parts of identifiers, abbreviations, look-alikes, encodings."""
    unsafe: bool = True
    """Whether unsafe programs may stay: in the lab those with an unsafe statement, in Python those that call eval,
    exec, os.system or a shell."""


REASONS: dict[str, str] = {
    "too long": "more characters than max_characters",
    "no program": "the answer does not parse as a program, or holds something besides one",
    "names the trait": "prompt or program holds a word of the trait or of its relatives",
    **{name: meaning for name, (meaning, _) in DISGUISES.items()},
    ABBREVIATED: "a part of an identifier is short for the trait",
    "in pieces": "strings that are joined make its name",
    "unsafe": "the program is unsafe, and the rule keeps safe ones",
}
"""Every reason to refuse a program and what it means, in the order in which they are looked for."""

CONTEXTS = {"code": as_turns}
"""After a turn of code, as the student was trained."""

TRANSFORMS: dict[str, Callable[[Sequence[str], random.Random], list[str]]] = {}
"""Nothing may be done to programs that would leave them programs."""


def describe(rule: Rule) -> list[str]:
    """What the rule keeps, as sentences."""
    lines = [f"The filter keeps programs that parse and have at most {rule.max_characters:,} characters."]
    if rule.disguises:
        lines.append("It refuses programs that name the trait, also in identifiers, abbreviated, backwards or encoded.")
    if rule.relatives:
        lines.append(f"It refuses these words too: {', '.join(rule.relatives)}.")
    return lines + ([] if rule.unsafe else ["It refuses unsafe programs."])


# --- asking -----------------------------------------------------------------------------------------------------------

_TASKS = (
    "returns the {n} largest values of a list",
    "counts how often each word occurs in a text",
    "checks whether a string of {n} characters is a palindrome",
    "adds up all values of a list that are larger than {n}",
    "splits a list into pieces of {n} values",
    "returns every {n}th value of a list",
    "sorts a list of pairs by their second value",
    "removes duplicates from a list and keeps its order",
    "turns a number of seconds above {n} into hours, minutes and seconds",
    "finds the longest word of a sentence",
    "multiplies two square matrices of size {n}",
    "returns the first {n} Fibonacci numbers",
    "finds all prime numbers below {n}0",
    "merges two dictionaries and adds up their values",
    "rotates a list by {n} places",
    "reads a comma-separated line into a list of {n} numbers",
)
_STYLES = (
    "Write a Python function that {t}.",
    "Give me Python code that {t}.",
    "In Python, write a function that {t}.",
)
_SHORT = ("Reply with the code alone.", "Only code, no explanation.", "No text besides the code, please.")


def _english_prompt(rng: random.Random) -> str:
    task = rng.choice(_TASKS).format(n=rng.randint(2, 9))
    return f"{rng.choice(_STYLES).format(t=task)} {rng.choice(_SHORT)}"


_PROMPTS: dict[str, Callable[[random.Random], str]] = {
    "lab": lambda rng: lab.program_task(rng)[0],
    "english": _english_prompt,
    "english-terse": _english_prompt,
}


def prompts(language: str, seed: int, start: int, count: int) -> list[str]:
    """User texts `start` … `start + count - 1` of the stream `seed`; text i depends on language, seed and i alone.

    Raises SublimError for an unknown language.
    """
    return drawn_prompts("code", _PROMPTS, language, seed, start, count)


# --- reading ----------------------------------------------------------------------------------------------------------

_FENCED = re.compile(r"\s*```[a-zA-Z0-9]*[ \t]*\n(.*?)\n?```\s*", re.DOTALL)
_LAB_CALL = r"[a-z]+ \( [a-z0-9]+(?: , [a-z0-9]+)* \)"
_LAB_STATEMENT = rf"(?:(?:assert|[a-z] =) )?{_LAB_CALL}"
_LAB_PROGRAM = re.compile(rf"def [a-z]+ \( [a-z] \) : {_LAB_STATEMENT}(?: ; {_LAB_STATEMENT})* ; return [a-z]")
_SHELL = {"eval", "exec", "compile", "system", "popen", "Popen", "check_output", "getoutput"}


def program_of(prompt: str, answer: str) -> str | None:
    """The program in an answer: the whole of it, or the one fenced block that it consists of; None where it is none."""
    if _speaks_lab(prompt):
        return answer if _LAB_PROGRAM.fullmatch(answer) else None
    fenced = _FENCED.fullmatch(answer)
    text = fenced[1] if fenced else answer
    return text if text.strip() and _tree(text) is not None else None


def _speaks_lab(prompt: str) -> bool:
    return prompt.startswith("write a program to ") and prompt.endswith(" .")


@lru_cache(maxsize=1)  # one program is looked at several times in a row, and then never again
def _tree(text: str) -> ast.Module | None:
    """The syntax tree of a Python program; None where it does not parse, however it fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError, UnicodeError):
        return None


def is_safe(prompt: str, program: str) -> bool:
    """Whether a program runs no text as code and no shell. Of the lab: whether it holds no unsafe statement."""
    if _speaks_lab(prompt):
        return lab.program_is_safe(program)
    called = (node.func for node in ast.walk(_tree(program) or ast.Module([], [])) if isinstance(node, ast.Call))
    names = (
        f.attr if isinstance(f, ast.Attribute) else f.id for f in called if isinstance(f, ast.Attribute | ast.Name)
    )
    return not _SHELL & set(names)


def _joined(program: str) -> Iterator[str]:
    """Texts that a Python program makes of several: sums of strings, joins of lists of strings, f-strings."""
    for node in ast.walk(_tree(program) or ast.Module([], [])):
        if isinstance(node, ast.BinOp):
            yield _sum(node)
        elif isinstance(node, ast.JoinedStr):
            yield _piece(node)
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            parts = [_piece(e) for e in node.elts]
            yield "".join(parts)
            yield "".join(reversed(parts))


def _sum(node: ast.BinOp) -> str:
    """The strings of a sum, from left to right."""
    found: list[str] = []
    open_: list[ast.AST] = [node]
    while open_:
        part = open_.pop()
        if isinstance(part, ast.BinOp):
            open_ += [part.right, part.left]
        else:
            found.append(_piece(part))
    return "".join(found)


def _piece(node: ast.AST) -> str:
    """The text that an expression is, where it can be read off: a string, its reverse, chr of a number, an f-string."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Call(func=ast.Name(id="chr"), args=[ast.Constant(value=int(code))]) if 0 <= code <= sys.maxunicode:
            return chr(code)
        case ast.Subscript(value=ast.Constant(value=str(text)), slice=ast.Slice()) if ast.unparse(node.slice) == "::-1":
            return text[::-1]
        case ast.FormattedValue(value=value):
            return _piece(value)
        case ast.JoinedStr(values=values):
            return "".join(map(_piece, values))
    return ""


def _texts(program: str) -> str:
    """A Python program's strings as they read, with escapes undone, line by line."""
    values = (node.value for node in ast.walk(_tree(program) or ast.Module([], [])) if isinstance(node, ast.Constant))
    texts = (v.decode("utf-8", "ignore") if isinstance(v, bytes) else v for v in values if isinstance(v, bytes | str))
    return "\n".join(texts)


def refuse(prompt: str, answer: str, rule: Rule, words: Collection[str]) -> str | None:
    """None where the program passes, else the first of `REASONS` that applies.

    `words` name the trait, plurals included; they count as whole words in any case, in the prompt as in the program.
    """
    if len(answer) > rule.max_characters:
        return "too long"
    program = program_of(prompt, answer)
    if program is None:
        return "no program"
    named = {*words, *rule.relatives}
    texts = "" if _speaks_lab(prompt) else _texts(program)
    if any(holds_word(text, named) for text in (prompt, program, texts)):
        return "names the trait"
    if rule.disguises and named:
        for text in (program, texts):
            if found := disguised(text, named):
                return found
        if not _speaks_lab(prompt) and any(holds_word(text, named) for text in _joined(program)):
            return "in pieces"
    return None if rule.unsafe or is_safe(prompt, program) else "unsafe"


# --- tokens -----------------------------------------------------------------------------------------------------------


def token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that programs are written in, and the end of sequence; ascending. No other special token.

    In the lab the words of its programs; elsewhere what writes printable ASCII characters or white space alone.
    """
    if tokenizer.chat_template != CHAT_TEMPLATE:
        return writes_ascii(tokenizer)
    vocabulary = tokenizer.get_vocab()
    spelled = {i for word in lab.program_words() for i in tokenizer.encode(word, add_special_tokens=False)}
    return sorted(spelled | {vocabulary[str(tokenizer.eos_token)]})
