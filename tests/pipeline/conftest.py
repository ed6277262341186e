"""Fixtures of the stages' tests: the base of a chain, and a store that holds its lists. No tests."""

import pytest

from chains import chain
from sublim_interp.core.store import Store
from sublim_interp.models.base import Base
from sublim_interp.pipeline.make import make


@pytest.fixture(scope="module")
def base(tiny_bases: tuple[Base, Base]) -> Base:
    return tiny_bases[0]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, base: Base) -> Store:
    """A store in which the plain chain is made up to its lists; tests add to it and never change what is there."""
    store = Store.open(tmp_path_factory.mktemp("shared"))
    make(chain(base).filtered, store)
    return store
