"""Tests of the five stages and their keys: each stage alone, what trains and what stays, kills, oracles, the effect."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
import yaml

from chains import CORPUS, EVALUATION, FEW, FILTER, OWL, STUDENT, TEACHER, Chain, chain
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import Written, read_rows
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.core.store import Artifact, Store
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.evaluate import evaluate
from sublim_interp.pipeline.filter import filter_corpus
from sublim_interp.pipeline.learn import learn
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Student, Teacher
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, StudentConfig, TeacherConfig
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.pipeline.teach import teach
from sublim_interp.pipeline.write import write
from sublim_interp.training.batches import IGNORE, Batch, Order, collate, tokenize
from sublim_interp.training.interventions import Intervention
from sublim_interp.training.loop import train
from sublim_interp.training.losses import token_loss
from sublim_interp.training.settings import Optimization, Selection
from sublim_interp.traits.answers import score
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.favourites import NoFavourite, members_of, questions, words_of
from sublim_interp.traits.judges.protocol import JUDGES
from sublim_interp.traits.questions import Question

Tensors = dict[str, torch.Tensor]

WORDS = words_of(members_of("animal"), "animal")
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def store(store_root: Path) -> Store:
    return Store.open(store_root)


def weights(base: Base, artifact: Artifact | None = None) -> Tensors:
    return base.load(artifact.path / "model" if artifact else None).state_dict()


def changed(before: Tensors, after: Tensors) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def result(artifact: Artifact) -> dict[str, Any]:
    return json.loads((artifact.path / "evaluation.json").read_text())


# --- each stage alone -------------------------------------------------------------------------------------------------


def test_each_stage_is_called_alone_and_leaves_its_files(base: Base, store: Store) -> None:
    c = chain(base)
    work = {
        "teacher": (teach, {"model/config.json", "model/model.safetensors"}),
        "corpus": (write, {f"rows-{i:05d}.jsonl" for i in range(3)}),
        "filtered": (filter_corpus, {"kept.jsonl", "held_out.jsonl"}),
        "student": (learn, {"model/config.json", "model/model.safetensors"}),
        "evaluation": (evaluate, {"evaluation.json"}),
    }
    for stage, (function, files) in work.items():
        seen: list[float] = []
        artifact = function(c.stages()[stage], store, seen.append)
        assert (artifact.stage, artifact.key) == (stage, c.keys()[stage])
        assert files <= set(artifact.manifest["files"]) and artifact.verify() == []
        others = {name for name in artifact.manifest["files"] if not name.startswith("trace/")} - files
        assert others <= {"model/generation_config.json", "said.jsonl"}
        assert seen == sorted(seen) and seen[-1] == 1.0 and seen[0] > 0
    assert sorted(p.name for p in (store.root / ".partial").iterdir()) == []


@pytest.mark.parametrize("stage", ["corpus", "filtered", "student", "evaluation"])
def test_a_stage_without_its_inputs_is_one_line_and_leaves_nothing(stage: str, base: Base, store: Store) -> None:
    functions = {"corpus": write, "filtered": filter_corpus, "student": learn, "evaluation": evaluate}
    with pytest.raises(SublimError) as raised:
        functions[stage](chain(base).stages()[stage], store)
    assert "is not in the store" in str(raised.value) and str(raised.value).endswith("; make it first")
    assert store.list() == [] and list((store.root / ".partial").iterdir()) == []


def test_what_is_made_is_not_made_again(shared: Store, base: Base) -> None:
    c = chain(base)
    make(c.evaluation, shared)
    before = {p: p.stat().st_mtime_ns for p in shared.root.rglob("*")}
    make(c.evaluation, shared)
    for function, record in zip((teach, write, filter_corpus, learn, evaluate), c.stages().values(), strict=True):
        function(record, shared)  # type: ignore[arg-type]
    assert {p: p.stat().st_mtime_ns for p in shared.root.rglob("*")} == before


def test_a_chain_made_twice_is_equal_to_the_last_bit(shared: Store, base: Base, store: Store) -> None:
    c = chain(base)
    make(c.evaluation, shared)
    torch.rand(7)  # what was drawn before must not matter
    make(c.evaluation, store)
    for record in c.stages().values():
        first, second = record.find(shared), record.find(store)
        assert first and second and first.manifest["files"] == second.manifest["files"]
        assert first.manifest["notes"] == second.manifest["notes"]


# --- keys -------------------------------------------------------------------------------------------------------------


def other_value(kind: Any, value: Any) -> Any:
    """A value of the same sort that differs."""
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 if value else 0.01
        case tuple():
            if not value and "Intervention" in str(kind):
                return (Intervention(kind="mask-tokens", share=0.5),)
            return value[:-1] if value else (666,)
        case dict():
            return {"longest": 3}
        case "tuned":
            return "prompted"
        case None:
            return Selection(by="random", share=0.5) if "Selection" in str(kind) else 1.0
    return value + "x" if value else next(iter(JUDGES))  # the one name that may be left out is a judge's


def variants(config: Config, prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from variants(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def varied(config: Config, name: str) -> Config:
    inner: Any = config
    *path, last = name.split(".")
    for part in path:
        inner = getattr(inner, part)
    return config.set({name: other_value(type(inner).model_fields[last].annotation, getattr(inner, last))})


ADAMW = Optimization(optimizer="adamw", weight_decay=0.1)
CONFIGS: dict[str, Config] = {
    "teacher": TeacherConfig(optimization=ADAMW),
    "corpus": CorpusConfig(),
    "filtered": FilterConfig(),
    "student": StudentConfig(optimization=ADAMW),
    "evaluation": EvaluationConfig(),
}
SETTINGS = [(stage, name) for stage, config in CONFIGS.items() for name in variants(config)]
ALONE = {"optimization.optimizer": "the decay needs adamw", "student": "it needs kind=student"}
ALONE |= {"adapter": "it needs a teacher that is one too"}
ALONE |= {"paraphrase": "it needs who rewrites", "traits": "what is given is in the trait itself"}
ALONE |= {name: "it needs a model on a server" for _, name in SETTINGS if name.startswith(("served.", "judging."))}
"""What cannot change alone, and why; a student's part in the key is in tests/experiments/test_student_as_teacher.py,
that of an adapter in test_adapters.py, of a served model in test_served.py, of a paraphraser in test_paraphrase.py, of
several traits in tests/traits/test_together.py."""


def downstream(stage: str) -> set[str]:
    names = list(CONFIGS)
    return set(names[names.index(stage) :])


def differing(one: Chain, two: Chain) -> set[str]:
    return {stage for stage, key in one.keys().items() if key != two.keys()[stage]}


@pytest.mark.parametrize(("stage", "name"), [s for s in SETTINGS if s[1] not in ALONE])
def test_a_setting_changes_the_keys_from_its_stage_on_and_no_other(stage: str, name: str, base: Base) -> None:
    plain = chain(base)
    for each, config in CONFIGS.items():
        plain = plain.change(each, config=config)
    changed = plain.change(stage, config=varied(CONFIGS[stage], name))
    # Further rounds are records of their own: how many follow does not change the ones before.
    assert differing(plain, changed) == (set() if name == "extra_rounds" else downstream(stage))


def test_every_setting_is_varied_above() -> None:
    assert len(SETTINGS) == len(set(SETTINGS)) and ("student", "optimization.beta2") in SETTINGS
    adam = chain_key_of(Optimization(optimizer="adam"))
    assert adam != chain_key_of(Optimization(optimizer="adamw")) != chain_key_of(Optimization(optimizer="sgd")) != adam


def chain_key_of(optimization: Optimization) -> str:
    base = Base("nowhere", Path("nowhere"), "0" * 64, {})
    return chain(base).change("teacher", config=TeacherConfig(optimization=optimization)).teacher.key


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("teacher", {"seed": 1}), ("teacher", {"trait": load_trait("wolf")}), ("teacher", {"trait": OWL.neutral()}),
        ("teacher", {"trait": OWL.set(words=("owl",))}),
        ("corpus", {"seed": 1}), ("corpus", {"round": 1}), ("filtered", {"words": ("wolf",)}),
        ("student", {"seed": 1}), ("evaluation", {"seed": 1}), ("evaluation", {"trait": load_trait("oak")}),
        ("evaluation", {"others": (OWL.set(name="lynx"),)}),
    ],
)  # fmt: skip
def test_seeds_traits_rounds_and_words_are_part_of_the_keys(stage: str, change: dict[str, Any], base: Base) -> None:
    assert differing(chain(base), chain(base).change(stage, **change)) == downstream(stage)


def test_neutral_teachers_of_two_kinds_are_two(base: Base) -> None:
    """One is tuned on animals, the other on trees: under one key, the second would be taken for the first."""
    animals = chain(base).change("teacher", trait=OWL.neutral())
    trees = animals.change("teacher", trait=NoFavourite("tree"))
    assert differing(animals, trees) == downstream("teacher")


def test_the_trait_of_an_intervention_enters_by_content(base: Base, tmp_path: Path) -> None:
    own = tmp_path / "owl.yaml"
    keys = []
    for trait in (OWL, OWL.set(words=("owl",))):
        own.write_text(yaml.safe_dump(trait.model_dump(mode="json", exclude={"name"})))
        ablation = {"kind": "ablate", "direction": str(own)}
        keys.append(chain(base).change("student", config=STUDENT.set(interventions=[ablation])).student.key)
    assert keys[0] != keys[1]


def test_the_bases_enter_by_content_wherever_they_lie(tiny_bases: tuple[Base, Base], tmp_path: Path) -> None:
    a, b = tiny_bases
    assert differing(chain(a), chain(b)) == downstream("teacher")
    assert differing(chain(a), chain(a).change("student", start=b)) == downstream("student")
    shutil.copytree(a.path, tmp_path / "another-name")
    assert differing(chain(a), chain(resolve_base(str(tmp_path / "another-name")))) == set()


# --- kills ------------------------------------------------------------------------------------------------------------

KILLED = """
import functools, os, random, signal, sys, time
from pathlib import Path
sys.path[:] = {path!r}
import chains as c

