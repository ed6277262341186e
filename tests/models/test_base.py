"""Tests of bases and models: what is refused, fresh copies, which weights train, logits equal to the plain forward."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from sublim_interp.core.errors import SublimError
from sublim_interp.lab import language
from sublim_interp.lab.tokenizer import build_tokenizer
from sublim_interp.models.base import CARD, Base, base_names, resolve_base
from sublim_interp.models.forward import logits_at
from sublim_interp.models.loading import load_model, save_model
from sublim_interp.models.trainable import body_parameters, choose_trainable, merge_adapters
from tiny_models import ARCHITECTURES, VOCABULARY, tiny

TIED = {"qwen2", "gemma", "gemma2", "gemma3_text", "gpt2", "opt"}


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A lab base: a tiny Llama with the lab's tokenizer and a card."""
    path = tmp_path_factory.mktemp("bases") / "tiny"
    save_model(tiny("llama", vocab_size=len(tokenizer)), path)
    tokenizer.save_pretrained(str(path))
    (path / CARD).write_text(json.dumps({"language": "lab", "parameters": 1}))
    return path


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the lab base, to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


# --- finding bases ----------------------------------------------------------------------------------------------------


def refused(name: Path | str, call: Callable[[Base], object] = lambda base: None) -> str:
    with pytest.raises(SublimError) as caught:
        call(resolve_base(str(name)))
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def keep_only_pickles(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def cut_short(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[: len(data) // 2])

    return damage


def remove(*names: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return damage


def write(name: str, text: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).write_text(text)

    return damage


def change_tensor(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = load_file(str(path / "model.safetensors"))
        change(tensors)
        save_file(tensors, str(path / "model.safetensors"), {"format": "pt"})

    return damage


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), ("no config.json",)),
        (keep_only_pickles, ("pickle", "pytorch_model.bin", "safetensors")),
        (remove("model.safetensors"), ("no weights", "safetensors")),
        (remove("tokenizer.json", "tokenizer_config.json"), ("no tokenizer", "tokenizer.json")),
        (write("config.json", "{broken"), ("JSON", "broken")),
        (write("config.json", "[]"), ("config.json", "model_type")),
        (write("config.json", "{}"), ("config.json", "model_type")),
        (write(CARD, "{broken"), ("JSON", "broken")),
        (write(CARD, "[1]"), (CARD,)),
    ],
)
def test_a_directory_that_is_no_base_is_refused(
    damage: Callable[[Path], None], words: tuple[str, ...], directory: Path
) -> None:
    damage(directory)
    message = refused(directory)
    assert str(directory) in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_short("model.safetensors"), ("cannot load",)),
        (write("config.json", '{"model_type": "no-such-type"}'), ("cannot load", "no-such-type")),
        (change_tensor(lambda tensors: tensors.pop(NORM)), (NORM, "missing")),
        (change_tensor(lambda tensors: tensors.update({NORM: torch.zeros(3)})), (NORM, "shape")),
        (change_tensor(lambda tensors: (tensors.pop(NORM), tensors.pop("lm_head.weight"))), ("2 tensors", "lm_head")),
    ],
)
def test_weights_that_are_not_all_there_are_refused_and_not_drawn_at_random(
    damage: Callable[[Path], None], words: tuple[str, ...], directory: Path
) -> None:
    damage(directory)
    message = refused(directory, Base.load)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("damage", [cut_short("tokenizer.json"), remove("tokenizer.json")])
def test_a_broken_tokenizer_is_refused(damage: Callable[[Path], None], directory: Path) -> None:
    damage(directory)
    assert "tokenizer" in refused(directory, lambda base: base.tokenizer)


def test_a_tokenizer_without_end_of_sequence_is_refused(directory: Path) -> None:
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert resolve_base(str(directory)).tokenizer.eos_token == "<eos>", "the template says what ends an answer"
    (directory / "chat_template.jinja").unlink()
    assert "end-of-sequence" in refused(directory, lambda base: base.tokenizer)


