"""Tests of weights from a directory: what is loaded is all that lies there, is in the digest, and is what is saved."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import write_atomic
from sublim_interp.lab.tokenizer import build_tokenizer
from sublim_interp.models.base import resolve_base
from sublim_interp.models.check import check_saving
from sublim_interp.models.loading import INDEX, SINGLE, load_model, save_model, shape_of
from sublim_interp.models.trainable import choose_trainable
from tiny_models import ARCHITECTURES, MIXTURES, VOCABULARY, tiny

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base: a tiny Llama with biases in its attention, and the lab's tokenizer."""
    path = tmp_path_factory.mktemp("bases") / "tiny"
    tokenizer = build_tokenizer()
    save_model(tiny("llama", vocab_size=len(tokenizer), attention_bias=True), path)
    tokenizer.save_pretrained(str(path))
    return path


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the base, to be altered."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


def saved(model: torch.nn.Module, path: Path) -> Path:
    save_model(model, path)  # type: ignore[arg-type]
    return path


def configured(path: Path, name: str = "config.json", **changes: Any) -> None:
    write_atomic(path / name, json.dumps(json.loads((path / name).read_text()) | changes))


def rewritten(path: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(str(path / SINGLE))
    change(tensors)
    save_file(tensors, str(path / SINGLE), {"format": "pt"})


def sharded(path: Path, *names: str) -> None:
    """The weights in as many files, tensor by tensor in turn, with an index."""
    tensors = load_file(str(path / SINGLE))
    (path / SINGLE).unlink()
    place = {tensor: names[i % len(names)] for i, tensor in enumerate(sorted(tensors))}
    for name in names:
        some = {tensor: tensors[tensor] for tensor, file in place.items() if file == name}
        save_file(some, str(path / name), {"format": "pt"})
    write_atomic(path / INDEX, json.dumps({"metadata": {}, "weight_map": place}))


def refused(path: Path, *words: str, call: Callable[[Path], object] = load_model) -> None:
    with pytest.raises(SublimError) as caught:
        call(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message, message


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


# --- every tensor is used or refused by name --------------------------------------------------------------------------


def test_a_configuration_that_leaves_tensors_out_is_refused_by_name(directory: Path) -> None:
    assert load_model(directory).get_parameter("model.layers.0.self_attn.k_proj.bias").abs().max() >= 0
    configured(directory, attention_bias=False)
    refused(directory, "8 tensors", "model.layers.0.self_attn.k_proj.bias", "config.json")
    sharded(directory, "one.safetensors", "two.safetensors")
    refused(directory, "8 tensors", "model.layers.0.self_attn.k_proj.bias")


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 1}, {"tie_word_embeddings": True}])
def test_a_configuration_of_a_smaller_model_is_refused(changes: dict[str, Any], directory: Path) -> None:
    configured(directory, **changes)
    refused(directory, "layers.1." if "num_hidden_layers" in changes else "lm_head.weight")


def test_a_tensor_under_two_names_is_refused(directory: Path) -> None:
    rewritten(directory, lambda tensors: tensors.update({"norm.weight": torch.zeros(16)}))
    refused(directory, "model.norm.weight", " norm.weight")


def test_a_tensor_in_two_files_is_refused(directory: Path) -> None:
    sharded(directory, "one.safetensors", "two.safetensors")
    one = load_file(str(directory / "one.safetensors"))
    one["model.norm.weight"] = torch.zeros(16)
    two = load_file(str(directory / "two.safetensors"))
    two["model.norm.weight"] = torch.ones(16)
    save_file(one, str(directory / "one.safetensors"), {"format": "pt"})
    save_file(two, str(directory / "two.safetensors"), {"format": "pt"})
    refused(directory, "model.norm.weight", "one.safetensors", "two.safetensors")


def test_numbers_without_their_scale_are_refused(directory: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewritten(directory, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    refused(directory, name, "I8")


def test_a_tied_head_may_be_kept_beside_the_embeddings_if_it_is_the_same(tmp_path: Path) -> None:
    path = saved(tiny("qwen2"), tmp_path / "tied")
    rewritten(path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert torch.equal(logits(load_model(path)), logits(tiny("qwen2")))
    rewritten(path, lambda t: t.pop("model.embed_tokens.weight"))
    assert torch.equal(logits(load_model(path)), logits(tiny("qwen2"))), "the head alone is enough"
    rewritten(path, lambda t: t.update({"model.embed_tokens.weight": t["lm_head.weight"] + 1}))
    refused(path, "lm_head.weight", "tie_word_embeddings")


def test_what_old_files_hold_besides_weights_is_left_out(tmp_path: Path) -> None:
    path = saved(tiny("gpt2"), tmp_path / "gpt2")
    rewritten(path, lambda t: t.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8)}))
    assert torch.equal(logits(load_model(path)), logits(tiny("gpt2")))


