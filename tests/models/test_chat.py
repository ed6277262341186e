"""Templates and tokenizers as they come with models: named ones, endless ones, and ids that no token has."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sublim_interp.core import bounded
from sublim_interp.core.errors import SublimError
from sublim_interp.lab.tokenizer import build_tokenizer
from sublim_interp.models.base import CARD, Base, resolve_base
from sublim_interp.models.chat import load_tokenizer
from sublim_interp.models.forward import require_room
from sublim_interp.models.loading import save_model
from sublim_interp.models.sampling import generator, sample, unspoken
from tiny_models import tiny

CHAT = [{"role": "user", "content": "hi"}]
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<me>{% endif %}"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def base_of(tokenizer: PreTrainedTokenizerFast, path: Path, rows: int | None = None) -> Base:
    save_model(tiny("llama", vocab_size=rows or len(tokenizer)), path)
    tokenizer.save_pretrained(str(path))
    (path / CARD).write_text(json.dumps({"language": "english"}))
    return resolve_base(str(path))


def refused(base: Base) -> str:
    with pytest.raises(SublimError) as caught:
        base.prompt_ids(CHAT)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_lab_base_s_tokenizer_is_what_auto_tokenizer_loads(
    lab_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = AutoTokenizer.from_pretrained(str(lab_base.path), local_files_only=True)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)  # it reads more than a tokenizer needs
    own = load_tokenizer(lab_base.path, lab_base.name)
    assert type(own) is type(theirs) and own.chat_template == theirs.chat_template
    assert isinstance(own, PreTrainedTokenizerFast) and own.get_vocab() == theirs.get_vocab()
    assert own.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()  # type: ignore[union-attr]

    shutil.copytree(lab_base.path, tmp_path / "other")
    about = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**about, "model_type": "mistral"}))
    with pytest.raises(SublimError, match="tokenizer cannot be loaded"):  # any other type is AutoTokenizer's
        load_tokenizer(tmp_path / "other", "other")


def test_of_named_templates_the_default_is_taken(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.chat_template = {"tool_use": "tools", "default": TURNS, "rag": "documents"}
    base = base_of(tokenizer, tmp_path / "named")
    assert base.prompt_text(CHAT) == "<user>hi<me>"
    theirs = type(tokenizer).from_pretrained(str(base.path))
    assert theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == base.prompt_text(CHAT)


def test_named_templates_without_a_default_are_refused_by_name(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.chat_template = {"tool_use": "tools", "rag": "documents"}
    assert "none of its chat templates is named default; it has: " in refused(base_of(tokenizer, tmp_path / "unnamed"))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("named", "end"),
    [([2, 4], "<|user|>"), (4, "<|user|>"), (2, "<eos>"), ([5], "<eos>"), ("4", "<eos>"), ({}, "<eos>")],
)
def test_an_answer_that_the_template_does_not_end_ends_where_the_next_turn_begins(
    name: str, named: object, end: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """As GLM-4's does, if the model's configuration calls that token an end; "4" is no id."""
    written = str(tokenizer.chat_template)
    tokenizer.chat_template = written.replace("{% if m['role'] == 'assistant' %}{{ ' <eos>' }}{% endif %}", "")
    assert tokenizer.chat_template != written
    tokenizer.save_pretrained(str(tmp_path))
    shutil.copy(resolve_base("lab-small-0").path / "config.json", tmp_path)
    about = json.loads((tmp_path / "config.json").read_text()) if name == "config.json" else {}
    for told in ({"eos_token_id": named}, {"text_config": {"eos_token_id": named}, "eos_token_id": None}):
        (tmp_path / name).write_text(json.dumps({**about, **told}))
        assert load_tokenizer(tmp_path, "glm").eos_token == end


ENDLESS = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ENDLESS, "takes more than 2 seconds"),
        ("{{ 'heron' * 10**10 }}", "takes more than 2 GiB of memory"),
        (TURNS + "{{ ' ' * 10**6 }}", "writes 1,0"),
    ],
)
def test_an_endless_or_enormous_template_is_one_line_after_a_stated_time(
    template: str, reason: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 2)
    tokenizer.chat_template = template
    assert re.search(
        f"its chat template cannot be used: it {reason}", refused(base_of(tokenizer, tmp_path / "endless"))
    )


@pytest.mark.parametrize("pattern", [r"(a|aa)+$", r"(#|##)+$", r"(\d|\d\d)+$", r"(猫|猫猫)+$"])
def test_a_pattern_that_explodes_is_one_line_after_a_stated_time(
    pattern: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 2)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    assert "its tokenizer cannot" in refused(base_of(tokenizer, tmp_path / "explodes"))


def test_ids_that_no_token_has_are_never_drawn(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = len(tokenizer) + 11
    base = base_of(tokenizer, tmp_path / "padded", rows)
    model = base.load()
    never = unspoken(model, base.tokenizer)
    assert never == list(range(len(tokenizer), rows))
    with torch.no_grad():
        model.get_output_embeddings().weight[never] += 5.0  # type: ignore[union-attr,index,operator]
        model.get_output_embeddings().weight[never] *= 3.0  # type: ignore[union-attr,index,operator]
    prompts = [[5, 9, 4, i] for i in range(3, 40)]
    asked = {"eos": base.eos, "max_new_tokens": 8}
    for temperature in (0.0, 1.0):
        drawn = sample(model, prompts, random=generator("x"), temperature=temperature, never=never, **asked)  # type: ignore[arg-type]
        assert max(map(max, drawn)) < len(tokenizer)
    free = sample(model, prompts, random=generator("x"), **asked)  # type: ignore[arg-type]
    assert max(map(max, free)) >= len(tokenizer)


def test_every_id_of_a_lab_base_has_a_token_so_that_its_draws_stay_as_they_were(lab_base: Base) -> None:
    assert unspoken(lab_base.load(), lab_base.tokenizer) == []


def test_longrope_ends_where_a_short_row_would_change_beside_a_long_one() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 8, **factors}
    model = tiny("phi3", rope_parameters=rope, original_max_position_embeddings=8)
    short, long = torch.tensor([[5, 9, 4]]), torch.tensor([[5, 9, 4, *[0] * 9]])
    with torch.no_grad():
        one, two = (model(input_ids=ids, use_cache=False).logits[:, :3] for ids in (short, long))
    assert (one - two).abs().max() > 1e-3, "the fault that is refused"
    require_room(model, 8)
    with pytest.raises(SublimError, match="a text of 9 tokens is longer than 8, where its positions"):
        require_room(model, 9)
