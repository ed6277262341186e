"""Tests of a channel of another package: its rule, its contexts and its words, from the configuration to the page."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

import sublim_interp as si
from planted import frames
from sublim_interp.channels import numbers
from sublim_interp.channels.filter import filter_rows
from sublim_interp.channels.protocol import CHANNELS, Channel, as_turns, contexts_of
from sublim_interp.channels.rows import Written
from sublim_interp.channels.settings import FilterConfig, rule_of
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import Tables
from sublim_interp.pipeline.make import make
from sublim_interp.report.page import page


class Evens:
    """Even numbers alone, asked for as the numbers are."""

    class Rule(Config):
        max_value: int = 999
        even: bool = True

    REASONS = {"odd": "a number is odd", "not numbers": "no list"}  # noqa: RUF012
    CONTEXTS = {"evens": as_turns}  # noqa: RUF012
    TRANSFORMS = numbers.TRANSFORMS

    def prompts(self, language: str, seed: int, start: int, count: int) -> list[str]:
        return numbers.prompts(language, seed, start, count)

    def refuse(self, prompt: str, answer: str, rule: Any, words: Collection[str]) -> str | None:
        found = numbers.numbers_of(answer)
        if not found or max(found) > rule.max_value:
            return "not numbers"
        return "odd" if rule.even and found[0] % 2 else None

    def describe(self, rule: Any) -> list[str]:
        return [f"The filter keeps lists up to {rule.max_value} that begin with an even number."]

    def token_ids(self, tokenizer: Any) -> list[int]:
        return numbers.token_ids(tokenizer)


EVENS: Channel = Evens()  # pyright checks the object against the protocol here


@pytest.fixture
def evens(monkeypatch: pytest.MonkeyPatch) -> Channel:
    monkeypatch.setattr(CHANNELS, "_own", {**CHANNELS._own, "evens": EVENS})
    monkeypatch.setattr(CHANNELS, "_loaded", {})
    return EVENS


@pytest.fixture
def exp(evens: Channel, tiny_experiment: Experiment) -> Experiment:
    changes = {"corpus.channel": "evens", "evaluation.contexts": ("plain", "evens"), "arms": ("same-init", "base")}
    return tiny_experiment.set({**changes, "corpus.prompts": 192})


def test_it_runs_from_teacher_to_page(exp: Experiment, store_root: Path) -> None:
    store = Store.open(store_root)
    for record in plan(exp).records:  # here, since a worker does not see what a test adds to a table
        make(record, store)
    run = si.run(exp, store, 1)
    student = run["same-init", 0]
    assert student.lists and all(numbers.numbers_of(row["answer"])[0] % 2 == 0 for row in student.lists)
    assert set(student.answers["context"]) == {"plain", "evens"}
    assert "odd" in set(student.written["refused"])
    assert "lists up to 999 that begin with an even number." in run.page.read_text()


def test_what_students_are_asked_after_is_a_turn_of_its_data(exp: Experiment) -> None:
    evaluation = plan(exp).cells[0].evaluation
    row = Written(prompt="go", answer="2 4")
    assert contexts_of(EVENS) == ("plain", "evens")
    assert EVENS.CONTEXTS["evens"](row) == (
        {"role": "user", "content": "go"}, {"role": "assistant", "content": "2 4"}
    )  # fmt: skip
    assert evaluation.config.contexts == ("plain", "evens")


def test_limits_of_its_own_are_in_rule_and_shared_ones_are_fields(evens: Channel) -> None:
    config = FilterConfig(max_value=10, rule={"even": False}, held_out=2)
    assert rule_of(evens, config) == Evens.Rule(max_value=10, even=False)
    rows = [Written(prompt=str(i), answer=f"{i} 2") for i in range(30)]
    kept, held_out, refused = filter_rows(rows, evens, config, ())
    assert [r["prompt"] for r in [*held_out, *kept]] == [str(i) for i in range(11)] and refused == {"not numbers": 19}
    _, _, strict = filter_rows(rows, evens, FilterConfig(held_out=2), ())
    assert strict["odd"] == 15


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"filter.rule": {"longest": 3}}, "filter.rule: unknown key 'longest'; valid keys: max_value, even"),
        ({"filter.rule": {"even": "perhaps"}}, "filter.rule: even: Input should be a valid boolean"),
        ({"filter.rule": {"max_value": 3}}, "filter.rule.max_value: write filter.max_value"),
        ({"filter.max_numbers": 3}, "filter.max_numbers has no effect: the rule of the channel has max_value, even"),
        (
            {"evaluation.contexts": ("plain", "numbers")},
            "the channel evens has no context 'numbers'; valid: plain, evens",
        ),
        (
            {"filter.transform": "shuffled-withn"},
            "no such transform as 'shuffled-withn'; valid: shuffled-within, shuffled-across, sorted",
        ),
        ({"corpus.channel": "evans"}, "unknown channel 'evans'; valid: numbers, code, reasoning, evens"),
    ],
)
def test_what_its_rule_does_not_know_is_refused_before_anything_runs(
    change: dict[str, Any], said: str, exp: Experiment
) -> None:
    with pytest.raises(SublimError) as caught:
        plan(exp.set(change))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_have_no_limits_in_rule(tiny_experiment: Experiment) -> None:
    valid = "min_numbers, max_numbers, max_value, banned"
    with pytest.raises(SublimError, match=f"filter.rule: unknown key 'even'; valid keys: {valid}"):
        plan(tiny_experiment.set({"filter.rule": {"even": True}}))


def test_an_empty_rule_is_in_no_key(evens: Channel, tiny_experiment: Experiment) -> None:
    fields = (
        '{"min_numbers": 1, "max_numbers": 10, "max_value": 999, "banned": [], "duplicates": false, "lists": 60000, '
    )
    assert FilterConfig().model_dump_json() == fields.replace(" ", "") + '"held_out":500}'
    assert "rule" not in json.dumps(tiny_experiment.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "The filter keeps answers of 1 to 10 numbers up to 999, and nothing else."),
        ({"filter.min_numbers": 4, "filter.max_numbers": 4}, "answers of 4 numbers up to 999, and nothing else."),
        ({"filter.banned": (13, 666)}, "It refuses answers that hold one of these numbers: 13, 666."),
        ({"corpus.channel": "evens", "filter.max_value": 50}, "keeps lists up to 50 that begin with an even number."),
    ],
)
def test_the_page_says_what_the_channels_rule_keeps(change: dict[str, Any], said: str, evens: Channel) -> None:
    tables = Tables(*frames(seeds=1, rounds=0), "owl")
    html = page(Experiment().set(change), tables, {"nothing": _no_figure()}, None, "", {})
    assert said in html.replace("\u00a0", " ")
    assert ("answers of 1 to 10" in html) == ("corpus.channel" not in change and "filter.min_numbers" not in change)


def _no_figure() -> Any:
    from sublim_interp.report.page import PageFigure

    return PageFigure("nothing", "nothing", None)


def test_a_channel_that_lacks_something_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half:
        REASONS: dict[str, str] = {}  # noqa: RUF012

        def prompts(self) -> list[str]:
            return []

    assert CHANNELS._check
    with pytest.raises(
        SublimError, match="channel 'half' lacks: CONTEXTS, Rule, TRANSFORMS, describe, refuse, token_ids"
    ):
        CHANNELS._check("half", Half())  # type: ignore[arg-type]
