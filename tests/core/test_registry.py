"""Tables of named things and folders of files: what installed packages add, and what is refused in one line."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sublim_interp.core import registry, shelf
from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry, instances_of
from sublim_interp.core.settings import Config
from sublim_interp.core.shelf import CATALOGUE, Shelf, catalogues


class Named(Config):
    """Settings with a name and nothing else."""

    name: str
    """Its name."""


def has(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """As if an installed package named these things; without metadata it is called by what the point names."""
    found = [EntryPoint(name, value, "group") for name, value in points.items()]
    for module in (registry, shelf):
        monkeypatch.setattr(module, "entry_points", lambda group: found)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Folders of catalogues are looked for anew, before and after."""
    catalogues.cache_clear()
    yield
    catalogues.cache_clear()


def test_own_things_come_first_and_are_imported_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, pi="math:pi")
    table: Registry[float] = Registry("number", "group", {"tau": "math:tau", "one": 1.0})
    assert [*table] == ["tau", "one", "pi"] and len(table) == 3 and table._loaded == {}
    assert table["pi"] < 3.15 < table["tau"]
    assert table.origin("tau") == "" and table.origin("pi") == " (in the package math:pi)"


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ({"one": "math:pi"}, "number 'one' is given twice; rename the one of math:pi"),
        ({"two": "nowhere:it"}, "number 'two' of nowhere:it cannot be imported: No module named 'nowhere'"),
        ({"two": "math:sin"}, "number 'two' is a builtin_function_or_method; give a builtins.float (in the package"),
        ({"three": "math:pi"}, "unknown number 'two'; valid: one, three"),
    ],
)
def test_what_cannot_be_had_is_one_line(points: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, **points)
    table: Registry[float] = Registry("number", "group", {"one": 1.0}, instances_of("number", float))
    with pytest.raises(SublimError) as caught:
        table["two"]
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["nowhere.catalogue", "nowhere", "json.decoder"])
def test_a_catalogue_that_is_no_package_is_one_line_that_names_it(
    value: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, meadow=value)
    with pytest.raises(SublimError, match=f"^catalogue 'meadow' of {value}: there is no package {value}$"):
        catalogues()


def test_catalogues_of_packages_come_after_our_own(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, meadow="json")
    first, second = catalogues()
    assert first == CATALOGUE and second.name == "json" and catalogues()[second] == "json"


def test_a_file_of_one_name_in_two_packages_is_refused_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in ("meadow", "wood"):
        (tmp_path / root / "grids").mkdir(parents=True)
        for name in ("ours", "twice"):
            (tmp_path / root / "grids" / f"{name}.yaml").write_text("name: theirs\n")
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "ours.yaml").write_text("name: ours\n")
    (tmp_path / "meadow" / "grids" / "once.yaml").write_text("name: once\n")
    monkeypatch.setattr(shelf, "CATALOGUE", tmp_path)
    monkeypatch.setattr(
        shelf, "catalogues", lambda: {tmp_path: "own", tmp_path / "meadow": "meadow", tmp_path / "wood": "wood"}
    )
    files = Shelf("grid", "grids", Named)
    assert files.names() == ("once", "ours", "twice")
    assert files.load("ours").name == "ours" and files.load("once").name == "once"
    with pytest.raises(
        SublimError, match=r"^grid 'twice' is given by meadow and wood; rename one, or give a YAML file"
    ):
        files.load("twice")
    assert files.load(str(tmp_path / "wood" / "grids" / "twice.yaml")).name == "theirs"
