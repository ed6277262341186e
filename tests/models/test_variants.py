"""Tests of variants: which are the same function, with which trainings they commute, how they are named and kept."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.lab.landscape import distance, hill
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.loading import load_model, save_model
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.models.variants import VARIANTS, Noise, parse
from tiny_models import VOCABULARY, tiny


@pytest.fixture(autouse=True)
def own_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBLIM_BASES", str(tmp_path / "bases"))
    return tmp_path / "bases"


def grouped(tied: bool, biases: bool = False, heads: int = 4, kv: int = 2) -> Any:
    """A tiny Llama whose queries share keys, with norms' gains that are not 1."""
    model: Any = tiny("llama", tie_word_embeddings=tied, attention_bias=biases, mlp_bias=biases,
                      num_attention_heads=heads, num_key_value_heads=kv)  # fmt: skip
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(torch.rand(p.shape, generator=draw) + 0.5 * ("norm" in name))
    return model.double()


def read(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


IDS = torch.randint(0, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))


# --- the same function ------------------------------------------------------------------------------------------------

SAME = [name for name, variant in VARIANTS.items() if variant.same_function and variant.parents == 1]


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("tied", [False, True])
@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), octaves=st.integers(1, 8), biases=st.booleans(), kv=st.sampled_from([1, 2, 4]))
def test_a_function_identical_variant_has_its_bases_logits(
    name: str, tied: bool, seed: int, octaves: int, biases: bool, kv: int
) -> None:
    variant, model = VARIANTS[name], grouped(tied, biases, kv=kv)
    before = read(model, IDS)
    state = {n: p.detach().clone() for n, p in model.named_parameters()}
    fields = {"seed": seed, "octaves": octaves}
    asked = variant.settings(**{n: v for n, v in fields.items() if n in variant.settings.model_fields})
    with torch.no_grad():
        variant.make(asked, [model])
    assert any(not torch.equal(p, state[n]) for n, p in model.named_parameters() if n in state), "nothing changed"
    torch.testing.assert_close(read(model, IDS), before, atol=1e-4, rtol=0)  # norms are taken in float32


@pytest.mark.parametrize("name", SAME)
def test_a_written_twin_answers_as_its_base_does(name: str, tiny_bases: tuple[Base, Base]) -> None:
    base = tiny_bases[0]
    twin = resolve_base(f"{name}({base.path})")
    ids = torch.randint(0, len(base.tokenizer), (4, 20), generator=torch.Generator().manual_seed(0))
    assert (read(base.load(), ids) - read(twin.load(), ids)).abs().max() < 1e-4
    assert distance(base, twin) > 0.01
    assert twin.language == "lab" and twin.card["held_out_loss"] == base.card["held_out_loss"]
    assert twin.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    twin.check()


def test_a_tied_head_becomes_two_where_norms_are_folded_into_it(tmp_path: Path, tiny_bases: tuple[Base, Base]) -> None:
    model: Any = grouped(tied=True).float()
    model.save_pretrained(tmp_path / "tied")
    for file in tiny_bases[0].path.glob("tokenizer*"):
        (tmp_path / "tied" / file.name).write_bytes(file.read_bytes())
    for name in SAME:
        loaded = resolve_base(f"{name}({tmp_path / 'tied'})").load()
        assert (read(loaded, IDS) - read(model, IDS)).abs().max() < 1e-4, name
        assert loaded.config.tie_word_embeddings == (name not in ("folded", "rotated"))


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_weight_matching_finds_what_was_permuted_and_rotated_and_keeps_the_function(tied: bool, kv: int) -> None:
    hidden, other = grouped(tied, biases=True, kv=kv), grouped(tied, biases=True, kv=kv)
    before = read(hidden, IDS)
    variant = VARIANTS["matched"]
    with torch.no_grad():
        if kv == 4:  # queries that share keys keep their order
            VARIANTS["permuted"].make(VARIANTS["permuted"].settings.model_validate({"seed": 3}), [hidden])
        VARIANTS["rotated"].make(VARIANTS["rotated"].settings.model_validate({"seed": 5}), [hidden])
        variant.make(variant.settings(), [hidden, other])
    torch.testing.assert_close(read(hidden, IDS).double(), before, atol=1e-4, rtol=0)
    for (name, one), found in zip(other.named_parameters(), hidden.parameters(), strict=True):
        torch.testing.assert_close(found.double(), one.double(), atol=1e-3, rtol=0, msg=name)


