"""Tables of named things: those of this package, and those that installed packages add by entry points."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things of one sort by name: `OPTIMIZERS["adam"]`.

    what: the sort in words, for errors: "optimizer"
    group: entry points of this group add to it: "sublim_interp.optimizers"
    own: this package's, in the order in which they are shown; "module:attribute" is imported when it is asked for
    check: called with (name, thing) of what another package adds; raises SublimError for what is unfit

    Raises SublimError, with the valid names, for an unknown name; with the package, for a name that is given twice, an
    entry point that cannot be imported, and a thing that `check` refuses.
    """

    def __init__(
        self, what: str, group: str, own: Mapping[str, T | str], check: Callable[[str, T], None] | None = None
    ) -> None:
        self.what, self.group = what, group
        self._own, self._check = dict(own), check
        self._loaded: dict[str, T] = {}

    @cached_property
    def _outside(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in sorted(entry_points(group=self.group), key=lambda p: p.name):
            if point.name in self._own or point.name in found:
                raise SublimError(f"{self.what} '{point.name}' is given twice; rename the one of {giver(point)}")
            found[point.name] = point
        return found

    def __getitem__(self, name: str) -> T:
        if name not in self._loaded:
            if name in self._own:
                self._loaded[name] = _imported(self._own[name])
            elif name in self._outside:
                self._loaded[name] = self._from_outside(name, self._outside[name])
            else:
                raise SublimError(f"unknown {self.what} '{name}'; {meant(name, self, 'sublim list')}")
        return self._loaded[name]

    def _from_outside(self, name: str, point: EntryPoint) -> T:
        try:
            thing = point.load()
        except Exception as error:  # whatever that package raises
            raise SublimError(f"{self.what} '{name}' of {giver(point)} cannot be imported: {error}") from None
        try:
            if self._check:
                self._check(name, thing)
        except SublimError as error:
            raise SublimError(f"{error}{self.origin(name)}") from None
        return thing

    def import_outside(self) -> None:
        """Imports all that other packages add, so that what is unfit is told before work begins."""
        for name in self._outside:
            self[name]

    def origin(self, name: str) -> str:
        """Where a thing comes from, to end an error: "" for this package's own."""
        return f" (in the package {giver(self._outside[name])})" if name in self._outside else ""

    def known(self, name: str) -> str:
        """`name` itself, to check a settings field. Raises ValueError, with the valid names, for an unknown one."""
        if name not in self:
            raise ValueError(f"unknown {self.what}; {meant(name, self, 'sublim list')}")
        return name

    def checked(self, name: str) -> str:
        """As `known`, and imported at once, so that one of another package fails before anything runs."""
        self[self.known(name)]
        return name

    def __iter__(self) -> Iterator[str]:
        return iter([*self._own, *self._outside])

    def __len__(self) -> int:
        return len(self._own) + len(self._outside)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._outside


def instances_of(what: str, kind: type) -> Callable[[str, Any], None]:
    """A check for a registry: SublimError for what is no `kind`, called `what` in words."""

    def check(name: str, thing: Any) -> None:
        if not isinstance(thing, kind):
            raise SublimError(f"{what} '{name}' is a {type(thing).__name__}; give a {kind.__module__}.{kind.__name__}")

    return check


def _imported(thing: Any) -> Any:
    if not isinstance(thing, str):
        return thing
    module, _, attribute = thing.partition(":")
    return getattr(import_module(module), attribute) if attribute else import_module(module)


def giver(point: EntryPoint) -> str:
    """Name of the installed package that an entry point comes from."""
    return cast(Any, point).dist.name if point.dist else point.value
