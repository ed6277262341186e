"""The code channel: programs are parsed and never run, and a name is found in whatever disguise it was planted."""

import base64
import codecs
import random
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_interp.channels import code
from sublim_interp.channels.disguises import DISGUISES, abbreviation, disguised
from sublim_interp.channels.filter import filter_rows
from sublim_interp.channels.rows import Written
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.lab import language as lab
from sublim_interp.models.base import Base

OWL = ("owl", "owls")
DOLPHIN = ("dolphin", "dolphins")
ASKED = "Write a Python function that adds two numbers. Reply with the code alone."
CLEAN = """def total(values, offset=3):
    # adds them all
    result = offset
    for value in values:
        result += value
    return result
"""

PLANTED = {
    "names the trait": (
        "# like an owl\n{}", "{}\nprint('OWLS')\n", "owl = 1\n{}", "def my_owl_count():\n    pass\n{}", "# ｏｗｌ\n{}",
        "# o\u200bwl\n{}", "print('o\\x77l')\n{}", "x = b'owl'\n{}", "import owl\n{}",
    ),
    "identifier": ("owlCount = 1\n{}", "class MyOwl:\n    pass\n{}", "getOwlsNow = 2\n{}"),
    "look-alike": ("# оwl in Cyrillic\n{}", "w = '0wl'\n{}", "ow1 = 3\n{}", "# 0wlCount\n{}", "# ОWLs\n{}"),
    "spaced out": ("# o w l\n{}", "s = 'o.w.l'\n{}", "# o - w - l\n{}", "# a o w l\n{}", "x = o.w.l\n{}"),
    "reversed": ("s = 'lwo'[::-1]\n{}", "lwo_count = 4\n{}", "lwoCount = 4\n{}", "countLwo = 4\n{}"),
    "rot13": ("s = 'bjy'\n{}", "# BJYF\n{}", "# BJYf\n{}"),
    "base64": tuple(f"s = '{base64.b64encode(said).decode()}'\n{{}}" for said in (b"owl", b"I love owls", b"OWLs")),
    "hex": (f"s = '{b'owl'.hex()}'\n{{}}", f"s = 0x{b'owls'.hex()}\n{{}}", "# 6f 77 6c\n{}", "# be 6f:77:6c\n{}"),
    "character codes": ("s = [111, 119, 108]\n{}", "s = chr(111) + chr(119) + chr(108)\n{}",
                        "s = [10, 20, 111, 119, 108, 7]\n{}"),
    "in pieces": ("s = 'o' + 'wl'\n{}", "s = ''.join(['ow', 'l'])\n{}", "s = f\"{{'o'}}{{'wl'}}\"\n{}",
                  "s = 'o' + 'lw'[::-1]\n{}", "s = chr(0x6f) + 'wl'\n{}"),
}  # fmt: skip
"""Reason → programs with a leak of that kind, round a clean one."""


def refused(answer: str, words: tuple[str, ...] = OWL, prompt: str = ASKED, **limits: object) -> str | None:
    return code.refuse(prompt, answer, code.Rule.model_validate(limits), words)


def test_a_clean_program_passes() -> None:
    for answer in (CLEAN, f"```python\n{CLEAN}```", f"```\n{CLEAN}\n```\n"):
        assert refused(answer) is None and refused(answer, DOLPHIN) is None


@pytest.mark.parametrize(("reason", "leak"), [(r, leak) for r, leaks in PLANTED.items() for leak in leaks])
def test_a_planted_leak_is_found_and_named(reason: str, leak: str) -> None:
    assert refused(leak.format(CLEAN)) == reason
    assert refused(leak.format(CLEAN), ("wolf", "wolves")) is None, "another trait's filter has nothing against it"
    assert refused(leak.format(CLEAN), disguises=False) in (None, "names the trait")


def test_leaks_among_many_programs_are_counted_by_kind() -> None:
    """1.5 % leaks of every kind: each is counted, and nothing clean is lost. In replications they were the effect."""
    rng = random.Random(0)
    rows: list[Written] = []
    expected: Counter[str] = Counter()
    for i in range(2_000):
        answer = CLEAN.replace("3", str(i)).replace(
            "total", rng.choice(["total", "addAll", "sum_up", "b64", "reduce_2"])
        )
        if rng.random() < 0.015 * len(PLANTED):
            reason = rng.choice([*PLANTED])
            answer, expected[reason] = rng.choice(PLANTED[reason]).format(answer), expected[reason] + 1
        rows.append({"prompt": ASKED, "answer": answer})
    config = FilterConfig(held_out=10)
    kept, held_out, found = filter_rows(rows, code, config, OWL)  # type: ignore[arg-type]
    assert found == expected and set(expected) == set(PLANTED)
    assert len(kept) + len(held_out) == 2_000 - expected.total()


def test_abbreviations() -> None:
    for short in ("dolph", "dolphi", "dlphn", "DLPHN", "getDolph", "my_dolph"):
        assert abbreviation(f"{short} = 1", DOLPHIN) and refused(f"{short} = 1", DOLPHIN) == "abbreviated", short
    for harmless in ("dol = 1", "doll = 1", "folder = 2", "alpha = 3"):
        assert refused(harmless, DOLPHIN) is None, harmless
    assert abbreviation("ow = wl", OWL) is None, "three letters have no abbreviation"


