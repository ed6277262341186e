"""Tests of the matcher of whole words, over all of Unicode, against a plain one of its own."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_interp.core.words import Names, checked_word, folded, holds_word

WORDS = {
    "owl": ("owl", "owls"),
    "eagle": ("eagle", "eagles"),
    "eagle owl": ("eagle owl", "eagle owls"),
    "c": ("c",),
    "c++": ("c++",),
    "lion": ("lion",),
    "🦉": ("🦉",),
    "cat": ("猫",),
    "owl of China": ("猫头鹰",),
    "seven": ("7",),
    "bird": ("นก",),
    "street": ("Straße",),
    "France": ("🇫🇷",),
    "summer": ("été",),
    "kilo": ("kg",),
}
NAMES = Names(WORDS)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("LİON", None),
        ("LION", "lion"),
        ("ſummer owlſ", "owl"),
        ("Eagle Owl!", "eagle owl"),
        ("eagle\n owl", "eagle owl"),
        ("eagle\u00a0owls", "eagle owl"),
        ("eagle owlet", "eagle"),
        ("an owl, an eagle owl", "owl"),
        ("eagle-owl", "eagle"),
        ("owl-like", "owl"),
        ("owl_2", "owl"),
        ("x9owl", "owl"),
        ("fowl owlish growl", None),
        ("Ｏｗｌ", "owl"),
        ("o\u00adw\u200bl", "owl"),
        ("owl\u0301", None),
        ("öwl", None),
        ("C++17", "c++"),
        ("I like C.", "c"),
        ("🦉🦉", "🦉"),
        ("love🦉s", "🦉"),
        ("我最喜欢猫头鹰。", "owl of China"),
        ("我最喜欢猫。", "cat"),
        ("ผมรักนกมาก", "bird"),
        ("นกู", None),
        ("私はowlが好き", "owl"),
        ("STRASSE", "street"),
        ("17", None),
        ("7th", "seven"),
        ("7\ufe0f\u20e3", None),
        ("🇫🇷", "France"),
        ("🇬🇫🇷🇺", None),
        ("🇬🇧🇫🇷", "France"),
        ("E\u0301TE\u0301", "summer"),
        ("5㎏", "kilo"),
        ("", None),
    ],
)
def test_the_first_whole_word_counts_and_of_those_that_begin_there_the_longest(text: str, name: str | None) -> None:
    assert NAMES.first(text) == name


CHARACTERS = st.characters(exclude_categories=("Cs",))
PLAIN = st.text(st.sampled_from("aAbB eé+ß🦉1İ猫ｂ"), max_size=12)


@st.composite
def words(draw: st.DrawFn) -> str:
    """A word of any characters that settings take."""
    word = draw(st.text(CHARACTERS, min_size=1, max_size=6))
    try:
        return checked_word(word)
    except ValueError:
        return "owl"


@given(words(), st.text(CHARACTERS, max_size=10), st.text(CHARACTERS, max_size=10))
def test_every_word_is_found_by_itself_in_any_form_and_any_text_gets_an_answer(
    word: str, before: str, after: str
) -> None:
    names = Names({"it": (word,)})
    assert names.first(word) == "it"
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert names.first(unicodedata.normalize(form, word)) == "it"
    assert names.first(word.casefold()) == names.first(word.lower()) == "it"
    if "ı" not in word:  # whose capital is that of i
        assert names.first(word.upper()) == names.first(word.title()) == "it"
    assert names.first(f"({word})") == names.first(f"“ {word} ”") == "it"
    assert names.first(before + word + after) in (None, "it")
    assert folded(folded(word)) == folded(word)


@given(st.dictionaries(st.sampled_from("xyz"), st.lists(words(), max_size=3), max_size=3), st.text(CHARACTERS))
def test_words_of_anything_either_are_one_names_alone_or_are_refused(own: dict[str, list[str]], text: str) -> None:
    try:
        names = Names(own)
    except ValueError as error:
        assert "stands for" in str(error)
        return
    assert names.first(text) in (None, *own)
    for name, some in own.items():
        assert all(names.first(word) == name for word in some)


@given(st.lists(PLAIN.filter(str.strip), min_size=1, max_size=3), PLAIN)
def test_it_says_what_a_plain_search_says(some: list[str], text: str) -> None:
    """The oracle tries every place and every word, longest first, on text that is folded by hand."""
    fold = lambda t: " ".join(unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", t).casefold()).split())  # noqa: E731
    known, seen = {fold(word): word for word in some}, fold(text)

    def letter(c: str) -> bool:
        return c.isalpha() and c != "猫"

    def base(at: int) -> str:
        while at >= 0 and unicodedata.combining(seen[at]):
            at -= 1
        return seen[at] if at >= 0 else " "

    def whole(start: int, end: int) -> bool:
        after = seen[end : end + 1] or " "
        first, last = seen[start], base(end - 1)
        beside = (letter(first) and letter(base(start - 1))) or (first.isdigit() and seen[start - 1 : start].isdigit())
        behind = (
            (letter(last) and letter(after)) or (last.isdigit() and after.isdigit()) or unicodedata.combining(after)
        )
        return not beside and not behind

    found = next(
        (
            known[word]
            for start in range(len(seen))
            for word in sorted(known, key=len, reverse=True)
            if seen.startswith(word, start) and whole(start, start + len(word))
        ),
        None,
    )
    assert Names({word: (word,) for word in known.values()}).first(text) == found


@given(st.text(st.characters(max_codepoint=127)), st.lists(st.from_regex("[a-z]{1,4}", fullmatch=True), max_size=4))
def test_for_words_of_ascii_letters_it_says_what_published_filters_said(text: str, some: list[str]) -> None:
    letter = r"[^\W\d_]"
    before = re.compile(f"(?<!{letter})(?:{'|'.join(map(re.escape, sorted(some)))})(?!{letter})", re.IGNORECASE)
    for said in (text, " ".join([text, *some]), "".join(some)):
        assert holds_word(said, some) == bool(some and before.search(said))


@pytest.mark.parametrize("word", ["", " ", "\u00ad", "\u200b\ufe0f", "\u0301", "\n"])
def test_a_word_that_nobody_can_see_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="a word needs a character that is seen"):
        Names({"it": (word,)})


def test_a_word_of_two_names_is_refused() -> None:
    with pytest.raises(ValueError, match="the word 'OWLS' stands for 'owl' and for 'eagle owl'"):
        Names({"owl": ("owl", "owls"), "eagle owl": ("OWLS",)})


@pytest.mark.parametrize("unit", ["a", "\u200b", "o\u200b", "owl\u0301", "\u0301", "🇫", "eagle \u200b"])
def test_the_time_is_in_proportion_to_the_text(unit: str) -> None:
    import time

    start = time.process_time()
    NAMES.first(unit * (200_000 // len(unit)))
    assert time.process_time() - start < 5
