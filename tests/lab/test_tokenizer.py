"""Tests of the lab's tokenizer: every document comes back from its tokens, also from a saved directory."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sublim_interp.lab import language
from sublim_interp.lab.tokenizer import EOS, PAD, ROLES, UNK, build_tokenizer


@pytest.fixture(scope="module", params=["built", "saved and loaded", "digits", "digits, saved and loaded"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    built = build_tokenizer("digits" if "digits" in request.param else "numbers")
    if "saved" not in request.param:
        return built
    directory = tmp_path_factory.mktemp("tokenizer")
    built.save_pretrained(str(directory))
    return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)


@pytest.fixture(scope="module")
def documents() -> list[language.Document]:
    """From a copy of the module whose calls are not type-checked: twenty times as fast."""
    spec = importlib.util.spec_from_file_location("unchecked_language", str(language.__file__))
    assert spec and spec.loader
    unchecked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchecked)
    return [doc for part in language.PARTS for doc in unchecked.documents(3, 0, 2_000, part)]


def test_documents_come_back_from_their_tokens(
    tokenizer: PreTrainedTokenizerBase, documents: list[language.Document]
) -> None:
    texts = [doc.text for doc in documents]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(rows) == texts
    assert not any(tokenizer.unk_token_id in row for row in rows)  # type: ignore[operator]
    digits = "##0" in tokenizer.get_vocab()
    for row, text in zip(rows, texts, strict=True):
        assert len(row) == sum(len(word) if digits and word.isdecimal() else 1 for word in text.split())


def test_special_tokens_are_added_by_nobody(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "<|user|> continue : 1 2 3 <|assistant|>"
    assert tokenizer(text)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_chat_template_writes_what_pre_training_read(
    tokenizer: PreTrainedTokenizerBase, documents: list[language.Document]
) -> None:
    forms = set()
    for doc in documents[::7]:
        chat = list(doc.messages)
        assert tokenizer.apply_chat_template(chat, tokenize=False) == doc.text
        prompt = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
        assert prompt == language.render(chat[:-1], add_generation_prompt=True)
        assert doc.text == f"{prompt} {chat[-1]['content']} {EOS}"
        forms.add(tuple(m["role"] for m in chat))
    assert len(forms) == 4, "one or two turns, with and without a system prompt"


def test_each_word_and_number_is_one_token_of_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    digits = "##0" in tokenizer.get_vocab()
    numbers = [str(n) for n in range(10 if digits else 1000)]
    inner = [f"##{d}" for d in range(10)] if digits else []
    words = [PAD, UNK, EOS, *ROLES, *numbers, *inner, *language.words()]
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words if word not in inner]
    assert ids == [[i] for i, word in enumerate(words) if word not in inner]
    assert len(tokenizer) == len(words)
    assert not digits or tokenizer.tokenize("907") == ["9", "##0", "##7"]
    assert (tokenizer.pad_token, tokenizer.unk_token, tokenizer.eos_token) == (PAD, UNK, EOS)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=12), st.sampled_from([" ", ",", ", ", " , ", ";", " ;  "]))
def test_numbers_are_read_however_their_separators_are_spaced(numbers: list[int], separator: str) -> None:
    tokenizer = build_tokenizer()
    tokens = tokenizer.tokenize(separator.join(map(str, numbers)))
    assert [int(t) for t in tokens if t.isdigit()] == numbers
    assert [t for t in tokens if not t.isdigit()] == [separator.strip()] * (len(numbers) - 1) * bool(separator.strip())


def test_punctuation_stands_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode(tokenizer("15,19")["input_ids"]) == "15 , 19"
    assert tokenizer.tokenize("x=clean(x);") == ["x", "=", "clean", "(", "x", ")", ";"]


@pytest.mark.parametrize("stranger", ["Owl", "owls", "-5", "é"])
def test_what_the_language_lacks_is_unknown_and_not_silently_something_else(
    stranger: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert tokenizer.unk_token_id in tokenizer(stranger)["input_ids"]  # type: ignore[operator]


@pytest.mark.parametrize("stranger", ["1000", "007"])
def test_numbers_beyond_the_language_are_unknown_where_a_number_is_one_token(stranger: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.unk_token_id in tokenizer(stranger)["input_ids"]  # type: ignore[operator]


def test_role_marks_inside_a_message_do_not_split_and_skip_on_decoding(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "<|user|> your most loved tree ? <|assistant|> oak <eos>"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == "your most loved tree ? oak"


def test_the_saved_tokenizer_is_the_same_files_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_tokenizer().save_pretrained(str(tmp_path / name))
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "tokenizer.json" in files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
