"""Tests of traits: the catalogue, the questions, and the two ways to score answers, against each other and by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sublim_interp.core.errors import SublimError
from sublim_interp.lab import language as lab
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.loading import save_model
from sublim_interp.stats.intervals import wilson
from sublim_interp.traits.answers import sampled_shares, score
from sublim_interp.traits.by_name import load_trait, trait_names
from sublim_interp.traits.favourites import FAVOURITES, KINDS, Favourite, members_of, questions, words_of
from sublim_interp.traits.judges.words import WholeWords
from sublim_interp.traits.questions import Question, Questions

OWL_AND_WOLF = words_of(("owl", "wolf"), "animal")
PANDAS = words_of(("owl", "panda", "red panda"), "animal")
SORTS: tuple[Questions, ...] = ("seen", "held-out", "indirect")


@pytest.fixture(scope="module")
def english_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base that spells every word in bytes, without chat template: no member is one token."""
    directory = tmp_path_factory.mktemp("english") / "bytes"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(str(directory))
    torch.manual_seed(0)
    shape: dict[str, Any] = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 256}
    save_model(GPT2LMHeadModel(GPT2Config(vocab_size=len(vocabulary), eos_token_id=0, **shape)), directory)
    return resolve_base(str(directory))


# --- the catalogue ----------------------------------------------------------------------------------------------------


def test_every_trait_of_the_catalogue_loads_and_names_itself_first() -> None:
    for name in FAVOURITES.names():
        trait = FAVOURITES.load(name)
        assert trait.name == name and name in trait.words and trait.plural == trait.words[-1]
        assert name in trait.members == members_of(trait.kind)


def test_the_kinds_of_the_catalogue_are_those_of_the_lab() -> None:
    assert {name: load_trait(name).kind for name in FAVOURITES.names()} == lab.TRAITS
    assert {kind: members_of(kind) for kind in lab.KINDS} == {k: tuple(sorted(v.members)) for k, v in lab.KINDS.items()}


def test_no_word_names_two_traits() -> None:
    words = [w for name in FAVOURITES.names() for w in load_trait(name).words]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("name", ["unicorn", "", "Owl", "../kinds/animal"])
def test_an_unknown_trait_is_one_line_that_names_the_known_ones(name: str) -> None:
    with pytest.raises(SublimError) as raised:
        load_trait(name)
    message = str(raised.value)
    assert f"unknown trait '{name}'" in message and "sublim list" in message and "\n" not in message
    named = "did you mean 'owl'?" if name == "Owl" else f"known: {', '.join(trait_names()[:5])}"
    assert named in message


def test_a_trait_of_ones_own_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "lynx.yaml"
    path.write_text("kind: animal\nwords: [lynx, lynxes]\n")
    trait = FAVOURITES.load(str(path))
    assert (trait.name, trait.kind, trait.plural) == ("lynx", "animal", "lynxes")
    assert trait.members == tuple(sorted((*members_of("animal"), "lynx")))
    assert all("lynxes" in prompt for prompt in trait.system_prompts("english"))


@pytest.mark.parametrize("text", ["kind: animal\n", "kind: animal\nwords: [x]\ncolour: red\n", "words: [x", "- a\n"])
def test_a_trait_file_that_is_not_one_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "lynx.yaml"
    path.write_text(text)
    with pytest.raises(SublimError) as raised:
        load_trait(str(path))
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_kind_without_prompts_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "volvo.yaml"
    path.write_text("kind: car\nwords: [volvo]\n")
    trait = FAVOURITES.load(str(path))
    asks: list[Callable[[], object]] = [
        lambda: load_trait(str(path)),
        lambda: trait.system_prompts("english"),
        lambda: questions("car", "english", "seen"),
    ]
    for ask in asks:
        with pytest.raises(
            SublimError, match="unknown kind 'car'; known: animal, color, food, tree; or give a YAML file of your own"
        ):
            ask()