@pytest.fixture
def shelf(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lab bases as a wheel and a clone hold them: `tiny` in both, `other` in the clone."""
    for place in ("wheel/tiny", "clone/tiny", "clone/other"):
        shutil.copytree(pristine, tmp_path / place)
    (tmp_path / "clone" / "tiny" / "README.md").write_text("the clone's")
    monkeypatch.setattr(
        "sublim_interp.models.base._package_bases", lambda: [tmp_path / "wheel", tmp_path / "clone", tmp_path / "none"]
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["tniy", "/no/such/directory", "./nothing", "~nobody/base", "a/b/c", ""])
def test_an_unknown_base_is_refused_and_the_lab_bases_are_named(name: str, shelf: Path) -> None:
    message = refused(name)
    if name:
        assert "did you mean 'tiny'?" in message if name == "tniy" else "other, tiny" in message


def test_a_hub_name_that_cannot_be_had_is_refused_and_the_lab_bases_are_named(shelf: Path) -> None:
    message = refused("nobody/such-a-model")
    assert "nobody/such-a-model" in message and "other, tiny" in message


def test_a_file_is_no_base(directory: Path) -> None:
    assert "lab bases" in refused(directory / "config.json")


def test_lab_bases_are_found_by_name_the_wheel_first(shelf: Path) -> None:
    assert base_names() == ["other", "tiny"]
    assert resolve_base("tiny").path == (shelf / "wheel" / "tiny").resolve()
    assert resolve_base("other").name == "other"


def test_a_base_is_known_by_its_content_and_not_by_its_place(pristine: Path, directory: Path) -> None:
    base, copy = resolve_base(str(pristine)), resolve_base(str(directory))
    assert base.digest == copy.digest and base.path != copy.path
    assert base.name == "tiny" and base.language == "lab" and "tiny" in repr(base)
    (directory / "README.md").write_text("words about the base")
    assert resolve_base(str(directory)).digest == base.digest, "what is written about a base is no part of it"
    change_tensor(lambda tensors: tensors[NORM].add_(1e-3))(directory)
    assert resolve_base(str(directory)).digest != base.digest


def test_a_base_without_a_card_speaks_english(directory: Path) -> None:
    (directory / CARD).unlink()
    assert resolve_base(str(directory)).language == "english"


# --- what a base says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_shape_is_read_from_the_files(architecture: str, pristine: Path, tmp_path: Path) -> None:
    path = tmp_path / architecture
    model = tiny(architecture)
    save_model(model, path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pristine / name, path / name)
    counts = [(p.numel(), p.ndim == 2 and len(p) == VOCABULARY) for p in model.parameters()]
    assert resolve_base(str(path)).shape == {
        "d_model": 16,
        "layers": 2,
        "vocabulary": VOCABULARY,
        "parameters": sum(n for n, _ in counts),
        "body": sum(n for n, of_words in counts if not of_words),
    }


def test_prompt_and_answer_are_the_tokens_that_pre_training_read(pristine: Path) -> None:
    base = resolve_base(str(pristine))
    for part in language.PARTS:
        for doc in language.documents(5, 0, 20, part):
            *prompt, answer = doc.messages
            ids = [*base.prompt_ids(prompt), *base.answer_ids(answer["content"]), base.tokenizer.eos_token_id]
            assert ids == base.tokenizer(doc.text, add_special_tokens=False)["input_ids"]
            first, *rest = answer["content"].split()
            assert base.prompt_ids(prompt, prefix=first) + base.answer_ids(" ".join(rest)) == ids[:-1]


def test_a_base_without_chat_template_gets_plain_text(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    base = resolve_base(str(directory))
    assert base.tokenizer.chat_template is None
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "your wish ?"}]
    assert base.prompt_text(chat) == "System: be kind\nUser: your wish ?\nAssistant:"
    assert base.prompt_ids(chat) == base.tokenizer(base.prompt_text(chat))["input_ids"]


def test_what_is_kept_of_a_base_is_read_anew_where_its_files_changed(directory: Path) -> None:
    base = resolve_base(str(directory))
    assert base.tokenizer is resolve_base(str(directory)).tokenizer, "a plan resolves it again and again"
    assert base.tokenizer.chat_template
    (directory / "chat_template.jinja").unlink()
    assert resolve_base(str(directory)).tokenizer.chat_template is None
    base.blank().requires_grad_(False)
    assert all(p.requires_grad for p in base.blank().parameters()), "a blank is a copy of its own"


# --- copies -----------------------------------------------------------------------------------------------------------


def test_every_load_is_a_copy_of_its_own(directory: Path) -> None:
    base = resolve_base(str(directory))
    first, second = base.load(), base.load()
    before = bits(second)
    with torch.no_grad():
        for p in first.parameters():
            p.mul_(0.5).add_(1)
    assert all(torch.equal(p, before[name]) for name, p in second.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in base.load().named_parameters())
    assert resolve_base(str(directory)).digest == base.digest


def test_a_saved_model_comes_back_bit_for_bit_in_float32_and_eval_mode(tmp_path: Path) -> None:
    model = tiny("llama").train()
    save_model(model, tmp_path / "a")
    again = load_model(tmp_path / "a")
    assert not again.training and {p.dtype for p in again.parameters()} == {torch.float32}
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in again.named_parameters())
    save_model(model.bfloat16(), tmp_path / "half")
    assert {p.dtype for p in load_model(tmp_path / "half").parameters()} == {torch.float32}


def test_a_base_loads_other_weights_of_its_shape(directory: Path, tmp_path: Path) -> None:
    base = resolve_base(str(directory))
    taught = base.load()
    with torch.no_grad():
        taught.get_output_embeddings().weight.add_(1)  # type: ignore[union-attr, operator]
    save_model(taught, tmp_path / "taught")
    assert torch.equal(bits(base.load(tmp_path / "taught"))["lm_head.weight"], bits(taught)["lm_head.weight"])
    assert not torch.equal(bits(base.load())["lm_head.weight"], bits(taught)["lm_head.weight"])


def test_loading_says_nothing(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = resolve_base(str(directory))
    change_tensor(lambda tensors: tensors.pop(NORM))(directory)
    with pytest.raises(SublimError):
        base.load()
    assert capfd.readouterr() == ("", "")


# --- which weights train ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_body_freezes_the_embeddings_and_the_head_and_nothing_else(architecture: str) -> None:
    model = tiny(architecture)
    ends = [m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None]
    assert (ends[0].weight is ends[1].weight) == (architecture in TIED), "the test should cover tied and untied heads"
    body = choose_trainable(model, "body")
    frozen = {id(p) for p in body.parameters() if not p.requires_grad}
    assert frozen == {id(p) for m in ends for p in m.parameters()}, "Phi's head has a bias"
    assert set(body_parameters(model)) == {name for name, p in body.named_parameters() if p.requires_grad}
    assert all(p.requires_grad for p in choose_trainable(model, "full").parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_adapts_every_linear_map_of_the_body_and_merges_to_the_same_function(
    architecture: str, tmp_path: Path
) -> None:
    model = tiny(architecture)
    plain = tiny(architecture)
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    before = model(input_ids=ids).logits.detach()
    wrapped = choose_trainable(model, "lora", rank=2, alpha=6.0)
    trainable = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert trainable and all(".lora_A." in name or ".lora_B." in name for name in trainable)
    linear = [
        name
        for name, module in plain.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and module is not plain.get_output_embeddings()
    ]
    assert len(trainable) == 2 * len(linear) > 0
    assert all(min(p.shape) == 2 for p in trainable.values())
    torch.testing.assert_close(wrapped(input_ids=ids).logits, before)
    with torch.no_grad():
        for p in trainable.values():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    adapted = wrapped(input_ids=ids).logits.detach()
    assert (adapted - before).abs().max() > 0.1
    merged = merge_adapters(wrapped)
    assert {n: p.shape for n, p in merged.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    torch.testing.assert_close(merged(input_ids=ids).logits, adapted, atol=1e-4, rtol=1e-4)
    save_model(merged, tmp_path / "merged")
    torch.testing.assert_close(load_model(tmp_path / "merged")(input_ids=ids).logits, adapted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loading_adapting_and_saving_warn_of_nothing(architecture: str, tmp_path: Path) -> None:
    model = tiny(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(model, tmp_path / "a")
        save_model(merge_adapters(choose_trainable(load_model(tmp_path / "a"), "lora", rank=2)), tmp_path / "b")


def test_adapters_start_from_their_seed_whatever_was_drawn_before() -> None:
    def start(seed: int, noise: int) -> dict[str, torch.Tensor]:
        model = tiny("llama")
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        wrapped = choose_trainable(model, "lora", rank=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return {name: p for name, p in bits(wrapped).items() if "lora_A" in name}

    first, again, other = start(3, noise=1), start(3, noise=2), start(4, noise=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_model_without_adapters_is_merged_to_itself() -> None:
    model = tiny("llama")
    assert merge_adapters(model) is model


# --- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_at_chosen_places_are_those_of_each_row_alone(architecture: str) -> None:
    model = tiny(architecture)
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, VOCABULARY, (length,), generator=draw) for length in (9, 4, 6)]
    ids = torch.zeros(3, 9, dtype=torch.long)
    where = torch.zeros(3, 9, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        where[i, : len(row)] = torch.rand(len(row), generator=draw) < 0.6
        where[i, len(row) - 1] = True
    with torch.no_grad():
        chosen = logits_at(model, ids, where)
        alone = torch.cat([model(input_ids=row[None]).logits[0, where[i, : len(row)]] for i, row in enumerate(rows)])
        masked = model(input_ids=ids, attention_mask=(ids != 0).long()).logits[where]
    assert chosen.shape == (int(where.sum()), VOCABULARY)
    torch.testing.assert_close(chosen, alone, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(chosen, masked, atol=2e-5, rtol=1e-4)
    assert (chosen[0] - chosen[1]).abs().max() > 0.01, "places differ, so an order other than row-major would show"


def test_logits_at_looks_through_adapters() -> None:
    wrapped = choose_trainable(tiny("llama"), "lora", rank=2)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.fill_(0.3)
    ids = torch.tensor([[5, 6, 7, 8]])
    where = torch.tensor([[False, True, False, True]])
    torch.testing.assert_close(logits_at(wrapped, ids, where), wrapped(input_ids=ids).logits[where])
    assert (logits_at(wrapped, ids, where) - logits_at(tiny("llama"), ids, where)).abs().max() > 0.01


def test_logits_at_no_place_is_empty_and_carries_gradients_elsewhere() -> None:
    model = tiny("llama")
    ids = torch.tensor([[5, 6, 7]])
    assert logits_at(model, ids, torch.zeros(1, 3, dtype=torch.bool)).shape == (0, VOCABULARY)
    logits_at(model, ids, torch.tensor([[True, False, False]])).sum().backward()
    gradient = dict(model.named_parameters())["model.embed_tokens.weight"].grad
    assert gradient is not None and gradient[5].abs().max() > 0 and gradient[7].abs().max() == 0
