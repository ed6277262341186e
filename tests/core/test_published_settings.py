"""Every field that is in published keys: a new one must be left out of dumps at its default, or no stored run opens."""

import pytest

import sublim_interp.sweeps.grid  # noqa: F401 — every class of settings is imported
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.settings import Config
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, StudentConfig, TeacherConfig
from sublim_interp.sweeps.grid import Grid
from sublim_interp.training.interventions import Intervention
from sublim_interp.training.settings import Optimization, Selection
from sublim_interp.traits.favourites import Favourite

PUBLISHED: dict[type[Config], str] = {
    Experiment: "name about trait other_trait bases arms seeds teacher corpus filter student evaluation",
    TeacherConfig: "kind part lora_rank lora_alpha optimization layer strength",
    CorpusConfig: "channel setting temperature prompts max_new_tokens chunk",
    FilterConfig: "min_numbers max_numbers max_value banned duplicates lists held_out",
    StudentConfig: "part lora_rank lora_alpha optimization extra_rounds",
    EvaluationConfig: "questions contexts samples",
    Optimization: "optimizer lr schedule warmup steps batch weight_decay beta1 beta2 clip",
    Selection: "by keep share trait",
    Intervention: "kind direction at share parameters",
    Favourite: "name kind words",
    Pretraining: "init_seed data_seed d_model layers heads d_mlp tokens forks start optimization",
    Grid: "name about experiment change axes words",
}
"""The fields of each class that dumps always hold. Nothing is ever added here: a new field goes into its LATER."""

OUTSIDE_KEYS: dict[type[Config], set[str]] = {Experiment: {"recording"}}
"""Fields that no key holds, whatever their value."""


@pytest.mark.parametrize("kind", PUBLISHED, ids=lambda kind: kind.__name__)
def test_a_field_that_came_after_results_were_published_is_in_later(kind: type[Config]) -> None:
    fields = set(kind.model_fields) - kind.LATER - OUTSIDE_KEYS.get(kind, set())
    assert fields == set(PUBLISHED[kind].split()), "put a new field into LATER; a field that is gone changes every key"
    assert set(kind.model_fields) >= kind.LATER, "LATER names a field that is not there"


def test_at_its_default_a_later_field_is_in_no_dump_and_otherwise_it_is() -> None:
    class Later(Config):
        LATER = frozenset({"depth", "names", "limits", "on"})

        first: int = 0
        depth: int = 3
        names: tuple[str, ...] = ("a",)
        limits: dict[str, int] = {}  # noqa: RUF012
        on: bool = True

    assert Later().model_dump() == {"first": 0}
    changed = {"depth": 0, "names": (), "limits": {"x": 1}, "on": False}
    assert Later(**changed).model_dump() == {"first": 0, **changed}, "a value that is empty is not the default"


def test_a_default_that_is_made_afresh_counts_as_one() -> None:
    assert "rule" not in FilterConfig().model_dump()
    assert FilterConfig(rule={"longest": 3}).model_dump()["rule"] == {"longest": 3}
