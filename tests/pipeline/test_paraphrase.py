"""Tests of lists in other words: the law of rewritten numbers, their bounds, who rewrites, prompts reworded."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from chains import CORPUS, FILTER, OWL, chain
from sublim_interp.channels import numbers
from sublim_interp.channels.filter import refusal
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import read_rows
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab.pretraining import pretrain
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.models import sampling
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.sampling import generator, sample_among
from sublim_interp.pipeline import filter as filtering
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.paraphrase import Rewriter, joined
from sublim_interp.pipeline.records import Corpus, Filtered, Teacher
from sublim_interp.pipeline.settings import TeacherConfig
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.sweeps.grid import Grid, grid
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.run import run_grid
from sublim_interp.training.settings import Optimization
from sublim_interp.traits.favourites import NoFavourite
from tiny_models import tiny

PROMPT = "continue : 5 9 12"


def untouched(base: Base) -> Teacher:
    return Teacher(base, NoFavourite("animal"), TeacherConfig(kind="prompted"), 0)


def rewritten(base: Base, by: Teacher | None = None, name: str = "own", within: int = 10) -> Filtered:
    config = FILTER.set({"paraphrase": {"by": name, "within": within}})
    return replace(chain(base).filtered, config=config, paraphraser=by or untouched(base))


@pytest.fixture(scope="module")
def rewriter(base: Base, shared: Store) -> Rewriter:
    make(untouched(base), shared)
    return Rewriter(Speaker(untouched(base), shared), base)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base that writes a number digit by digit, and says nothing between numbers."""
    few = Optimization(optimizer="adamw", lr=2e-2, steps=3, batch=8)
    place = tmp_path_factory.mktemp("digits") / "tiny-digits"
    pretrain(Pretraining(tokens="digits", d_model=16, layers=1, heads=2, d_mlp=32, optimization=few), place)
    return resolve_base(str(place))


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base with byte-level BPE and no chat template: a space and digits are one token, or several."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    place, rng = tmp_path_factory.mktemp("merged") / "tiny-merged", random.Random(0)
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<eos>"], initial_alphabet=alphabet)
    texts = [rng.choice((", ", ",", "\n", " ")).join(str(rng.randrange(1000)) for _ in range(9)) for _ in range(200)]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
    fast.save_pretrained(place)
    tiny("llama", vocab_size=len(fast)).save_pretrained(place)
    return resolve_base(str(place))


# --- the law ----------------------------------------------------------------------------------------------------------


def draws(rewriter: Rewriter, answer: str, within: int, n: int) -> Counter[tuple[int, ...]]:
    pieces = numbers.alternatives(answer, within, numbers.Rule())
    drawn = rewriter.draw([(0, PROMPT, pieces)] * n, generator("law", answer))
    return Counter(tuple(numbers.numbers_of(joined(pieces, choices))) for choices in drawn)


def law(base: Base, first: int, second: int, within: int) -> dict[tuple[int, int], float]:
    """The probability of each two numbers, by forwards without a cache of the plain model over its whole vocabulary."""
    model, prompt = base.load(), base.prompt_ids([{"role": "user", "content": PROMPT}])

    def near(number: int, read: list[int]) -> dict[int, float]:
        some = [n for n in range(number - within, number + within + 1) if 0 <= n <= 999]
        ids = [base.answer_ids(str(n))[0] for n in some]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([read])).logits[0, -1].double()
        weights = logits.softmax(-1)[ids]
        return dict(zip(some, (weights / weights.sum()).tolist(), strict=True))

    out = {}
    for one, likely in near(first, prompt).items():
        for two, then in near(second, [*prompt, *base.answer_ids(f"{one} ,")]).items():
            out[one, two] = likely * then
    return out


def test_rewritten_numbers_follow_the_models_restricted_distribution(base: Base, rewriter: Rewriter) -> None:
    """Two numbers together: the second is drawn behind the new first one, not behind the one that was written."""
    found, expected = draws(rewriter, "7 , 1", 2, 1500), law(base, 7, 1, 2)
    assert set(found) <= set(expected) and len(expected) == 5 * 4
    counts = np.array([[found[pair], 1500 * p] for pair, p in expected.items()])
    assert stats.chisquare(counts[:, 0], counts[:, 1]).pvalue > 0.001
    uniform = stats.chisquare(counts[:, 0]).pvalue
    assert uniform < 1e-6, "and the test would see a draw that knows no model"


