"""Every causal type of this transformers through what the package offers: each ends as works, or in one line.

The whole is `make zoo`. Here types of the table of architectures go through the trials that ask its rows, and every
third of the others through `check` and the hooks; all of them where transformers is not the published page's.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import ARCHITECTURES, architecture_of, decoder_layers, output_map
from sublim_interp.models.hooks import axes_of, capture, edit, hook_names, kind_of, point_of
from sublim_interp.models.points import STREAM
from zoo.builder import types
from zoo.table import differences, version
from zoo.trials import ROWS, TRIALS, WELL, Specimen, edits, grids, hooks, near, tried

WHOLE = os.environ.get("SUBLIM_ZOO") == "whole"
OF_A_ROW = ("check", "hooks", "edit", "lens")
CHEAP = ("check", "hooks")
DRAWING = ("mixtral", "phimoe")
"""Types whose routers draw random numbers in training mode."""
SAME = version() == transformers.__version__
OTHERS = [kind for kind in types() if kind not in ARCHITECTURES]


def here() -> list[str]:
    return [kind for kind in types() if WHOLE or not SAME or kind in ARCHITECTURES or kind in OTHERS[::3]]


def which(kind: str) -> tuple[str, ...]:
    if WHOLE:
        return tuple(TRIALS)
    return (OF_A_ROW if kind in ARCHITECTURES else CHEAP) + ("repeat",) * (kind in DRAWING)


@pytest.mark.parametrize("kind", here())
def test_each_type_works_or_ends_in_one_line(kind: str) -> None:
    ends = tried(kind, which(kind))
    told = {name: end for name, end in ends.items() if end[0] not in WELL}
    assert not told
    if SAME:
        assert differences(kind, ends) == []


def one_a_row() -> list[str]:
    """Types of which each has another row; all at night. GPT-OSS has sinks, and OLMo norms without weights."""
    last = {repr(ARCHITECTURES[kind]): kind for kind in types() if kind in ARCHITECTURES}
    return [k for k in types() if k in ARCHITECTURES and (WHOLE or k in (*last.values(), "gpt_oss", "olmo"))]


@pytest.mark.parametrize("kind", one_a_row())
def test_names_within_a_layer_are_what_they_say(kind: str, tmp_path: Path) -> None:
    """Parts make what they are part of, by another computation; at night each name is also put back and changed."""
    one = Specimen(kind, tmp_path)
    model = one.fresh()
    with torch.no_grad(), capture(model, "*") as caught:
        eager = one.logits(model)
    seen = dict(caught)
    assert sorted(seen) == sorted(hook_names(model))
    for name, value in seen.items():
        assert value.dim() == len(axes_of(name)) and value.shape[0] == len(ROWS), name
    for number, layer in enumerate(decoder_layers(model)):
        at = f"blocks.{number}."
        v, pattern = (seen.get(f"{at}attn.hook_{part}") for part in ("v", "pattern"))
        if v is not None and pattern is not None and kind not in NORMED_WITHIN:
            v = v.repeat_interleave(pattern.shape[1] // v.shape[2], 2)
            near(torch.einsum("nhqk,nkhd->nqhd", pattern, v), seen[f"{at}attn.hook_z"], f"{at} pattern @ v")
        result = seen[f"{at}attn.hook_result"].sum(2)
        whole = output_map(model, number)(seen[f"{at}attn.hook_z"].flatten(-2)).detach()
        field = row.residual_scale if (row := architecture_of(model)) else ""
        whole = whole * float(getattr(model.config, field) if field else 1)  # as the layer adds it
        near(result - result[:1, :1], whole - whole[:1, :1], f"{at} the heads' results")  # less the map's bias
        functions = [m for name, m in layer.named_modules() if name.rpartition(".")[2] in ACTIVATIONS]
        if f"{at}mlp.hook_pre" in seen and kind not in NORMED_WITHIN:
            gate = seen.get(f"{at}mlp.hook_pre_linear", torch.ones(()))
            near(functions[0](seen[f"{at}mlp.hook_pre"]) * gate, seen[f"{at}mlp.hook_post"], f"{at} neurons")
        for norm in ("ln1", "ln2", "ln1_post", "ln2_post"):
            if f"{at}{norm}.hook_scale" in seen:
                _norm_is_linear_in_what_it_shows(one, model, at + norm, layer)
    plain = one.logits(model)
    for name in hook_names(model) if WHOLE else ():
        if kind_of(name) == "pattern" and kind in SEEN_ALONE:
            continue
        unchanged = eager if point_of(name).eager else plain
        with edit(model, {name: lambda x: x.clone()}):
            near(one.logits(model), unchanged, name, 1e-6)
        with edit(model, {name: lambda x: 1.5 * x.flip(-1)}):
            assert (one.logits(model) - unchanged).abs().max() > 1e-6, name


def _norm_is_linear_in_what_it_shows(one: Specimen, model: Any, name: str, layer: torch.nn.Module) -> None:
    """Twice what is normalized is twice the norm's output, its bias aside."""
    row = architecture_of(model)
    assert row
    module, given = layer.get_submodule(getattr(row, name.rpartition(".")[2])), []
    for factor in (0, 1, 2):
        with edit(model, {f"{name}.hook_normalized": lambda x, factor=factor: factor * x}):
            hook = module.register_forward_hook(lambda _module, _args, output: given.append(output))
            one.logits(model)
            hook.remove()
    none, plain, twice = given
    near(twice - none, 2 * (plain - none), name)
    near(none, none[..., :1, :].expand_as(none) if none.dim() == 2 else none[:1, :1].expand_as(none), f"{name}'s bias")


