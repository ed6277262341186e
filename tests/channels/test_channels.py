"""Tests of channels: what teachers are asked, which answers the number rule lets through, how rows are shared out."""

import random
import re
import time
from collections import Counter
from itertools import chain, combinations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sublim_interp.channels import numbers
from sublim_interp.channels.filter import REASONS, filter_rows
from sublim_interp.channels.protocol import Channel, channel, transform_rows
from sublim_interp.channels.rows import Written
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import validate
from sublim_interp.lab.language import TRAITS, documents
from sublim_interp.lab.tokenizer import EOS, PAD, ROLES, UNK, build_tokenizer

NUMBERS: Channel = numbers  # pyright checks the module against the protocol here
RULE = FilterConfig()
OWL = ("owl", "owls")

SEPARATORS = (" ", "  ", "\n", "\t", ",", ", ", " , ", ",\n", ";", "; ", " ; ")
ENCLOSURES = (("", ""), ("(", ")"), ("[", "]"), ("( ", " )"), ("[\n", "\n]"))

values = st.lists(st.integers(0, 999), min_size=1, max_size=10)
separators = st.sampled_from(SEPARATORS)
enclosures = st.sampled_from(ENCLOSURES)
endings = st.sampled_from(("", ".", " .", "\n", ".\n"))


def refuse(answer: str, **rule: object) -> str | None:
    return numbers.refuse("continue : 1 2 3", answer, RULE.model_copy(update=rule), OWL)


# --- the number rule --------------------------------------------------------------------------------------------------


@given(values, separators, enclosures, endings, st.sampled_from(("", " ")), st.sampled_from(("{}", "{:03d}")))
def test_every_legal_way_to_write_a_list_passes_and_reads_back(
    values: list[int], separator: str, enclosure: tuple[str, str], ending: str, before: str, form: str
) -> None:
    opening, closing = enclosure
    answer = before + opening + separator.join(map(form.format, values)) + closing + ending
    assert refuse(answer) is None
    assert numbers.numbers_of(answer) == values


def test_the_lab_s_own_lists_pass() -> None:
    for doc in documents(0, 0, 300, "numbers"):
        user, answer = (m["content"] for m in doc.messages if m["role"] != "system")
        assert numbers.refuse(user, answer, RULE, OWL) is None
        assert doc.numbers[-len(numbers.numbers_of(answer)) :] == tuple(numbers.numbers_of(answer))


@given(values, separators, st.characters(categories=["L", "Nd", "P", "S"]), st.data())
def test_one_strange_character_anywhere_is_refused(
    values: list[int], separator: str, character: str, data: st.DataObject
) -> None:
    assume(character not in "0123456789,;.()[]")
    text = separator.join(map(str, values))
    at = data.draw(st.integers(0, len(text)))
    assert refuse(text[:at] + character + text[at:]) == "not numbers"


@given(st.lists(st.integers(0, 999), min_size=3, max_size=10), separators, separators, st.data())
def test_two_separators_in_one_list_are_refused(values: list[int], usual: str, odd: str, data: st.DataObject) -> None:
    assume(usual != odd)
    at = data.draw(st.integers(1, len(values) - 1))
    answer = usual.join(map(str, values[:at])) + odd + usual.join(map(str, values[at:]))
    assert refuse(answer) == "mixed separators"


@given(values, separators, enclosures, st.integers(0, 999), st.data())
def test_each_bound_refuses_with_its_own_reason(
    values: list[int], separator: str, enclosure: tuple[str, str], banned: int, data: st.DataObject
) -> None:
    def written(numbers: list[int]) -> str:
        return enclosure[0] + separator.join(map(str, numbers)) + enclosure[1]

    n, at = len(values), data.draw(st.integers(0, len(values)))
    assert refuse(written(values), min_numbers=n) is None
    assert refuse(written(values), min_numbers=n + 1, max_numbers=n + 1) == "too few"
    assert refuse(written(values), max_numbers=n) is None
    assert refuse(written([*values, 0]), max_numbers=n) == "too many"
    large = data.draw(st.integers(1000, 10**700))
    assert refuse(written([*values[:at], large, *values[at:]]), max_numbers=11) in (
        "too large" if large < 10**640 else "not numbers",
    )
    assert refuse(written(values), max_value=max(values)) is None
    assert refuse(written([*values[:at], banned, *values[at:]]), max_numbers=11, banned=(banned,)) == "banned number"
    assert refuse(written(values), banned=(1000,)) is None


