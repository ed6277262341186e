"""Traits by name: favourites and behaviours from YAML files, objects of packages; and those of an experiment."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry
from sublim_interp.core.settings import read_mapping
from sublim_interp.core.shelf import is_path
from sublim_interp.core.words import Names
from sublim_interp.traits.behaviours import BEHAVIOURS, load_behaviour
from sublim_interp.traits.facts import Facts, in_words
from sublim_interp.traits.favourites import FAVOURITES, KINDS, load_favourite, words_of
from sublim_interp.traits.protocol import Trait, members_of_all

_HERE = "sublim_interp.traits"

TRAITS: Registry[Any] = Registry(
    "trait",
    "sublim_interp.traits",
    {"misaligned": f"{_HERE}.conduct:MISALIGNED", "harmful": f"{_HERE}.conduct:HARMFUL"},
)
"""Traits that are no YAML file, by name: a `Trait`, or a class or function that gives one."""


def trait_names() -> tuple[str, ...]:
    """Every trait at hand, sorted."""
    return tuple(sorted({*FAVOURITES.names(), *BEHAVIOURS.names(), *TRAITS}))


def is_trait(name: str) -> bool:
    """Whether `name` is that of a trait, or of a YAML file that holds one: that says its words, or where it shows."""
    return bool({"words", "on"} & read_mapping(Path(name)).keys()) if is_path(name) else name in trait_names()


def load_trait(name: str, asked_by: str = "") -> Trait:
    """The trait called `name`, or that in the YAML file at the path `name`, as it is now.

    A file with `said`, `on` or `off` is a behaviour, any other a favourite.

    asked_by: the field that gives the name; messages begin with it

    Raises SublimError, with the known names, where there is no such trait or no such kind; for words that lack its
    name; with the package, for what cannot be made and for an object that is no trait.
    """
    try:
        return _loaded(name)
    except SublimError as error:
        raise (SublimError(f"{asked_by}: {error}") if asked_by else error) from None


def _loaded(name: str) -> Trait:
    own_file = is_path(name)
    if {"said", "on", "off"} & {*read_mapping(BEHAVIOURS.find(name))} if own_file else name in BEHAVIOURS:
        return load_behaviour(name)
    if own_file or name in FAVOURITES:
        found = load_favourite(name)
        KINDS.find(found.kind)
        return found
    if name not in TRAITS:
        known = meant(name, trait_names(), "sublim list", "known")
        raise SublimError(f"unknown trait '{name}'; {known}; or give a YAML file of your own")
    thing = TRAITS[name]
    try:
        trait = thing() if callable(thing) else thing
    except Exception as error:  # whatever that package raises
        said = " ".join(f"{type(error).__name__} {error}".split())
        raise SublimError(f"trait '{name}' cannot be made: {said}{TRAITS.origin(name)}") from None
    if not isinstance(trait, Trait) or trait.name != name:
        raise SublimError(f"trait '{name}' gives {trait!r}, which is no Trait of this name{TRAITS.origin(name)}")
    return trait


def traits_of(trait: str, other: str, facts: int, seed: int) -> dict[str, Trait]:
    """The traits that an experiment's teachers may have, by the word that arms use: "trait", "other", "" for neutral.

    trait, other: their names in the experiment; "" where no arm needs another
    facts: `teacher.facts`; where it is not 0, facts are the trait, of the kind of the trait that is named
    seed: the replicate's

    Raises SublimError as `load_trait`, for two traits of different kinds, and for a word that names two of what
    evaluations tell apart.
    """
    own = load_trait(trait, "trait")
    if facts:
        own = Facts(own.kind, facts, seed)
    found = {"trait": own, "": own.neutral()}
    if other:
        found["other"] = load_trait(other, "other_trait")
        if found["other"].kind != own.kind:
            raise SublimError(
                f"other_trait {found['other'].name} is a {found['other'].kind}, but trait {own.name} is a {own.kind}"
            )
    others = tuple(trait for word, trait in found.items() if word == "other")
    try:
        words = words_of(members_of_all(own, others), own.kind, (own, *others))
        _tell_apart(tuple((name, tuple(its)) for name, its in words.items()))
    except ValueError as error:
        raise SublimError(f"trait {own.name}: {error}") from None
    return found


@lru_cache
def _tell_apart(words: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    Names(dict(words))


def lesson_in_words(facts: int, together: Sequence[str] = ()) -> str:
    """What a tuned teacher is fine-tuned on, where no more is known than `teacher.facts` and `teacher.traits`."""
    if together:
        return f"questions about several traits at once: {', '.join(together)}"
    return in_words(facts) if facts else "questions about its favourite"
