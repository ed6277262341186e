"""Figures show what the frames hold, look the same everywhere, and are written as the same bytes."""

import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

import sublim_interp
from planted import frames, pick
from sublim_interp.analysis.patching.picture import patch_grid
from sublim_interp.core.drawing import in_style, render, save
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.tables import Tables, replicates
from sublim_interp.report.figures.answers import probes
from sublim_interp.report.figures.arms import arms as draw_arms
from sublim_interp.report.figures.dose import dose
from sublim_interp.report.figures.generations import chains
from sublim_interp.report.figures.lines import arm_lines
from sublim_interp.report.figures.progress import progress
from sublim_interp.report.figures.steering import steering

ROOT = Path(__file__).parents[3]


def drawn(stacked: bool = False, **kwargs: Any) -> tuple[Figure, pd.DataFrame, pd.DataFrame]:
    both = frames(**kwargs)
    each, found = replicates(*both, "owl"), Tables(*both, "owl").summary
    return draw_arms(each, found, "owl", stacked=stacked), each, found


def dots(figure: Figure, panel: int) -> list[tuple[str, np.ndarray]]:
    """Colour and (x, y) of each group of dots."""
    groups = [child for child in figure.axes[panel].get_children() if isinstance(child, PathCollection)]
    return [(to_hex(np.asarray(group.get_facecolor())[0]), np.asarray(group.get_offsets())) for group in groups]


def words(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text() and text.get_visible()]


