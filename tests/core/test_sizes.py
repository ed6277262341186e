"""Every whole number in settings has a bound, or is one that no memory and no time follows."""

from collections.abc import Iterator
from typing import Any

import pytest

import sublim_interp.lab.recipe
import sublim_interp.sweeps.grid  # noqa: F401 — every class of settings is imported
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.open_bases import OpenBase
from sublim_interp.sweeps.grid import Grid

FREE = {
    "seed", "init_seed", "data_seed", "order_seed", "seeds", "max_value", "banned", "weight_bytes", "stream_bytes",
    "series_weights", "sbatch",
}  # fmt: skip
"""Seeds, limits that are only compared with, and what another program reads."""


def kinds(of: type[Config] = Config) -> Iterator[type[Config]]:
    for kind in of.__subclasses__():
        if kind.__module__.startswith("sublim_interp."):
            yield kind
            yield from kinds(kind)


def whole_numbers(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            yield schema
        for inner in schema.values():
            yield from whole_numbers(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from whole_numbers(inner)


def test_every_whole_number_that_costs_memory_or_time_is_bounded() -> None:
    seen = 0
    for kind in kinds():
        for name, field in kind.model_json_schema().get("properties", {}).items():
            for number in whole_numbers(field):
                seen += 1
                told = name in FREE or kind in (Grid, OpenBase)
                assert told or number.get("maximum", 2**63) <= 10**9, f"{kind.__name__}.{name}"
    assert seen > 25


@pytest.mark.parametrize(
    "field", ["student.lora_rank", "student.extra_rounds", "corpus.chunk", "evaluation.samples", "teacher.layer"]
)
def test_a_size_beyond_all_bounds_is_one_line(field: str) -> None:
    with pytest.raises(SublimError, match=rf"{field}: Input should be less than or equal to \d+ \(got {2**62}\)"):
        Experiment().set({field: 2**62})


def test_more_replicates_than_a_plan_can_hold_are_refused_at_once() -> None:
    with pytest.raises(SublimError, match=r"seeds: .*10000"):
        Experiment().set(seeds=list(range(20_000)))


@pytest.mark.parametrize("axes", [{}, {"student.lora_rank": ()}])
def test_a_grid_without_values_is_one_line(axes: dict[str, Any]) -> None:
    from sublim_interp.core.settings import validate

    with pytest.raises(SublimError, match=r"mine: axes.* should have at least 1 item"):
        validate(Grid, {"name": "x", "axes": axes}, "mine")


def test_a_law_of_more_combinations_than_anybody_trains_is_one_line() -> None:
    from sublim_interp.core.settings import validate

    axes = {f"student.{name}": tuple(range(100)) for name in "abcd"}
    with pytest.raises(SublimError, match="axes: 100000000 combinations of values; 10000 are the most"):
        validate(Grid, {"name": "x", "axes": axes, "matrix": "law"}, "mine")