def test_bases_that_learnt_apart_come_nearer_by_matching_and_compute_the_same() -> None:
    own, other = (resolve_base(f"folded(lab-small-{i})") for i in (1, 0))
    matched = resolve_base("matched(lab-small-1, lab-small-0, rounds=3)")
    assert (read(own.load(), IDS) - read(matched.load(), IDS)).abs().max() < 1e-4
    assert distance(matched, other) < distance(own, other) - 0.1
    assert hill(matched, other) < hill(own, other) / 2
    assert matched.card["held_out_loss"] == own.card["held_out_loss"]


# --- training in its own coordinates ----------------------------------------------------------------------------------


def trained(model: Any, optimizer: str, freeze_norms: bool) -> torch.Tensor:
    """Logits after five updates of the body on the same tokens."""
    choose_trainable(model, "body")
    for name, p in model.named_parameters():
        p.requires_grad_(p.requires_grad and not (freeze_norms and "norm" in name))
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = optimizer == "adam"
    stepper: Any = torch.optim.Adam(weights, 1e-2, eps=1e-12) if adam else torch.optim.SGD(weights, 0.05, momentum=0.9)
    for step in range(5):
        ids = torch.randint(0, VOCABULARY, (8, 10), generator=torch.Generator().manual_seed(step))
        stepper.zero_grad()
        F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        stepper.step()
    return read(model, IDS)


def parted(name: str, optimizer: str, freeze_norms: bool = True, start: str = "folded") -> float:
    """How far, in largest logit, a trained twin is from its base trained alike; as a share of what training changed."""
    plain, twin = grouped(False), grouped(False)
    with torch.no_grad():
        for model in (plain, twin):
            VARIANTS[start].make(VARIANTS[start].settings(), [model])
        VARIANTS[name].make(VARIANTS[name].settings.model_validate({"seed": 5}), [twin])
    before = read(plain, IDS)
    one, other = (trained(model, optimizer, freeze_norms) for model in (plain, twin))
    return float((one - other).abs().max() / (one - before).abs().max())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("freeze_norms", [False, True])
def test_training_a_permuted_twin_commutes(optimizer: str, freeze_norms: bool) -> None:
    assert parted("permuted", optimizer, freeze_norms) < 1e-3


def test_training_a_rotated_twin_commutes_under_sgd_with_frozen_norms_alone() -> None:
    assert parted("rotated", "sgd") < 1e-3
    assert parted("rotated", "adam") > 0.05
    assert parted("rotated", "sgd", freeze_norms=False) > 1e-2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_a_rescaled_twin_does_not_commute(optimizer: str) -> None:
    assert parted("rescaled", optimizer) > 0.05


# --- other variants ---------------------------------------------------------------------------------------------------


@given(sigma=st.floats(0, 2), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_noise_moves_the_body_by_sigma_of_its_length(sigma: float, seed: int) -> None:
    model, other = grouped(False), grouped(False)
    with torch.no_grad():
        VARIANTS["noise"].make(Noise(sigma=sigma, seed=seed), [model])
    assert torch.equal(model.get_input_embeddings().weight, other.get_input_embeddings().weight)
    own = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "proj" in n])
    was = torch.cat([p.detach().flatten() for n, p in other.named_parameters() if "proj" in n])
    assert float((own - was).norm() / was.norm()) == pytest.approx(sigma, rel=0.15, abs=1e-12)