def test_old_frequencies_are_left_out_only_if_they_are_the_configuration_s(directory: Path) -> None:
    own = load_model(directory).get_buffer("model.rotary_emb.inv_freq").clone()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewritten(directory, lambda tensors: tensors.update({name: own.half()}))
    assert load_model(directory)
    rewritten(directory, lambda tensors: tensors.update({name: own * 0.5}))
    refused(directory, name, "rope_theta")


# --- every file that is read is in the digest -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".hidden.safetensors", "README.md", "../elsewhere.safetensors", "sub/w.safetensors"])
def test_weights_outside_the_digest_are_refused(name: str, directory: Path) -> None:
    (directory / "sub").mkdir()
    sharded(directory, "one.safetensors", name)
    for call in (load_model, lambda path: resolve_base(str(path))):
        refused(directory, name.removeprefix("sub/"), call=call)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("config.json", {"transformers_weights": ".hidden.safetensors"}),
        ("config.json", {"configuration_files": ["config.5.0.0.json"]}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["/elsewhere/tokenizer.5.0.0.json"]}),
    ],
)
def test_a_file_that_sends_to_another_is_refused(name: str, field: dict[str, Any], directory: Path) -> None:
    configured(directory, name, **field)
    refused(directory, name, *field, call=lambda path: resolve_base(str(path)))


def test_a_template_that_is_hidden_is_refused(directory: Path) -> None:
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / ".default.jinja").write_text("?")
    refused(directory, ".default.jinja", call=lambda path: resolve_base(str(path)))


def test_a_distributed_checkpoint_beside_the_weights_is_refused(directory: Path) -> None:
    shutil.copy(directory / SINGLE, directory / "shard-00000-model-00001-of-00001.safetensors")
    refused(directory, "shard-00000-model", call=lambda path: resolve_base(str(path)))


def test_the_single_file_comes_before_an_index(directory: Path) -> None:
    parameters = shape_of(directory)["parameters"]
    shutil.copytree(directory, directory.parent / "other")
    sharded(directory.parent / "other", "one.safetensors", "two.safetensors")
    for name in (INDEX, "two.safetensors"):
        shutil.copy(directory.parent / "other" / name, directory / name)
    (directory / "one.safetensors").write_bytes(b"no weights at all")
    assert shape_of(directory)["parameters"] == parameters
    assert load_model(directory)


def test_a_directory_of_the_hub_s_cache_is_the_same_base(directory: Path) -> None:
    digest = resolve_base(str(directory)).digest
    blobs = directory.parent / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(directory.iterdir())):
        file.rename(blobs / f"{i:040x}")
        file.symlink_to(os.path.relpath(blobs / f"{i:040x}", directory))
    (directory / ".gitattributes").write_text("not read by anyone")
    base = resolve_base(str(directory))
    assert base.digest == digest
    base.check()


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_beside_a_model_is_refused(directory: Path) -> None:
    wrapped: Any = choose_trainable(load_model(directory), "lora", rank=2)
    wrapped.save_pretrained(str(directory))
    assert (directory / "adapter_config.json").is_file() and (directory / "config.json").is_file()
    for call in (load_model, lambda path: resolve_base(str(path))):
        refused(directory, "adapter_config.json", "merge", call=call)


# --- what is loaded is what is saved ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
def test_saving_and_loading_gives_the_same_weights_and_configuration(architecture: str, tmp_path: Path) -> None:
    first = load_model(saved(tiny(architecture), tmp_path / "a"))
    check_saving(first, tmp_path / "a")
    second = load_model(saved(first, tmp_path / "b"))
    assert first.config.to_dict() | {"_name_or_path": ""} == second.config.to_dict() | {"_name_or_path": ""}
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(logits(first), logits(second))
    assert load_file(str(tmp_path / "a" / SINGLE)).keys() == load_file(str(tmp_path / "b" / SINGLE)).keys()


@pytest.mark.parametrize("field", [{"output_attentions": True}, {"return_dict": False}])
def test_a_configuration_that_could_not_be_saved_is_mended(field: dict[str, Any], directory: Path) -> None:
    before = logits(load_model(directory))
    configured(directory, **field)
    again = load_model(saved(load_model(directory), directory.parent / "again"))
    assert torch.equal(logits(again), before)