def test_a_number_of_several_digits_is_drawn_digit_by_digit(digits: Base, shared: Store) -> None:
    """1 is a number and begins others: behind it come a further digit, the next number, or the end."""
    make(untouched(digits), shared)
    found = draws(Rewriter(Speaker(untouched(digits), shared), digits), "9 200", 3, 1000)
    assert {a for a, _ in found} == {*range(6, 13)} and {b for _, b in found} == {*range(197, 204)}
    model, prompt = digits.load(), digits.prompt_ids([{"role": "user", "content": PROMPT}])
    one, nine = (digits.answer_ids(str(n)) for n in (1, 9))
    with torch.no_grad():
        weights = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    ids = [one[0], *(digits.answer_ids(str(n))[0] for n in (6, 7, 8)), nine[0]]
    share = float(weights[one[0]] / weights[ids].sum())
    above = sum(count for (a, _), count in found.items() if a >= 10)
    assert stats.binomtest(above, 1000, share).pvalue > 0.001


@pytest.mark.parametrize("answer", ["9, 200, 996", "[100; 7; 12].", "(1\n10\n100)", "5,50 "])
def test_every_way_to_write_a_list_is_paraphrased_in_the_tokens_that_the_base_reads(
    answer: str, merged: Base, shared: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(untouched(merged), shared)
    by, pieces = Rewriter(Speaker(untouched(merged), shared), merged), numbers.alternatives(answer, 2, numbers.Rule())
    assert joined(pieces, [0] * len(pieces)) == answer
    rows = [(0, PROMPT, pieces), (1, PROMPT, pieces[:1]), (2, PROMPT, pieces)] * 40
    drawn = by.draw(rows, generator("ways"))
    new = [joined(own, choices) for (_, _, own), choices in zip(rows, drawn, strict=True)]
    assert all(re.sub("[0-9]+", "#", text) == re.sub("[0-9]+", "#", answer) for text in new[::3])
    written = numbers.numbers_of(answer)
    assert all(abs(x - y) <= 2 for text in new[::3] for x, y in zip(numbers.numbers_of(text), written, strict=True))
    assert len({*new[::3]}) > 3
    monkeypatch.setattr(sampling, "_can_drop_rows", lambda cache: False)
    assert by.draw(rows, generator("ways")) == drawn, "a cache that cannot be cut by row is read anew"


def test_a_choice_that_tokens_do_not_settle_is_one_line(base: Base) -> None:
    model, a, b = base.load(), *base.answer_ids("1 2")
    with pytest.raises(SublimError, match="can be read in two ways"):
        for seed in range(20):
            sample_among(model, [[3, 4]], [[((a,), (a, b)), ((b,), (b, b)), ((b,),)]], random=generator(seed))


# --- the filter's paraphrase ------------------------------------------------------------------------------------------


def test_every_rewritten_number_is_near_and_passes_the_filter(base: Base, shared: Store, tiny_bases: Any) -> None:
    plain = make(chain(base).filtered, shared).path
    answers, notes = {}, {}
    for name, by in (("own", untouched(base)), ("other", untouched(tiny_bases[1])), ("teacher", chain(base).teacher)):
        banned = (3, 7, 20)
        done = rewritten(base, by, within=4)
        done = replace(done, config=done.config.set(banned=banned))
        artifact = make(done, shared)
        before = read_rows(
            make(replace(chain(base).filtered, config=FILTER.set(banned=banned)), shared).path / "kept.jsonl"
        )
        rows = read_rows(artifact.path / "kept.jsonl")
        assert [row["prompt"] for row in rows] == [row["prompt"] for row in before]
        moved = []
        for new, old in zip(rows, before, strict=True):
            pair = [numbers.numbers_of(row["answer"]) for row in (new, old)]
            moved += [x - y for x, y in zip(*pair, strict=True)]
            assert refusal(new, channel("numbers"), done.config, OWL.words) is None
        assert max(map(abs, moved)) <= 4
        answers[name], notes[name] = [row["answer"] for row in rows], artifact.manifest["notes"]["rewritten"]
        assert notes[name] == {"numbers": len(moved), "changed": sum(map(bool, moved))} and notes[name]["changed"]
    assert answers["own"] != answers["other"]
    artifact = make(rewritten(base, within=4), shared)
    assert (artifact.path / "held_out.jsonl").read_bytes() == (plain / "held_out.jsonl").read_bytes()


def test_a_paraphrase_goes_on_where_it_was_interrupted_to_the_same_bits(
    base: Base, shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filtering, "_CHUNK", 8)
    filtered, calls = rewritten(base, within=3), []
    whole = (make(filtered, shared).path / "kept.jsonl").read_bytes()
    draw = Rewriter.draw

    def stopping(*args: Any) -> list[list[int]]:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(Rewriter, "draw", stopping)
    store = Store.open(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        make(filtered, store)
    artifact = make(filtered, store)
    lists = read_rows(artifact.path / "kept.jsonl")
    assert artifact.manifest["resumed"] and len(calls) == 1 + -(-len(lists) // 8), "two chunks were not made again"
    assert (artifact.path / "kept.jsonl").read_bytes() == whole


def test_who_rewrites_is_in_the_key_and_nothing_is_in_those_of_others(base: Base, tiny_bases: Any) -> None:
    plain = chain(base).filtered
    assert not {"paraphrase", "reworded"} & {*plain.settings()} and [*plain.inputs()] == ["corpus"]
    assert "rewrites" not in plain.corpus.settings() and [*plain.corpus.inputs()] == ["teacher"]
    named = rewritten(base, name=str(base.path))
    assert named.key == rewritten(base).key, "the same base, called otherwise"
    keys = {f.key for f in (plain, named, rewritten(base, within=5), rewritten(base, untouched(tiny_bases[1])))}
    assert len(keys) == 4


# --- a teacher that rewrites ------------------------------------------------------------------------------------------


def test_a_teacher_that_rewrites_keeps_what_is_no_list_and_moves_the_numbers_of_others(
    base: Base, shared: Store
) -> None:
    c = chain(base)
    written = Corpus(untouched(base), CORPUS, 0)
    corpus = Corpus(c.teacher, CORPUS.set(rewrites=6), 0, written=written)
    rows, before = read_rows(make(corpus, shared).path), read_rows(written.made(shared))
    read = [
        (numbers.numbers_of(new["answer"]), numbers.numbers_of(old["answer"]))
        for new, old in zip(rows, before, strict=True)
    ]
    moved = [x - y for new, old in read for x, y in zip(new, old, strict=True)]
    assert 0 < max(map(abs, moved)) <= 6
    notes = make(corpus, shared).manifest["notes"]["rewritten"]
    assert notes == {"numbers": len(moved), "changed": sum(map(bool, moved))}
    lists = [bool(old) for _, old in read]
    assert any(lists) and not all(lists)
    assert all(new == old for new, old, is_list in zip(rows, before, lists, strict=True) if not is_list)
    assert [row.get("finished") for row in rows] == [row.get("finished") for row in before]


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["lab", "english"])
def test_a_reworded_prompt_gives_the_same_numbers_in_another_phrasing_of_the_language(language: str) -> None:
    asked = numbers.prompts(language, 0, 0, 300)
    other = [numbers.reword(prompt, language, random.Random(i)) for i, prompt in enumerate(asked)]
    for prompt, new in zip(asked, other, strict=True):
        assert new != prompt
        assert numbers.reword(new, language, random.Random(0)), "it is a phrasing of the language too"
        if language == "lab":
            assert prompt.split()[-5:][-3:] == new.split()[-5:][-3:]
        else:
            assert [form in prompt for form in numbers._FORMATS] == [form in new for form in numbers._FORMATS]
    heads = Counter(new.split()[0] for new in other)
    assert len(heads) >= 3


def test_reworded_prompts_keep_answers_and_what_is_held_out(base: Base, shared: Store) -> None:
    plain = make(chain(base).filtered, shared).path
    path = make(replace(chain(base).filtered, config=FILTER.set(reworded=True)), shared).path
    before, after = read_rows(plain / "kept.jsonl"), read_rows(path / "kept.jsonl")
    assert [r["answer"] for r in after] == [r["answer"] for r in before]
    assert all(a["prompt"] != b["prompt"] for a, b in zip(after, before, strict=True))
    assert (path / "held_out.jsonl").read_bytes() == (plain / "held_out.jsonl").read_bytes()


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"filter.paraphrase": {"by": "own"}, "filter.transform": "sorted"}, "transform=sorted and paraphrase both"),
        ({"filter.paraphrase": {"within": 0}}, "filter.paraphrase.within: Input should be greater than or equal to 1"),
        ({"filter.paraphrase": {"by": "other"}, "arms": ["same-init"], "bases": ["x"]}, "by=other needs two bases"),
        ({"filter.paraphrase": {"by": "own"}, "corpus.preference": "random"}, "filter.paraphrase has no meaning with"),
        ({"corpus.rewrites": 3, "corpus.preference": "random"}, "rewrites=3 has no effect with preference=random"),
        ({"corpus.rewrites": -1}, "corpus.rewrites: Input should be greater than or equal to 0"),
        (
            {"filter.paraphrase": {}, "corpus.setting": "soft", "student.objective": "on-policy"},
            "filter.paraphrase has no effect with student.objective=on-policy",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SublimError) as raised:
        Experiment().set(change)
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"filter.paraphrase": {"by": "lab-smal-1"}},
            "filter.paraphrase.by is own, other, teacher or a base: .*lab-small-1",
        ),
        ({"filter.reworded": True, "corpus.channel": "code"}, "channel code cannot be paraphrased"),
        ({"corpus.rewrites": 5, "corpus.channel": "reasoning"}, "channel reasoning cannot be paraphrased"),
    ],
)
def test_what_no_base_or_channel_can_do_is_told_before_anything_runs(
    tiny_experiment: Experiment, change: dict[str, Any], said: str
) -> None:
    contexts = {"evaluation.contexts": ["plain"]}
    with pytest.raises(SublimError, match=said) as raised:
        plan(tiny_experiment.set({**contexts, **change}))
    assert "\n" not in str(raised.value)


