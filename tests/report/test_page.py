"""The page of a run shows its inside, reads in a real browser on any screen, and is the same when written again."""

import base64
import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import sublim
from planted import frames
from sublim_interp.analysis.attribution.lists import attribution
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import Published
from sublim_interp.experiments.results import Run, open_run
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import Tables
from sublim_interp.pipeline import evaluate
from sublim_interp.report.figures.by_name import FIGURES
from sublim_interp.report.inside import LISTS, inside
from sublim_interp.report.write import page_figures, write, write_page

BROWSER = Path(__file__).with_name("browser.py")


def sections(html: str) -> dict[str, str]:
    """The body of each section by its title."""
    found = re.findall(r'<details class="section[^>]*><summary><h2>(.*?)</h2></summary>\n(.*?)\n</details>', html, re.S)
    return {unescape(title): body for title, body in found}


def cells(table: str) -> list[list[str]]:
    """The text of each cell of each row below the head."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.S)[1:]
    return [[unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_lists_and_answers_are_those_that_the_store_holds(tiny_run: Run) -> None:
    html = tiny_run.page.read_text()
    read = sections(html)["What the students read"]
    parts = read.split("<h3>")[1:]
    assert [re.sub("<.*?>", "", part.split("</h3>")[0]) for part in parts] == ["same-init, cross-init", "neutral"]
    for part, arm in zip(parts, ("same-init", "neutral"), strict=True):
        learnt = {(row["prompt"], row["answer"]) for row in tiny_run[arm, 0].lists}
        shown = [(prompt, answer) for _, prompt, answer in cells(part)]
        assert len(shown) == min(LISTS, len(learnt)) and {*shown} <= learnt
    answered = sections(html)["What the models answer"]
    assert "drawn when" not in answered and "when the models were evaluated" in answered
    for arm in tiny_run.arms:
        said = tiny_run[arm, 0].said
        assert list(said.columns) == ["question", "answer"] and len(said) == 30
        assert {*said["question"]} <= {*tiny_run[arm, 0].questions}
    table = cells(answered)
    assert [row[0] for row in table] == list(dict.fromkeys(tiny_run["base", 0].said["question"]))


def test_the_lists_that_attribution_ranks_highest_are_shown_beside_a_control(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = sections(tiny_run.page.read_text())["Lists that attribution ranks highest"]
    student, neutral = tiny_run["same-init", 0], tiny_run["neutral", 0]
    scored = attribution(student)  # the tiny run has fewer lists than the page scores
    assert f"of {len(student.lists)} lists, drawn at random from those of same-init" in shown
    rows = cells(shown)
    assert [row[2] for row in rows] == scored.frame["prompt"].to_list()[:LISTS]
    for row, score in zip(rows, scored.frame["score"], strict=False):
        assert float(row[1].replace("\N{MINUS SIGN}", "-")) == pytest.approx(score, rel=0.01)
    control = attribution(student, neutral.lists).scores.totals.mean()
    said = re.search(r"of neutral, whose teacher has no trait, average (\S+)\. ", shown)
    assert said and float(said[1].replace("\N{MINUS SIGN}", "-")) == pytest.approx(control, rel=0.01)
    bold = re.findall("<strong>(.*?)</strong>", shown)
    highest = scored.tokens.nlargest(len(scored.tokens) // 10, "score")
    assert bold and {*map(unescape, bold)} <= {*highest["text"]}
    assert "without a unit" in shown

    monkeypatch.setattr("sublim_interp.report.write.SMALL", 0)
    page = write(tmp_path, tiny_run.plan.named, tiny_run.tables, run=tiny_run)
    assert "Not scored: it runs the models" in sections(page.read_text())["Lists that attribution ranks highest"]


def test_the_page_at_the_end_of_a_run_reads_traces_and_loads_no_large_model(tiny_run: Run) -> None:
    drawn = dict(page_figures(tiny_run.tables, tiny_run))
    assert {name for name, entry in FIGURES.items() if entry.page and entry.fits is None} == {*drawn}
    assert [name for name, figure in drawn.items() if figure.drawing is None] == ["own-base"]
    assert "sublim plot tiny page" in drawn["own-base"].left_out
    shown = sections(tiny_run.page.read_text())
    waits = shown[next(title for title in shown if "own base's direction" in title)]
    assert "Not drawn: it runs the models" in waits


def test_every_figure_can_be_kept_and_says_what_it_shows(tiny_run: Run) -> None:
    html = tiny_run.page.read_text()
    kept = dict(re.findall(r'download="([\w-]+)\.svg" href="data:image/svg\+xml;base64,([^"]+)"', html))
    assert {"arms", "probes", "training", "stream-cosine", "patching"} <= {*kept}
    assert all(b"<svg" in base64.b64decode(data) for data in kept.values())
    alts = [unescape(alt) for alt in re.findall(r'alt="([^"]*)"', html)]
    table = tiny_run.table
    assert f"same-init: {100 * table.loc['same-init', 'rate']:.1f} %" in alts[0]
    assert "Highest: owl, " in alts[1] or "%" in alts[1]
    assert re.search(r"same-init from 0\.\d\d to 0\.\d\d", alts[2])
    assert "layer 0: " in alts[3] and "neutral from" in alts[3]
    assert re.search(r"Highest: layer \d, −?-?\d+: ", alts[4])


def test_a_page_is_written_anew_with_what_runs_the_models(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    write_page(tiny_run, path)
    first = path.read_bytes()
    write_page(open_run("tiny", tiny_run.store), path)
    assert path.read_bytes() == first and b"Not drawn" not in first
    assert 'download="own-base.svg"' in first.decode()

    # As of a run that was made before evaluations kept answers.
    monkeypatch.setattr(evaluate, "SAID", "of-another-day.jsonl")
    with pytest.raises(SublimError, match="evaluated before answers were kept"):
        _ = tiny_run["base", 0].said
    found, asked = inside(tiny_run), inside(tiny_run, ask=True)
    assert found and found.answers is None and "before answers were kept" in found.left_out
    assert asked and asked.answers and asked.answers.drawn_now and {*asked.answers.said} == {*tiny_run.arms}


def test_plot_page_is_a_command(tiny_run: Run, tmp_path: Path) -> None:
    done = sublim("plot", "tiny", "page", "--out", tmp_path, "--store", tiny_run.store.root)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    assert str(path) in done.stdout.replace("\n", "")
    assert path.name == f"tiny-{tiny_run.key[:8]}-page.html" and "What the models answer" in path.read_text()


# In a browser


@pytest.fixture(scope="session")
def browser() -> None:
    """Skips, by the name of what is missing, where no browser can be opened."""
    tried = subprocess.run([sys.executable, "-c", "import PySide6.QtWebEngineWidgets"], capture_output=True, text=True)
    if tried.returncode:
        said = f"PySide6-WebEngine opens no page here: {tried.stderr.strip().splitlines()[-1]}"
        pytest.skip(said)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every arm, twelve replicates and long names: the widest tables there are."""
    folder = tmp_path_factory.mktemp("wide")
    tables = Tables(*frames(), "owl")
    bases = tuple(f"a-base-of-a-rather-long-name-{i}" for i in range(12))
    beside = Published(tables.summary, tables.contrasts, "owl", "0123456789abcdef" * 4)
    return write(folder, Experiment(name="owl", bases=bases), tables, beside, "0123456789abcdef" * 4, {"torch": "2"})


def seen(page: Path, scheme: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, BROWSER, page, scheme], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["tiny", "wide"])
def test_a_browser_shows_all_of_it_on_any_screen(
    name: str, scheme: str, request: pytest.FixtureRequest, tiny_run: Run
) -> None:
    found = seen(request.getfixturevalue("wide") if name == "wide" else tiny_run.page, scheme)
    for width in (1300, 768, 390):
        view = found[str(width)]
        assert view["width"] == width and view["dark"] == (scheme == "dark")
        assert view["sideways"] == 0 and view["outside"] == [] and view["cut"] == []
        assert view["images"] and all(view["images"])
        assert (np.mean(view["paper"]) < 60) == (scheme == "dark")
        assert view["faint"] == []  # of less than 4.5 to 1
    assert found["open"] == [True] + [False] * (len(found["open"]) - 1)
    assert found["opened"] == [True, True, *found["open"][2:]]  # by the keyboard alone
    stops = [tag for tag, *_ in found["stops"]]
    assert stops[:2] == ["SUMMARY", "A"] and "TH" in stops and stops[-1] == "SUMMARY"
    assert all(style == "solid" and size >= 2 for _, _, style, size, _ in found["stops"])
