"""Tests of the mode defences: what is left of trait and task is worked out by hand, and the figure can be read."""

from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import BboxBase

from sublim_interp.core.drawing import render
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.schema import Experiment
from sublim_interp.report.figures.defences import WORST, defences
from sublim_interp.sweeps.grid import Grid, grid
from sublim_interp.sweeps.modes.defences import points
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.run import run_grid
from sublim_interp.sweeps.tables import table_of

Left = dict[tuple[str, str], tuple[float, float]]
LEFT: Left = {
    ("filter.transform", "undefended"): (0.99, 0.65),
    ("filter.transform", "sorted"): (0.4, -3.0),
    ("filter.mix", "90 % clean"): (0.2, 0.6),
    ("arms", "another base"): (0.05, 0.4),
    ("student.interventions", "useless"): (0.9, 0.1),
    ("student", "LoRA"): (0.8, 0.7),
}
"""Field and value → rate of the trait and share of the task that are planted."""


def planted(seeds: int, noise: float = 0.01, left: Left = LEFT) -> pd.DataFrame:
    draw, rows = np.random.default_rng(0), []
    for (field, value), (rate, task) in left.items():
        for seed in range(200, 200 + seeds):
            a, b = ("cross-init", "cross-neutral") if field == "arms" else ("same-init", "neutral")
            common = {"field": field, "value": value, "seed": seed, "trait": "owl", "kl_start": 0.2}
            moved = min(1.0, rate + noise * draw.normal()), 0.2 * (1 - task + noise * draw.normal())
            rows.append({**common, "arm": a, "rate": moved[0], "margin": 9 * moved[0], "kl": 0.1})
            rows.append({**common, "arm": b, "rate": 0.06, "margin": 0.0, "kl": moved[1]})
            rows.append({**common, "arm": "base", "rate": 0.07, "margin": 0.0, "kl": 0.2})
    return pd.DataFrame(rows)


def test_points_are_means_over_replicates_with_intervals_of_each_arm() -> None:
    frame = planted(4)
    found = points(frame).set_index("value")
    assert list(found.index) == [value for _, value in LEFT] and set(found["n"]) == {4}
    for (_, value), (rate, task) in LEFT.items():
        own = frame.loc[frame["value"] == value]
        rates = own.loc[own["arm"].isin(["same-init", "cross-init"]), "rate"].to_list()
        kls = own.loc[own["arm"].isin(["neutral", "cross-neutral"]), "kl"].to_list()
        half = 3.182446 * stdev(rates) / 2  # Student's t of three degrees of freedom
        row = found.loc[value]
        assert row["rate"] == pytest.approx(fmean(rates)) and row["rate"] == pytest.approx(rate, abs=0.03)
        assert (row["rate_low"], row["rate_high"]) == pytest.approx((row["rate"] - half, min(1, row["rate"] + half)))
        assert row["task"] == pytest.approx(1 - fmean(kls) / 0.2) and row["task"] == pytest.approx(task, abs=0.03)
        assert row["own_task"] == pytest.approx(0.5)


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    found = points(planted(4))
    assert set(found.loc[found["front"], "value"]) == {"90 % clean", "another base", "LoRA"}
    for a, b in pairwise(found.loc[found["front"]].sort_values("task").to_dict("records")):
        assert a["rate"] < b["rate"]


def test_of_two_alike_neither_beats_the_other_and_one_without_students_is_no_best() -> None:
    frame = planted(4)
    twin = frame.loc[frame["value"] == "LoRA"].assign(value="twin")
    dead = frame.loc[(frame["value"] == "LoRA") & (frame["arm"] == "base")].assign(value="led nowhere")
    found = points(pd.concat([frame, twin, dead]))
    front = set(found.loc[found["front"], "value"])
    assert {"LoRA", "twin"} <= front and "led nowhere" not in front


def test_ends_of_few_replicates_are_the_least_and_the_most_and_one_has_no_width() -> None:
    frame = planted(2)
    row = points(frame).set_index("value").loc["LoRA"]
    rates = frame.loc[(frame["value"] == "LoRA") & (frame["arm"] == "same-init"), "rate"]
    assert (row["rate_low"], row["rate_high"]) == (rates.min(), rates.max())
    one = points(planted(1))
    assert one["task_low"].tolist() == one["task_high"].tolist()


def test_the_table_words_means_with_their_ends(tmp_path: Path) -> None:
    """Planted without noise, so that ends and means agree; of one replicate there are no ends."""
    left: Left = {("filter.transform", "undefended"): (0.99, 0.65), ("student", "LoRA"): (0.2, -0.5)}
    for seeds, ends in (
        (1, ("", "")),
        (3, (" (20.0 to 20.0)", " (−50.0 to −50.0)")),
        (4, (" [20.0, 20.0]", " [−50.0, −50.0]")),
    ):
        planted(seeds, 0.0, left).to_csv(tmp_path / "cells.csv", index=False)
        found = table_of(grid("defences"), tmp_path)
        assert found.rows[1][:3] == ("LoRA", str(seeds), f"20.0 %{ends[0]}") and found.rows[1][4] == f"−50.0 %{ends[1]}"
        assert found.numbers == {"front": "undefended, LoRA", "untouched": "7.0 %"}


