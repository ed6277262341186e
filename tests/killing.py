"""A training that ends at a chosen update as if its process had been killed. No test lives here."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def kill_after(step: int) -> Callable[[int, float], None]:
    """An observer that raises `Killed` after update `step`."""

    def observe(at: int, _loss: float) -> None:
        if at == step:
            raise Killed

    return observe


def kill_move(patch: pytest.MonkeyPatch, last: str) -> None:
    """Lets `Killed` be raised before a directory is moved to where it is called `last`, or before one so named goes."""
    rename, remove = Path.rename, shutil.rmtree

    def renamed(path: Path, place: Path) -> Path:
        if place.name == last:
            raise Killed
        return rename(path, place)

    def removed(path: Path, **how: Any) -> None:
        if path.suffix == last:
            raise Killed
        remove(path, **how)

    patch.setattr(Path, "rename", renamed)
    patch.setattr(shutil, "rmtree", removed)
