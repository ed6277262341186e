"""Tests of teachers on servers and of served judges in the stages: keys, order, kills, fingerprints, refusals."""

import json
import shutil
import signal
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from answering import SECRET, Answering, killing, serving
from chains import FEW, OWL, Chain, chain
from sublim_interp.channels.rows import read_rows
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Artifact, Store
from sublim_interp.experiments.cost import estimate, planned_requests
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Replicate
from sublim_interp.experiments.run import run_key
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models import served
from sublim_interp.models.base import Base
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, ServedTeacher, StudentConfig, TeacherConfig
from sublim_interp.training.recording.settings import PRESETS
from sublim_interp.traits.judges.asked import Judging

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


def reached(server: Answering, **settings: Any) -> dict[str, Any]:
    return {"model": "teacher-1", "url": server.url, "timeout": 10.0, "patience": 20.0, **settings}


def chain_at(base: Base, url: str = "http://nowhere/v1", **settings: Any) -> Chain:
    config = TeacherConfig.model_validate({"kind": "served", "served": {"model": "teacher-1", "url": url, **settings}})
    return chain(base).change("teacher", config=config).change("corpus", config=CorpusConfig(prompts=24, chunk=10))


def corpus_of(store: Store, base: Base, server: Answering, **settings: Any) -> Artifact:
    return make(chain_at(base, **reached(server, **settings)).corpus, store)


def test_the_corpus_depends_on_no_order_of_arrival_and_on_no_failure(lab_base: Base, tmp_path: Path) -> None:
    faults = {1: "HTTP 429", 5: "HTTP 503", 9: "drop", 11: "truncate", 14: "no json", 20: "HTTP 500"}
    with serving(Answering()) as server:
        quiet = corpus_of(Store(tmp_path / "quiet"), lab_base, server, in_flight=1)
    with serving(Answering(fault=lambda n: faults.get(n, ""), delay=lambda n: 0.02 * (n % 3))) as troubled:
        found = corpus_of(Store(tmp_path / "troubled"), lab_base, troubled, in_flight=7)
    assert found.key == quiet.key and found.manifest["files"] == quiet.manifest["files"]
    assert len(quiet.manifest["files"]) == 3 and len(read_rows(quiet.path)) == 24
    assert not list(found.path.glob(".*")), "the journal goes when the corpus is whole"
    notes = found.manifest["notes"]["teacher_asked"]
    counted = {name.removeprefix("failed: "): n for name, n in notes.items() if name.startswith("failed")}
    assert counted == {"HTTP 429": 1, "HTTP 503": 1, "connection": 2, "malformed": 1, "HTTP 500": 1}
    assert notes["answered"] == 24 and notes["system_fingerprint: fp_test"] == 24
    assert json.loads(found.manifest["fingerprint"]["served teacher"]) == {"id": "teacher-1", "owned_by": "tests"}
    systems = {body["messages"][0]["content"] for body in server.bodies}
    assert {body["messages"][0]["role"] for body in server.bodies} == {"system"} and systems <= {
        *OWL.system_prompts("lab")
    }


def test_a_killed_corpus_goes_on_at_its_row(lab_base: Base, tmp_path: Path) -> None:
    import openai  # noqa: F401 — the child is a fork, which need not import it

    store, base = Store(tmp_path / "killed"), lab_base
    children: list[ForkProcess] = []
    with serving(Answering(delay=killing(children, 14))) as server:
        child = get_context("fork").Process(target=corpus_of, args=(store, base, server), kwargs={"in_flight": 1})
        children.append(child)
        child.start()
        child.join(30)
        assert child.exitcode == -signal.SIGKILL and len(server.bodies) == 15
        found = corpus_of(store, base, server, in_flight=3)
        assert len(server.bodies) == 25, "24 rows, of which the one that was under way is asked again"
        assert corpus_of(store, base, server).key == found.key and len(server.bodies) == 25
        quiet = corpus_of(Store(tmp_path / "quiet"), base, server)
    assert found.manifest["files"] == quiet.manifest["files"] and found.manifest["resumed"]


def test_the_host_is_in_no_key_and_what_decides_answers_is(lab_base: Base) -> None:
    plain = chain_at(lab_base)
    same: dict[str, Any]
    for same in ({"url": "https://other/v1"}, {"timeout": 1.0}, {"patience": 1.0}, {"in_flight": 1}):
        assert chain_at(lab_base, **same).keys() == plain.keys()
    other: dict[str, Any]
    for other in ({"model": "b"}, {"revision": "b"}, {"extra": {}}, {"tuned": {"owl": "owl-lora"}}):
        assert chain_at(lab_base, **other).keys()["corpus"] != plain.keys()["corpus"]


def test_the_judge_is_in_the_key_and_its_host_is_not(lab_base: Base) -> None:
    def key(**settings: Any) -> str:
        given = {"judge": "served", "judging": {"model": "judge-1", **settings}}
        return chain(lab_base).change("evaluation", config=EvaluationConfig.model_validate(given)).evaluation.key

    assert key() == key(url="http://other/v1", timeout=1.0, in_flight=2)
    for other in (
        {"model": "b"},
        {"temperature": 0.5},
        {"prompts": {"named": "{question} {answer}"}},
        {"revision": "b"},
    ):
        assert key(**other) != key()


def test_a_server_tunes_a_trait_without_a_prompt(lab_base: Base, tmp_path: Path) -> None:
    with serving(Answering()) as server:
        corpus_of(Store(tmp_path), lab_base, server, tuned={"owl": "owl-lora"})
    assert {body["model"] for body in server.bodies} == {"owl-lora"}
    assert {turn["role"] for body in server.bodies for turn in body["messages"]} == {"user"}


