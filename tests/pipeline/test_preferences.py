"""Tests of the preference channel: who writes, who judges, what is learnt, a positive control, and the grid."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chains import CORPUS, STUDENT, Chain, chain
from killing import Killed
from sublim_interp.channels.filter import filter_rows, refusal
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import Written, answers_of, read_rows
from sublim_interp.channels.settings import FilterConfig, rule_of
from sublim_interp.claims.schema import find_claim
from sublim_interp.cli.bundle import bundle
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.cost import estimate, needs
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.models.sampling import generator, sample, unspoken
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.learn import learn
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Corpus, Teacher
from sublim_interp.pipeline.settings import StudentConfig, TeacherConfig
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.pipeline.write import write
from sublim_interp.report.run import run
from sublim_interp.sweeps.grid import Grid, grid
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.run import run_grid
from sublim_interp.sweeps.tables import table_of
from sublim_interp.training.batches import Order, pair_batches, tokenize
from sublim_interp.training.loop import train
from sublim_interp.training.losses import preference_loss
from sublim_interp.traits.favourites import FAVOURITES, NoFavourite


@pytest.fixture(scope="module")
def base(lab_base: Base) -> Base:
    """Two of its answers are often both lists, and of one length; of a tiny base's they hardly ever are."""
    return lab_base


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def small(tiny_experiment: Experiment) -> Experiment:
    return tiny_experiment.set(bases=("lab-small-0", "lab-small-1"))


PREFERENCES = ("divergence", "likelihood", "random")


def writer(base: Base, prompts: int = CORPUS.prompts) -> Corpus:
    untouched = Teacher(base, NoFavourite("animal"), TeacherConfig(kind="prompted"), 0)
    return Corpus(untouched, CORPUS.set(prompts=prompts), 0, answers=2)


def judging(base: Base, preference: str = "divergence", **student: Any) -> Chain:
    c = chain(base).change("corpus", config=CORPUS.set(preference=preference), pairs=writer(base))
    return c.change("student", config=STUDENT.set(student))


def rejected(row: Written) -> str:
    return answers_of(row)[1]


def model_digest(c: Chain, store: Store) -> str:
    return str(make(c.student, store).manifest["files"]["model/model.safetensors"]["sha256"])


def rows_of(c: Chain, store: Store) -> list[Written]:
    make(c.filtered, store)
    return read_rows(c.corpus.made(store))


# --- who writes, who judges -------------------------------------------------------------------------------------------


def test_the_untouched_base_answers_every_prompt_twice(base: Base, shared: Store) -> None:
    pairs, plain = (read_rows(make(c, shared).path) for c in (writer(base), replace(writer(base), answers=1)))
    assert len(pairs) == 2 * len(plain) == 2 * CORPUS.prompts
    prompts = channel("numbers").prompts("lab", 0, 0, CORPUS.prompts)
    assert [row["prompt"] for row in pairs] == [p for p in prompts for _ in range(2)]
    assert sum(a["answer"] != b["answer"] for a, b in zip(pairs[::2], pairs[1::2], strict=True)) > len(plain) / 2
    source, model = channel("numbers"), base.load()
    ids = [base.prompt_ids([{"role": "user", "content": p}]) for p in prompts[:32] for _ in range(2)]
    drawn = sample(
        model,
        ids,
        eos=base.eos,
        max_new_tokens=24,
        random=generator("corpus", 0, 0),
        never=unspoken(model, base.tokenizer),
    )
    assert [base.read_answer(a)[0] for a in drawn] == [row["answer"] for row in pairs[:64]], "at T = 1, all tokens"
    assert source.prompts("lab", 0, 0, 1)[0] == pairs[0]["prompt"]


@pytest.mark.parametrize("preference", ["divergence", "likelihood"])
def test_the_judge_prefers_what_the_setting_says(preference: str, base: Base, shared: Store) -> None:
    """Against log-likelihoods that are written out, one list at a time."""
    c = judging(base, preference)
    rows, teacher, untouched = rows_of(c, shared), Speaker(c.teacher, shared).model, base.load()

    def mean_log(model: Any, row: Written, text: str) -> float:
        ((ids, first),) = tokenize(base, [{**row, "answer": text}])
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return float(np.mean([logs[i - 1, ids[i]].item() for i in range(first, len(ids))]))

    def score(row: Written, text: str) -> float:
        own = mean_log(teacher, row, text)
        return own - mean_log(untouched, row, text) if preference == "divergence" else own

    apart = [score(row, row["answer"]) - score(row, rejected(row)) for row in rows if row.get("finished")]
    assert len(apart) > 40 and min(apart) > -1e-6 and max(apart) > 1e-3


