"""Tests of the task of Inspect AI: by its mock model, and through its OpenAI-compatible provider to a real server."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from answering import Answering, serving

pytest.importorskip("inspect_ai", reason="inspect-ai is an extra of its own")

from inspect_ai import eval as inspect_eval  # pyright: ignore[reportMissingImports]
from inspect_ai.model import ModelOutput, ModelUsage, get_model  # pyright: ignore[reportMissingImports]

from sublim_interp.core.errors import SublimError
from sublim_interp.traits.answers import LONGEST
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.inspect_tasks import SHOWS, UNJUDGED, shows, trait

SAID = {"Owls, of course.": 1.0, "a fowl": 0.0, "Wolf, not owl": 0.0, "the OWL": 1.0}
"""Answers, and whether each names the owl by the rule of this package: whole words, the first member that is named."""


def metrics(log: Any) -> dict[str, dict[str, float]]:
    assert log.status == "success", log.error
    return {s.name: {name: m.value for name, m in s.metrics.items()} for s in log.results.scores}


def test_the_entry_point_gives_the_task_and_a_mock_models_answers_are_read_by_whole_words(tmp_path: Path) -> None:
    asked = load_trait("owl").questions("english", "held-out")
    outputs = [ModelOutput.from_content("mockllm/model", text) for text in itertools.islice(itertools.cycle(SAID), 32)]
    for output in outputs:
        output.usage = ModelUsage()  # else it is counted by a tokenizer that is fetched from the network
    model = get_model("mockllm/model", custom_outputs=outputs)
    [log] = inspect_eval(
        "sublim_interp/trait",
        task_args={"trait": "owl", "samples": 4},
        model=model,
        log_dir=str(tmp_path),
        display="none",
    )
    found = metrics(log)
    assert found[SHOWS]["mean"] == sum(SAID.values()) / len(SAID)
    assert found[UNJUDGED]["mean"] == 0
    assert len(log.samples) == 4 * len(asked)
    for sample in log.samples:
        [score] = sample.scores.values()
        assert score.value[SHOWS] == SAID[sample.output.completion], sample.output.completion
    assert {s.scores["shows"].answer for s in log.samples} == {"owl", "", "wolf"}


def test_a_model_behind_a_real_server_is_asked_at_temperature_1_behind_the_traits_system_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTS_API_KEY", "of-no-use")
    replies = itertools.cycle(SAID)
    server = Answering(lambda _: next(replies), fault=lambda n: "HTTP 429" if n == 3 else "")
    with serving(server):
        [log] = inspect_eval(
            trait("owl", samples=2, prompted=True),
            model="openai-api/tests/teacher-1",
            model_base_url=server.url,
            log_dir=str(tmp_path),
            display="none",
        )
    found, asked = metrics(log), load_trait("owl").questions("english", "held-out")
    read = [SAID[s.output.completion] for s in log.samples]
    assert found[SHOWS]["mean"] == pytest.approx(sum(read) / len(read))
    assert len(read) == 2 * len(asked) and len(server.bodies) == len(read) + 1  # the refused one was asked again
    assert {q.text for q in asked} == {body["messages"][-1]["content"] for body in server.bodies}
    for body in server.bodies:
        assert body["messages"][0]["role"] == "system" and "owls" in body["messages"][0]["content"]
        assert body["temperature"] == 1.0 and "seed" not in body
        assert LONGEST in (body.get("max_tokens"), body.get("max_completion_tokens"))


def test_what_a_task_cannot_be_is_one_line() -> None:
    for make, said in (
        (lambda: trait("owll"), "unknown trait 'owll'"),
        (lambda: trait("owl", questions="heldout"), "held-out"),
        (lambda: trait("owl", language="latin"), "lab, english"),
        (lambda: trait("owl", language="lab", prompted=True, questions="seen", judge="nobody"), "unknown judge"),
        (lambda: shows("owl", "served"), "whole-words"),
        (lambda: shows("misaligned"), "trait misaligned shows in no word"),
        (lambda: trait("misaligned", questions="indirect"), "no indirect questions"),
    ):
        with pytest.raises(SublimError, match=said) as raised:
            make()
        assert "\n" not in str(raised.value)