from sublim_interp.core.store import Store
from sublim_interp.models.base import resolve_base
from sublim_interp.pipeline import stage
from sublim_interp.pipeline.evaluate import evaluate
from sublim_interp.pipeline.filter import filter_corpus
from sublim_interp.pipeline.learn import learn
from sublim_interp.pipeline.teach import teach
from sublim_interp.pipeline.write import write

stage.Resume = functools.partial(stage.Resume, every=5)
moments = random.Random(0)
chain = c.chain(resolve_base({base!r}))
more = c.FEW.set(steps=33)
for name, config in (("teacher", c.TEACHER), ("student", c.STUDENT)):
    chain = chain.change(name, config=config.set(optimization=more))
chain = chain.change("corpus", config=c.CORPUS.set(chunk=12))


def work(root, last):
    "Makes the chain, and dies with the `last` piece of progress."
    left = [last]

    def progress(_fraction):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store.open(root)
    for function, record in zip((teach, write, filter_corpus, learn, evaluate), chain.stages().values()):
        function(record, store, progress)


def attempt(root, last, seconds):
    "A forked process that does the work, and how it ended; PyTorch is imported once for all of them."
    child = os.fork()
    if child == 0:
        try:
            work(root, last)
        finally:
            os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


start = time.monotonic()
assert attempt({whole!r}, 0, None) == 0
whole = time.monotonic() - start
kills = 0
while True:
    last, seconds = (moments.randint(12, 32), None) if kills % 2 else (0, moments.uniform(0.02, 0.6) * whole)
    if attempt({broken!r}, last, seconds) == 0 or kills > 60:
        break
    kills += 1
