"""Subliminal learning under the microscope: teacher → filter → student, and what happens inside.

The names that notebooks type; each is imported when it is first used, so that `import sublim_interp` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Experiment": "config",
    "Recorder": "recorder",
    "Run": "runs",
    "Store": "store",
    "SublimError": "errors",
    "Trace": "trace",
    "ablate": "analysis.directions",
    "answer_margin": "analysis.probes",
    "answer_rate": "analysis.probes",
    "base_names": "models",
    "bridge": "analysis.bridge",
    "capture": "hooks",
    "contrast": "plots",
    "directions": "analysis.directions",
    "edit": "hooks",
    "experiment": "runs",
    "experiment_names": "runs",
    "fit_map": "analysis.directions",
    "from_trace": "analysis.directions",
    "live": "views",
    "load_trait": "traits",
    "logit_lens": "analysis.directions",
    "moments": "analysis.patching",
    "open_run": "runs",
    "over_steps": "analysis.directions",
    "patch": "analysis.patching",
    "plan": "runs",
    "plot": "plots",
    "questions": "traits",
    "resolve_base": "models",
    "run": "runs",
    "steer": "hooks",
    "steering": "analysis.directions",
    "subspace_overlap": "analysis.directions",
    "trace_from_checkpoints": "recorder",
    "trait_contrast": "analysis.directions",
    "trait_names": "traits",
    "watch": "cli",
    "weight_delta": "analysis.directions",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sublim_interp.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sublim_interp' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*sorted(_HOME), "__version__"]