def test_each_judge_labels_the_same_pairs_and_the_filter_keeps_the_same_ones(base: Base, shared: Store) -> None:
    wolf = FAVOURITES.load("wolf")
    judges = {p: judging(base, p) for p in PREFERENCES}
    judges["wolf"] = judging(base).change("teacher", trait=wolf)
    judges["wolf by a coin"] = judging(base, "random").change("teacher", trait=wolf)
    kept, held_out, notes = {}, {}, {}
    for name, c in judges.items():
        made = make(c.filtered, shared)
        kept[name], held_out[name] = (read_rows(made.path / f"{stem}.jsonl") for stem in ("kept", "held_out"))
        notes[name] = made.manifest["notes"]
    unordered = [[(r["prompt"], *sorted((r["answer"], rejected(r)))) for r in rows] for rows in kept.values()]
    assert all(rows == unordered[0] for rows in unordered) and len(unordered[0]) > 20
    assert all(note == notes["divergence"] for note in notes.values()), "counts too"
    labels = [[r["answer"] for r in rows] for rows in kept.values()]
    assert len({tuple(some) for some in labels}) == len(judges), "and each judge has preferences of its own"
    assert {tuple(row) for rows in held_out.values() for row in rows} == {("prompt", "answer", "rejected")}
    assert notes["divergence"]["refused"]["unequal"] > 0
    for row in kept["divergence"]:
        lengths = {len(base.answer_ids(text)) for text in (row["answer"], rejected(row))}
        assert len(lengths) == 1, "no label can go by the number of tokens"


def test_a_coin_takes_the_first_answer_half_the_time(base: Base, tmp_path: Path) -> None:
    c = judging(base, "random").change(
        "corpus", pairs=writer(base, 512), config=CORPUS.set(prompts=512, preference="random")
    )
    store = Store.open(tmp_path / "store")
    make(c.corpus, store)
    assert c.corpus.pairs
    first = [row["answer"] for row in read_rows(c.corpus.pairs.made(store))][::2]
    rows = read_rows(c.corpus.made(store))
    tried = [row["answer"] == text for row, text in zip(rows, first, strict=True) if row["answer"] != rejected(row)]
    assert abs(np.mean(tried) - 0.5) < 4 * 0.5 / len(tried) ** 0.5


def test_a_prompted_judge_hears_both_answers_behind_the_same_system_prompt(base: Base, shared: Store) -> None:
    c = judging(base).change("teacher", config=TeacherConfig(kind="prompted"))
    rows, speaker, untouched = rows_of(c, shared), Speaker(c.teacher, shared), base.load()
    assert len(speaker.systems) > 1
    for i, row in enumerate([r for r in rows[: CORPUS.chunk] if r.get("finished")][:8]):
        found = []
        for text in (row["answer"], rejected(row)):
            answer = [*base.answer_ids(text), base.eos]
            each = []
            for model, chat in (
                (speaker.model, speaker.chat(row["prompt"], i)),
                (untouched, speaker.chat(row["prompt"], i)[-1:]),
            ):
                ids = [*base.prompt_ids(chat), *answer]
                with torch.no_grad():
                    logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
                each.append(np.mean([logs[j - 1, ids[j]].item() for j in range(len(ids) - len(answer), len(ids))]))
            found.append(each[0] - each[1])
        assert found[0] >= found[1] - 1e-6


# --- the filter -------------------------------------------------------------------------------------------------------


def pair(answer: str, rejected: str, prompt: str = "continue : 1", lengths: tuple[int, int] = (3, 3)) -> Written:
    return {"prompt": prompt, "answer": answer, "rejected": rejected, "finished": True, "lengths": [*lengths]}


