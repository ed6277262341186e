"""Tests of what a release carries beside the code: version, citation, Zenodo's record, changes."""

import json
import re
from pathlib import Path

import yaml

import sublim_interp as si

ROOT = Path(__file__).resolve().parents[2]


def test_citation_and_zenodo_say_what_the_package_says() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    assert cited["version"] == si.__version__
    assert zenodo["title"] == cited["title"] and zenodo["license"] == cited["license"] == "MIT"
    assert [one["name"] for one in zenodo["creators"]] == [one["name"] for one in cited["authors"]]
    assert set(cited["keywords"]) <= set(zenodo["keywords"])
    assert zenodo["description"].startswith(" ".join(cited["abstract"].split())[:-1])


def test_the_change_log_has_a_place_for_the_next_release() -> None:
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == "Unreleased"


def test_every_work_in_the_references_is_cited_and_says_where_it_was_compared() -> None:
    source = (ROOT / "paper" / "references.yml").read_text(encoding="utf-8")
    works = yaml.safe_load(source)
    text = (ROOT / "paper" / "main.typ").read_text(encoding="utf-8")
    cited = set(re.findall(r"@([a-z]+\d{4})\b", text))
    assert cited == set(works)
    for name, work in works.items():
        assert re.search(rf"^{name}: # \S", source, re.MULTILINE), name
        assert work["title"] and work["author"] and str(work["date"]) in name
        assert work["url"] == f"https://arxiv.org/abs/{work['serial-number']['arxiv']}"