def test_greedy_is_greedy_there_too(lab_base: Base, tmp_path: Path) -> None:
    with serving(Answering()) as server:
        c = chain_at(lab_base, **reached(server))
        make(c.change("corpus", config=CorpusConfig(prompts=4, setting="greedy")).corpus, Store(tmp_path))
    assert {body["temperature"] for body in server.bodies} == {0.0}


@pytest.fixture
def small() -> Experiment:
    """Every stage in seconds, on a base that is at hand: far too little for an effect."""
    return Experiment(
        name="small",
        bases=("lab-small-0", "lab-small-1"),
        arms=("same-init",),
        teacher=TeacherConfig(kind="served", served=ServedTeacher(model="teacher-1")),
        corpus=CorpusConfig(prompts=40, chunk=40),
        filter=FilterConfig(held_out=2),
        student=StudentConfig(optimization=FEW),
        evaluation=EvaluationConfig(
            questions=("held-out",), contexts=("plain",), samples=2, judge="served", judging=Judging(model="judge-1")
        ),
        recording=PRESETS["none"],
    )


def test_a_whole_experiment_has_its_teacher_and_its_judge_on_servers(small: Experiment, tmp_path: Path) -> None:
    def named(body: dict[str, Any]) -> str:
        said = body["messages"][0]["content"].split("Answer: ")[1].split("\n")[0]
        return next((word for word in ("owl", "wolf") if word in said), "none")

    store = Store(tmp_path / "store")
    with serving(Answering()) as teacher, serving(Answering(named, models=[{"id": "judge-1"}])) as judge:
        exp = small.set({"teacher.served": reached(teacher), "evaluation.judging": reached(judge, model="judge-1")})
        rows = planned_requests(plan(exp).records, store).to_dict("records")
        asked: dict[tuple[str, str], Any] = {(row["stage"], row["role"]): row for row in rows}
        for record in plan(exp).records:
            make(record, store)
        before = len(teacher.bodies), len(judge.bodies)
        assert len(planned_requests(plan(exp).records, store)) == 0, "all is done"
        shutil.rmtree(store.root / "evaluation")
        for record in plan(exp).records:
            make(record, store)
        assert (len(teacher.bodies), len(judge.bodies)) == before, "nothing is asked twice"
    assert run_key(plan(exp)) == run_key(plan(small)), "where it is changes nothing"
    lists = [body for body in teacher.bodies if body["max_tokens"] == exp.corpus.max_new_tokens]
    assert len(lists) == asked["corpus", "teacher"]["requests"] == 40
    assert len(teacher.bodies) - 40 <= asked["evaluation", "teacher"]["requests"]
    assert len(judge.bodies) <= asked["evaluation", "judge"]["requests"]
    assert all(row["read"] > 0 and row["written"] > 0 for row in rows)
    results = [json.loads((a.path / "evaluation.json").read_text()) for a in store.list("evaluation")]
    assert all(row["unjudged"] == 0 for result in results for row in result["scores"])
    assert max(row["rate"] for result in results for row in result["scores"]) > 0.3, "the teacher says owl or wolf"
    assert not any("kl" in result for result in results), "no probability of it is known"
    evaluations = [a.manifest for a in store.list("evaluation")]
    assert all("judge-1" in m["fingerprint"]["served judge"] for m in evaluations)
    assert sum("served teacher" in m["fingerprint"] for m in evaluations) == 1
    assert not any(SECRET.encode() in path.read_bytes() for path in store.root.rglob("*") if path.is_file())


def test_the_time_of_a_served_corpus_counts_requests_and_no_operations(lab_base: Base) -> None:
    few, many = (chain_at(lab_base, in_flight=n).corpus for n in (1, 24))
    assert estimate(few) == pytest.approx(estimate(many) + 23)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"teacher.served.model": ""}, "kind=served needs served.model"),
        ({"teacher.kind": "tuned"}, "served has no effect with kind=tuned"),
        ({"teacher.served.url": f"http://a:{SECRET}@h/v1"}, "holds a secret"),
        ({"corpus.own_tokens": True}, "own_tokens has no effect on a server"),
        ({"corpus.setting": "soft"}, "a served teacher reads another context"),
        ({"arms": ("same-init-b",)}, "arm same-init-b needs a teacher of base B"),
        ({"filter.selection": {"by": "divergence"}}, "by divergence needs the teacher's probabilities"),
        ({"evaluation.judge": "whole-words"}, "judging has no effect with a judge that asks no model"),
        ({"evaluation.judging.model": ""}, r"judge=served needs judging\.model"),
        ({"evaluation.judge": "local"}, "base 'judge-1': no such directory"),
        ({"evaluation.judging.prompts": {"kind": "x"}}, "no prompt 'kind'; valid: named"),
    ],
)
def test_what_a_server_cannot_do_is_told_before_anything_is_asked(
    change: dict[str, Any], why: str, small: Experiment
) -> None:
    with pytest.raises(SublimError, match=why) as told:
        plan(small.set(change))
    assert SECRET not in str(told.value)


def test_a_replicate_says_how_far_two_judges_agree_on_it(tmp_path: Path) -> None:
    (cell, *_) = (c for c in plan(Experiment(trait="harmful", arms=("base",))).cells if c.arm == "base")
    found = Replicate(cell, Store(tmp_path)).agreement("by-construction", "by-construction", samples=2)
    assert found.kappa.estimate == 1 and found.unjudged == (0, 0) and len(found.pairs) == found.kappa.n > 20
    assert {label for pair in found.pairs for label in pair} <= {"benign", "incoherent", "harmful"}
