"""Every causal type of this transformers through what the package offers: each ends as works, or in one line.

The whole is `make zoo`. Here types of the table of architectures go through the trials that ask its rows, the others
through `check` and the hooks alone.
"""

import os

import pytest
import transformers

from sublim_interp.models.architectures import ARCHITECTURES
from zoo.builder import types
from zoo.table import differences, version
from zoo.trials import TRIALS, WELL, tried

WHOLE = os.environ.get("SUBLIM_ZOO") == "whole"
OF_A_ROW = ("check", "hooks", "edit", "lens")
CHEAP = ("check", "hooks")


def which(kind: str) -> tuple[str, ...]:
    if WHOLE:
        return tuple(TRIALS)
    return OF_A_ROW if kind in ARCHITECTURES else CHEAP


@pytest.mark.parametrize("kind", types())
def test_each_type_works_or_ends_in_one_line(kind: str) -> None:
    ends = tried(kind, which(kind))
    told = {name: end for name, end in ends.items() if end[0] not in WELL}
    assert not told
    if version() == transformers.__version__:
        assert differences(kind, ends) == []


def test_every_row_of_the_table_is_of_a_type_that_is_tried() -> None:
    assert set(ARCHITECTURES) <= {*types(), "meadow"}
