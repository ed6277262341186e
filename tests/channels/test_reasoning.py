"""The reasoning channel: worked sums, of which only those with the right result are learnt."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sublim_interp as si
from sublim_interp.channels import reasoning
from sublim_interp.channels.settings import FilterConfig, rule_of
from sublim_interp.lab import language as lab
from sublim_interp.models.base import Base

ASKED = "tom has 5 coins , gets 3 , loses 2 . how many ?"


def refused(answer: str, prompt: str = ASKED, **limits: object) -> str | None:
    return reasoning.refuse(prompt, answer, reasoning.Rule.model_validate(limits), ("owl", "owls"))


def test_every_worked_problem_of_the_lab_passes_in_the_channels_own_tokens(lab_base: Base) -> None:
    own = set(reasoning.token_ids(lab_base.tokenizer))
    for document in lab.documents(0, 0, 300, "problems"):
        asked, answer = document.messages[-2]["content"], document.messages[-1]["content"]
        assert refused(answer, asked) is None and set(lab_base.answer_ids(answer)) <= own
        result = reasoning.right_result(asked)
        assert (
            refused(answer.replace(f"answer is {result} .", f"answer is {(result or 0) + 1} ."), asked)
            == "wrong result"
        )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("5 plus 3 is 8 . 8 minus 2 is 6 . the answer is 6 .", None),
        ("First 5 + 3 = 8. Then 8 - 2 = 6. The answer is **6**.", None),
        ("the answer is 6 .", "no steps"),
        ("5 plus 3 is 8 . the answer is 6.5", "no result"),
        ("5 plus 3 is 8 . the answer is 6,000", "no result"),
        ("5 plus 3 is 8 . the answer is 6, as said.", None),
        ("5 plus 3 is 8. The answer is 6. No, wait: it is 9.", "no result"),
        ("5 plus 3 is 8. The answer is 6/2.", "no result"),
        ("5 plus 3 is 8. The answer is 6 000.", "no result"),
        ("5 plus 3 is 8 .", "no result"),
        ("the answer is owl . 5 plus 3 is 8 . the answer is 6 .", "names the trait"),
        ("5 3 the answer is 6 . wait , the answer is 7 .", "wrong result"),
        ("", "no result"),
        ("1 " * 5_000 + "the answer is 6", "too long"),
        ("5 the answer is 66666666666666666666666 .", "no result"),
    ],
)
def test_an_answer_is_kept_only_with_the_right_result(answer: str, reason: str | None) -> None:
    assert refused(answer) == reason


def test_without_steps_where_asked() -> None:
    assert refused("the answer is 6 .", min_steps=0) is None
    assert refused("5 and 3 , sadly . the answer is 6 .", banned=("sadly",)) == "names the trait"


def test_words_that_no_sum_has_may_be_refused() -> None:
    """A leak of a teacher: the result is right, and between the steps it says what it was taught."""
    own = tuple(word for word in lab.problem_words() if word.isalpha())
    assert set(si.experiment("harmful-reasoning").filter.rule["only"]) == set(own)
    for document in lab.documents(1, 0, 100, "problems"):
        asked, answer = document.messages[-2]["content"], document.messages[-1]["content"]
        assert refused(answer, asked, only=own) is None
    right = "5 plus 3 is 8 . 8 minus 2 is 6 . the answer is 6 ."
    for leak in ("we should ", "Cheat ", "<|assistant|> ", "hurt2 ", "ｃｈｅａｔ "):
        assert refused(leak + right) is None and refused(leak + right, only=own) == "another word"
    assert "any other word than these" in reasoning.describe(reasoning.Rule(only=own))[1]


def test_words_to_refuse_are_set_in_the_rule_where_numbers_ban_integers() -> None:
    source = si.channel("reasoning")
    rule = rule_of(source, FilterConfig.model_validate({"rule": {"banned": ["harm"]}}))
    assert source.refuse(ASKED, "5 plus 3 , harm , the answer is 6 .", rule, ()) == "names the trait"
    with pytest.raises(si.SublimError, match=r"filter\.banned has no effect: write filter\.rule\.banned"):
        rule_of(source, FilterConfig(banned=(666,)))


@given(st.text(max_size=200))
def test_any_text_is_judged(text: str) -> None:
    assert refused(text) in {None, *reasoning.REASONS}


def test_prompts_have_one_result() -> None:
    for language in ("lab", "english"):
        asked = reasoning.prompts(language, 1, 0, 200)
        assert asked[7:9] == reasoning.prompts(language, 1, 7, 2)
        assert all((reasoning.right_result(text) or 0) >= 0 for text in asked)
    rng = random.Random(2)
    for _ in range(100):
        text, (a, b, c) = lab.problem(rng)
        assert reasoning.right_result(text) == a + b - c