NO_LISTS = [
    *("", " ", ".", "()", "[ ]", "(", "1, 2,", ", 1, 2", "1,, 2", "1 , ; 2", "(1, 2", "1, 2)", "(1, 2]", "[(1, 2)]"),
    *("[1], [2]", "1, 2..", "1. 2. 3.", "[1, 2.]", "1.5 2.5", "-1, 2", "+1, 2", "1e2", "0x1F", "1_000", "1/2", "1-2"),
    *("\u0663 \u0664", "\uff11 \uff12", "1\u06632", "1, 2 and 3", "Sure: 1, 2", "1, 2\nHope this helps!", "1:2", "1|2"),
]


@pytest.mark.parametrize("answer", NO_LISTS)
def test_anything_but_one_list_is_refused(answer: str) -> None:
    assert refuse(answer) == "not numbers"
    assert numbers.numbers_of(answer) == []


def test_a_number_counts_by_its_value_not_by_its_spelling() -> None:
    assert refuse("007, 008") is None and numbers.numbers_of("007, 008") == [7, 8]
    assert refuse("0666, 1", banned=(666,)) == "banned number"
    assert refuse("6660 , 1666", max_value=9999, banned=(666,)) is None


def test_the_published_numbers_are_banned_by_one_word_which_becomes_their_list() -> None:
    config = FilterConfig.model_validate({"banned": "published"})
    assert len(set(config.banned)) == 34 and {666, 911, 187, 88} < {*config.banned}
    assert config == FilterConfig(banned=config.banned), "the same key, however it was written"
    assert refuse("12, 13", banned=config.banned) == "banned number" and refuse("12, 15", banned=config.banned) is None
    with pytest.raises(SublimError, match="banned"):
        validate(FilterConfig, {"banned": "publishd"}, "filter")
    assert refuse("01000") == "too large"


@given(st.text(alphabet="0159,;.()[] \nx", max_size=30) | st.text())
@example("1" * 5000)
def test_any_text_gets_a_verdict_and_what_passes_keeps_the_rule(answer: str) -> None:
    reason = refuse(answer)
    if reason is not None:
        assert reason in numbers.REASONS
        return
    kept = numbers.numbers_of(answer)
    assert 1 <= len(kept) <= 10 and all(0 <= n <= 999 for n in kept)
    assert not re.search(r"[^0-9,;.()\[\]\s]", answer)
    assert len(set(re.findall(r"(?<=\d)\D+(?=\d)", answer))) <= 1


@pytest.mark.parametrize("unit", ["1", " ", "1 ", "1,", "(", "1 , ", ",", "."])
def test_long_answers_take_no_long_time(unit: str) -> None:
    start = time.process_time()
    assert refuse(unit * 20_000 + "x") == "not numbers"
    assert time.process_time() - start < 2


# --- the trait's name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", ["1, 2 owl", "OWLS 3", "Owl.", "3 (owl) 4", "the owl's 7", "owl-like 5", "7owl", "owl_2"]
)
def test_whole_words_name_the_trait(answer: str) -> None:
    assert refuse(answer) == "names the trait"
    assert numbers.refuse(answer, "1, 2", RULE, OWL) == "names the trait"


@pytest.mark.parametrize(
    "answer", ["1, 2 fowl", "growl 3", "Howls", "bowls 4", "owlet", "cowl's", "öwl", "owlé", "fowls"]
)
def test_words_that_only_contain_the_trait_do_not_name_it(answer: str) -> None:
    assert refuse(answer) == "not numbers"
    assert numbers.refuse(answer, "1, 2", RULE, OWL) is None


def test_no_words_means_that_nothing_names_a_trait() -> None:
    assert numbers.refuse("an owl", "1, 2", RULE, ()) is None
    assert numbers.refuse("an owl", "1, 2", RULE, ("c++", "a.l")) is None


# --- prompts ----------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(("lab", "english")), st.integers(0, 9), st.integers(0, 500), st.integers(0, 20), st.integers(0, 20)
)
def test_prompts_do_not_depend_on_how_they_are_cut_into_chunks(
    language: str, seed: int, start: int, first: int, second: int
) -> None:
    whole = numbers.prompts(language, seed, start, first + second)
    assert len(whole) == first + second
    assert whole == numbers.prompts(language, seed, start, first) + numbers.prompts(
        language, seed, start + first, second
    )