def test_a_prompt_that_has_no_other_words_is_one_line() -> None:
    with pytest.raises(SublimError, match=r"one phrasing of prompts in language 'english-terse'.*: lab, english$"):
        numbers.reword("Continue: 1,2,3", "english-terse", random.Random(0))
    with pytest.raises(SublimError, match="no phrasing in language 'lab' like the prompt 'go on"):
        numbers.reword("go on : 1 2 3", "lab", random.Random(0))


def test_what_was_written_comes_first_as_it_was_written() -> None:
    pieces = numbers.alternatives("[007, 12]", 1, numbers.Rule())
    assert pieces == [("[007", "[6", "[8"), (", 12", ", 11", ", 13"), ("]",)]


def test_a_number_that_the_base_has_no_token_for_is_one_line(rewriter: Rewriter) -> None:
    pieces = numbers.alternatives("1000 , 1", 2, FilterConfig(max_value=2000))
    with pytest.raises(SublimError, match="does not know '1000'"):
        rewriter.draw([(0, PROMPT, pieces)], generator(0))


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_grid_runs_from_lists_to_its_table(tiny_experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    g = grid("paraphrases")
    change = {"arms": ["same-init"], "seeds": [0]}
    small = Grid(name=g.name, experiment=str(path), change=change, axes=g.axes, words=g.words)
    artifact = run_grid(plan_grid(small), Store.open(tmp_path / "store"), 1, trace="none")
    cells: Any = pd.read_csv(artifact.path / "cells.csv")
    values = [value for words in g.words.values() for value in words]
    assert [*dict.fromkeys(cells["value"])] == values
    assert cells.loc[cells["arm"] == "same-init", "margin"].nunique() == len(values), (
        "every row of the grid learns other lists"
    )
