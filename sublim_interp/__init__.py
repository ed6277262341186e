"""Subliminal learning under the microscope: teacher → filter → student, and what happens inside.

The names that notebooks type; each is imported when it is first used, so that `import sublim_interp` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Experiment": "experiments.schema",
    "Probe": "training.recording.probe",
    "Recorder": "training.recording.recorder",
    "Recording": "training.recording.settings",
    "Run": "experiments.results",
    "Store": "core.store",
    "SublimError": "core.errors",
    "Trace": "training.recording.trace",
    "ablate": "analysis.directions.effects",
    "answer_margin": "analysis.probes",
    "answer_rate": "analysis.probes",
    "attribution": "analysis.attribution.lists",
    "base_names": "models.base",
    "bridge": "analysis.bridge",
    "capture": "models.hooks",
    "channel": "channels.protocol",
    "compare": "report.compare",
    "compare_starts": "models.initialisation",
    "contrast": "traits.direction",
    "diff": "report.diff",
    "direct_attribution": "analysis.decompose",
    "directions": "analysis.directions.core",
    "divergence": "analysis.attribution.scores",
    "edit": "models.hooks",
    "entropy": "analysis.attribution.scores",
    "experiment": "experiments.catalogue",
    "experiment_names": "experiments.catalogue",
    "filter_rows": "channels.filter",
    "fit_map": "analysis.directions.maps",
    "from_trace": "analysis.directions.trajectory",
    "highest": "analysis.attribution.scores",
    "influence": "analysis.attribution.scores",
    "labelled": "training.batches",
    "learn": "report.run",
    "linear_probes": "analysis.decompose",
    "live": "report.live",
    "load_trait": "traits.by_name",
    "logit_lens": "analysis.directions.effects",
    "margin_gradient": "analysis.attribution.scores",
    "metric": "analysis.metrics",
    "moments": "analysis.patching.moments",
    "open_run": "experiments.results",
    "over_steps": "analysis.directions.trajectory",
    "patch": "analysis.patching.grid",
    "patch_intervals": "analysis.patching.runs",
    "patch_runs": "analysis.patching.runs",
    "plan": "experiments.plan",
    "plot": "report.figures.by_name",
    "probe": "pipeline.observe",
    "published_figure": "paper.results",
    "pull": "models.pull",
    "questions": "traits.favourites",
    "record": "training.recording.callbacks",
    "resolve_base": "models.base",
    "run": "report.run",
    "run_audit": "audit.audit",
    "save": "core.drawing",
    "shift": "analysis.attribution.scores",
    "steer": "analysis.directions.effects",
    "steering": "analysis.directions.effects",
    "subspace_overlap": "analysis.directions.weights",
    "tell_apart": "analysis.telling",
    "tokenize": "training.batches",
    "trace_from_checkpoints": "training.recording.callbacks",
    "track": "report.track",
    "transform_rows": "channels.protocol",
    "trait_contrast": "analysis.directions.core",
    "trait_names": "traits.by_name",
    "watch": "cli.progress",
    "weight_delta": "analysis.directions.weights",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sublim_interp.{_HOME[name]}"), name)
    from sublim_interp.core.choices import meant

    near = meant(name, _HOME, "dir(sublim_interp)")
    raise AttributeError(f"module 'sublim_interp' has no attribute '{name}'; {near}")


def __dir__() -> list[str]:
    return [*sorted(_HOME), "__version__"]