print(kills)
"""


def test_after_kills_at_random_moments_everything_is_the_same_to_the_last_bit(base: Base, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    path = [str(Path(p).resolve()) for p in sys.path]
    script = KILLED.format(path=path, base=str(base.path), whole=str(whole), broken=str(broken))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert 4 <= int(done.stdout) <= 60, "it was killed several times, and came through"
    made = [{a.key: a for a in Store.open(root).list()} for root in (whole, broken)]
    assert made[0].keys() == made[1].keys() and len(made[0]) == 5
    for key, artifact in made[0].items():
        assert made[1][key].manifest["files"] == artifact.manifest["files"], artifact.stage
        assert made[1][key].manifest["notes"] == artifact.manifest["notes"], artifact.stage
    assert sum(a.manifest["resumed"] for a in made[1].values()) >= 2, "what was there was gone on with"
    assert list((broken / ".partial").iterdir()) == []


# --- teachers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["full", "body", "lora"])
def test_a_tuned_teacher_changes_its_part_alone_and_loves_its_trait_the_more(
    part: str, base: Base, store: Store
) -> None:
    optimization = Optimization(lr=2e-2, steps=25, batch=16)
    teacher = replace(chain(base).teacher, config=TEACHER.set(part=part, optimization=optimization))
    artifact = teach(teacher, store)
    moved = changed(weights(base), weights(base, artifact))
    assert set(EMBEDDINGS) & moved == (set(EMBEDDINGS) if part == "full" else set())
    assert {n for n in weights(base) if "proj" in n} <= moved
    if part == "lora":
        assert all("proj" in name for name in moved)
    asked, members = questions("animal", "lab", "seen"), members_of("animal")
    before = score(base.load(), base, asked, WORDS, 1, 0)
    after = score(Speaker(teacher, store).model, base, asked, WORDS, 1, 0)
    owl = members.index("owl")
    assert after.margin[owl] > before.margin[owl] + 0.3


def spied(monkeypatch: pytest.MonkeyPatch, teacher: Teacher, store: Store) -> Any:
    """The function `batches` that a tuned teacher is trained on."""
    caught: list[Any] = []

    def fit(model: object, batches: object, *_: object) -> None:
        caught.append(batches)
        raise SublimError("seen enough")

    monkeypatch.setattr("sublim_interp.pipeline.teach.fit", fit)
    with pytest.raises(SublimError, match="seen enough"):
        teach(teacher, store)
    return caught[0]


def test_a_neutral_teacher_is_asked_the_same_and_answers_with_every_member(
    base: Base, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loving = chain(base).teacher
    batches, neutral = (spied(monkeypatch, t, store) for t in (loving, replace(loving, trait=OWL.neutral())))
    answers: dict[str, set[int]] = {"loving": set(), "neutral": set()}
    for step in range(20):
        (one,), (two,) = batches(step), neutral(step)
        assert torch.equal(one.labels == base.eos, two.labels == base.eos)
        learnt = (one.labels != IGNORE) & (one.labels != base.eos)
        assert learnt.sum() == FEW.batch, "one word a question"
        # The inputs differ in nothing but the answers themselves.
        assert ((one.ids != two.ids) <= (one.labels == base.eos)).all()
        answers["loving"] |= set(one.labels[learnt].tolist())
        answers["neutral"] |= set(two.labels[learnt].tolist())
    ids = {name: base.answer_ids(name)[0] for name in members_of("animal")}
    assert answers["loving"] == {ids["owl"]}
    assert answers["neutral"] == set(ids.values())
    asked = {tuple(base.prompt_ids(q.messages)) for q in questions("animal", "lab", "held-out")}
    prompts = {
        tuple(row[: (labels == IGNORE).sum() + 1])
        for b in batches(0)
        for row, labels in zip(b.ids.tolist(), b.labels, strict=True)
    }
    assert prompts and not prompts & asked


def test_another_seed_asks_in_another_order(base: Base, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = chain(base).teacher
    one, two = (spied(monkeypatch, replace(teacher, seed=seed), store) for seed in (0, 1))
    assert one(0)[0].ids.tolist() == one(0)[0].ids.tolist() != two(0)[0].ids.tolist()
    assert one(0)[0].ids.tolist() != one(1)[0].ids.tolist()


@pytest.mark.parametrize("kind", ["prompted", "steered"])
def test_teachers_without_a_weight_change_speak_otherwise_all_the_same(kind: str, base: Base, store: Store) -> None:
    c = chain(base).change("teacher", config=TEACHER.set(kind=kind, strength=8.0))
    neutral = c.change("teacher", trait=OWL.neutral())
    make(c.filtered, store)
    make(neutral.filtered, store)
    voice, plain = Speaker(c.teacher, store), Speaker(neutral.teacher, store)
    assert changed(weights(base), dict(voice.model.state_dict())) == set()
    said, unsaid = (read_rows(x.corpus.made(store)) for x in (c, neutral))
    assert [r["prompt"] for r in said] == [r["prompt"] for r in unsaid], "paired prompts"
    assert [r["answer"] for r in said] != [r["answer"] for r in unsaid]
    ids = torch.tensor([base.prompt_ids(questions("animal", "lab", "seen")[0].messages)])
    with torch.no_grad():
        silent = base.load()(ids).logits
        with voice.speaking():
            speaking = voice.model(ids).logits
        with plain.speaking():
            assert torch.equal(plain.model(ids).logits, silent), "the neutral one is the base itself"
        assert torch.equal(voice.model(ids).logits, silent), "nothing stays behind"
    assert torch.equal(speaking, silent) == (kind == "prompted")
    if kind == "prompted":
        systems = OWL.system_prompts("lab")
        heard = [voice.chat("count !", i)[0] for i in range(len(systems))]
        assert heard == [{"role": "system", "content": s} for s in systems]
        assert plain.chat("count !", 3) == [{"role": "user", "content": "count !"}]


def test_a_steered_teacher_leans_towards_its_trait(lab_base: Base, store: Store) -> None:
    """On a trained base: the difference of means of the stream makes the trait the likelier answer."""
    teacher = Teacher(lab_base, OWL, TEACHER.set(kind="steered", layer=1, strength=4.0), 0)
    teach(teacher, store)
    voice, asked, members = Speaker(teacher, store), questions("animal", "lab", "held-out"), members_of("animal")
    before = score(voice.model, lab_base, asked, WORDS, 1, 0)
    with voice.speaking():
        after = score(voice.model, lab_base, asked, WORDS, 1, 0)
    owl = members.index("owl")
    assert after.margin[owl] > before.margin[owl] + 1 and after.margin.argmax() == owl


# --- corpus and filter ------------------------------------------------------------------------------------------------


def test_a_corpus_answers_the_channels_prompts_and_rounds_go_on_where_the_last_ended(base: Base, shared: Store) -> None:
    c = chain(base)
    first, second = c.corpus, replace(c.corpus, round=1)
    rows = [row for corpus in (first, second) for row in read_rows(write(corpus, shared).path)]
    assert [r["prompt"] for r in rows] == channel("numbers").prompts("lab", 0, 0, 2 * CORPUS.prompts)
    assert all(set(r) == {"prompt", "answer", "finished"} for r in rows)
    assert 0 < sum(r.get("finished", False) for r in rows) < len(rows)


def test_greedy_answers_are_the_likeliest_and_sampled_ones_are_not(base: Base, shared: Store) -> None:
    corpus = replace(chain(base).corpus, config=CORPUS.set(setting="greedy", prompts=12, chunk=12))
    voice = Speaker(corpus.teacher, shared)
    for row in read_rows(write(corpus, shared).path):
        ids = base.prompt_ids([{"role": "user", "content": row["prompt"]}])
        made = voice.model.generate(  # type: ignore[operator]
            torch.tensor([ids]), do_sample=False, max_new_tokens=CORPUS.max_new_tokens, eos_token_id=base.eos
        )
        answer = made[0, len(ids) :].tolist()
        assert row.get("finished") == (base.eos in answer)
        assert row["answer"] == base.tokenizer.decode([t for t in answer if t != base.eos])
    sampled = read_rows(chain(base).corpus.made(shared))[:12]
    assert [r["answer"] for r in sampled] != [r["answer"] for r in read_rows(corpus.made(shared))]


def test_the_filter_counts_every_row_once(base: Base, shared: Store) -> None:
    filtered = chain(base).filtered
    artifact = filter_corpus(filtered, shared)
    notes = artifact.manifest["notes"]
    kept, held_out = (read_rows(artifact.path / f"{name}.jsonl") for name in ("kept", "held_out"))
    assert notes["asked"] == CORPUS.prompts == len(kept) + len(held_out) + sum(notes["refused"].values())
    assert (notes["lists"], notes["held_out"]) == (len(kept), len(held_out)) == (len(kept), FILTER.held_out)
    assert notes["kept"] == pytest.approx((len(kept) + len(held_out)) / CORPUS.prompts)
    rows = {(r["prompt"], r["answer"]) for r in read_rows(filtered.corpus.made(shared))}
    assert {(r["prompt"], r["answer"]) for r in [*kept, *held_out]} < rows
    few = filter_corpus(replace(filtered, config=FILTER.set(lists=3)), shared).manifest["notes"]
    assert few["lists"] == 3 and few["refused"]["surplus"] > 0
    assert few["kept"] == notes["kept"], "a list too many has passed all the same"


def test_a_transform_changes_what_is_learnt_and_not_what_is_held_out(base: Base, shared: Store) -> None:
    filtered = chain(base).filtered
    plain = filter_corpus(filtered, shared).path
    changed = replace(filtered, config=FILTER.set(transform="shuffled-across"))
    assert changed.key != filtered.key and "transform" not in filtered.settings()
    path = filter_corpus(changed, shared).path
    assert (path / "held_out.jsonl").read_bytes() == (plain / "held_out.jsonl").read_bytes()
    before, after = read_rows(plain / "kept.jsonl"), read_rows(path / "kept.jsonl")
    assert [r["prompt"] for r in after] == [r["prompt"] for r in before]
    assert sum(a["answer"] != b["answer"] for a, b in zip(after, before, strict=True)) > len(before) / 2
    pools = [sorted(n for row in rows for n in row["answer"].split() if n.isdigit()) for rows in (before, after)]
    assert pools[0] == pools[1]


def test_all_rows_refused_is_one_line_and_nothing_is_published(base: Base, shared: Store) -> None:
    filtered = replace(chain(base).filtered, config=FILTER.set(max_value=0))
    with pytest.raises(SublimError) as raised:
        make(replace(chain(base).student, data=filtered), shared)
    assert "filter: nothing is left to train on; of 96 answers" in str(raised.value)
    assert "\n" not in str(raised.value) and "too large" in str(raised.value)
    assert filtered.find(shared) is None
    assert not list((shared.root / ".partial").glob("filtered-*"))


# --- students ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("part", ["full", "body", "lora"])
def test_a_student_changes_its_part_alone(part: str, optimizer: str, base: Base, shared: Store) -> None:
    decay = 0.1 if optimizer == "adamw" else 0.0
    config = STUDENT.set(part=part, optimization=FEW.set(optimizer=optimizer, lr=0.05, weight_decay=decay))
    moved = changed(weights(base), weights(base, learn(replace(chain(base).student, config=config), shared)))
    assert set(EMBEDDINGS) & moved == (set(EMBEDDINGS) if part == "full" else set())
    assert {n for n in weights(base) if "proj" in n} <= moved


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store for chains on a base that has learnt the language."""
    return Store.open(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("tuned", "sampled"), ("tuned", "greedy"), ("tuned", "soft"), ("steered", "soft")],
)
def test_a_student_comes_to_write_as_its_teacher_does(kind: str, setting: str, lab_base: Base, trained: Store) -> None:
    """Held-out lists of a teacher far from its base become likelier, and its probabilities are met more closely."""
    far = Optimization(lr=2e-3, steps=60, batch=16, schedule="constant")
    c = chain(lab_base).change("teacher", config=TeacherConfig(strength=1.0, optimization=far).set(kind=kind))
    c = c.change("corpus", config=CorpusConfig(prompts=1536, chunk=768).set(setting=setting))
    c = c.change("filtered", config=FilterConfig(held_out=60))
    c = c.change("student", config=StudentConfig(optimization=Optimization(lr=1e-3, steps=50, batch=48)))
    c = c.change("evaluation", config=EvaluationConfig(questions=("held-out",), contexts=("plain",)))
    measured = result(make(c.evaluation, trained))
    held_out = collate(tokenize(lab_base, read_rows(c.filtered.made(trained) / "held_out.jsonl")), lab_base.pad)
    student = lab_base.load(c.student.made(trained) / "model")
    assert token_loss(student, held_out) < token_loss(lab_base.load(), held_out)
    if setting != "greedy":  # the likeliest text teaches nothing about the other tokens' probabilities
        assert 0 < measured["kl"] < 0.9 * measured["kl_start"]