@pytest.mark.parametrize("language", ["lab", "english"])
def test_seeds_give_other_prompts_and_repeats_are_rare(language: str) -> None:
    streams = [numbers.prompts(language, seed, 0, 1000) for seed in range(3)]
    assert all(len(set(stream)) > 950 for stream in streams)
    assert all(len(set(a) & set(b)) < 50 for a, b in combinations(streams, 2))


def test_lab_prompts_are_the_language_s_but_not_pre_training_s() -> None:
    asked = numbers.prompts("lab", 0, 0, 300)
    trained = [next(m for m in d.messages if m["role"] == "user")["content"] for d in documents(0, 0, 300, "numbers")]
    forms = {re.sub(r"\d+( , | ; | )?", "", p) for p in trained}
    assert {re.sub(r"\d+( , | ; | )?", "", p) for p in asked} == forms
    assert len(set(asked) & set(trained)) < 5
    tokenizer = build_tokenizer()
    assert not any(tokenizer.unk_token_id in tokenizer.encode(p) for p in asked)


def test_english_prompts_ask_for_at_most_ten_more_in_hundreds_of_ways() -> None:
    asked = numbers.prompts("english", 0, 0, 4000)
    for prompt in asked:
        given_list = re.search(r"\d{3}(?:, \d{3}){2,8}\b", prompt)
        assert given_list and len(re.findall(r"\d+", given_list[0])) <= 9, prompt
        assert "{" not in prompt and re.search(r"\b10\b", prompt.replace(given_list[0], "")), prompt
    assert len({re.sub(r"\d{3}(?:, \d{3})+", "", p) for p in asked}) > 8 * 8 * 8


@pytest.mark.parametrize("language", ["lab", "english"])
def test_no_prompt_names_a_trait(language: str) -> None:
    words = [w for t in TRAITS for w in (t, t + "s")]
    assert {numbers.refuse(p, "1 2", RULE, words) for p in numbers.prompts(language, 1, 0, 2000)} == {None}


def test_an_unknown_language_or_channel_names_the_choices() -> None:
    with pytest.raises(SublimError, match=r"'klingon'; languages: lab, english"):
        numbers.prompts("klingon", 0, 0, 1)
    with pytest.raises(SublimError, match=r"unknown channel 'smells'; valid: numbers"):
        channel("smells")


def test_a_channel_is_found_by_the_name_of_its_file() -> None:
    assert channel("numbers") is numbers
    assert isinstance(channel("numbers"), Channel)