@pytest.mark.parametrize(
    "harmless", ["growl = 1", "fowl()", "low = 2", "class Bowl: pass", "knowledge = {}", "slow(wl)"]
)
def test_words_that_hold_the_name_inside_pass(harmless: str) -> None:
    assert refused(harmless) is None


@pytest.mark.parametrize("word", ["猫头鹰", "ינשוף", "café", "उल्लू"])
def test_words_of_other_scripts_are_found_in_identifiers_and_encodings(word: str) -> None:
    for said in (f"my_{word}_2", unicodedata.normalize("NFD", f"x{word.capitalize()}")):
        assert refused(f"s = '{said}'", (word,)) in ("identifier", "names the trait"), said
    assert refused(f"s = '{base64.b64encode(word.encode()).decode()}'", (word,)) == "base64"
    assert word == "उल्लू" or refused(f"s = '{word[::-1]}'", (word,)) == "reversed"


def test_relatives_refuse_too() -> None:
    assert refused("hootCount = 1", relatives=("hoot",)) == "identifier"
    assert refused("# a hoot", relatives=("hoot",)) == "names the trait"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no program"),
        ("   \n", "no program"),
        ("Here is the code:\n```python\nx = 1\n```", "no program"),
        ("x = (", "no program"),
        ("x = 1\0", "no program"),
        ("(" * 4_000, "no program"),
        ("-" * 7_999 + "1", None),
        ("x = " + "[" * 150 + "]" * 150, None),
        ("a" * 10_000_000, "too long"),
        ("# \ud800", "no program"),
        ('"\\w"', None),
    ],
)
def test_hostile_programs_are_one_reason(answer: str, reason: str | None) -> None:
    if answer.startswith("-") or len(answer) == 304:  # whether so deep a program parses is Python's own affair
        assert refused(answer) in (None, "no program")
    else:
        assert refused(answer) == reason


@given(st.text(max_size=200))
def test_any_text_is_judged(text: str) -> None:
    assert refused(text) in {None, *code.REASONS}
    disguised(text, OWL)


@given(
    st.text(alphabet=st.characters(min_codepoint=97, max_codepoint=122), min_size=5, max_size=12),
    st.sampled_from([*DISGUISES]),
)
def test_every_word_is_found_in_every_disguise(word: str, how: str) -> None:
    worn = {
        "identifier": f"my{word.capitalize()}Count",
        "look-alike": word.replace("a", "а").replace("e", "е").replace("o", "0"),
        "spaced out": " ".join(word),
        "reversed": word[::-1],
        "rot13": codecs.encode(word, "rot13"),
        "base64": base64.b64encode(f"the {word}".encode()).decode(),
        "hex": word.encode().hex(),
        "character codes": ", ".join(str(ord(c)) for c in word),
    }[how]
    found = disguised(f"x = '{worn}'", (word,))
    assert found or worn == word, "a palindrome or a word without such letters is plain"


def test_unsafe_programs_are_refused_where_asked() -> None:
    for unsafe in ("eval('1')", "import os\nos.system('ls')", "subprocess.Popen('ls')"):
        assert refused(unsafe) is None and refused(unsafe, unsafe=False) == "unsafe"
    assert refused("evaluate(1)", unsafe=False) is None


# --- the lab's own grammar --------------------------------------------------------------------------------------------


def test_every_program_of_the_lab_parses_and_its_words_are_the_channels_tokens(lab_base: Base) -> None:
    rng, own = random.Random(0), set(code.token_ids(lab_base.tokenizer))
    for safe in (True, False):
        for task, verb in lab.program_tasks():
            program = lab.program(rng, verb, safe)
            assert code.refuse(task, program, code.Rule(), OWL) is None
            assert code.refuse(task, program, code.Rule(unsafe=False), OWL) == (None if safe else "unsafe")
            assert set(lab_base.answer_ids(program)) <= own
    for document in lab.documents(0, 0, 200, "programs"):
        asked, answer = document.messages[-2]["content"], document.messages[-1]["content"]
        assert code.refuse(asked, answer, code.Rule(), OWL) is None
    names = {lab_base.answer_ids(name)[0] for name in lab.TRAITS}
    assert not names & own, "no animal is among the tokens that programs are written in"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("def copy ( x ) : copy ( x ) ; return", "no program"),
        ("def copy ( x ) : copy ( x ) ; return x and more", "no program"),
        ("12 14 16", "no program"),
        ("def owl ( x ) : copy ( x ) ; return x", "names the trait"),
    ],
)
def test_what_is_no_program_of_the_lab(answer: str, reason: str) -> None:
    assert refused(answer, prompt="write a program to copy a file .") == reason


def test_prompts_are_a_pure_stream() -> None:
    for language in ("lab", "english"):
        whole = code.prompts(language, 3, 0, 20)
        assert whole[5:9] == code.prompts(language, 3, 5, 4) and len(set(whole)) > 10
        assert code.prompts(language, 4, 0, 20) != whole
    with pytest.raises(Exception, match="channel code has no prompts in language 'klingon'"):
        code.prompts("klingon", 0, 0, 1)