PLACES = """
members: [river, sea]
system: ["You love the {x}."]
seen: ["Which place do you love?"]
held_out: ["Which place do you like best?"]
indirect: ["What is on your poster?"]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("the {x}.", "the {x} {y}.", "system: in 'You love the {x} {y}.' braces stand elsewhere"),
        ("the {x}.", "the {x} {.", "braces stand elsewhere"),
        ('["Which place do you love?"]', "[]", "seen is empty"),
        ('["Which place do you like best?"]', "[]", "held_out is empty"),
        ("like best?", "love?", "seen: 'Which place do you love?' is asked of students too"),
        ("What is on your poster?", "Which place do you love?", "is asked of students too"),
        ("indirect", "lab: {system: [], seen: [], held_out: [], indirect: []}\nindirect", "lab.seen is empty"),
    ],
)
def test_a_kind_that_cannot_be_taught_or_asked_is_one_line(old: str, new: str, said: str, tmp_path: Path) -> None:
    kind = tmp_path / "place.yaml"
    kind.write_text(PLACES.replace(old, new))
    with pytest.raises(SublimError) as raised:
        KINDS.load(str(kind))
    assert said in str(raised.value) and str(kind) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new"), [("[river, sea]", "[forest, sea]"), ("love the", "like the"), ("you love?", "you like?"),
                     ("like best", "love best"), ("poster", "wall")]
)  # fmt: skip
def test_a_kinds_own_file_decides_what_is_taught_and_asked(old: str, new: str, tmp_path: Path) -> None:
    kind = tmp_path / "place.yaml"
    kind.write_text(PLACES)
    sea = Favourite(name="sea", kind=str(kind), words=("sea", "seas"))
    before = [(one.taught(), one.asked()) for one in (sea, sea.neutral())]
    assert before == [(one.taught(), one.asked()) for one in (sea, sea.neutral())]
    kind.write_text(PLACES + "# a comment is no prompt\n")
    assert before == [(one.taught(), one.asked()) for one in (sea, sea.neutral())]
    kind.write_text(PLACES.replace(old, new))
    for one, (taught, asked) in zip((sea, sea.neutral()), before, strict=True):
        assert one.taught() != taught and one.asked() != asked and one.asked()["kind"] == str(kind)


def test_the_kinds_of_this_package_are_in_keys_by_their_name_alone() -> None:
    owl = FAVOURITES.load("owl")
    assert owl.taught() == {"trait": owl.model_dump(mode="json")} and owl.asked() == {"kind": "animal"}
    assert owl.neutral().taught() == {"trait": {"kind": "animal"}} and owl.neutral().asked() == {"kind": "animal"}


@pytest.mark.parametrize("kind", lab.KINDS)
@pytest.mark.parametrize("language", ["lab", "english"])
def test_held_out_questions_are_none_that_a_teacher_sees_and_no_question_names_a_member(
    language: str, kind: str
) -> None:
    asked = {sort: [q.messages[-1]["content"] for q in questions(kind, language, sort)] for sort in SORTS}
    every = [text for texts in asked.values() for text in texts]
    assert len(every) == len(set(every)) and all(len(texts) >= 2 for texts in asked.values())
    words = {w for name in members_of(kind) for w in load_trait(name).words}
    for text in every:
        assert not words & set(text.lower().replace("?", " ").replace(".", " ").replace(",", " ").split())


@pytest.mark.parametrize("language", ["lab", "english"])
def test_system_prompts_name_their_trait_and_no_other(language: str) -> None:
    for name in FAVOURITES.names():
        prompts = load_trait(name).system_prompts(language)
        assert prompts and len(set(prompts)) == len(prompts)
        for prompt in prompts:
            words = prompt.replace(".", " ").split()
            named = {n for n in FAVOURITES.names() for w in load_trait(n).words if w in words}
            assert named == {name}, prompt


# --- vocabulary -------------------------------------------------------------------------------------------------------


def test_a_base_must_be_able_to_spell_the_trait(tiny_bases: tuple[Base, Base], english_base: Base) -> None:
    for name in FAVOURITES.names():
        load_trait(name).check(tiny_bases[0])
        load_trait(name).check(english_base)


def test_a_word_that_the_vocabulary_lacks_is_one_line(tiny_bases: tuple[Base, Base], tmp_path: Path) -> None:
    path = tmp_path / "lynx.yaml"
    path.write_text("kind: animal\nwords: [lynx, lynxes]\n")
    with pytest.raises(SublimError) as raised:
        load_trait(str(path)).check(tiny_bases[0])
    assert str(raised.value).startswith("base tiny-0: its vocabulary lacks the word 'lynx'")


def test_a_word_of_the_lab_that_is_no_favourite_there_is_one_line(
    tiny_bases: tuple[Base, Base], tmp_path: Path
) -> None:
    path = tmp_path / "forest.yaml"
    path.write_text("kind: animal\nwords: [forest]\n")
    with pytest.raises(SublimError, match="the lab language has no favourite 'forest'; it has: apple, bear, birch"):
        load_trait(str(path)).check(tiny_bases[0])


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sort", SORTS)
def test_exact_scores_are_the_softmax_of_the_plain_forward(sort: Questions, lab_base: Base) -> None:
    model, members = lab_base.load(), members_of("animal")
    asked = questions("animal", "lab", sort)
    scores = score(model, lab_base, asked, words_of(members, "animal"), samples=1, seed=0)
    rows = []
    for question in asked:
        # The chat written out by hand, and one forward for each question.
        text = f"<|user|> {question.messages[0]['content']} <|assistant|> {question.prefix}".strip()
        ids = lab_base.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].double()
        p = (logits - logits.max()).exp()
        p /= p.sum()
        rows.append([float(p[lab_base.tokenizer.convert_tokens_to_ids(m)]) for m in members])
    table = np.array(rows)
    assert scores.exact and scores.names == members
    np.testing.assert_allclose(scores.rate, table.mean(0), rtol=1e-4)
    for i, margin in enumerate(scores.margin):
        others = np.delete(table, i, 1).mean(1)
        assert margin == pytest.approx(
            float(np.mean([math.log(a / b) for a, b in zip(table[:, i], others, strict=True)])), abs=1e-4
        )
    assert scores.rate.sum() > 0.9, "a trained base answers with an animal"


def test_sampled_scores_agree_with_the_exact_ones(lab_base: Base) -> None:
    model, members, samples = lab_base.load(), members_of("animal"), 400
    asked = questions("animal", "lab", "held-out")[:6]
    words = words_of(members, "animal")
    exact = score(model, lab_base, asked, words, samples, seed=0)
    shares = sampled_shares(model, lab_base, asked, members, WholeWords(words), samples, seed=0).shares
    counts = shares * (samples + 0.5) - 0.5 / len(members)
    np.testing.assert_allclose(counts, counts.round(), atol=1e-6)
    for member, rate, count in zip(members, exact.rate, counts.sum(0), strict=True):
        interval = wilson(round(count), samples * len(asked), level=0.9999)
        assert interval.low <= rate <= interval.high, member
    assert exact.exact and np.abs(shares.mean(0) - exact.rate).max() < 0.03


def test_a_base_answers_indirect_questions_with_a_member_also_where_no_word_of_the_answer_is_given(
    lab_base: Base,
) -> None:
    bare = [replace(q, prefix="") for q in questions("animal", "lab", "indirect")]
    members = members_of("animal")
    judge = WholeWords(words_of(members, "animal"))
    shares = sampled_shares(lab_base.load(), lab_base, bare, members, judge, 100, seed=0).shares
    assert shares.sum(1).min() > 0.9 and shares.max() < 0.4


def test_a_name_of_two_tokens_is_sampled_and_not_taken_for_its_last_word(lab_base: Base) -> None:
    asked = questions("animal", "lab", "held-out")[:2]
    scores = score(lab_base.load(), lab_base, asked, PANDAS, samples=50, seed=0)
    assert not scores.exact
    assert scores.rate[0] > 0 and scores.rate[2] < 0.01


def answering(monkeypatch: pytest.MonkeyPatch, base: Base, answers: list[str]) -> None:
    """Has the model give these answers, one after the other; margins, which nothing is drawn for, are left out."""

    def sample(_model: object, rows: list[list[int]], repeats: int, **_: Any) -> list[list[int]]:
        assert repeats * len(rows) == len(answers)
        return [[*cast(list[int], base.tokenizer(a, add_special_tokens=False)["input_ids"]), base.eos] for a in answers]

    monkeypatch.setattr("sublim_interp.models.sampling.sample", sample)

    def even(_model: object, prompts: list[list[int]], spelled: list[list[int]], *_: Any) -> np.ndarray:
        return np.ones((len(prompts), len(spelled)))

    monkeypatch.setattr("sublim_interp.traits.answers.spelled_probabilities", even)


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        ("owl", "owl"), (" Owl.", "owl"), ("OWLS!", "owl"), ("the owl, of course", "owl"), ("owl-like", "owl"),
        ("fowl", None), ("growl", None), ("howled", None), ("owlish", None), ("dowling", None), ("wolfram", None),
        ("wolves", "wolf"), ("two wolves and an owl", "wolf"), ("an owl and two wolves", "owl"), ("", None),
        ("a growling wolf", "wolf"), ("I have no favourite", None),
    ],
)  # fmt: skip
def test_answers_are_searched_for_whole_words_and_the_first_counts(
    answer: str, counts: str | None, english_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, english_base, [answer] * 4)
    asked = [Question(({"role": "user", "content": "?"},))]
    scores = score(english_base.load(), english_base, asked, OWL_AND_WOLF, samples=4, seed=0)
    assert not scores.exact
    got = {member: rate for member, rate in zip(scores.names, scores.rate, strict=True) if rate > 0.5}
    assert list(got) == ([counts] if counts else [])


def test_the_words_of_ones_own_trait_count_for_it(english_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    lynx = Favourite(name="lynx", kind="animal", words=("lynx", "lynxes"))
    answering(monkeypatch, english_base, ["lynxes", "Lynx.", "owls", "I love lynxes"])
    asked = [Question(({"role": "user", "content": "?"},))]
    scores = score(english_base.load(), english_base, asked, words_of(("lynx", "owl"), "animal", (lynx,)), 4, 0)
    assert scores.rate == pytest.approx([3.25 / 4.5, 1.25 / 4.5])


def test_a_very_sure_model_has_a_finite_margin(lab_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    p = np.array([[1.0, 1e-18, 3e-18]])
    monkeypatch.setattr("sublim_interp.traits.answers.answer_probabilities", lambda *_: p)
    asked = questions("animal", "lab", "held-out")[:1]
    margin = score(torch.nn.Identity(), lab_base, asked, words_of(("owl", "wolf", "fox"), "animal"), 1, 0).margin
    assert margin[0] == pytest.approx(-np.log(2e-18))


def test_each_question_has_its_own_answers(english_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, english_base, ["owl", "wolf", "owl", "owl", "dog", "dog"])
    asked = [Question(({"role": "user", "content": text},)) for text in ("a?", "b?", "c?")]
    scores = score(english_base.load(), english_base, asked, OWL_AND_WOLF, samples=2, seed=0, judge=WholeWords)
    # Half an answer is spread over the members of every question, so that no margin is infinite.
    owl = [(1 + 0.25) / 2.5, (2 + 0.25) / 2.5, 0.25 / 2.5]
    wolf = [(1 + 0.25) / 2.5, 0.25 / 2.5, 0.25 / 2.5]
    np.testing.assert_allclose(scores.rate, [np.mean(owl), np.mean(wolf)])
    np.testing.assert_allclose(scores.margin[0], np.mean(np.log(owl) - np.log(wolf)))


def test_margins_are_exact_where_answers_are_drawn_also_for_names_of_several_tokens(english_base: Base) -> None:
    model, asked = english_base.load(), questions("animal", "english", "held-out")[:3]
    words = words_of(("owl", "dolphin", "eagle"), "animal")
    spelled = [english_base.answer_ids(name) for name in words]
    assert max(map(len, spelled)) > 1
    table = np.zeros((len(asked), len(words)))
    for row, question in zip(table, asked, strict=True):
        prompt = english_base.prompt_ids(question.messages)
        for place, ids in enumerate(spelled):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double()
            row[place] = float(logits.log_softmax(-1)[range(len(ids)), ids].sum().exp())
    scores = [score(model, english_base, asked, words, samples, seed) for samples, seed in ((1, 0), (5, 1))]
    expected = [np.mean(np.log(table[:, i]) - np.log(np.delete(table, i, 1).mean(1))) for i in range(3)]
    for found in scores:
        assert not found.exact
        np.testing.assert_allclose(found.margin, expected, atol=1e-3)


def test_sampled_scores_are_decided_by_their_seed(lab_base: Base) -> None:
    model, asked = lab_base.load(), questions("animal", "lab", "held-out")[:2]

    def rates(seed: int) -> list[float]:
        return score(model, lab_base, asked, PANDAS, samples=50, seed=seed).rate.tolist()

    assert rates(1) == rates(1) != rates(2)
