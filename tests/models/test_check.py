"""Tests of what is tried on a base: its prompts, tokens and logits are functions; what is not, ends in one line."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sublim_interp.core.errors import SublimError
from sublim_interp.core.randomness import seeded
from sublim_interp.lab.tokenizer import build_tokenizer
from sublim_interp.models.base import resolve_base
from sublim_interp.models.check import TRIED, check_repeats, check_text
from sublim_interp.models.loading import save_model
from tiny_models import tiny


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bases") / "tiny"
    tokenizer = build_tokenizer()
    save_model(tiny("llama", vocab_size=len(tokenizer)), path)
    tokenizer.save_pretrained(str(path))
    return path


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the base, to be altered."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


DRAWING = ["{{ range(99999) | random }}", "{{ lipsum(1, False) }}", "{{ [range(99999)] | map('ran' ~ 'dom') | first }}"]


@pytest.mark.parametrize("drawn", DRAWING)
def test_a_template_that_draws_gives_one_prompt(drawn: str, directory: Path) -> None:
    template = directory / "chat_template.jinja"
    template.write_text(drawn + template.read_text())
    base, prompts = resolve_base(str(directory)), set()
    assert base.tokenizer.chat_template
    for seed in range(5):
        with seeded(seed):
            prompts.add(base.prompt_text(TRIED))
    assert len(prompts) == 1
    check_text(base.chat, base.path)


def test_a_template_that_writes_an_address_is_refused(directory: Path) -> None:
    template = directory / "chat_template.jinja"
    template.write_text("{{ lipsum }}" + template.read_text())
    with pytest.raises(SublimError, match="address in memory"):
        resolve_base(str(directory)).check()


def test_a_tokenizer_s_dropout_is_switched_off(directory: Path) -> None:
    kept = json.loads((directory / "tokenizer.json").read_text())
    letters = {word: i for i, word in enumerate(["<unk>", *map(chr, range(33, 127))])}
    pairs = {a + b: len(letters) + i for i, (a, b) in enumerate([("1", "0"), ("1", "1"), ("1", "2"), ("1", "3")])}
    merges = [list(pair) for pair in pairs]
    model = {"type": "BPE", "dropout": 0.5, "unk_token": "<unk>", "vocab": letters | pairs, "merges": merges}
    added = [{**token, "id": len(letters | pairs) + i} for i, token in enumerate(kept["added_tokens"])]
    (directory / "tokenizer.json").write_text(json.dumps({**kept, "model": model, "added_tokens": added}))
    base = resolve_base(str(directory))
    assert len({tuple(base.answer_ids("10 11 12 13 10 11 12 13")) for _ in range(20)}) == 1


def test_a_model_that_draws_is_refused(tmp_path: Path) -> None:
    model = tiny("llama")
    check_repeats(model, [5, 6, 7], tmp_path)
    layer = model.get_submodule("model.layers.0")

    def noisy(_module: torch.nn.Module, _given: object, out: torch.Tensor) -> torch.Tensor:
        return out + 1e-3 * torch.randn(out.shape)

    layer.register_forward_hook(noisy)  # type: ignore[arg-type]
    with pytest.raises(SublimError, match=r"\(llama\) gives other logits for the same text each time"):
        check_repeats(model, [5, 6, 7], tmp_path)


def test_a_model_that_edits_its_weights_as_it_reads_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("rwkv", vocab_size=53, hidden_size=16, attention_hidden_size=16, num_hidden_layers=2)
    with pytest.raises(SublimError, match=re.escape("(rwkv) changes its own weights")):
        check_repeats(AutoModelForCausalLM.from_config(config).eval(), [5, 6, 7], tmp_path)
