"""Writes a finished run's tables into the package and its headline into the README: `python paper/publish.py owl`.

The run is made, or found in the store; nothing here computes a number. tests/test_published.py holds the README to
these files.
"""

import shutil
import sys
from pathlib import Path

from sublim_interp import report
from sublim_interp.runs import RESULTS, Run, experiment, run
from sublim_interp.store import Store

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- headline: begin (tests compare this table with the committed results) -->", "<!-- headline: end -->"


def publish(finished: Run) -> Path:
    """Copies configuration, key, tables and figure of a run to catalogue/results/NAME."""
    directory = RESULTS / finished.experiment.name
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("summary.csv", "contrasts.csv"):
        shutil.copy(finished.artifact.path / name, directory / name)
    (directory / "experiment.yaml").write_text(finished.experiment.to_yaml())
    (directory / "key.txt").write_text(finished.key + "\n")
    return directory


def write_readme() -> None:
    """Puts the committed table of `owl` between the README's two marks."""
    before, rest = README.read_text().split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{report.headline(RESULTS / 'owl')}{END}{after}")


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "owl"
    print(publish(run(experiment(name), Store.open())))
    write_readme()
