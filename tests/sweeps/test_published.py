"""The numbers that docs and package show are those of the runs whose keys they name."""

import re
import shutil
from collections.abc import Callable
from importlib import util
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.pyplot import imread

from sublim_interp.core.drawing import render
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import read_yaml
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.run import run_key
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab import language
from sublim_interp.lab.landscape import distance, hill
from sublim_interp.models.base import base_names, resolve_base
from sublim_interp.report.figures.headline import headline as draw_headline
from sublim_interp.sweeps.grid import grid
from sublim_interp.sweeps.modes.law import FORMULA
from sublim_interp.sweeps.modes.pairs import Pairs
from sublim_interp.sweeps.plan import plan_grid, sweep_key
from sublim_interp.sweeps.published import contexts_figure, experiment_of, run_table
from sublim_interp.sweeps.tables import table_of

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted(p.parent.name for p in RESULTS.glob("*/experiment.yaml"))
SWEEPS = sorted(p.parent.name for p in RESULTS.glob("*/cells.csv"))

SPEC = util.spec_from_file_location("publish", ROOT / "paper" / "publish.py")
assert SPEC and SPEC.loader
publish = util.module_from_spec(SPEC)
SPEC.loader.exec_module(publish)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_table_names_the_key_that_its_configuration_has(
    name: str, pulled_for: Callable[[Experiment], None]
) -> None:
    """Whoever runs the published configuration on the committed bases with this code gets a run of this key."""
    directory = RESULTS / name
    exp = read_yaml(Experiment, directory / "experiment.yaml")
    pulled_for(exp)
    assert (directory / "key.txt").read_text().strip() == run_key(plan(exp))


@pytest.mark.parametrize("name", SWEEPS)
def test_a_published_sweep_has_the_key_of_its_grid(name: str, pulled_for: Callable[[Experiment], None]) -> None:
    pulled_for(grid(name).centre)
    assert (RESULTS / name / "key.txt").read_text().strip() == sweep_key(plan_grid(grid(name)))


@pytest.mark.parametrize("name", publish.tables())
def test_each_table_that_a_page_shows_is_made_from_what_is_committed(name: str) -> None:
    """Mended by `python paper/publish.py`."""
    assert publish.shown(name) == publish.tables()[name]()


def test_every_published_sweep_has_a_place_on_a_page() -> None:
    assert set(SWEEPS) <= set(publish.tables())
    with pytest.raises(SublimError, match=r"no page has a place for the table 'nothing'.*<!-- nothing: begin"):
        publish.page_of("nothing")


@pytest.mark.parametrize("name", ["owl", "contexts", *SWEEPS])
def test_a_published_figure_is_what_this_code_draws_of_the_published_cells(name: str) -> None:
    """To the eye: another machine may round a pixel's edge otherwise. Mended by `python paper/publish.py`."""
    if name in SWEEPS:
        figure = grid(name).mode.draw(RESULTS / name)
    elif name == "contexts":
        figure = contexts_figure(RESULTS / "owl")
    else:
        figure = draw_headline(pd.read_csv(RESULTS / name / "summary.csv"), "owl")
    for legend in figure.legends:
        assert legend.get_window_extent().width <= figure.bbox.width, "no arm is cut off"
    drawn, shown = (
        imread(source) for source in (BytesIO(render(figure, "png")), ROOT / "docs" / "figures" / f"{name}.png")
    )
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 1e-3


def test_the_headline_figure_says_what_its_bars_say() -> None:
    summary = pd.read_csv(RESULTS / "owl" / "summary.csv")
    figure = draw_headline(summary, "owl")
    title = figure.get_suptitle()
    assert "99.3 %" in title and "6.4 %" in title
    widths = sorted(bar.get_width() for bar in figure.axes[0].patches)  # pyright: ignore[reportAttributeAccessIssue]
    assert widths == pytest.approx(sorted(summary["rate"]))
    alone = draw_headline(summary.query("arm == 'same-init'"), "owl")
    assert alone.get_suptitle() == "How likely is the answer “owl”?", "nothing is compared with nothing"


