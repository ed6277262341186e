"""The numbers that README and package show are those of the runs whose keys they name."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.pyplot import imread

from sublim_interp.core.drawing import render
from sublim_interp.core.settings import read_yaml
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.run import run_key
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab import language
from sublim_interp.models.base import base_names, resolve_base
from sublim_interp.sweeps.grid import grid
from sublim_interp.sweeps.plan import plan_grid, sweep_key
from sublim_interp.sweeps.published import apart_table, bases_table, contexts_table, headline, published_doses
from sublim_interp.sweeps.run import draw
from sublim_interp.sweeps.tables import grid_table, law_elsewhere

README = Path(__file__).resolve().parents[2] / "README.md"
DOCS = README.parent / "docs" / "results.md"
PUBLISHED = sorted(p.parent.name for p in RESULTS.glob("*/experiment.yaml"))
SWEEPS = sorted(p.parent.name for p in RESULTS.glob("*/cells.csv"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_table_names_the_key_that_its_configuration_has(name: str) -> None:
    """Whoever runs the published configuration on the committed bases with this code gets a run of this key."""
    directory = RESULTS / name
    exp = read_yaml(Experiment, directory / "experiment.yaml")
    assert (directory / "key.txt").read_text().strip() == run_key(plan(exp))


def test_the_readme_and_the_results_show_the_published_owl() -> None:
    assert headline(RESULTS / "owl") in README.read_text()
    assert contexts_table(RESULTS / "owl") in DOCS.read_text()


def test_the_shelf_of_bases_names_every_one_with_what_its_card_says() -> None:
    shelf = README.parent / "checkpoints"
    bases = [resolve_base(name) for name in base_names()]
    assert {base.name for base in bases} == {p.name for p in shelf.iterdir() if p.is_dir()}
    assert bases_table(bases) in (shelf / "README.md").read_text()


@pytest.mark.parametrize("name", SWEEPS)
def test_a_published_sweep_has_the_key_of_its_grid_and_is_what_the_docs_show(name: str) -> None:
    assert (RESULTS / name / "key.txt").read_text().strip() == sweep_key(plan_grid(grid(name)))
    assert grid_table(RESULTS / name) in DOCS.read_text()


@pytest.mark.parametrize("name", SWEEPS)
def test_a_published_figure_is_what_this_code_draws_of_the_published_cells(name: str) -> None:
    """To the eye: another machine may round a pixel's edge otherwise. Mended by `python paper/publish.py again`."""
    drawn, shown = (
        imread(source)
        for source in (
            BytesIO(render(draw(grid(name), RESULTS / name), "png")),
            DOCS.parent / "figures" / f"{name}.png",
        )
    )
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 1e-3


def test_the_docs_tell_how_far_the_bases_that_orders_compares_lie_from_each_other() -> None:
    teacher, *students = dict.fromkeys(name for pair in grid("orders").axes["bases"] for name in pair)
    assert apart_table(resolve_base(teacher), list(map(resolve_base, students))) in DOCS.read_text()


def test_a_base_lies_nowhere_from_itself_and_nothing_stands_between() -> None:
    base = resolve_base("lab-small-0")
    assert "| lab-small-0 | 0.00 | 0.00 |" in apart_table(base, [base])


def test_the_docs_show_what_the_published_law_says_of_other_sweeps() -> None:
    """After another sweep is published this table is made again: `python paper/publish.py law`."""
    assert law_elsewhere(pd.read_csv(RESULTS / "law" / "cells.csv"), published_doses()) in DOCS.read_text()


@pytest.mark.parametrize("name", base_names())
def test_every_committed_base_speaks_the_language_of_this_code(name: str) -> None:
    assert resolve_base(name).card["language_digest"] == language.digest()
