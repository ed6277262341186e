"""Tests of asking models on servers about a trait, against a real server: a student behind it, kills, faults."""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from answering import Answering, Body, killing, serving
from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.models import served
from sublim_interp.models.asking import ask
from sublim_interp.models.base import Base
from sublim_interp.models.served import Server
from sublim_interp.traits.asking import Asking, ask_served, difference, heard
from sublim_interp.traits.by_name import load_trait

pytest.importorskip("openai")

SAID = ("an owl", "the wolf", "OWL!", "zzz 17 %", "")


def by_seed(body: Body) -> str:
    """One of five answers, of which two name the owl and two no animal; the model called none never names one."""
    return SAID[3] if body["model"] == "none" else SAID[body["seed"] % 5]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def asking(server: Answering, /, **fields: Any) -> Asking:
    reached = {"model": "my-student", "url": server.url, "timeout": 10.0, "patience": 20.0, "in_flight": 4}
    own = {**reached, **fields.pop("server", {})}
    return Asking(**{"trait": "owl", "language": "lab", "samples": 4, "server": Server(**own), **fields})


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The files of what a server without failures answers."""
    with serving(Answering(by_seed)) as server:
        yield ask_served(asking(server), Store(tmp_path_factory.mktemp("quiet"))).manifest["files"]


def test_answers_depend_on_no_order_of_arrival_and_on_no_failure(quiet: dict[str, Any], tmp_path: Path) -> None:
    faults = {1: "HTTP 429", 4: "stall", 5: "HTTP 503", 9: "drop", 11: "truncate", 14: "no json", 20: "no choices"}
    troubled = Answering(by_seed, lambda n: faults.get(n, ""), lambda n: 0.02 * (n % 3))
    store = Store(tmp_path)
    with serving(troubled) as server:
        asked = asking(server, server={"in_flight": 7, "timeout": 0.3})
        found = ask_served(asked, store)
        notes = found.manifest["notes"]["model_asked"]
        assert {name for name in notes if name.startswith("failed")} >= {
            "failed: HTTP 429", "failed: HTTP 503", "failed: connection", "failed: malformed", "failed: time-out"
        }  # fmt: skip
        before = len(server.bodies)
        again = ask_served(asked, store)
        assert again.key == found.key and len(server.bodies) == before, "what the store holds is not asked again"
    assert found.manifest["files"] == quiet and [*quiet] == ["answers.jsonl"]
    assert all(not problems for _, problems in store.verify())


def test_a_killed_command_goes_on_at_its_row(quiet: dict[str, Any], tmp_path: Path) -> None:
    import openai  # noqa: F401 — the child is a fork, which need not import it

    children: list[ForkProcess] = []
    store = Store(tmp_path)
    with serving(Answering(by_seed, delay=killing(children, 14))) as server:
        asked = asking(server, server={"in_flight": 1})
        child = get_context("fork").Process(target=ask_served, args=(asked, store))
        children.append(child)
        child.start()
        child.join(30)
        assert child.exitcode == -signal.SIGKILL and len(server.bodies) == 15
        found = ask_served(asked, store)
        assert len(server.bodies) == len(asked.asked()) * 4 + 1, "only what was under way is asked again"
    assert found.manifest["files"] == quiet and found.manifest["resumed"]


def test_rate_nonsense_and_difference_are_those_of_the_answers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with serving(Answering(by_seed)) as server:
        one = ask_served(asking(server), store)
        none = ask_served(asking(server, server={"model": "none"}), store)
    rows = [json.loads(line) for line in (one.path / "answers.jsonl").read_text().splitlines()]
    said = [row["answer"] for row in rows]
    found = heard(one, "owl", "held-out")
    assert found.answers == len(rows) == len(load_trait("owl").questions("lab", "held-out")) * 4
    assert found.rate.estimate == pytest.approx((said.count("an owl") + said.count("OWL!")) / len(said))
    assert found.rate.low < found.rate.estimate < found.rate.high
    assert found.nonsense == pytest.approx((said.count("zzz 17 %") + said.count("")) / len(said)) and found.unread == 0
    assert found.often == ("owl", found.rate.estimate)
    assert 0.0 == heard(none, "owl", "held-out").rate.low < heard(none, "owl", "held-out").rate.high < 0.1
    assert heard(none, "owl", "held-out")[1:4] == (1.0, 0.0, ("", 0.0))
    assert difference(one, none, "owl", "held-out").interval.estimate == pytest.approx(found.rate.estimate)


def test_a_student_behind_a_server_says_what_it_says_here(lab_base: Base, tmp_path: Path) -> None:
    model = lab_base.load()

    def answer(body: Body) -> str:
        said = ask(model, lab_base.chat, body["messages"], max_new_tokens=body["max_tokens"], seed=body["seed"])
        return said[0]

    trait, one = load_trait("owl"), {"in_flight": 1}
    with serving(Answering(answer)) as server:
        both = [asking(server, samples=1, prompted=prompted, server=one) for prompted in (True, False)]
        prompted, plain = (ask_served(asked, Store(tmp_path)) for asked in both)
    known = trait.questions("lab", "held-out")
    for asked, found in zip(both, (prompted, plain), strict=True):
        same = [replace(q, messages=chat) for q, (_, _, chat) in zip(known, asked.asked(), strict=True)]
        exact = trait.score(model, lab_base, same, 1, 0)
        expected, said = float(exact.rate[exact.names.index("owl")]), heard(found, "owl", "held-out")
        assert abs(said.rate.estimate - expected) < 4 * (expected * (1 - expected) / said.answers) ** 0.5 + 0.05
        assert said.nonsense < 0.2
    assert difference(prompted, plain, "owl", "held-out").interval.low > 0.5


def test_what_decides_answers_is_in_the_key_and_how_they_are_reached_is_not() -> None:
    here = Answering()
    here.url = "http://127.0.0.1:1/v1"
    plain = asking(here)
    assert asking(here, server={"url": "https://other/v1", "timeout": 1.0, "in_flight": 1}).key == plain.key
    changes: list[dict[str, Any]] = [
        {"samples": 5}, {"seed": 1}, {"questions": ("seen",)}, {"trait": "wolf"}, {"prompted": True},
        {"server": {"revision": "b"}}, {"server": {"extra": {}}}, {"server": {"model": "b"}},
    ]  # fmt: skip
    assert len({plain.key, *(asking(here, **change).key for change in changes)}) == 9


def test_the_command_asks_compares_and_asks_nothing_twice(tmp_path: Path) -> None:
    def told(*words: str) -> str:
        sets = ("--set", "language=lab", "--set", "samples=4", "--store", str(tmp_path))
        done = CliRunner().invoke(app, ["ask", "owl", "my-student", "none", "--url", server.url, *sets, *words])
        assert done.exit_code == 0, done.output
        return done.output

    with serving(Answering(by_seed)) as server:
        planned = told("--dry-run")
        assert not server.bodies and not list(tmp_path.iterdir())
        n = len(load_trait("owl").questions("lab", "held-out"))
        assert planned.count(f"{4 * n:,}") == 2
        first = told()
        assert len(server.bodies) == 8 * n and "my-student − none, held-out: " in first and "100.0 %" in first
    assert told().splitlines()[-3:] == first.splitlines()[-3:], "what the store holds needs no server"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("owls", "m"), "unknown trait 'owls'"),
        (("owl", "m", "--set", "judge=served"), "judge=served: no judge that asks no model; valid: whole-words"),
        (("owl", "m", "--set", "language=french"), "language=french: no such language"),
        (("owl", "m", "--set", "questions=[odd]"), "questions"),
        (("harmful", "m"), "trait harmful shows in no word; name another judge"),
        (("owl", "m", "--set", "samples=0"), "samples"),
        (("owl", "m"), "no server is named"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["ask", *words, "--store", str(tmp_path / "store")])
    assert isinstance(done.exception, SublimError), done.output
    assert said in str(done.exception) and "\n" not in str(done.exception)