@pytest.mark.parametrize("kind", ["granite", "opt", "falcon"])
def test_grids_of_what_a_layer_scales_flattens_or_writes_into(kind: str, tmp_path: Path) -> None:
    grids(Specimen(kind, tmp_path))


ACTIVATIONS = ("act_fn", "activation_fn", "act", "gelu_impl")
NORMED_WITHIN = ("bitnet",)
"""Types with a norm between pattern and output map, and between neurons and their map."""
SEEN_ALONE = ("bloom", "codegen", "gpt_neo", "gptj", "xglm")
"""Types whose attention transformers cannot exchange."""


@pytest.mark.parametrize("kind", SEEN_ALONE)
def test_a_pattern_that_can_be_seen_alone_says_so(kind: str, tmp_path: Path) -> None:
    model = Specimen(kind, tmp_path).fresh()
    name = "blocks.0.attn.hook_pattern"
    ids = torch.tensor(ROWS)
    with (
        pytest.raises(SublimError, match="cannot be edited"),
        torch.no_grad(),
        edit(model, {name: lambda x: x.clone()}),
    ):
        model(input_ids=ids)
    with pytest.raises(SublimError, match="has no gradient"), capture(model, name, gradients=True):
        model(input_ids=ids)


def test_every_row_of_the_table_is_of_a_type_that_is_tried() -> None:
    assert set(ARCHITECTURES) <= {*types(), "meadow"}


@pytest.mark.parametrize(
    ("kind", "changes", "without"),
    [
        ("falcon", {"parallel_attn": False}, ""),
        ("falcon", {"alibi": True}, "resid_mid"),
        ("falcon", {"new_decoder_architecture": True}, "resid_mid"),
        ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, "resid_mid"),
        ("falcon", {"apply_residual_connection_post_layernorm": True}, "row"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "row"),
        ("opt", {"do_layer_norm_before": False}, "row"),
        ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}, "resid_mid"),
        ("gpt_neox", {"use_parallel_residual": False}, ""),
        ("cohere", {"use_qk_norm": True}, "resid_mid"),
        ("olmo", {"clip_qkv": 0.1}, ""),
        ("granite", {"attention_bias": True, "mlp_bias": True}, ""),
    ],
)
def test_a_row_holds_for_every_configuration_of_its_type_or_says_which(
    kind: str, changes: dict[str, Any], without: str, tmp_path: Path
) -> None:
    """`resid_pre + attn_out + mlp_out` is `resid_post`, edits reach the logits; grids at night."""
    one = Specimen(kind, tmp_path, **changes)
    if without == "row":
        assert architecture_of(one.built) is None
        assert {kind_of(name) for name in hook_names(one.built, STREAM)} == {"resid_pre", "resid_post"}
    else:
        assert {kind_of(name) for name in hook_names(one.built, STREAM)} == {*STREAM} - {without}
    for trial in (hooks, edits, grids) if WHOLE else (hooks, edits):
        trial(one)