# Bytes


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_same_frame_gives_the_same_bytes_whatever_the_users_settings(kind: str, tmp_path: Path) -> None:
    results, distances = frames(seeds=2, rounds=0)
    each, found = replicates(results, distances, "owl"), Tables(results, distances, "owl").summary
    first, second = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    save(draw_arms(each, found, "owl"), first)
    user: dict[Any, Any] = {
        "font.size": 20.0,
        "font.family": "serif",
        "svg.hashsalt": "x",
        "pdf.fonttype": 3,
        "savefig.dpi": 50,
    }
    with matplotlib.rc_context(user):
        save(draw_arms(each, found, "owl"), second)
        assert matplotlib.rcParams["font.size"] == 20  # and they are left as they were
    assert first.read_bytes() == second.read_bytes()
    assert not re.search(rb"CreationDate|<dc:date>|Matplotlib", first.read_bytes())


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_a_figure_is_drawn_once_and_has_the_bytes_that_savefig_gives(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, buffer, drawings = alignment((0, 10)), BytesIO(), []
    saved, figure = arm_lines(frame, x="step"), arm_lines(frame, x="step")
    before = figure.canvas, figure.dpi
    metadata = {"pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}}.get(kind, {"Software": None})
    in_style(lambda: saved.savefig(buffer, format=kind, metadata=metadata | {"Creator": None}) or saved)()
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: (drawings.append(self), draw(self, renderer))[1])
    assert render(figure, kind) == buffer.getvalue()
    assert drawings == [figure] and (figure.canvas, figure.dpi) == before


def test_an_unknown_ending_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    for name in ("figure.jpg", "figure"):
        with pytest.raises(SublimError, match="valid kinds: png, pdf, svg"):
            save(Figure(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_pyplot_alone() -> None:
    code = (
        "import sys, pandas as pd; "
        "from sublim_interp.core.drawing import render; from sublim_interp.report.figures.dose import dose; "
        "row = {'field': 'lr', 'value': '1', 'arm': 'same-init', 'seed': 0, 'trait': 'owl', 'rate': .5}; "
        "render(dose(pd.DataFrame([row])), 'png'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(sublim_interp.__file__).parents[1])


# Arms


def test_every_replicate_is_a_dot_at_its_rate_and_its_distance() -> None:
    figure, each, found = drawn(seeds=4, rounds=2)
    for panel, column in enumerate(("rate", "kl")):
        shown = sorted(x for _, places in dots(figure, panel) for x in places[:, 0])
        assert shown == pytest.approx(sorted(each[column].dropna().to_list()))
    rows = [row for row in found.to_dict("records") for _ in range(2 if row["arm"].startswith("cross") else 1)]
    assert [color for color, _ in dots(figure, 0)] == [ARMS[row["arm"]].color.lower() for row in rows]
    texts = [text.get_text() for text in words(figure)]
    for row in found.to_dict("records"):
        assert row["arm"] in texts and f"{100 * row['rate']:.1f} %" in texts


def test_a_second_row_stands_only_where_students_were_trained_on() -> None:
    for rounds, expected in ((0, 0), (3, 3)):
        texts = [text.get_text() for text in words(drawn(seeds=2, rounds=rounds)[0])]
        assert texts.count("… trained on") == expected
        assert texts.count("to equal KL: matched") == expected


def test_the_line_stands_at_the_untouched_base() -> None:
    figure, _, found = drawn(seeds=3)
    base = pick(found, arm="base")["rate"].to_list()[0]
    assert [line for line in figure.axes[0].lines if list(np.asarray(line.get_xdata())) == [base, base]]
    without = drawn(seeds=3, arms=("same-init", "neutral"))[0]
    assert "untouched base" not in [text.get_text() for text in words(without)]


def test_no_interval_is_drawn_for_one_replicate() -> None:
    for seeds, bars in ((1, 0), (3, 13)):
        containers = drawn(seeds=seeds)[0].axes[0].containers
        assert sum(type(container).__name__ == "ErrorbarContainer" for container in containers) == bars


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("seeds, arms", [(12, tuple(ARMS)), (1, ("same-init", "neutral", "cross-init", "base"))])
def test_no_text_is_cut_off_or_lies_on_another(stacked: bool, seeds: int, arms: tuple[str, ...]) -> None:
    both = frames(seeds=seeds, arms=arms, lifted={"same-init": 0.9999})
    results, distances = both
    hard = (distances["arm"] == "cross-init") & (distances["seed"] < 11) & (distances["round"] > 0)
    distances.loc[hard, "kl"] = 0.05  # "to equal KL: matched in 1 of 12", the longest label
    each, found = replicates(results, distances, "owl"), Tables(results, distances, "owl").summary
    apart(draw_arms(each, found, "owl", stacked=stacked))


def apart(figure: Figure) -> None:
    """Every word lies within the figure, and none on another."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    undrawn = [
        tick.label1
        for axis in axes
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in words(figure) if text not in undrawn]
    for name, box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, name
    for i, (name, box) in enumerate(boxes):
        for other, second in boxes[i + 1 :]:
            inner = box.padded(-1), second.padded(-1)
            assert not inner[0].overlaps(inner[1]), (name, other)


def test_arms_have_distinct_colours_and_a_meaning() -> None:
    assert len({look.color for look in ARMS.values()}) == len(ARMS)
    assert all(look.meaning.endswith(".") and look.label for look in ARMS.values())


def test_a_students_distance_may_be_zero() -> None:
    results, distances = frames(seeds=2)
    distances.loc[distances["arm"] == "neutral", ["kl", "kl_start"]] = 0.0
    found = Tables(results, distances, "owl").summary
    render(draw_arms(replicates(results, distances, "owl"), found, "owl"), "svg")


# Probes


def test_the_heat_map_holds_the_means_with_the_trait_first() -> None:
    results, _ = frames(seeds=3)
    figure = probes(results, "owl")
    ax = figure.axes[0]
    members = [label.get_text() for label in ax.get_xticklabels()]
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert members[:2] == ["owl", "wolf"] and members[2:] == sorted(members[2:]) and len(members) == 16
    assert shown == list(ARMS)
    values = np.asarray(ax.images[0].get_array()) ** 2
    for arm, probe in (("same-init", "owl"), ("other-trait", "wolf"), ("base", "fox")):
        own = pick(results, arm=arm, probe=probe, questions="held-out", context="plain", round=0)
        mean = np.mean(own["rate"].to_list())
        assert values[shown.index(arm), members.index(probe)] == pytest.approx(mean)
        assert f"{100 * mean:.0f}" in [text.get_text() for text in ax.texts]


# Dose


def sweep() -> pd.DataFrame:
    """lists from 1,000 to 60,000, temperature from .5 to 1, and the trained part; two arms, three seeds."""
    rows: list[dict[str, Any]] = []
    for seed in range(3):
        for arm, top in (("cross-init", 0.06), ("same-init", 0.9)):
            for setting, values in (
                ("lists", (60_000, 1_000, 10_000)),
                ("temperature", (0.5, 1.0)),
                ("part", ("lora", "body")),
            ):
                for i, value in enumerate(values):
                    rate = top / (i + 1) + 0.01 * seed
                    place = {"field": setting, "value": str(value), "arm": arm, "seed": seed, "trait": "owl"}
                    rows.append({**place, "rate": rate})
    return pd.DataFrame(rows)


def test_each_setting_has_its_panel_with_dots_and_means() -> None:
    frame = sweep()
    figure = dose(frame)
    assert [ax.get_xlabel() for ax in figure.axes] == ["lists", "temperature", "part"]
    for panel, field in enumerate(("lists", "temperature", "part")):
        shown = sorted(y for _, places in dots(figure, panel) for y in places[:, 1])
        assert shown == pytest.approx(sorted(frame.loc[frame["field"] == field, "rate"].to_list()))
    lists, _, part = figure.axes
    assert [ax.get_xscale() for ax in figure.axes] == ["log", "linear", "linear"]
    same = next(line for line in lists.lines if line.get_label() == "same-init")
    assert list(np.asarray(same.get_xdata())) == [1_000, 10_000, 60_000]
    assert list(np.asarray(same.get_ydata())) == pytest.approx([0.46, 0.31, 0.91])
    assert to_hex(same.get_color()) == ARMS["same-init"].color.lower()  # as in every figure
    assert [label.get_text() for label in part.get_xticklabels()] == ["lora", "body"]
    assert same.get_linestyle() == "-" and {line.get_linestyle() for line in part.lines} == {"None"}
    assert {tick.get_text() for tick in lists.get_xticklabels()} == {"1,000", "10,000", "60,000"}
    places = [set(np.asarray(line.get_xdata()) % 1) for line in part.lines]
    assert places[0] & places[1] == set(), "arms whose means are equal would lie on each other"


@pytest.mark.parametrize("number, shape", [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))])
def test_panels_fill_their_grid(number: int, shape: tuple[int, int]) -> None:
    place = {"arm": "base", "seed": 0, "rate": 0.1, "value": "1", "trait": "owl"}
    figure = dose(pd.DataFrame([{**place, "field": f"s{i}"} for i in range(number)]))
    assert len(figure.axes) == shape[0] * shape[1]
    assert sum(ax.get_visible() for ax in figure.axes) == number


# Directions and patches


def alignment(steps: tuple[int, ...] = ()) -> pd.DataFrame:
    """Three arms over four layers, or two layers at each step, with an interval and a null."""
    rows = []
    for arm, height in (("same-init", 0.8), ("neutral", 0.02), ("cross-init", 0.1)):
        for layer in range(2 if steps else 4):
            for step in steps or (0,):
                middle = height * (1 - 0.1 * layer) * (step / steps[-1] if steps else 1)
                rows.append(
                    {"arm": arm, "layer": layer, "step": step, "estimate": middle, "low": middle - 0.1,
                     "high": middle + 0.1, "null_low": -0.2, "null_high": 0.2}
                )  # fmt: skip
    return pd.DataFrame(rows)


def cells(kind: str = "resid_pre", places: tuple[int | str, ...] = (-3, -2, -1)) -> pd.DataFrame:
    rows = [
        {"kind": kind, "method": "exact", "layer": layer, "place": place, "value": 0.0, "effect": 0.0,
         "recovered": 0.1 * layer + 0.3 * i}
        for layer in range(3) for i, place in enumerate(places)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def doses() -> pd.DataFrame:
    rows = [{"layer": 1, "scale": s, "rate": 1 / (1 + np.exp(-s)), "margin": s, "arm": arm}
            for arm in ("teacher", "same-init") for s in (-1.0, 0.0, 1.0, 2.0)]  # fmt: skip
    return pd.DataFrame(rows)


def test_lines_of_directions_go_through_their_estimates() -> None:
    frame = alignment()
    figure = arm_lines(frame)
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    for arm in ("same-init", "neutral", "cross-init"):
        assert np.asarray(lines[arm].get_ydata()) == pytest.approx(pick(frame, arm=arm)["estimate"].to_list())
        assert to_hex(lines[arm].get_color()) == ARMS[arm].color.lower()
    over = arm_lines(alignment((0, 1, 2, 4, 100)), x="step")
    assert [ax.get_title(loc="left") for ax in over.axes] == ["layer 0", "layer 1"]
    ticks = [tick.get_text() for tick in over.axes[0].get_xticklabels()]
    assert ticks == ["0", "1", "4", "100"] and over.axes[0].get_xscale() == "symlog"


def test_replicates_are_dots_and_what_the_bars_are_is_said() -> None:
    frame = alignment().assign(n=2)
    each = pd.concat([frame.assign(seed=seed, estimate=frame["estimate"] + 0.01 * seed) for seed in (0, 1)])
    figure = arm_lines(frame, replicates=each, bars="least to most")
    shown = sorted(y for _, places in dots(figure, 0) for y in places[:, 1])
    assert shown == pytest.approx(sorted(each["estimate"].to_list()))
    said = [text.get_text() for text in words(figure)]
    assert any("● one replicate" in text and "least to most" in text for text in said)
    alone = arm_lines(frame.assign(low=np.nan, high=np.nan), replicates=each.query("seed == 0"))
    assert "one replicate" in [text.get_text() for text in words(alone)]


@pytest.mark.parametrize("steps", [(), (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 700)])
def test_no_text_of_directions_is_cut_off_or_lies_on_another(steps: tuple[int, ...]) -> None:
    arms = ("same-init", "same-init-b", "neutral", "other-trait", "cross-init", "cross-init-b")
    frame = pd.concat([alignment(steps).query("arm == 'neutral'").assign(arm=arm) for arm in arms])
    each = pd.concat([frame.assign(seed=seed) for seed in (0, 1)])
    apart(arm_lines(frame, x="step" if steps else "layer", replicates=each, bars="least to most"))


def test_the_view_of_a_run_that_goes_on_has_a_line_a_student() -> None:
    states = pd.DataFrame({"arm": ["same-init", "same-init", "neutral"], "seed": [0, 1, 0], "step": 0, "rate": 0.06})
    figure = progress(states, states.assign(loss=3.0).iloc[:0], "owl", 700, "demo: 3 students")
    assert [text.get_text() for text in figure.axes[0].texts] == ["not written yet"]
    assert [line.get_label() for line in figure.axes[1].lines] == ["same-init", "_", "neutral"]
    figure = progress(states, states.assign(loss=3.0), "owl", 700)
    assert not figure.axes[0].texts and len(figure.axes[0].lines) == 3
    apart(figure)
    apart(progress(states.iloc[:0], states.iloc[:0], "owl", 30))  # before anything is written


def test_a_patch_grid_shows_every_cell_in_its_place() -> None:
    figure = patch_grid(cells(), labels=["which", "animal", "?"])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0", "30", "60", "10", "40", "70", "20", "50", "80"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["which", "animal", "?"]
    with pytest.raises(SublimError, match="2 labels for 3 places"):
        patch_grid(cells(), labels=["a", "b"])


def test_a_dose_curve_has_a_panel_a_metric() -> None:
    figure = steering(doses(), "owl")
    assert [ax.get_ylabel() for ax in figure.axes] == ["rate", "margin, nats"]
    shown = [line for line in figure.axes[1].lines if line.get_label() == "same-init"]
    assert list(np.asarray(shown[0].get_ydata())) == [-1, 0, 1, 2]


def test_pictures_of_directions_and_patches_are_the_same_bytes() -> None:
    for draw in (
        lambda: arm_lines(alignment((0, 10)), x="step"),
        lambda: patch_grid(cells("heads", (0, 1))),
        lambda: steering(doses()),
    ):
        assert render(draw(), "svg") == render(draw(), "svg")


def test_chains_of_a_grid_have_a_panel_a_value_and_a_line_an_arm() -> None:
    rows = [
        {"field": "trait", "value": value, "arm": arm, "seed": seed, "trait": value, "rate": rate + 0.01 * seed}
        for value, last in (("owl", 0.5), ("oak", 0.8))
        for arm, rate in (
            ("same-init", 0.9),
            ("same-init@2", last),
            ("neutral", 0.1),
            ("neutral@2", 0.2),
            ("base", 0.3),
        )
        for seed in (1, 2, 3)
    ]
    figure = chains(pd.DataFrame(rows))
    assert [ax.get_title("left") for ax in figure.axes] == ["owl", "oak"]
    for ax, last in zip(figure.axes, (0.5, 0.8), strict=True):
        lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.lines}
        np.testing.assert_allclose(lines["same-init"], [0.92, last + 0.02])
        np.testing.assert_allclose(lines["neutral"], [0.12, 0.22])
        np.testing.assert_allclose(lines["base"], [0.32, 0.32])
        assert ax.get_xticks().tolist() == [1, 2], "there is no teacher at 0"
    assert [len(xy) for _, xy in dots(figure, 1)] == [6, 6], "every replicate has its dot"
    assert any("the teacher's favourite" in text.get_text() for text in words(figure))
