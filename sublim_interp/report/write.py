"""Writes a run's report: tables as CSV, figures as PNG and PDF, the page."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from sublim_interp.core.drawing import save
from sublim_interp.experiments.catalogue import Reference
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import contrasts, replicates, summary
from sublim_interp.report.figures.answers import probes
from sublim_interp.report.figures.arms import arms
from sublim_interp.report.page import page as make_page


def write(
    directory: Path,
    experiment: Experiment,
    results: pd.DataFrame,
    distances: pd.DataFrame,
    reference: Reference | None = None,
    key: str = "",
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write tables as CSV, figures as PNG and PDF, and `report.html`, a page that needs nothing else; return its path.

    `directory` exists already. `key` is the run's key in the store, `versions` maps a package to its version, and
    `reference` is shown beneath this run's own numbers. Equal arguments give equal bytes.

    Raises SublimError as `replicates` does, before anything is written.
    """
    trait = experiment.trait
    each, table = replicates(results, distances, trait), summary(results, distances, trait)
    differences = contrasts(results, distances, trait)
    drawn = {"figure": arms(each, table, trait)}
    if len(set(results["probe"])) > 1:
        drawn["probes"] = probes(results, trait)
    narrow = arms(each, table, trait, stacked=True)
    html = make_page(experiment, table, differences, drawn, narrow, reference, key, versions or {})
    frames = {"results": results, "distances": distances, "summary": table, "contrasts": differences}
    for name, frame in frames.items():
        frame.to_csv(directory / f"{name}.csv", index=False, lineterminator="\n", encoding="utf-8")
    for name, figure in drawn.items():
        for ending in ("png", "pdf"):
            save(figure, directory / f"{name}.{ending}")
    path = directory / "report.html"
    path.write_text(html, encoding="utf-8", newline="\n")
    return path