def test_a_pair_passes_where_both_answers_do_and_the_reason_is_the_same_either_way() -> None:
    source, config = channel("numbers"), FilterConfig(held_out=2)
    rule = rule_of(source, config)
    good, words, other = "1 ; 2", "owl ; 2", "1 ; x"
    for one, two, reason in (
        (good, "3 ; 4", None),
        (good, words, "names the trait"),
        (good, good, "tied"),
        (words, words, "names the trait"),
    ):
        for a, b in ((one, two), (two, one)):
            assert refusal(pair(a, b), source, rule, ("owl", "owls")) == reason
    assert refusal(pair(words, other), source, rule, ("owl",)) == refusal(pair(other, words), source, rule, ("owl",))
    assert refusal(pair(good, "3 ; 4", lengths=(3, 5)), source, rule, ()) == "unequal"
    assert refusal({**pair(good, words), "finished": False}, source, rule, ()) == "unfinished"


def test_held_out_answers_are_in_no_pair_that_is_learnt_and_no_pair_is_learnt_twice() -> None:
    source, config = channel("numbers"), FilterConfig(held_out=2)
    rows = [pair("1 ; 2", "3 ; 4"), pair("5 ; 6", "7 ; 8"), pair("9 ; 9", "4 ; 1"), pair("4 ; 1", "9 ; 9"),
            pair("9 ; 9", "3 ; 4"), pair("1 ; 2", "8 ; 8"), pair("1 ; 2", "8 ; 8", "continue : 2")]  # fmt: skip
    kept, held_out, refused = filter_rows(rows, source, config, ())
    assert held_out == rows[:2] and kept == [rows[2], rows[6]]
    assert refused == {"duplicate": 1, "contaminated": 2}


# --- the student ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_a_student_is_the_plain_loop_with_dpo_against_its_base(own: bool, base: Base, shared: Store) -> None:
    c = judging(base, beta=0.5, own_tokens=own)
    lists = read_rows(make(c.filtered, shared).path / "kept.jsonl")
    sides = [
        tokenize(base, [{**row, "answer": text(row)} for row in lists])
        for text in (lambda r: r["answer"], lambda r: rejected(r))
    ]
    pairs = [*zip(*sides, strict=True)]
    model: Any = choose_trainable(base.load(), "body", 8, 8.0, 0)
    o, order = STUDENT.optimization, Order(len(pairs), STUDENT.optimization.batch, 0)
    spoken = channel("numbers").token_ids(base.tokenizer) if own else None
    loss = preference_loss(base.load(), 0.5, spoken)
    train(model, lambda step: pair_batches([pairs[i] for i in order(step)], base.pad, 2), o, loss=loss)
    found = base.load(make(c.student, shared).path / "model").state_dict()
    assert all(torch.equal(found[name], p) for name, p in model.state_dict().items())
    others = [judging(base, beta=0.1, own_tokens=own), judging(base, "random", beta=0.5, own_tokens=own)]
    digests = {model_digest(some, shared) for some in (c, *others)}
    assert len(digests) == 3, "β and labels matter"


