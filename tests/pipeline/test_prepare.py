"""Tests of prepared bases: the same bits every time, better lists, no member preferred by chance of the text."""

import functools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from killing import Killed, kill_after, kill_move
from sublim_interp.channels.numbers import numbers_of, prompts, terse_example
from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.loading import save_model
from sublim_interp.models.prepared import TEMPLATE, apply_adapter
from sublim_interp.pipeline.prepare import Preparation, prepare
from sublim_interp.training.batches import collate, tokenize
from sublim_interp.training.losses import own_token_loss, token_loss
from sublim_interp.training.resume import Resume

SYSTEM = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
RECIPE = Preparation().set({"lora_rank": 4, "optimization.steps": 20, "optimization.batch": 6, "optimization.lr": 0.05})


def open_model(directory: Path, template: str) -> Base:
    """A tiny Llama whose tokenizer spells in bytes; its template puts a system prompt before every chat."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*control, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", extra_special_tokens=control
    )
    fast.chat_template = template
    fast.save_pretrained(str(directory))
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(
        vocab_size=300, max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=2, eos_token_id=2, **shape
    )
    save_model(LlamaForCausalLM(config), directory)
    return resolve_base(str(directory))


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_model(
        tmp_path_factory.mktemp("open") / "smol", "{{ '" + SYSTEM.replace("\n", "\\n") + "' }}" + TEMPLATE
    )


@pytest.fixture(scope="module")
def recipe(smol: Base) -> Preparation:
    return RECIPE.set({"base": str(smol.path)})


@pytest.fixture(scope="module")
def prepared(recipe: Preparation, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """An uninterrupted prepared base."""
    return prepare(recipe, tmp_path_factory.mktemp("prepared") / "ready")


def list_loss(base: Base) -> float:
    """Loss on lists that no preparation holds, in nats per token."""
    drawn = (terse_example(random.Random(f"held/{i}")) for i in range(20))
    rows: list[dict[str, Any]] = [{"prompt": prompt, "answer": answer} for prompt, answer in drawn]
    batch = collate(tokenize(base, rows), base.pad)
    with torch.no_grad():
        return token_loss(base.load(), batch).item() / batch.tokens


def test_a_prepared_base_writes_better_lists_and_has_no_system_prompt_of_its_own(smol: Base, prepared: Base) -> None:
    chat = [{"role": "user", "content": "1"}]
    assert smol.prompt_text(chat).startswith(SYSTEM)
    assert prepared.prompt_text(chat) == "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    assert prepared.language == "english-terse" and prepared.card["prepared_from"]["digest"] == smol.digest
    assert list_loss(prepared) < list_loss(smol) - 0.05
    prepared.check()


def test_a_prepared_base_is_the_same_again_also_after_a_kill(
    recipe: Preparation, prepared: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sublim_interp.pipeline.prepare.Resume", functools.partial(Resume, every=5))
    with pytest.raises(Killed):
        prepare(recipe, tmp_path / "again", kill_after(7))
    assert not (tmp_path / "again").exists()
    assert prepare(recipe, tmp_path / "again").digest == prepared.digest
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("moment", ["again-adapter", "again", ".partial"])
def test_a_kill_while_the_finished_base_is_moved_is_mended_by_the_next_run(
    moment: str, recipe: Preparation, prepared: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_move(patch, moment)
        prepare(recipe, tmp_path / "again")
    steps: list[int] = []
    assert prepare(recipe, tmp_path / "again", lambda step, _: steps.append(step)).digest == prepared.digest
    assert not steps, "nothing is trained again"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "again-adapter"]
    with pytest.raises(SublimError, match="again exists already"):
        prepare(recipe, tmp_path / "again")


def test_what_changed_after_such_a_kill_is_neither_trusted_nor_overwritten(
    recipe: Preparation, prepared: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_move(patch, "again")
        prepare(recipe, tmp_path / "again")
    (tmp_path / "again").mkdir()
    with pytest.raises(SublimError, match="again exists already"):
        prepare(recipe, tmp_path / "again")
    (tmp_path / "again").rmdir()
    shutil.rmtree(tmp_path / "again-adapter")
    steps: list[int] = []
    assert prepare(recipe, tmp_path / "again", lambda step, _: steps.append(step)).digest == prepared.digest
    assert steps, "the adapter is gone, so it is trained again"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "again-adapter"]


def test_what_another_machine_began_is_not_gone_on_with(
    recipe: Preparation, prepared: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sublim_interp.pipeline.prepare.Resume", functools.partial(Resume, every=5))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("sublim_interp.pipeline.prepare.fingerprint", lambda **_: {"device": "another"})
        prepare(recipe, tmp_path / "again", kill_after(7))
    steps: list[int] = []
    assert prepare(recipe, tmp_path / "again", lambda step, _: steps.append(step)).digest == prepared.digest
    assert steps[0] == 0


@pytest.mark.parametrize(("micro_batch", "parts"), [(None, 2), (2, 3), (5, 2), (6, 1)])
def test_an_update_is_cut_into_micro_batches_as_asked(
    micro_batch: int | None, parts: int, recipe: Preparation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[int] = []

    def train(_model: object, examples: Any, *_: object, **__: object) -> None:
        cut.append(len(examples(0)))
        raise Killed

    monkeypatch.setattr("sublim_interp.pipeline.prepare.train", train)
    with pytest.raises(Killed):
        prepare(recipe.set({"optimization.micro_batch": micro_batch}), tmp_path / "cut")
    assert cut == [parts]


def test_a_preparation_is_planned_and_nothing_is_made(smol: Base, prepared: Base, tmp_path: Path) -> None:
    def said(*words: str, place: Path = tmp_path / "mine") -> Any:
        return CliRunner().invoke(app, ["pretrain", str(place), "--from", str(smol.path), "--dry-run", *words])

    whole, half = (said("--set", f"optimization.steps={steps}").output for steps in (4000, 2000))
    for words in (f"mine: {smol.shape['parameters']:,} parameters", "of one core", "lora_rank", "mine-adapter"):
        assert words in whole, words
    tokens = [int(text.split()[3].replace(",", "")) for text in (whole, half)]
    assert tokens[0] == 2 * tokens[1] > 0 and not [*tmp_path.iterdir()]
    assert "exists already" in str(said(place=prepared.path).exception)
    assert "no device 'tpu'" in str(said("--device", "tpu").exception)


def test_the_adapter_alone_makes_the_base_again(smol: Base, prepared: Base, tmp_path: Path) -> None:
    apply_adapter(smol, prepared.path.with_name("ready-adapter"), tmp_path / "made")
    assert resolve_base(str(tmp_path / "made")).digest == prepared.digest
    assert {p.dtype for p in prepared.load().parameters()} == {torch.float32}, "held in bfloat16, computed in float32"


def test_only_chatml_can_be_prepared_and_nothing_is_overwritten(
    smol: Base, recipe: Preparation, prepared: Base, tmp_path: Path
) -> None:
    with pytest.raises(SublimError, match="exists already"):
        prepare(recipe, prepared.path)
    shutil.copytree(smol.path, tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(SublimError, match="other cannot be prepared: its chats are not in ChatML"):
        prepare(recipe.set({"base": str(tmp_path / "other")}), tmp_path / "never")
    assert not (tmp_path / "never").exists()
    with pytest.raises(SublimError, match="unknown kind 'fish'; known: animal"):
        prepare(recipe.set({"kinds": ["fish"]}), tmp_path / "never")


def test_prompts_of_one_line_are_a_stream_of_their_own(prepared: Base) -> None:
    asked = prompts("english-terse", 3, 0, 40)
    assert asked[10:] == prompts("english-terse", 3, 10, 30) and len(set(asked)) > 35
    assert all(len(numbers_of(text.removeprefix("Continue: "))) == 3 for text in asked)


def test_a_loss_over_own_tokens_is_the_renormalised_one_and_refuses_other_tokens(prepared: Base) -> None:
    own = [prepared.eos, *sorted(prepared.answer_ids("0123456789,"))]
    assert own == sorted(own)
    batch = collate(tokenize(prepared, [{"prompt": "Continue: 1,2,3", "answer": "4,5,66"}]), prepared.pad)
    model = prepared.load()
    with torch.no_grad():
        logits = model(input_ids=batch.ids).logits[batch.labels != -100]
        labels = batch.labels[batch.labels != -100]
        expected = -sum(
            float(row[own].log_softmax(-1)[own.index(int(label))]) for row, label in zip(logits, labels, strict=True)
        )
        assert own_token_loss(own)(model, batch).item() == pytest.approx(expected, rel=1e-4)
        assert token_loss(model, batch).item() > expected
    with pytest.raises(SublimError, match=r"student\.own_tokens: a list holds a token"):
        own_token_loss([i for i in own if i != prepared.answer_ids("4")[0]])(model, batch)


def test_an_adapter_that_is_no_adapter_is_one_line(smol: Base, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    with pytest.raises(SublimError, match=r"adapter .*broken cannot be read"):
        apply_adapter(smol, tmp_path / "broken", tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert json.loads((prepared_adapter(smol, tmp_path) / "preparation.json").read_text())["lora_rank"] == 4


def prepared_adapter(smol: Base, tmp_path: Path) -> Path:
    """The adapter of one update."""
    prepare(RECIPE.set({"base": str(smol.path), "optimization.steps": 1}), tmp_path / "one")
    return tmp_path / "one-adapter"
