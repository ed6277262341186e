"""Tables of named things and folders of files: what installed packages add, and what is refused in one line."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from sublim_interp.core import registry, shelf
from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry, instances_of
from sublim_interp.core.shelf import CATALOGUE, catalogues


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
    assert first == CATALOGUE and second.name == "json"