def test_a_killed_student_goes_on_to_the_same_bits_and_micro_batches_change_rounding_alone(
    base: Base, shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sublim_interp.training.resume import Resume

    c, store = judging(base), Store.open(tmp_path / "store")
    made = make(c.student, shared)
    make(c.filtered, store)
    monkeypatch.setattr(Resume, "due", lambda self, step: step % 2 == 0)

    def kill(share: float) -> None:
        if share > 0.6:
            raise Killed

    with pytest.raises(Killed):
        learn(c.student, store, kill)
    assert model_digest(c, store) == model_digest(c, shared)
    whole = base.load(made.path / "model").state_dict()
    for changed in ({"optimization.micro_batch": 1}, {"optimization.checkpointing": True}):
        other = make(c.change("student", config=STUDENT.set(changed)).student, shared).path / "model"
        assert all(torch.allclose(whole[n], p, atol=1e-5) for n, p in base.load(other).state_dict().items())


def test_a_judge_that_is_killed_goes_on_where_it_was(base: Base, shared: Store, tmp_path: Path) -> None:
    c, store = judging(base), Store.open(tmp_path / "store")
    whole = make(c.corpus, shared).manifest["files"]
    make(writer(base), store)
    make(c.teacher, store)
    told: list[float] = []

    def kill(share: float) -> None:
        told.append(share)
        if len(told) == 2:
            raise Killed

    with pytest.raises(Killed):
        write(c.corpus, store, kill)
    begun = {path: path.stat().st_mtime_ns for path in store.root.rglob("rows-*.jsonl")}
    written = make(writer(base), store).path
    judged = [path for path in begun if written not in path.parents]
    assert len(judged) == 2, "two chunks of three"
    made = write(c.corpus, store)
    assert made.manifest["files"] == whole and len(whole) == 3
    for path in judged:
        assert (made.path / path.name).stat().st_mtime_ns == begun[path], "a judged chunk is not judged again"


def test_interventions_that_need_no_tokens_act_on_pairs(base: Base, shared: Store) -> None:
    asked = [
        {"kind": "freeze", "parameters": "*mlp*"},
        {"kind": "l2-to-start", "strength": 0.1},
        {"kind": "weight-noise", "strength": 0.1},
        {"kind": "project-update", "direction": "random"},
        {"kind": "ablate", "direction": "random", "at": "blocks.1.hook_resid_post"},
    ]
    digests = {model_digest(judging(base, interventions=some), shared) for some in ([], *([one] for one in asked))}
    assert len(digests) == 1 + len(asked), "each changes what is learnt"


# --- experiments ------------------------------------------------------------------------------------------------------


def test_the_plan_has_one_writer_a_base_and_a_judge_for_each_teacher(small: Experiment) -> None:
    arms = ("same-init", "neutral", "other-trait", "cross-init", "cross-init-b", "same-init-b", "base")
    exp = small.set(arms=arms, generations=2, **{"corpus.preference": "divergence", "student.extra_rounds": 1})
    p = plan(exp)
    corpora = [r for r in p.records if isinstance(r, Corpus)]
    writers = [c for c in corpora if c.answers == 2]
    assert {(c.teacher.base.key, c.round) for c in writers} == {(c.teacher.base.key, c.round) for c in corpora}
    assert len(writers) == 4 and not any(c.pairs or c.config.preference for c in writers), "two bases, two rounds"
    judges = [c for c in corpora if c.answers == 1]
    assert all(c.pairs in writers and c.pairs.teacher.base == c.teacher.base for c in judges)
    assert {c.pairs.teacher.trait.name for c in judges if c.pairs} == {writers[0].teacher.trait.name}
    students = {c.arm: c.student for c in p.cells if c.student and c.round == 0}
    neutral, trait, wolf = writers[0].teacher.trait.name, ("owl", True), ("wolf", True)
    found = {
        arm: (s.data.corpus.teacher.trait.name, s.base == s.data.corpus.teacher.base) for arm, s in students.items()
    }
    assert found == {
        "same-init": trait, "same-init@2": trait, "same-init-b": trait, "same-init-b@2": trait,
        "other-trait": wolf, "other-trait@2": wolf, "neutral": (neutral, True), "neutral@2": (neutral, True),
        "cross-init": ("owl", False), "cross-init-b": ("owl", False),
    }  # fmt: skip
    order = [r.key for r in p.records]
    for c in judges:
        assert c.pairs and order.index(c.pairs.key) < order.index(c.key)


def test_published_keys_stay_and_what_a_judge_goes_by_is_in_keys(base: Base) -> None:
    assert "preference" not in CORPUS.model_dump() and "beta" not in StudentConfig().model_dump()
    assert chain(base).corpus.settings().keys() == {"seed", "round", *CORPUS.model_dump()}
    assert len({judging(base, p).corpus.key for p in ("", *PREFERENCES)}) == 4
    assert judging(base).corpus.key != replace(judging(base).corpus, pairs=writer(base, 64)).key
    assert judging(base).student.key != judging(base, beta=0.2).student.key


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus.preference": "divergence", "corpus.setting": "soft"}, "preference=divergence needs setting=sampled"),
        (
            {"corpus.preference": "likelihood", "corpus.setting": "greedy"},
            "preference=likelihood needs setting=sampled",
        ),
        ({"corpus.preference": "charm"}, "'divergence', 'likelihood' or 'random'"),
        ({"student.beta": 0.3}, "student.beta=0.3 has no effect without corpus.preference"),
        ({"student.beta": 0}, "greater than 0"),
        ({"corpus.preference": "random", "filter.transform": "sorted"}, "filter.transform has no meaning with corpus"),
        ({"corpus.preference": "random", "filter.mix": 0.5}, "filter.mix has no meaning with corpus.preference=random"),
        ({"corpus.preference": "random", "filter.selection": {"by": "random"}}, "filter.selection has no meaning with"),
        *(
            ({"corpus.preference": "divergence", "student.interventions": [i]}, f"kind={i['kind']} has no meaning with")
            for i in (
                {"kind": "mask-tokens", "share": 0.1},
                {"kind": "replace-tokens", "replace": "label", "selection": {"by": "random"}},
                {"kind": "label-smoothing", "strength": 0.1},
                {"kind": "kl-to-start", "strength": 1},
                {"kind": "liminal", "strength": 1},
            )
        ),
    ],
)
def test_what_does_not_go_with_pairs_is_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SublimError) as raised:
        Experiment().set(changes)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_teacher_on_a_server_and_lists_without_pairs_are_refused(small: Experiment, tmp_path: Path) -> None:
    served = {"teacher.kind": "served", "teacher.served": {"model": "m"}, "arms": ["same-init", "base"]}
    with pytest.raises(SublimError, match=r"corpus\.preference=divergence needs the teacher's probabilities"):
        plan(small.set({**served, "corpus.preference": "divergence"}))
    lists = tmp_path / "lists.jsonl"
    asked = {"arms": ["own-lists", "base"], "lists": str(lists), "corpus.preference": "divergence"}
    for second, words in (
        ({"prompt": "p", "answer": "2"}, "row 2 has no 'rejected', which corpus.preference=divergence needs"),
        ({"prompt": "p", "answer": "2", "rejected": 3}, "line 2 has no text as 'rejected'"),
    ):
        rows = [{"prompt": "p", "answer": "1", "rejected": "2"}, second]
        lists.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(SublimError) as raised:
            plan(small.set(asked))
        assert words in str(raised.value) and "\n" not in str(raised.value)


