"""Every causal type of this transformers through what the package offers: each ends as works, or in one line.

The whole is `make zoo`. Here types of the table of architectures go through the trials that ask its rows, and every
third of the others through `check` and the hooks; all of them where transformers is not the published page's.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import transformers

from sublim_interp.models.architectures import ARCHITECTURES, architecture_of
from sublim_interp.models.hooks import hook_names, kind_of
from sublim_interp.models.points import STREAM
from zoo.builder import types
from zoo.table import differences, version
from zoo.trials import TRIALS, WELL, Specimen, edits, grids, hooks, tried

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