def numbers_of(figure: Figure) -> list[Annotation]:
    return [a for a in figure.axes[0].texts if isinstance(a, Annotation) and a.get_text().isdigit()]


CROWDED: Left = {("filter.transform", f"d{i}"): (0.99 - 0.004 * (i % 4), 0.6 + 0.01 * (i // 4)) for i in range(16)}


@pytest.mark.parametrize("left", [LEFT, CROWDED], ids=["spread", "crowded"])
def test_no_number_covers_another(left: Left) -> None:
    figure = defences(points(planted(4, 0.001, left)), "owl", 0.07)
    assert figure.get_figwidth() <= 3.5, "it fits a column as it is"
    for dpi in (72, 200):
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        drawn = numbers_of(figure)
        assert [a.get_text() for a in drawn] == [str(i + 1) for i in range(len(left))]
        boxes = [Annotation.get_window_extent(a) for a in drawn]
        panel = figure.axes[0].get_window_extent()
        assert all(panel.x0 - 1 <= b.x0 and b.x1 <= panel.x1 + 1 and b.y1 <= panel.y1 + 1 for b in boxes)
    sizes = {text.get_fontsize() for text in [*figure.texts, *drawn]}
    assert min(sizes) >= 6.5
    plain = [box.shrunk(0.9, 0.7) for box in (text_box(a) for a in drawn)]  # without the leading above a figure
    assert not [(a, b) for a, b in combinations(range(len(plain)), 2) if plain[a].overlaps(plain[b])]


def text_box(annotation: Annotation) -> BboxBase:
    """Room of the number itself, without the line that leads to its point."""
    return Text.get_window_extent(annotation)


def test_the_figure_names_every_defence_and_marks_the_undefended() -> None:
    figure = defences(points(planted(4)), "owl", 0.07)
    named = [text.get_text() for text in figure.texts]
    assert {value for _, value in LEFT} <= set(named)
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert len(stars) == 1 and np.asarray(stars[0].get_xdata()) == pytest.approx([0.65], abs=0.02)
    least = min(float(np.min(line.get_xdata())) for line in figure.axes[0].lines if line.get_marker() == "o")
    assert least == WORST, "what lies far to the left stands at the edge"
    assert render(figure, "png") == render(defences(points(planted(4)), "owl", 0.07), "png")
    assert len(render(defences(points(planted(1)), "owl", 0.07), "pdf")) > 5_000


def tiny(tiny_experiment: Experiment, tmp_path: Path, **change: object) -> Grid:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    own = {"arms": ["same-init", "neutral", "base"], "seeds": [0], "evaluation.contexts": ["plain"]}
    return grid("defences").set(experiment=str(path), change={**own, **change})


def test_the_grid_of_the_catalogue_runs_with_every_defence(tiny_experiment: Experiment, tmp_path: Path) -> None:
    g = tiny(tiny_experiment, tmp_path)
    artifact = run_grid(plan_grid(g), Store.open(tmp_path / "store"))
    found = table_of(g, artifact.path)
    words = [word for values in g.words.values() for word in values]
    assert [row[0] for row in found.rows] == words and {row[1] for row in found.rows} == {"1"}
    assert found.rows[0][0] == "undefended" and found.numbers["front"] in found.lines[0]
    cells = pd.read_csv(artifact.path / "cells.csv", dtype={"value": str})
    assert (artifact.path / "defences.png").stat().st_size > 20_000
    own = cells.loc[cells["arm"] == "same-init", ["margin", "kl"]]
    assert len(own.drop_duplicates()) == len(words) - 1, "every defence but another base has a student of its own"
    assert set(cells.query("value == 'another base'")["arm"]) == {"cross-init", "cross-neutral", "base"}


def test_a_cell_without_a_harmless_teacher_is_refused(tiny_experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(SublimError) as raised:
        plan_grid(tiny(tiny_experiment, tmp_path, arms=["same-init", "base"]))
    assert "undefended has the arms same-init, base; it needs one of same-init and cross-init, one of neutral" in str(
        raised.value
    )


def test_the_files_of_a_sweep_are_those_of_a_plain_grid(tiny_experiment: Experiment, tmp_path: Path) -> None:
    from sublim_interp.sweeps.plan import sweep_key

    g = tiny(tiny_experiment, tmp_path)
    assert sweep_key(plan_grid(g)) == sweep_key(plan_grid(g.set(matrix="")))