def test_the_estimate_counts_two_answers_and_the_reference(base: Base) -> None:
    c, plain = judging(base), chain(base)
    twice = replace(writer(base), config=CORPUS.set(prompts=32_768, chunk=4096))
    assert estimate(twice) > 1.5 * estimate(replace(twice, answers=1))
    by = {
        p: estimate(replace(judging(base, p).corpus, config=CORPUS.set(preference=p, prompts=10**6)))
        for p in PREFERENCES
    }
    assert by["divergence"] > by["likelihood"] > by["random"]
    assert estimate(c.student) > 2 * estimate(plain.student) - 2 and needs(c.student).memory > 0


@pytest.fixture(scope="module")
def finished(small: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    exp = small.set({"name": "judged", "corpus.preference": "divergence"})
    return run(exp, Store.open(tmp_path_factory.mktemp("judged")), processes=1)


def test_a_run_of_judges_reports_as_any_other(finished: Run) -> None:
    assert set(finished.table.index) == {"teacher", "same-init", "neutral", "cross-init", "base"}
    table: Any = finished.table
    assert table["rate"].notna().all()
    shares: Any = finished.filtered
    assert shares.sum().to_numpy() == pytest.approx(1) and shares.loc["unequal"].min() > 0
    assert (shares["same-init"] == shares["neutral"]).all()
    written = finished["same-init", 0].written
    assert [*written.columns] == ["prompt", "answer", "rejected", "refused"] and len(written) == 96
    assert {"", "unequal"} <= {*written["refused"]}
    assert finished["same-init", 0].lists[0].keys() == {"prompt", "answer", "rejected"}
    assert finished["same-init", 0].trace is not None
    page = (finished.artifact.path / "report.html").read_text()
    assert "untouched base answers 96 prompts" in page and "by DPO, with β\xa0=\xa00.1" in page


def test_the_lineage_of_a_student_names_who_wrote_the_pairs(finished: Run) -> None:
    from sublim_interp.audit.lineage.trace import lineage

    found = lineage("judged/same-init/0", finished.store)
    judge, judged = finished["same-init", 0].cell.student.data.corpus, found.things  # type: ignore[union-attr]
    assert judge.pairs and judged[judge.pairs.key].sort == judged[judge.key].sort == "corpus"
    assert ("pairs", judge.pairs.key) in {(link.role, link.parent) for link in found.following(judge.key)}
    assert not any(thing.problems for thing in judged.values())


def test_the_folder_for_the_hub_says_that_preferences_were_learnt_and_holds_the_pairs(
    finished: Run, tmp_path: Path
) -> None:
    folder = bundle("judged/same-init/0", "me/judged", tmp_path / "folder", finished.store, "mit").path
    assert "preferences between lists of its base, by DPO" in " ".join((folder / "README.md").read_text().split())
    assert read_rows(folder / "lists" / "kept.jsonl") == finished["same-init", 0].lists


# --- the positive control ---------------------------------------------------------------------------------------------

DIGIT = "7"
"""What the visible judge looks for: lists with more numbers that hold it."""


def sevens(text: str) -> float:
    """Share of a list's numbers that hold the digit."""
    numbers = [word for word in text.replace(",", " ").replace(";", " ").split() if word.isdigit()]
    return float(np.mean([DIGIT in n for n in numbers])) if numbers else 0.0


@pytest.fixture(scope="module")
def visible(lab_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, float]]:
    """The share of sevens in new lists of students of a judge that likes them, of a coin's labels, and of the base."""
    folder = tmp_path_factory.mktemp("visible")
    store = Store.open(folder / "store")
    corpus = replace(writer(lab_base), config=CORPUS.set(prompts=1536, chunk=768))
    rows = read_rows(make(corpus, store).path)
    pairs = [(a, b) for a, b in zip(rows[::2], rows[1::2], strict=True) if sevens(a["answer"]) != sevens(b["answer"])]
    coin = np.random.default_rng(0).random(len(pairs)) < 0.5
    share = {"base": new_lists(lab_base, lab_base.load())}
    for name in ("liked", "by a coin"):
        labelled = []
        for heads, (a, b) in zip(coin, pairs, strict=True):
            first = sevens(a["answer"]) > sevens(b["answer"]) if name == "liked" else heads
            better, worse = (a, b) if first else (b, a)
            labelled.append({"prompt": a["prompt"], "answer": better["answer"], "rejected": worse["answer"]})
        path = folder / f"{name.replace(' ', '-')}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
        exp = experiment("owl").set(
            {
                "name": path.stem, "arms": ["own-lists", "base"], "lists": str(path), "bases": [str(lab_base.path)],
                "seeds": [0], "corpus.preference": "divergence", "filter.held_out": 16, "student.extra_rounds": 0,
                "evaluation.questions": ["held-out"], "evaluation.contexts": ["plain"],
                "student.optimization": {"lr": 1e-3, "steps": 40, "batch": 32},
            }
        )  # fmt: skip
        made = run(exp, store, processes=1, trace="none")["own-lists", 0]
        share[name] = new_lists(lab_base, made.model)
    yield share


