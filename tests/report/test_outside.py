"""An arm and a figure of another package: planned, compared, drawn and explained as this package's own are."""

import subprocess
import sys
from pathlib import Path

import pytest

ARM = """
from sublim_interp.experiments.arms import Arm, Route

cross_other_trait = Arm(
    label="other A → student B",
    meaning="As cross-init, but the teacher was given another trait. It shows what its data does to base B.",
    route=Route("other", 0, 1),
    reference="other-trait",
    control_of="cross-init",
)
"""
FIGURE = """
from matplotlib.figure import Figure
from sublim_interp.report.figures.entry import FigureEntry

def draw(tables):
    figure = Figure()
    figure.subplots().plot(tables.summary["rate"])
    return figure

figure = FigureEntry("the rates as a line", "See how the line falls after same-init.", "tables", draw, page=True)
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with an installed package `elsewhere`, as pip would leave it."""
    (tmp_path / "elsewhere.py").write_text(ARM + FIGURE)
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sublim_interp.arms]\ncross-other-trait = elsewhere:cross_other_trait\n"
        "[sublim_interp.figures]\nrates = elsewhere:figure\n"
    )
    return tmp_path


def python(code: str, folder: Path) -> str:
    """What a fresh interpreter prints that has the package in `folder` installed."""
    paths = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(Path(__file__).parents[1])!r}]\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_arm_of_another_package_is_planned_as_its_route_says(outside: Path) -> None:
    code = """
from sublim_interp.experiments.arms import ARMS, SPARE_COLORS
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment

assert ARMS["cross-other-trait"].color == SPARE_COLORS[0]
exp = Experiment(bases=("lab-small-0", "lab-small-1"), arms=("cross-init", "cross-other-trait"))
assert Experiment.model_json_schema()["properties"]["arms"]["items"]["enum"][-1] == "cross-other-trait"
assert exp.model_dump(mode="json")["arms"] == ["cross-init", "cross-other-trait"]
student = next(c.student for c in plan(exp).cells if c.arm == "cross-other-trait")
teacher = student.data.corpus.teacher
print(teacher.base.name, student.base.name, teacher.trait.name)
"""
    assert python(code, outside).split() == ["lab-small-0", "lab-small-1", "wolf"]


def test_the_page_compares_explains_and_draws_what_another_package_adds(outside: Path, tmp_path: Path) -> None:
    code = f"""
import pathlib, planted
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import Tables
from sublim_interp.report.write import write

arms = ("same-init", "other-trait", "cross-init", "cross-other-trait", "base")
tables = Tables(*planted.frames(seeds=2, arms=arms, rounds=0), "owl")
print(*tables.contrasts["contrast"], *tables.summary["equal_kl"], sep="|")
print(write(pathlib.Path({str(tmp_path)!r}), Experiment(arms=arms, seeds=(0, 1)), tables).read_text())
"""
    said = python(code, outside)
    assert "cross-init − cross-other-trait" in said
    assert "See how the line falls after same-init." in said and "The rates as a line" in said
    assert "It shows what its data does to base B." in said
    assert (tmp_path / "rates.png").exists() and (tmp_path / "rates.pdf").exists()


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("route=Route", "color='#000000', label2=Route", "ARMS['cross-other-trait']", "cannot be imported"),
        ('control_of="cross-init"', 'control_of="crossed"', "ARMS['cross-other-trait']", "control_of is 'crossed'"),
        ('route=Route("other", 0, 1),', "", "ARMS['cross-other-trait']", "has no route"),
        (
            '"tables", draw, page=True',
            '"run", draw, page=True',
            "FIGURES['rates']",
            "the page draws figures that take tables",
        ),
        ("figure = FigureEntry", "figure = dict; FigureEntry", "FIGURES['rates']", "is a type"),
        ('control_of="cross-init"', 'control_of="crossed"', "Experiment(arms=('cross-other-trait',))", "is 'crossed'"),
    ],
)
def test_what_is_unfit_is_refused_in_one_line(outside: Path, old: str, new: str, code: str, message: str) -> None:
    module = outside / "elsewhere.py"
    assert old in module.read_text()
    module.write_text(module.read_text().replace(old, new))
    asked = f"""
from pydantic import ValidationError
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.schema import Experiment
from sublim_interp.report.figures.registry import FIGURES
try:
    {code}
except (SublimError, ValidationError) as error:
    print(error if isinstance(error, SublimError) else error.errors()[0]["msg"])
"""
    said = python(asked, outside)
    assert message in said and said.count("\n") == 1