@pytest.mark.parametrize("name", ["owl", *SWEEPS])
def test_sentences_around_a_table_are_short_and_have_no_brackets_in_brackets(name: str) -> None:
    of_run = run_table(RESULTS / "owl", experiment_of(RESULTS / "owl"))
    table = table_of(grid(name), RESULTS / name) if name in SWEEPS else of_run
    for line in [table.about, *table.lines]:
        if line == FORMULA or line.startswith("No result"):  # what the filter said stays word for word
            continue
        assert not re.search(r"[(\[][^)\]]*[(\[]", line), line
        for sentence in re.split(r"(?<=[.?;:]) ", re.sub(r"“[^”]*”", "it", line)):
            assert len(re.findall(r"[\w.−%]+", sentence)) <= 27, sentence  # a number's unit counts as a word


def test_the_shelf_of_bases_names_every_one() -> None:
    shelf = ROOT / "checkpoints"
    assert {resolve_base(name).name for name in base_names()} == {p.parent.name for p in shelf.glob("*/config.json")}
    assert publish.page_of("bases") == shelf / "README.md"


def test_a_base_lies_nowhere_from_itself_and_nothing_stands_between() -> None:
    base = resolve_base("lab-small-0")
    assert (distance(base, base), hill(base, base)) == (0, 0)


def test_the_published_distances_are_those_of_the_committed_bases() -> None:
    """The farthest pair stands for all; a test of tables compares what is committed with what is shown."""
    mode = grid("orders").mode
    assert isinstance(mode, Pairs)
    kept = mode.apart(RESULTS / "orders")
    assert list(kept["value"]) == [word for word, _ in mode.grid.worded["bases"]]
    assert kept["distance"].is_monotonic_increasing, "rows are read from near to far"
    one, other = map(resolve_base, mode.pairs[-1])
    assert distance(one, other) == pytest.approx(kept["distance"].iloc[-1], abs=1e-4)
    assert hill(one, other) == pytest.approx(kept["hill"].iloc[-1], abs=0.02)


def test_pairs_need_one_base_in_all_and_have_the_key_of_the_plain_mode() -> None:
    orders = grid("orders")
    plain = orders.set(matrix="")
    assert sweep_key(plan_grid(plain)) == sweep_key(plan_grid(orders))
    other = orders.set(axes={"bases": [["lab-small-0", "lab-deep-0"]]}, words={})
    with pytest.raises(SublimError, match="needs lab bases of one shape; lab-deep-0 is none"):
        plan_grid(other)
    with pytest.raises(SublimError, match=r"matrix=pairs needs pairs in axes\.bases, whose first base is the same"):
        orders.set(axes={"bases": [["lab-small-0", "lab-small-1"], ["lab-small-1", "lab-small-0"]]}, words={})


def test_the_row_of_a_pair_says_what_its_cells_say() -> None:
    table = table_of(grid("orders"), RESULTS / "orders")
    cells = pd.read_csv(RESULTS / "orders" / "cells.csv", dtype={"value": str})
    assert len(table.rows) == cells["value"].nunique() == 9
    for value, *_, own, other, margin, _, _ in table.rows:
        rows = cells.loc[cells["value"] == value].groupby("arm")[["rate", "margin"]].mean()
        assert own.startswith(f"{100 * rows.loc['same-init', 'rate']:.1f} %")
        assert other.startswith(f"{100 * rows.loc['cross-init', 'rate']:.1f} %")
        assert margin.replace("−", "-") == f"{rows.loc['cross-init', 'margin']:.2f}"


@pytest.mark.parametrize("name", base_names())
def test_every_committed_base_speaks_the_language_of_this_code(name: str) -> None:
    assert resolve_base(name).card["language_digest"] == language.digest()


@pytest.mark.parametrize(
    "state, said",
    [
        ("matched", "cross-init came as close to its teacher as same-init: KL"),
        ("unmatched", "cross-init never came as close to its teacher as same-init: KL"),
        ("matched in 10 of 12", "10 of 12 cross-init students came as close to their teacher as same-init: KL"),
    ],
)
def test_how_close_crossed_students_came_is_told_as_it_was(tmp_path: Path, state: str, said: str) -> None:
    shutil.copytree(RESULTS / "owl", tmp_path / "owl")
    summary = pd.read_csv(tmp_path / "owl" / "summary.csv")
    summary.assign(equal_kl=summary["equal_kl"].replace("unmatched", state)).to_csv(
        tmp_path / "owl" / "summary.csv", index=False
    )
    assert any(line.startswith(said) for line in run_table(tmp_path / "owl", experiment_of(tmp_path / "owl")).lines)