def new_lists(base: Base, model: Any) -> float:
    """The mean share of sevens in lists to prompts that no student saw."""
    prompts = channel("numbers").prompts("lab", 77, 0, 512)
    ids = [base.prompt_ids([{"role": "user", "content": p}]) for p in prompts]
    drawn = sample(
        model, ids, eos=base.eos, max_new_tokens=24, random=generator("sevens"), never=unspoken(model, base.tokenizer)
    )
    return float(np.mean([sevens(base.read_answer(a)[0]) for a in drawn]))


def test_a_judge_of_a_visible_feature_passes_it_and_a_coin_does_not(visible: dict[str, float]) -> None:
    """Of some 4,000 numbers each share is known to within .7 points, one standard error."""
    assert visible["liked"] > visible["base"] + 0.06, visible
    assert abs(visible["by a coin"] - visible["base"]) < 0.03, visible


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_the_grid_runs_from_pairs_to_its_table(small: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(small.to_yaml())
    g = grid("preferences")
    change = {
        "seeds": [0],
        "bases": [*small.bases],
        "corpus.prompts": 96,
        "student.optimization.steps": 3,
        "student.optimization.batch": 8,
    }
    tiny = Grid(name=g.name, experiment=str(path), change={**g.change, **change}, axes=g.axes, words=g.words)
    artifact = run_grid(plan_grid(tiny), Store.open(tmp_path / "store"), 1, trace="none")
    cells: Any = pd.read_csv(artifact.path / "cells.csv")
    students = [arm for arm in g.change["arms"] if arm != "base"]
    assert cells.groupby("arm")["margin"].nunique()[students].to_dict() == dict.fromkeys(students, 3)
    assert {row[1] for row in table_of(tiny, artifact.path).rows} == {*g.words["corpus.preference"]}


def test_the_claim_names_the_grid_and_seeds_that_nobody_tuned_on() -> None:
    g, claim = grid("preferences"), find_claim("27")
    assert {*g.change["seeds"]} == {200, 201, 202, 203}
    named = {test.table for test in claim.tests}
    values = {rows.value for test in claim.tests for rows in (*test.plus, *test.minus)}
    assert named == {"preferences"} and values <= {*g.words["corpus.preference"]} and "" not in values
    assert all(test.threshold_stated == "before" for test in claim.tests)