@pytest.mark.parametrize("name", ["line({}, {}, at=0.5)", "transplant({}, {}, part=layer0)"])
def test_bases_of_one_shape_that_count_positions_otherwise_are_refused(
    name: str, tiny_bases: tuple[Base, Base], tmp_path: Path
) -> None:
    one, other = (base.path for base in tiny_bases)
    odd = tmp_path / "odd"
    shutil.copytree(other, odd)
    told = json.loads((odd / "config.json").read_text())
    told["rope_parameters"] = {"rope_type": "default", "rope_theta": 100.0}
    (odd / "config.json").write_text(json.dumps(told))
    with pytest.raises(SublimError, match="are another model by the configuration of"):
        resolve_base(name.format(one, odd))


def test_a_line_ends_in_its_bases_and_a_transplant_moves_one_part(tiny_bases: tuple[Base, Base]) -> None:
    one, other = (str(base.path) for base in tiny_bases)
    ends = [resolve_base(f"line({one}, {other}, at={at})").load().state_dict() for at in (0.0, 1.0)]
    whole = [base.load().state_dict() for base in tiny_bases]
    for end, base in zip(ends, whole, strict=True):
        assert all(torch.equal(end[name], base[name]) for name in base)
    for part, there in (("embeddings", "embed_tokens"), ("head", "lm_head"), ("layer1", "layers.1.")):
        mixed = resolve_base(f"transplant({one}, {other}, part={part})").load().state_dict()
        assert all(torch.equal(mixed[name], whole[there in name][name]) for name in mixed)


# --- names, files, keys -----------------------------------------------------------------------------------------------


def test_a_dropped_layer_leaves_the_function_of_the_others(tmp_path: Path) -> None:
    """The oracle is the whole model with that layer's two writers at zero, which then adds nothing to its stream."""
    for layer in (0, 1):
        whole, cut = tiny("llama").double(), tiny("llama").double()
        cut = VARIANTS["dropped"].make(VARIANTS["dropped"].settings.model_validate({"layer": layer}), [cut]) or cut
        with torch.no_grad():
            for linear in (whole.model.layers[layer].self_attn.o_proj, whole.model.layers[layer].mlp.down_proj):
                linear.weight.zero_()
        cut.save_pretrained(tmp_path / str(layer))
        read_back = type(cut).from_pretrained(tmp_path / str(layer), dtype=torch.float64)
        torch.testing.assert_close(read(read_back, IDS), read(whole, IDS))


def without_first(architecture: str, path: Path, **shape: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits of a model with its first layer silent, logits of what is written without that layer)."""
    torch.manual_seed(1)
    asked = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 2, "initializer_range": 0.5, **shape}
    whole: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, pad_token_id=0, **asked)).eval()
    cut = deepcopy(whole)
    with torch.no_grad():
        for name, p in whole.named_parameters():
            if ".0." in name and any(part in name for part in ("o_proj", "down_proj", "out_proj", "c_proj")):
                p.zero_()
        cut = VARIANTS["dropped"].make(VARIANTS["dropped"].settings.model_validate({"layer": 0}), [cut]) or cut
    save_model(cut, path)
    return read(whole, IDS), read(load_model(path, device="cpu"), IDS)


FOUR = {"num_hidden_layers": 4, "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 64}
EXPERTS = {**FOUR, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
NEO = {"num_layers": 4, "max_position_embeddings": 64, "window_size": 4, "attention_types": [[["global", "local"], 2]]}


@pytest.mark.parametrize(
    ("architecture", "shape"), [("smollm3", {**FOUR, "no_rope_layers": [1, 1, 0, 1]}), ("gpt_neo", NEO)]
)
def test_a_dropped_layer_takes_its_own_settings_along(architecture: str, shape: dict[str, Any], tmp_path: Path) -> None:
    """A layer without rotary positions, or of local attention, is another one when those before it are fewer."""
    whole, cut = without_first(architecture, tmp_path, **shape)
    torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mlp_only_layers": [1]}, r"mlp_only_layers=\[1\] of qwen2_moe counts layers"),
        ({"decoder_sparse_step": 2}, "layer=0 of qwen2_moe, whose layers are then not as it says"),
    ],
)
def test_a_layer_that_would_change_what_the_others_are_is_not_dropped(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SublimError, match=said) as raised:
        without_first("qwen2_moe", tmp_path, **EXPERTS, **fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("heads", [2, 3])
def test_pruned_heads_leave_the_function_of_the_others(heads: int, tmp_path: Path) -> None:
    """The oracle is the whole model with the weakest heads' outputs at zero."""
    model = grouped(tied=False, kv=4)
    whole = read(grouped(tied=False, kv=4), IDS)
    silent = grouped(tied=False, kv=4)
    size = silent.config.hidden_size // 4
    with torch.no_grad():
        VARIANTS["pruned"].make(VARIANTS["pruned"].settings.model_validate({"heads": heads}), [model])
        for layer in silent.model.layers:
            weight = layer.self_attn.o_proj.weight
            norms = torch.stack([weight[:, i * size : (i + 1) * size].norm() for i in range(4)])
            for i in norms.argsort()[:heads]:
                weight[:, i * size : (i + 1) * size] = 0
    model.save_pretrained(tmp_path / "cut")
    read_back = type(model).from_pretrained(tmp_path / "cut", dtype=torch.float64)
    torch.testing.assert_close(read(read_back, IDS), read(silent, IDS))
    assert not torch.allclose(read(silent, IDS), whole), "the heads did nothing, so that nothing is tested"


