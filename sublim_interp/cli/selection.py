"""Results of a store as the command line names them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sublim_interp.core.store import Store

ENDS = ("run", "sweep", "study", "answers")
"""Stages whose artefacts are kept for their own sake, and are called by their names."""


def chosen(selection: list[str], store: "Store", one_each: bool = False) -> list[str]:
    """The first 16 digits of the keys that are meant. Raises SublimError for a word that means none.

    one_each: for a word that means several too, with their keys
    """
    from sublim_interp.core.choices import meant
    from sublim_interp.core.errors import SublimError

    index, keys = store.index(), []
    for word in selection:
        named = [row.short for row in index.values() if row.name == word and row.stage in ENDS]
        found = named or [row.short for row in index.values() if len(word) >= 4 and row.key.startswith(word.lower())]
        if not found:
            names = [row.name for row in index.values() if row.stage in ENDS]
            raise SublimError(f"nothing in {store.root} is called '{word}'; {meant(word, names, 'sublim list')}")
        if one_each and len(found) > 1:
            raise SublimError(
                f"'{word}' may mean any of {', '.join(sorted(found))}; name each that is meant by its key"
            )
        keys += found
    return keys
