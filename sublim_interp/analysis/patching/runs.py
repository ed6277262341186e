"""Patching over many runs, arms and seeds, as one frame."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sublim_interp.analysis.patching.cells import GridKind
from sublim_interp.analysis.patching.grid import patch
from sublim_interp.analysis.probes import Metric
from sublim_interp.core.errors import SublimError
from sublim_interp.models.prompts import Prompts
from sublim_interp.stats.intervals import over_replicates

if TYPE_CHECKING:
    import pandas as pd


def patch_runs(
    runs: Any,
    arms: str | Sequence[str] = "same-init",
    seeds: int | Iterable[int] | None = None,
    *,
    src: str = "student",
    dst: str = "base",
    kind: GridKind | Sequence[GridKind] = "resid_pre",
    metric: Metric | str | None = None,
    prompts: Prompts = None,
    method: Literal["exact", "attribution"] = "exact",
    across_bases: bool = False,
) -> "pd.DataFrame":
    """Patching grids of every replicate of some arms of some runs.

    runs: a run or several, as `si.open_run` gives them
    arms: whose students are patched, one name or several
    seeds: which replicates; all of a run's where None
    src, dst: where patches come from and go to: `student` (of the arm), `teacher` (of the trait), `base` (of the
        student), or the name of an arm, whose replicate of the same seed it is, such as `neutral`
    kind: kinds of grids, as of `Patching.grid`
    metric, prompts: as of `patch`: by default the margin of the run's trait, at its held-out questions
    method: `exact`, or `attribution`, which is to first order
    across_bases: patches between models of two bases too, whose axes are unrelated

    Returns `PatchGrid.frame` of each, with the columns run, arm, seed, src and dst before it; `patch_intervals` makes
    intervals over seeds of it. Raises SublimError for an arm or a seed that a run has not, before anything runs.
    """
    import pandas as pd

    chosen = [arms] if isinstance(arms, str) else list(arms)
    kinds: Sequence[GridKind] = [kind] if isinstance(kind, str) else list(kind)  # type: ignore[assignment, list-item]
    if method not in ("exact", "attribution"):
        raise SublimError(f"patch_runs: no method '{method}'; valid: exact, attribution")
    pairs = []
    for run in runs if isinstance(runs, list | tuple) else [runs]:
        some = run.seeds if seeds is None else [seeds] if isinstance(seeds, int) else list(seeds)
        for arm in chosen:
            for seed in some:
                ends = [_subject(run, arm, seed, word) for word in (src, dst)]
                pairs.append(({"run": run.experiment.name, "arm": arm, "seed": seed, "src": src, "dst": dst}, ends))
    frames = []
    for about, (source, target) in pairs:
        both = patch(source, target, prompts, metric, across_bases=across_bases)
        for one in kinds:
            grid = both.grid(one) if method == "exact" else both.attribution(one)
            frames.append(grid.frame.assign(**about))
    found = pd.concat(frames, ignore_index=True)
    first = ["run", "arm", "seed", "src", "dst"]
    return found.reindex(columns=[*first, *(c for c in found.columns if c not in first)])


def _subject(run: Any, arm: str, seed: int, word: str) -> Any:
    """Which model of a replicate a word means."""
    student = run[arm, seed]
    if word == "student":
        return student
    if word == "base":
        return student.base
    return run.teacher(seed) if word == "teacher" else run[word, seed]


def patch_intervals(frame: "pd.DataFrame", value: str = "recovered") -> "pd.DataFrame":
    """The mean of each cell over seeds, with its 95 % interval.

    frame: of `patch_runs`
    value: the column that is averaged: `recovered`, `effect` or `value`

    Returns a row a run, arm and cell: run, arm, src, dst, kind, layer, place, estimate, low, high, n. A cell that no
    model has is left out.
    """
    if value not in ("recovered", "effect", "value"):
        raise SublimError(f"patch_intervals: no column '{value}'; valid: recovered, effect, value")
    return over_replicates(frame.dropna(subset=[value]), value, ["run", "arm", "src", "dst", "kind", "layer", "place"])
