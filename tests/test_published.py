"""The numbers that README and package show are those of the runs whose keys they name."""

from pathlib import Path

import pytest

from sublim_interp import report
from sublim_interp.config import Experiment, read_yaml
from sublim_interp.lab import language
from sublim_interp.models import base_names, resolve_base
from sublim_interp.runs import RESULTS, plan, run_key

README = Path(__file__).resolve().parent.parent / "README.md"
PUBLISHED = sorted(p.name for p in RESULTS.glob("*"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_table_names_the_key_that_its_configuration_has(name: str) -> None:
    """Whoever runs the published configuration on the committed bases with this code gets a run of this key."""
    directory = RESULTS / name
    exp = read_yaml(Experiment, directory / "experiment.yaml")
    assert (directory / "key.txt").read_text().strip() == run_key(plan(exp))


def test_the_readme_shows_the_published_owl() -> None:
    assert report.headline(RESULTS / "owl") in README.read_text()


@pytest.mark.parametrize("name", base_names())
def test_every_committed_base_speaks_the_language_of_this_code(name: str) -> None:
    assert resolve_base(name).card["language_digest"] == language.digest()