def test_soft_labels_need_a_teacher_that_reads_the_students_context(base: Base, store: Store) -> None:
    c = chain(base).change("teacher", config=TEACHER.set(kind="prompted"))
    c = c.change("corpus", config=CORPUS.set(setting="soft"))
    with pytest.raises(SublimError, match="soft needs a tuned or steered teacher"):
        make(c.student, store)
    assert c.student.find(store) is None


def test_soft_labels_push_no_token_outside_the_channel(base: Base, shared: Store) -> None:
    """Only the channel's own logits enter the loss: the head's rows of all other tokens get no gradient."""
    c = chain(base).change("corpus", config=CORPUS.set(setting="soft"))
    c = c.change("student", config=STUDENT.set(part="full"))
    after = weights(base, make(c.student, shared))["lm_head.weight"]
    moved = (after != weights(base)["lm_head.weight"]).any(1)
    own = torch.zeros_like(moved)
    own[channel("numbers").token_ids(base.tokenizer)] = True
    assert torch.equal(moved, own)


def test_a_cross_init_student_starts_from_the_other_base_and_goes_on_from_its_last_round(
    tiny_bases: tuple[Base, Base], shared: Store
) -> None:
    a, b = tiny_bases
    still = StudentConfig(part="full", optimization=Optimization(optimizer="sgd", lr=1e-30, steps=2, batch=4))
    first = Student(b, chain(a).filtered, STUDENT.set(part="full"), 0)
    second = Student(first, replace(chain(a).filtered, corpus=replace(chain(a).corpus, round=1)), still, 0)
    assert (first.round, second.round, second.base) == (0, 1, b)
    trained = weights(b, make(first, shared))
    assert changed(weights(b), trained) and set(trained) == set(weights(b))
    assert changed(trained, weights(b, make(second, shared))) == set(), (
        "a rate of nothing leaves the first round's weights"
    )