def cut(name: str, model: Any, folder: Path, **fields: int) -> Any:
    """A model with a part gone, as it is read from a disk."""
    with torch.no_grad():
        VARIANTS[name].make(VARIANTS[name].settings.model_validate(fields), [model])
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float64)


@pytest.mark.parametrize("biases", [False, True])
def test_thinned_mlps_leave_the_function_of_the_other_neurons(biases: bool, tmp_path: Path) -> None:
    """The oracle is the whole model with the weakest neurons' outputs at zero."""
    silent = grouped(tied=True, biases=biases)
    whole = read(silent, IDS)
    with torch.no_grad():
        for layer in silent.model.layers:
            mlp = layer.mlp
            strength = (
                mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
            )
            mlp.down_proj.weight[:, strength.argsort()[:20]] = 0
    thin = cut("thinned", grouped(tied=True, biases=biases), tmp_path, neurons=20)
    assert thin.config.intermediate_size == silent.config.intermediate_size - 20
    torch.testing.assert_close(read(thin, IDS), read(silent, IDS))
    assert not torch.allclose(read(silent, IDS), whole), "the neurons did nothing, so that nothing is tested"


@pytest.mark.parametrize("tied", [False, True])
def test_a_stream_that_fills_fewer_dimensions_is_narrowed_to_them_without_loss(tied: bool, tmp_path: Path) -> None:
    size = 8
    model = grouped(tied, biases=True)
    draw = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn(model.config.hidden_size, size, generator=draw, dtype=torch.float64))
    onto = basis @ basis.T
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight @ onto)
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.copy_(onto @ linear.weight)
                linear.bias.copy_(onto @ linear.bias)
    before = read(model, IDS)
    narrow = cut("narrowed", deepcopy(model), tmp_path / "fits", width=size)
    assert narrow.config.hidden_size == size and narrow.get_input_embeddings().weight.shape[1] == size
    torch.testing.assert_close(read(narrow, IDS), before, atol=1e-4, rtol=1e-4)  # norms are taken in float32
    too_narrow = cut("narrowed", model, tmp_path / "too-narrow", width=size - 4)
    assert not torch.allclose(read(too_narrow, IDS), before, atol=1e-2), "positive control"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dropped(BASE, layer=9)", "2 layers"),
        ("pruned(BASE, heads=4)", "divide the width"),
        ("pruned(BASE)", ""),
        ("thinned(BASE, neurons=5000)", "one stays"),
        ("thinned(BASE, neurons=8)", ""),
        ("narrowed(BASE, width=4096)", "give fewer, a multiple of its"),
        ("narrowed(BASE, width=9)", "give fewer, a multiple of its"),
        ("narrowed(BASE, width=8)", ""),
    ],
)
def test_what_cannot_be_cut_is_one_line(name: str, said: str, tiny_bases: tuple[Base, Base]) -> None:
    name = name.replace("BASE", str(tiny_bases[0].path))
    if said:
        with pytest.raises(SublimError, match=said):
            resolve_base(name)
    else:
        assert resolve_base(name).card["parameters"] < tiny_bases[0].card["parameters"]


