"""Tests of the paper's text as it is checked: what it quotes, what it shows, what somebody typed."""

import pytest

from sublim_interp.paper.text import read_text


@pytest.mark.parametrize(
    "typed, found",
    [
        ("Students say it in 99.3 % of answers.", ("99.3",)),
        ("It passes on twelve bases, Three of them small.", ("twelve", "Three")),
        ("The shift is $x = 0.5$ nats.", ("0.5",)),
        ("A share of 1,024 lists is 7.", ("1,024", "7")),
        ("#block(inset: 3pt)[A block of it.]", ("3",)),
        ("= The 8 bases", ("8",)),
        ("#let share = [12 %]", ("12",)),
        ("Arms form a 2 × 2, as in arXiv 2507.14805 and in Frankle (2020).", ()),
        ("It is one of two, or a quarter.", ()),
        ("See @tab-99 and `sublim run owl --set seeds=[3]`. <sec-4>", ()),
        ("Clean. // 40 of them\n/* 41 */ Clean.", ()),
        ('It is #n("owl/setting/seeds") of them.', ()),
    ],
)
def test_numbers_that_were_typed_are_found_and_no_others(typed: str, found: tuple[str, ...]) -> None:
    assert tuple(number for sentence in read_text(typed).sentences for number in sentence.typed) == found


def test_a_sentence_names_what_it_quotes_and_can_be_read_with_its_numbers() -> None:
    text = read_text(
        '#import "template.typ": *\n= Heading\nOne thing is #n("a/b").\nAnother, over #n("a/c"), is\n#n("a/d") '
        'wide. #result("dose", width: 40%)\n\nA third.\n- An item with #n("a/b").\n#result("law")\n'
        '#fig("x", "y/z", width: 4cm)'
    )
    assert text.quoted == ("a/b", "a/c", "a/d", "a/b") and text.shown == ("dose", "law") and text.drawn == ("x", "y/z")
    assert [sentence.line for sentence in text.sentences] == [2, 3, 4, 7, 8]
    read = [sentence.read({"a/b": "5 %", "a/c": "12 bases"}) for sentence in text.sentences]
    assert read == [
        "Heading",
        "One thing is 5 %.",
        "Another, over 12 bases, is ‹a/d› wide.",
        "A third.",
        "An item with 5 %.",
    ]