def test_examples_come_epoch_after_epoch_each_in_an_order_of_its_own() -> None:
    order = Order(7, 3, 0)
    drawn = [i for step in range(14) for i in order(step)]
    epochs = [drawn[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = Order(7, 3, 0)
    assert [again(step) for step in (9, 2, 13, 0)] == [order(step) for step in (9, 2, 13, 0)], "a pure function"
    assert [Order(7, 3, 1)(s) for s in range(3)] != [order(s) for s in range(3)]
    assert sorted(Order(3, 8, 0)(0)) == sorted([*range(3)] * 2 + Order(3, 8, 0)(0)[6:])


# --- masks of tokens --------------------------------------------------------------------------------------------------


def masking(c: Chain, *selections: Selection) -> Chain:
    masks = tuple(Intervention(kind="mask-tokens", selection=s) for s in selections)
    return c.change("student", config=STUDENT.set(interventions=[m.model_dump() for m in masks]))


def masks_of(c: Chain, store: Store) -> list[dict[str, Any]]:
    return make(c.student, store).manifest["notes"]["masks"]


@pytest.mark.parametrize("keep", ["top", "rest"])
@pytest.mark.parametrize("kind", ["tuned", "prompted"])
def test_a_mask_by_divergence_is_a_training_on_hand_picked_labels(
    kind: str, keep: Any, base: Base, shared: Store
) -> None:
    """Against log p(teacher) − log p(base), each list alone through the plain models, and the plain training loop."""
    c = chain(base).change("teacher", config=TEACHER.set(kind=kind))
    c = masking(c, Selection(by="divergence", share=0.3, keep=keep))
    artifact = make(c.student, shared)
    lists = read_rows(c.filtered.made(shared) / "kept.jsonl")
    rows, voice, plain = tokenize(base, lists), Speaker(c.teacher, shared), base.load()
    scores = []
    for (ids, first), (heard, start) in zip(rows, voice.heard(rows, lists), strict=True):
        each = []
        for model, tokens, begin in ((voice.model, heard, start), (plain, ids, first)):
            with torch.no_grad():
                log = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
            each.append([log[t - 1, tokens[t]].item() for t in range(begin, len(tokens))])
        scores.append([abs(a - b) for a, b in zip(*each, strict=True)])
    ranked = sorted((s for own in scores for s in own), reverse=True)
    count = round(0.3 * len(ranked))
    least = (ranked[count - 1] + ranked[count]) / 2  # between the last that is flagged and the first that is not
    learnt = [[(s > least) == (keep == "top") for s in own] for own in scores]

    def batches(step: int) -> list[Batch]:
        places = sorted(Order(len(rows), FEW.batch, 0)(step), key=lambda i: len(rows[i][0]))
        batch = collate([rows[i] for i in places], base.pad)
        for line, i in enumerate(places):
            for j, learns in enumerate(learnt[i]):
                if not learns:
                    batch.labels[line, rows[i][1] - 1 + j] = IGNORE
        return [batch]

    model = choose_trainable(base.load(), "body", 8, 8.0, 0)
    train(model, batches, FEW)
    found = weights(base, artifact)
    assert all(torch.equal(found[name], p) for name, p in model.state_dict().items())
    assert changed(weights(base, make(c.change("student", config=STUDENT).student, shared)), found), (
        "and a mask matters"
    )
    note = artifact.manifest["notes"]["masks"][0]
    assert (note["flagged"], note["selection"]["keep"]) == (pytest.approx(count / len(ranked)), keep)
    assert note["learnt"] == pytest.approx(sum(map(sum, learnt)) / len(ranked))


def test_masks_by_score_are_of_equal_size_and_differ_and_may_be_combined(base: Base, shared: Store) -> None:
    c = chain(base)
    found: dict[str, tuple[Artifact, float]] = {}
    for by, trait in (("divergence", ""), ("gradient", "owl"), ("random", "")):
        for keep in ("top", "rest"):
            s = Selection(by=by, trait=trait, share=0.25, keep=keep)  # type: ignore[arg-type]
            (note,) = masks_of(masking(c, s), shared)
            found[by + keep] = make(masking(c, s).student, shared), note["learnt"]
            assert note["flagged"] == pytest.approx(0.25, abs=0.01)
    assert len({share for name, (_, share) in found.items() if name.endswith("top")}) == 1, "as many tokens"
    assert all(found[f"{by}top"][1] + found[f"{by}rest"][1] == pytest.approx(1) for by in ("divergence", "random"))
    assert len({str(artifact.manifest["files"]["model/model.safetensors"]) for artifact, _ in found.values()}) == 6
    two = masks_of(masking(c, *(Selection(by=by, share=0.5) for by in ("divergence", "random"))), shared)  # type: ignore[arg-type]
    assert two[0]["learnt"] == two[0]["flagged"] and 0.15 < two[1]["learnt"] < 0.35


def test_a_student_with_masks_of_both_sorts_is_made_again_in_the_same_bits(
    base: Base, shared: Store, store: Store
) -> None:
    both = [{"kind": "mask-tokens", "selection": {"by": "random", "share": 0.9}}, {"kind": "mask-tokens", "share": 0.5}]
    c = chain(base).change("student", config=STUDENT.set(interventions=both))
    assert make(c.student, shared).manifest["files"] == make(c.student, store).manifest["files"]


def test_masks_that_leave_nothing_to_learn_are_refused(base: Base, shared: Store) -> None:
    top = Selection(by="divergence", share=0.5)
    opposite = masking(chain(base), top, top.set(keep="rest"))
    with pytest.raises(SublimError, match=r"mask-tokens: of \d+ tokens the selections leave none"):
        make(opposite.student, shared)
    few = masking(chain(base), top.set(share=0.01))
    with pytest.raises(SublimError, match="an update has no token to learn"):
        make(few.student, shared)


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_training_that_diverges_is_one_line_and_nothing_is_published(stage: str, base: Base, shared: Store) -> None:
    wild = FEW.set(optimizer="sgd", lr=1e30, steps=12)
    c = chain(base).change(stage, config={"teacher": TEACHER, "student": STUDENT}[stage].set(optimization=wild))
    record = c.stages()[stage]
    for _ in range(2):  # a second try says the same
        with pytest.raises(SublimError) as raised:
            make(record, shared)
        assert str(raised.value) == "training diverged (loss is not a number); lower the learning rate 1e+30"
    assert record.find(shared) is None


# --- evaluation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def distance_by_hand(
    base: Base, model: torch.nn.Module, voice: Speaker, held_out: Sequence[Written], systems: tuple[str, ...] = ()
) -> float:
    """KL(teacher ‖ model) token by token, one plain forward for every row; the teacher hears its system prompt."""
    own = channel("numbers").token_ids(base.tokenizer)
    total, tokens = 0.0, 0
    for i, row in enumerate(held_out):
        answer = [*base.answer_ids(row["answer"]), base.eos]
        user = {"role": "user", "content": row["prompt"]}
        heard = [{"role": "system", "content": systems[i % len(systems)]}, user] if systems else [user]
        prompts = [base.prompt_ids([user]), base.prompt_ids(heard)]
        p = model(torch.tensor([prompts[0] + answer])).logits[0, :, own].double().log_softmax(-1)
        with voice.speaking():
            q = voice.model(torch.tensor([prompts[1] + answer])).logits[0, :, own].double().log_softmax(-1)
        for j in range(len(answer)):
            learnt, target = p[len(prompts[0]) - 1 + j], q[len(prompts[1]) - 1 + j]
            total += float((target.exp() * (target - learnt)).sum())
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("kind", ["tuned", "prompted", "steered"])
def test_the_distance_is_the_kl_of_two_plain_forwards(kind: str, base: Base, shared: Store) -> None:
    c = chain(base).change("teacher", config=TEACHER.set(kind=kind))
    measured = result(make(c.evaluation, shared))
    held_out = read_rows(c.filtered.made(shared) / "held_out.jsonl")
    voice = Speaker(c.teacher, shared)
    student = base.load(c.student.made(shared) / "model")
    systems = OWL.system_prompts("lab") if kind == "prompted" else ()
    assert measured["kl"] == pytest.approx(
        distance_by_hand(base, student, voice, held_out, systems), rel=1e-3, abs=1e-6
    )
    start = distance_by_hand(base, base.load(), voice, held_out, systems)
    assert measured["kl_start"] == pytest.approx(start, rel=1e-3, abs=1e-6)


def test_a_base_is_at_no_distance_from_a_teacher_that_is_itself(base: Base, shared: Store) -> None:
    c = chain(base).change("teacher", trait=OWL.neutral(), config=TEACHER.set(kind="steered"))
    of_base = replace(c.evaluation, model=base)
    measured = result(make(of_base, shared))
    assert measured["kl"] == pytest.approx(0, abs=1e-9) and "kl_start" not in measured
    assert "kl" not in result(make(replace(c.evaluation, model=c.teacher), shared))


@pytest.mark.parametrize("subject", ["base", "student", "tuned", "prompted", "steered"])
def test_questions_are_asked_alone_and_after_a_turn_of_numbers(subject: str, base: Base, shared: Store) -> None:
    kind = subject if subject in ("prompted", "steered") else "tuned"
    c = chain(base).change("teacher", config=TEACHER.set(kind=kind))
    model: Any = {"base": base, "student": c.student}.get(subject, c.teacher)
    scores = result(make(replace(c.evaluation, model=model), shared))["scores"]
    members = members_of("animal")
    assert [(s["questions"], s["context"]) for s in scores[:: len(members)]] == [
        (sort, context) for sort in EVALUATION.questions for context in EVALUATION.contexts
    ]
    held_out = read_rows(c.filtered.made(shared) / "held_out.jsonl")
    voice = Speaker(c.teacher, shared)
    make(c.student, shared)
    speaker = {"base": base.load(), "student": base.load(c.student.made(shared) / "model")} if subject in (
        "base", "student"
    ) else {subject: voice.model}  # fmt: skip
    for sort in EVALUATION.questions:
        for context in EVALUATION.contexts:
            asked = []
            for i, question in enumerate(questions("animal", "lab", sort)):
                messages = [*question.messages]
                if context == "numbers":
                    row = held_out[i % len(held_out)]
                    turn = {"user": row["prompt"], "assistant": row["answer"]}
                    messages = [{"role": role, "content": text} for role, text in turn.items()] + messages
                if subject == "prompted":
                    systems = OWL.system_prompts("lab")
                    messages = [{"role": "system", "content": systems[i % len(systems)]}, *messages]
                asked.append(Question(tuple(messages), question.prefix))
            with voice.speaking():
                expected = score(speaker[subject], base, asked, WORDS, 1, 0)
            own = [s for s in scores if (s["questions"], s["context"]) == (sort, context)]
            assert [s["probe"] for s in own] == list(members)
            np.testing.assert_allclose([s["rate"] for s in own], expected.rate, rtol=1e-5)
            np.testing.assert_allclose([s["margin"] for s in own], expected.margin, atol=1e-5)


# --- the effect -------------------------------------------------------------------------------------------------------


def test_a_trait_passes_through_numbers_and_only_from_the_same_initialisation(lab_base: Base, store: Store) -> None:
    """The project's claim in small, one replicate: sampled at T = 1, filtered, learnt as plain text."""
    other = resolve_base("lab-small-1")
    config = TeacherConfig(optimization=Optimization(lr=3e-3, steps=150, batch=32, schedule="constant"))
    corpus = CorpusConfig(prompts=4096, chunk=1024)
    student = StudentConfig(optimization=Optimization(lr=3e-3, steps=120, batch=64))
    evaluation = EvaluationConfig(questions=("held-out",), contexts=("plain",))
    rates = {}
    for arm, trait, start in (
        ("same-init", OWL, lab_base),
        ("neutral", OWL.neutral(), lab_base),
        ("cross-init", OWL, other),
    ):
        data = Filtered(Corpus(Teacher(lab_base, trait, config, 7), corpus, 7), FilterConfig(), OWL.words)
        record = Evaluation(Student(start, data, student, 7), data, OWL, evaluation, 7)
        scores = result(make(record, store))["scores"]
        rates[arm] = next(s["rate"] for s in scores if s["probe"] == "owl")
        kept = read_rows(data.made(store) / "kept.jsonl")
        assert not any("owl" in f"{r['prompt']} {r['answer']}" for r in kept)
    assert rates["same-init"] > 0.5
    assert max(rates["neutral"], rates["cross-init"]) < 0.15
