"""Subliminal learning under the microscope: teacher → filter → student, and what happens inside.

The names that notebooks type; each is imported when it is first used, so that `import sublim_interp` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Experiment": "config",
    "Run": "runs",
    "Store": "store",
    "SublimError": "errors",
    "base_names": "models",
    "experiment": "runs",
    "experiment_names": "runs",
    "load_trait": "traits",
    "plan": "runs",
    "resolve_base": "models",
    "run": "runs",
    "trait_names": "traits",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sublim_interp.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sublim_interp' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*sorted(_HOME), "__version__"]