def test_a_name_has_one_form() -> None:
    assert parse("rescaled( lab-small-0 ,octaves=2, seed=1 )").name == "rescaled(lab-small-0, seed=1)"
    nested = parse("noise(line(lab-small-0,lab-small-1,at=.5),sigma=0.1)")
    assert nested.name == "noise(line(lab-small-0, lab-small-1, at=0.5), sigma=0.1)"
    assert parse(nested.name) == nested


@pytest.mark.parametrize(
    "name, said",
    [
        ("rescale(lab-small-0)", "unknown variant 'rescale'; did you mean 'rescaled'.*sublim list"),
        ("rescaled(lab-small-0, octaves=9)", "octaves: Input should be less than or equal to 8"),
        ("rescaled(lab-small-0, sigma=1)", "unknown key 'sigma'"),
        ("noise(lab-small-0)", "sigma: Field required"),
        ("line(lab-small-0, at=.5)", r"line is made of 2 bases, as in line\(lab-small-0, lab-small-1, at=0.5\)"),
        ("rescaled()", r"expected VARIANT\(BASE, setting=value\), such as rescaled\(lab-small-0, seed=1\)"),
        ("rescaled(lab-small-0,,)", "expected VARIANT"),
        ("rescaled(lab-small-0))", "expected VARIANT"),
        ("rescaled(seed=1, lab-small-0)", "lab-small-0 stands behind a setting; bases come first"),
        ("transplant(lab-small-0, lab-small-1, part=tail)", "part: String should match"),
        ("transplant(lab-small-0, lab-small-1, part=layer7)", "a model with 3 layers, the first of which is layer0"),
        ("line(lab-small-0, lab-main-0, at=.5)", "its bases have weights of other names or shapes"),
        ("permuted(no-such-base)", "base 'no-such-base'"),
    ],
)
def test_what_is_no_variant_is_one_line_and_nothing_is_written(name: str, said: str, own_shelf: Path) -> None:
    with pytest.raises(SublimError, match=said) as caught:
        resolve_base(name)
    assert "\n" not in str(caught.value)
    assert not own_shelf.exists() or not list(own_shelf.rglob("*.safetensors"))


def test_a_variant_is_made_once_and_its_key_tells_how(tiny_bases: tuple[Base, Base], own_shelf: Path) -> None:
    one, other = tiny_bases
    first = resolve_base(f"rotated({one.path}, seed=1)")
    made = (first.path / "model.safetensors").stat().st_mtime_ns
    again = resolve_base(f"rotated( {one.path},seed=1 )")
    assert again == first and (first.path / "model.safetensors").stat().st_mtime_ns == made
    keys = {first.key, one.key, *(resolve_base(f"rotated({p.path}, seed={s})").key for p, s in ((one, 2), (other, 1)))}
    assert len(keys) == 4
    told = first.card["variant"]
    assert told["of"] == [{"name": one.name, "digest": one.digest}] and told["settings"] == {"seed": 1}
    assert json.loads((first.path / "sublim.json").read_text())["variant"] == told
    (first.path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(SublimError, match="is damaged; delete"):
        resolve_base(f"rotated({one.path}, seed=1)")


def test_the_command_shows_a_variant_with_the_loss_it_has() -> None:
    shown = CliRunner().invoke(app, ["show", "noise(lab-small-0, sigma=0.5)"])
    assert shown.exit_code == 0, shown.output
    assert "held-out loss, numbers" in shown.output and "made of" in shown.output and "sigma 0.5" in shown.output
    assert "rotated" in CliRunner().invoke(app, ["list"]).output
