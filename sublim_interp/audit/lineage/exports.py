"""Every format in which a lineage is given away, in one table; each is checked by the format's own library."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sublim_interp.audit.lineage.graph import Lineage, Thing
from sublim_interp.core.errors import SublimError, said_of
from sublim_interp.core.files import one_line, write_atomic
from sublim_interp.core.registry import Registry

Export = Callable[[Lineage, Path, Path | None], bytes]
"""Called with a lineage that leads to parents, the file, and a private key's; returns what the file is to hold."""


def _check(name: str, thing: object) -> None:
    if not callable(thing):
        raise SublimError(f"export '{name}' is a {type(thing).__name__}; give a function, as {__name__}.Export")


_HERE = "sublim_interp.audit.lineage"

EXPORTS: Registry[Export] = Registry(
    "export",
    "sublim_interp.exports",
    {
        "in-toto": f"{_HERE}.statements:in_toto",
        "slsa": f"{_HERE}.statements:slsa",
        "croissant": f"{_HERE}.papers:croissant",
        "model-card": f"{_HERE}.papers:model_card",
        "oms": f"{_HERE}.signature:oms",
    },
    _check,
)
"""Every format by the name that `--export` takes."""


def export(found: Lineage, form: str, path: Path, key: Path | None = None) -> None:
    """Writes a lineage in a format.

    found: a lineage that leads to parents
    form: a name of EXPORTS
    path: the file; beside the store's records, not among them
    key: a private key in a PEM file, for formats that sign

    Raises SublimError for damaged things, and for a model of which only the weights are proven: neither is vouched for;
    for a lineage that leads down; for what the format
    cannot hold; and where the format's library is not installed.
    """
    write = EXPORTS[form]
    if found.down:
        raise SublimError(f"{form} tells what a thing was made from; leave out --descendants")
    if found.problems:
        raise SublimError(f"{form}: damaged files are not vouched for: {'; '.join(found.problems)}")
    if found.unproven:
        raise SublimError(f"{form}: {' '.join(found.unproven)} They are not vouched for; name the record instead")
    place = path.absolute().resolve()
    for thing in found.things.values():
        if thing.path and thing.path.is_dir() and place.is_relative_to(thing.path.resolve()):
            raise SublimError(f"{path} would lie in {thing.title} and change its digest; name a file elsewhere")
    data = write(found, path, key)
    with one_line(f"{path} is not written", place=("file", "another path", "")):
        write_atomic(path, data)


@contextmanager
def library(form: str) -> Iterator[None]:
    """A block that imports and uses the library of a format: what it lacks or refuses is one line."""
    try:
        yield
    except SublimError:
        raise
    except ImportError as error:
        raise SublimError(
            f"{form} needs {error.name}, which is not installed; pip install 'sublim-interp[lineage]'"
        ) from None
    except Exception as error:  # each library has its own kinds; all mean: it does not hold
        raise SublimError(f"{form}: its library refuses what was to be written ({said_of(error)})") from None


def product(found: Lineage, form: str, *sorts: str) -> Thing:
    """The thing that a format is about: the nearest of these sorts to what was asked about, itself first.

    Raises SublimError, with the sorts, where there is none.
    """
    for thing in found.walk():
        if thing.sort in sorts and thing.path:
            return thing
    raise SublimError(f"{form} is about a {' or a '.join(sorts)}, and {found.asked} has none here")


def part(found: Lineage, root: Thing) -> Lineage:
    """The lineage of one of its things."""
    ids, todo = {root.id}, [root.id]
    while todo:
        after = {link.parent for link in found.following(todo.pop())} - ids
        ids |= after
        todo += after
    things = {id: thing for id, thing in found.things.items() if id in ids}
    return Lineage(root.title, root.id, things, tuple(link for link in found.links if link.child in ids))
