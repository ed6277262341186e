"""Tests of models on servers, against a real server on this machine: each failure, order, kills, secrets, refusals."""

import asyncio
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from answering import SECRET, Answering, killing, serving
from sublim_interp.core.errors import SublimError
from sublim_interp.models import served
from sublim_interp.models.served import Reply, Request, ServedModel, Server

pytest.importorskip("openai")

QUESTIONS = [Request([{"role": "user", "content": f"continue {i} {i + 1}"}], ["corpus", 0, i]) for i in range(12)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second try comes at once, and the key is one that may be nowhere."""
    monkeypatch.setattr(served, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def model_at(server: Answering, keep: Path, **settings: Any) -> ServedModel:
    given = {"model": "teacher-1", "url": server.url, "timeout": 10.0, "patience": 20.0, "in_flight": 4}
    return ServedModel(Server(**{**given, **settings}), keep)


def ask(model: ServedModel, requests: list[Request] = QUESTIONS, **how: Any) -> list[Reply]:
    return model.replies(requests, **{"max_new_tokens": 24, "temperature": 1.0, **how})


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> list[Reply]:
    """What a server without failures answers."""
    with serving(Answering()) as server:
        return ask(model_at(server, tmp_path_factory.mktemp("quiet")))


def test_a_request_says_all_that_decides_the_answer(tmp_path: Path) -> None:
    with serving(Answering()) as server:
        model = model_at(server, tmp_path)
        ask(model)
    assert len(server.bodies) == 12 and len({body["seed"] for body in server.bodies}) == 12
    for body in server.bodies:
        assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("teacher-1", 1.0, 1.0, 24)
        assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["repeat_penalty"]) == (0, 0, 1, 1)
    assert server.most <= 4, "no more under way than in_flight"
    assert json.loads(model.told) == {"id": "teacher-1", "owned_by": "tests"}, "what changes with time is left out"
    told = model.notes()
    assert told["answered"] == 12 and told["ended: stop"] == 12 and told["system_fingerprint: fp_test"] == 12


FAULTS = {
    "HTTP 500": "HTTP 500", "HTTP 503": "HTTP 503", "HTTP 429": "HTTP 429", "stall": "time-out", "drop": "connection",
    "truncate": "connection", "no json": "malformed", "no choices": "malformed",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_that_passes_is_counted_by_name_and_changes_no_answer(
    fault: str, quiet: list[Reply], tmp_path: Path
) -> None:
    with serving(Answering(fault=lambda n: fault if n in (1, 4) else "")) as server:
        model = model_at(server, tmp_path, timeout=0.2 if fault == "stall" else 10.0)
        assert ask(model) == quiet
    failed = {name: n for name, n in model.tally.items() if name.startswith("failed")}
    assert {*failed} == {f"failed: {FAULTS[fault]}"} and model.tally["answered"] == 12
    if fault != "stall":  # a busy machine may stall too
        assert failed == {f"failed: {FAULTS[fault]}": 2} and len(server.bodies) == 14


def test_a_server_that_asks_for_a_pause_gets_it(tmp_path: Path) -> None:
    for fault, least in (("HTTP 429", 0.15), ("429 date", 0.9)):
        with serving(Answering(fault=lambda n, fault=fault: "" if n else fault)) as server:
            ask(model_at(server, tmp_path / fault), QUESTIONS[:1])
        assert server.times[1] - server.times[0] >= least


def test_a_server_that_goes_away_for_a_while_is_waited_for(quiet: list[Reply], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found: list[list[Reply]] = []
    first, second = Answering(delay=lambda _: 0.02), Answering()
    with serving(first, port):
        model = model_at(first, tmp_path)
        told = model.told
        work = threading.Thread(target=lambda: found.append(ask(model)))
        work.start()
        while len(first.bodies) < 5:
            time.sleep(0.002)
    time.sleep(0.1)
    with serving(second, port):
        work.join(10)
    assert found == [quiet] and model.told == told
    assert model.tally["failed: connection"] > 0 and len(first.bodies) + len(second.bodies) < 24


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(12)),
    faults=st.dictionaries(st.integers(0, 15), st.sampled_from(["HTTP 500", "drop", "no json"]), max_size=4),
    in_flight=st.integers(1, 12),
)
def test_neither_order_of_arrival_nor_failures_nor_concurrency_change_anything(
    order: list[int], faults: dict[int, str], in_flight: int, quiet: list[Reply], tmp_path_factory: Any
) -> None:
    delay = {n: place * 0.004 for place, n in enumerate(order)}
    keep = tmp_path_factory.mktemp("order")
    with serving(Answering(fault=lambda n: faults.get(n, ""), delay=lambda n: delay.get(n, 0.0))) as server:
        model = model_at(server, keep, in_flight=in_flight)
        assert ask(model) == quiet and ask(model) == quiet
    assert len(server.bodies) == 12 + sum(n < len(server.bodies) for n in faults)
    assert model.tally["kept"] == 12, "the second time nothing is asked"


def test_the_requests_may_come_in_any_order_and_twice(quiet: list[Reply], tmp_path: Path) -> None:
    with serving(Answering()) as server:
        assert ask(model_at(server, tmp_path), [*reversed(QUESTIONS), *QUESTIONS]) == [*reversed(quiet), *quiet]
    assert len(server.bodies) == 12


def test_patience_that_ends_is_one_line_and_what_was_answered_is_kept(quiet: list[Reply], tmp_path: Path) -> None:
    with serving(Answering(fault=lambda n: "HTTP 503" if n >= 5 else "")) as server:
        with pytest.raises(
            SublimError, match=r"fails \(HTTP 503\), and the next try, in .* patience of 0\.05 s"
        ) as told:
            ask(model_at(server, tmp_path, patience=0.05, in_flight=1))
        assert "\n" not in str(told.value)
        before = len(server.bodies)
        server.fault = lambda _: ""
        model = model_at(server, tmp_path, in_flight=3)
        assert ask(model) == quiet
    assert len(server.bodies) - before == 7 and model.tally["kept"] == 5


def test_a_killed_process_asks_again_only_what_was_under_way(quiet: list[Reply], tmp_path: Path) -> None:
    import openai  # noqa: F401 — the child is a fork, which need not import it

    children: list[ForkProcess] = []
    with serving(Answering(delay=killing(children, 6))) as server:
        model = model_at(server, tmp_path, in_flight=1)
        child = get_context("fork").Process(target=ask, args=(model,))
        children.append(child)
        child.start()
        child.join(20)
        assert child.exitcode == -signal.SIGKILL and len(server.bodies) == 7
        again = model_at(server, tmp_path, in_flight=1)
        assert ask(again) == quiet
    assert again.tally["kept"] == 6 and len(server.bodies) == 13
    assert sum(server.bodies.count(body) == 2 for body in server.bodies) == 2, "the one that was under way"


def test_another_revision_setting_or_server_answers_for_itself(tmp_path: Path) -> None:
    with serving(Answering()) as server:
        for change in ({}, {"revision": "b"}, {"extra": {"top_k": 5}}, {"extra": {}}):
            ask(model_at(server, tmp_path, **change), QUESTIONS[:2])
        ask(model_at(server, tmp_path), QUESTIONS[:2], temperature=0.0)
        server.models = [{"id": "teacher-1", "root": "/another"}]
        ask(model_at(server, tmp_path), QUESTIONS[:2])
        assert len(server.bodies) == 12
        ask(model_at(server, tmp_path, timeout=9.0, in_flight=1), QUESTIONS[:2])
    assert len(server.bodies) == 12, "how it is reached makes no other model"


def test_an_answer_of_nothing_is_one_and_half_a_character_is_none(tmp_path: Path) -> None:
    said: Iterator[str | None] = iter([None, "", "a\ud83d", "  7 8\n"])
    with serving(Answering(answer=lambda _: next(said))) as server:
        found = ask(model_at(server, tmp_path, in_flight=1), QUESTIONS[:4])
    assert [reply.text for reply in found] == ["", "", "a\ufffd", "7 8"]


def test_an_answer_that_was_cut_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = json.dumps
    with serving(Answering()) as server:
        monkeypatch.setattr("answering.json.dumps", lambda x, **k: real(x, **k).replace('"stop"', '"length"'))
        model = model_at(server, tmp_path)
        assert not any(reply.finished for reply in ask(model, QUESTIONS[:2]))
    assert model.tally["ended: length"] == 2


def test_a_refusal_is_one_line_and_the_key_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(Answering(fault=lambda n: "HTTP 401" if n == 2 else "")) as server:
        with pytest.raises(
            SublimError, match=r"^the server refuses with HTTP 401: .*your key is Bearer \$OPENAI_API_KEY"
        ):
            ask(model_at(server, tmp_path, in_flight=1))
        assert server.headers[0]["authorization"] == f"Bearer {SECRET}", "the server gets it"
    kept = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == 1 and SECRET not in kept[0] and server.url not in kept[0]
    assert SECRET not in caplog.text


def test_a_server_is_named_by_a_setting_or_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SublimError, match="no server is named: set the model's `url`"):
        ask(ServedModel(Server(model="teacher-1"), tmp_path))
    with serving(Answering()) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert len(ask(ServedModel(Server(model="teacher-1"), tmp_path), QUESTIONS[:1])) == 1


@pytest.mark.parametrize(
    ("url", "why"),
    [("localhost:8000", "no URL"), ("ftp://host/v1", "no URL"), ("http://[::1", "no URL"), ("http://", "no URL"),
     (f"http://user:{SECRET}@host/v1", "holds a secret"), (f"https://host/v1?key={SECRET}", "holds a secret")],
)  # fmt: skip
def test_a_url_that_is_none_or_holds_a_secret_is_refused(url: str, why: str) -> None:
    from sublim_interp.core.settings import validate

    with pytest.raises(SublimError, match=why):
        validate(Server, {"url": url}, "served")


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SublimError, match=r"pip install 'sublim-interp\[served\]'"):
        ask(ServedModel(Server(model="m", url="http://127.0.0.1:9/v1"), tmp_path))


def test_a_server_without_a_list_or_of_other_names_is_said_so(tmp_path: Path) -> None:
    with serving(Answering(models=[{"id": "b"}, {"id": "a"}])) as server:
        assert model_at(server, tmp_path).told == "teacher-1; the server lists a, b"


def test_it_works_where_asynchronous_work_runs_already(quiet: list[Reply], tmp_path: Path) -> None:
    async def notebook() -> list[Reply]:
        return ask(model_at(server, tmp_path))

    with serving(Answering()) as server:
        assert asyncio.run(notebook()) == quiet
