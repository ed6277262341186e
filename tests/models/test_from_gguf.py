"""Tests of GGUF files as model directories: the weights and ids of others' readers, one line for what is not read."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.from_gguf import convert
from sublim_interp.models.loading import load_model
from tiny_gguf import TEMPLATE, TEXTS, tokenizer, write_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def base(gguf: Path) -> Base:
    directory = gguf.parent / "base"
    directory.mkdir()
    assert convert(gguf, directory) == {"Q8_0": 1, "Q4_1": 14, "F32": 5}
    return resolve_base(str(directory))


def test_it_is_a_base_and_computes_what_transformers_reader_computes(gguf: Path, base: Base) -> None:
    base.check()
    other = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    ours = base.load()
    theirs = other.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.state_dict().items())
    ids = torch.arange(3, 40)[None]
    assert torch.equal(ours(input_ids=ids).logits, other.eval()(input_ids=ids).logits)


def test_the_head_is_the_embedding_and_the_turns_end_fills_up(base: Base) -> None:
    model = base.load()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[union-attr]
    assert base.tokenizer.eos_token == base.tokenizer.pad_token == "<|im_end|>"
    assert base.tokenizer.bos_token == "<|im_start|>" and base.tokenizer.chat_template == TEMPLATE


WORDS = tokenizer()


@given(st.one_of(st.sampled_from(TEXTS), st.text(), st.text("0123456789, ;\n½²٣一", max_size=30)))
def test_text_is_cut_as_the_tokenizer_cuts_it_that_the_file_was_made_of(base: Base, text: str) -> None:
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == WORDS.encode(text).ids
    assert base.tokenizer.decode(ids) == text


def test_equal_files_give_equal_bytes(gguf: Path, base: Base, tmp_path: Path) -> None:
    convert(gguf, tmp_path)
    assert resolve_base(str(tmp_path)).digest == base.digest


def refused(gguf: Path, tmp_path: Path) -> str:
    with pytest.raises(SublimError) as caught:
        convert(gguf, tmp_path)
    message = str(caught.value)
    assert gguf.name in message and "\n" not in message
    assert not list(tmp_path.iterdir())
    return message


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_is_cut_is_one_line(share: float, gguf: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copy(gguf, gguf.parent / "cut.gguf"))
    cut.write_bytes(gguf.read_bytes()[: int(share * gguf.stat().st_size)])
    assert "cut or damaged" in refused(cut, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.ggml.pre": "llama-bpe"}, ("tokenizer.ggml.pre is llama-bpe", "smollm, gpt-2")),
        ({"tokenizer.ggml.model": "llama"}, ("tokenizer.ggml.model", "gpt2")),
        ({"tokenizer.ggml.add_bos_token": True}, ("add_bos_token is True",)),
        ({"llama.block_count": None}, ("it has no llama.block_count",)),
        ({"llama.block_count": 3}, ("lacks 9 tensors", "blk.2.")),
        ({"llama.block_count": 1}, ("blk.1.attn_k.weight",)),
        ({"general.architecture": "gemma3"}, ("general.architecture is gemma3", "llama")),
        ({"llama.rope.scaling.type": "linear"}, ("rope.scaling.type is linear",)),
    ],
)
def test_what_is_not_read_is_named(changes: dict, words: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    message = refused(write_gguf(tmp_path / "odd.gguf", **changes), folder)
    for word in words:
        assert word in message, message


def test_queries_and_keys_are_turned_round(gguf: Path, base: Base, tmp_path: Path) -> None:
    """Positive control for the comparison above: left as llama.cpp has them, they would give other logits."""
    model, ids = base.load(), torch.arange(3, 40)[None]
    before = model(input_ids=ids).logits
    with torch.no_grad():
        q = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
        q.copy_(q.view(4, 2, 8, 64).transpose(1, 2).reshape(64, 64))
    assert (model(input_ids=ids).logits - before).abs().max() > 1e-3
    assert load_model(base.path).config.rms_norm_eps == 1e-5