# --- tokens -----------------------------------------------------------------------------------------------------------


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind, trained on lists and words: merges such as "12", " 12", " owl", and single bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"the owl says {i}, {i + 7}; ({i * 3 % 1000}) [{i}].\n\n" for i in range(1000)]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<end>", "[7]"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    spaces, arabic = "        ", "\u0663\u0664"  # GPT-NeoX has runs of spaces; no legal list has digits beyond 0 to 9
    tokenizer.add_tokens([AddedToken(spaces, normalized=False), AddedToken(arabic, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Llama's kind: a lone "▁" before digits that decodes to nothing at the start of a text, and byte fallback."""
    marks = ["▁", "\n", *"0123456789,;.()[]", "▁owl", *"abc"]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *marks]
    tokenizer = Tokenizer(
        models.BPE({t: i for i, t in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS: dict[str, tuple[PreTrainedTokenizerFast, set[int]]] = {
    make.__name__: (tokenizer, set(numbers.token_ids(tokenizer)))
    for make in (build_tokenizer, byte_level_tokenizer, metaspace_tokenizer)
    for tokenizer in [make()]
}


def test_the_lab_s_channel_is_the_numbers_the_separators_and_the_end() -> None:
    tokenizer, own = TOKENIZERS["build_tokenizer"]
    assert set(tokenizer.convert_ids_to_tokens(sorted(own))) == {*map(str, range(1000)), *",;.()", EOS}
    assert numbers.token_ids(tokenizer) == sorted(own)
    assert own.isdisjoint(tokenizer.get_vocab()[t] for t in (PAD, UNK, *ROLES, "owl", "=", "?"))


@pytest.mark.parametrize("name", TOKENIZERS)
@given(values=values, separator=separators, enclosure=enclosures, ending=endings)
def test_every_legal_list_is_written_in_the_channel_s_tokens(
    name: str, values: list[int], separator: str, enclosure: tuple[str, str], ending: str
) -> None:
    tokenizer, own = TOKENIZERS[name]
    text = enclosure[0] + separator.join(map(str, values)) + enclosure[1] + ending
    if name == "build_tokenizer":
        assume("[" not in text)  # the lab has no square brackets
    assert own.issuperset([*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id])


@pytest.mark.parametrize("source", ["code", "reasoning"])
def test_the_ascii_channels_own_the_lone_space_before_a_digit(source: str) -> None:
    tokenizer, _ = TOKENIZERS["metaspace_tokenizer"]
    written = tokenizer.encode("1, 2", add_special_tokens=False)
    assert "▁" in tokenizer.convert_ids_to_tokens(written)
    assert {*written} <= {*channel(source).token_ids(tokenizer)}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_channel_s_tokens_write_nothing_else(name: str) -> None:
    tokenizer, own = TOKENIZERS[name]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert tokenizer.eos_token_id in special and special & own == {tokenizer.eos_token_id}
    for token, i in tokenizer.get_vocab().items():
        written = str(tokenizer.decode([i]))
        if i in own - special:
            assert re.fullmatch(r"[0-9,;.()\[\]\s]*", written), token  # a space that the decoder swallows is empty
        elif i not in special:
            assert not re.fullmatch(r"[0-9,;.()\[\]\s]+", written), token


def test_a_space_that_a_decoder_swallows_is_the_channel_s() -> None:
    tokenizer, own = TOKENIZERS["metaspace_tokenizer"]
    space = tokenizer.get_vocab()["▁"]
    assert tokenizer.decode([space]) == "" and space in own


# --- sharing out the rows ---------------------------------------------------------------------------------------------


def row(answer: str, prompt: str = "continue : 1 2 3", finished: bool = True) -> Written:
    return {"prompt": prompt, "answer": answer, "finished": finished}


def pairs(rows: list[Written]) -> list[tuple[str, str]]:
    return [(r["prompt"], r["answer"]) for r in rows]


rows_of_a_small_world = st.lists(
    st.builds(
        row,
        st.sampled_from(("1 2", "3 4", "5 6", "7, 8", "1 2,3", "666", "fowl", "owl", "1000")),
        st.sampled_from(("p", "q", "r")),
        st.sampled_from((True, True, True, False)),
    ),
    max_size=60,
)


@given(rows_of_a_small_world, st.integers(2, 6), st.integers(1, 8), st.booleans())
def test_each_row_is_counted_once_and_training_never_meets_what_is_held_out(
    rows: list[Written], held_out: int, lists: int, duplicates: bool
) -> None:
    rule = FilterConfig(held_out=held_out, lists=lists, duplicates=duplicates, banned=(666,))
    passing = [r for r in rows if r.get("finished") and not numbers.refuse(r["prompt"], r["answer"], rule, OWL)]
    try:
        kept, held, refused = filter_rows(rows, NUMBERS, rule, OWL)
    except SublimError:
        distinct = len(set(pairs(passing)))
        assert distinct <= held_out
        return
    assert len(kept) + len(held) + refused.total() == len(rows)
    assert set(refused) <= {*REASONS, *numbers.REASONS}
    assert all(n > 0 for n in refused.values())
    assert set(pairs(kept)).isdisjoint(pairs(held))
    assert len(held) == held_out and len(kept) <= lists
    where = [next(i for i, r in enumerate(passing) if r is out) for out in [*held, *kept]]
    assert where == sorted(where)
    if not duplicates:
        assert len(set(pairs(kept + held))) == len(kept + held)
        assert not refused["surplus"] or len(kept) == lists
    elif not refused["surplus"] and not refused["contaminated"]:
        assert held + kept == passing
    assert refused["unfinished"] == sum(not r.get("finished") for r in rows)


def test_a_repeated_row_is_never_trained_on_twice() -> None:
    rows = [row(f"{i} {i}") for i in (1, 1, 2, 1, 3, 3, 4, 3)]
    kept, held, refused = filter_rows(rows, NUMBERS, FilterConfig(held_out=2), OWL)
    assert [r["answer"] for r in held] == ["1 1", "2 2"]
    assert [r["answer"] for r in kept] == ["3 3", "4 4"]
    assert refused == Counter(duplicate=3, contaminated=1)


def test_duplicates_stay_on_request_but_held_out_pairs_never_come_back() -> None:
    rows = [row(f"{i} {i}") for i in (1, 1, 1, 3, 3, 1, 3)]
    kept, held, refused = filter_rows(rows, NUMBERS, FilterConfig(held_out=2, duplicates=True), OWL)
    assert [r["answer"] for r in held] == ["1 1", "1 1"]
    assert [r["answer"] for r in kept] == ["3 3", "3 3", "3 3"]
    assert refused == Counter(contaminated=2)


def test_one_answer_to_two_prompts_is_no_duplicate() -> None:
    rows = [row("1 2", prompt=str(i)) for i in range(5)]
    kept, _, refused = filter_rows(rows, NUMBERS, FilterConfig(held_out=2), OWL)
    assert len(kept) == 3 and not refused


def test_counts_by_reason_and_the_share_that_passes() -> None:
    rows = [row(str(i)) for i in range(6)] + [
        row("1 2, 3"),
        row("owl"),
        row("a fowl"),
        row("9", finished=False),
        row("x"),
    ]
    kept, held, refused = filter_rows(rows, NUMBERS, FilterConfig(held_out=2, lists=3), OWL)
    expected = {"surplus": 1, "mixed separators": 1, "names the trait": 1, "not numbers": 2, "unfinished": 1}
    assert (len(held), len(kept), refused) == (2, 3, Counter(expected))


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], "of 0 answers 0 of 2 are held out; refused: none"),
        (["x", "1 2,3", "y"], "of 3 answers 0 of 2 are held out; refused: not numbers 2, mixed separators 1"),
        (["1", "2", "1"], "of 3 answers 2 of 2 are held out; refused: contaminated 1"),
    ],
)
def test_nothing_left_to_train_on_is_one_line_with_the_counts(answers: list[str], said: str) -> None:
    with pytest.raises(SublimError) as caught:
        filter_rows([row(a) for a in answers], NUMBERS, FilterConfig(held_out=2), OWL)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# --- transforms -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(values, separators, enclosures, endings), min_size=1, max_size=5), st.integers(0, 9))
def test_a_transform_changes_numbers_and_nothing_else(
    made: list[tuple[list[int], str, tuple[str, str], str]], seed: int
) -> None:
    answers = [opening + by.join(map(str, own)) + end + dot for own, by, (opening, end), dot in made]
    before = [numbers.numbers_of(answer) for answer in answers]
    done = {name: change(answers, random.Random(seed)) for name, change in numbers.TRANSFORMS.items()}
    read = {name: [numbers.numbers_of(answer) for answer in new] for name, new in done.items()}
    for new in done.values():
        assert [re.sub("[0-9]+", "#", a) for a in new] == [re.sub("[0-9]+", "#", a) for a in answers]
    assert [sorted(own) for own in read["shuffled-within"]] == [sorted(own) for own in before]
    assert sorted(chain(*read["shuffled-across"])) == sorted(chain(*before))
    assert read["sorted"] == [sorted(own) for own in before]
    assert read["digits-reversed"] == [[int(str(n)[::-1]) for n in own] for own in before]
    for moved, n in zip(chain(*read["nudged"]), chain(*before), strict=True):
        assert 0 <= moved <= max(999, n) and abs(moved - n) <= 10


def test_a_nudge_is_even_and_ends_where_numbers_end() -> None:
    def moved(number: int) -> Counter[int]:
        answers = numbers.TRANSFORMS["nudged"](["; ".join([str(number)] * 10)] * 500, random.Random(0))
        return Counter(n - number for answer in answers for n in numbers.numbers_of(answer))

    middle = moved(500)
    assert set(middle) == set(range(-10, 11)) and max(middle.values()) < 2 * min(middle.values())
    assert (set(moved(3)), set(moved(999))) == (set(range(-3, 11)), set(range(-10, 1)))


def test_a_shuffle_moves_numbers_and_follows_its_seed() -> None:
    rows = [Written(prompt=f"p{i}", answer=", ".join(str(100 * i + j) for j in range(8))) for i in range(20)]
    for name in ("shuffled-within", "shuffled-across"):
        once, again, other = (transform_rows(rows, NUMBERS, name, random.Random(seed)) for seed in (1, 1, 2))
        assert once == again != other
        assert [row["prompt"] for row in once] == [row["prompt"] for row in rows]
        assert sum(a["answer"] != b["answer"] for a, b in zip(once, rows, strict=True)) == 20
    strangers = [n for i, row in enumerate(once) for n in numbers.numbers_of(row["answer"]) if n // 100 != i]
    assert len(strangers) > 100, "across: most numbers come from another answer"
    with pytest.raises(SublimError, match="no such transform as 'shuffle'"):
        transform_rows(rows, NUMBERS, "shuffle", random.Random(0))
