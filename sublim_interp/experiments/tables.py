"""Results as tables over replicates: means with intervals, and contrasts between arms. No words and no pictures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.arms import ARMS
from sublim_interp.stats.contrasts import Contrast, diagonal_contrast, paired_difference
from sublim_interp.stats.intervals import mean_interval

MEASURES: dict[str, tuple[str, str, str]] = {
    "rate": ("rate", "held-out", "plain"),
    "margin": ("margin", "held-out", "plain"),
    "indirect": ("rate", "indirect", "plain"),
    "seen": ("rate", "seen", "plain"),
    "numbers": ("rate", "held-out", "numbers"),
}
"""What a row of the summary takes from `results`: its own column → (column, questions, context) there."""


BITS = {"bits": ("bits", "held-out", "plain"), "total_bits": ("total_bits", "held-out", "plain")}
"""The same of what is there only where teachers memorised facts; these are asked in the words that a teacher learnt."""


REFERENCES = {"cross-init": "same-init", "cross-init-b": "same-init-b", "cross-neutral": "neutral"}
"""Crossed arm → the arm that learnt the same data from the same teacher, on the teacher's own base."""


_COMPARED = {
    ("same-init", "neutral"): "",
    ("same-init", "other-trait"): "",
    ("same-init", "base"): "",
    ("same-init", "cross-init"): "half of the 2 × 2, base B may simply be hard to move",
    ("cross-init", "cross-neutral"): "",
}
"""Pairs of arms whose difference is shown, and what is to be said of it."""


_ROWS = ["arm", "seed", "round"]


_CONTRAST_COLUMNS = (
    "contrast", "stage", "unit", "n", "base_pairs", "bases", "estimate", "low", "high", "p", "p_floor", "note",
)  # fmt: skip


def replicates(results: pd.DataFrame, distances: pd.DataFrame, trait: str) -> pd.DataFrame:
    """One row per arm × seed at equal steps (round 0), and for crossed arms one more at equal KL, as `stage` says.

    Columns: arm, seed, stage, round, those of MEASURES and BITS, kl, kl_start, kept, lists, steps, kl_target, matched.
    Equal KL is the first round whose kl is at most kl_target, the kl of the same seed's reference arm at equal steps;
    where no round comes so near, the last one stands there and `matched` is False.

    Raises SublimError for an unknown arm, rows given twice, or results without the trait's answers to held-out
    questions in a plain context.
    """
    unknown = sorted(set(results["arm"]) - set(ARMS))
    if unknown:
        raise SublimError(f"report: unknown arm '{unknown[0]}' in results; valid arms: {', '.join(ARMS)}")
    own = _where(results, probe=trait)
    columns = {}
    measures = MEASURES | (BITS if "bits" in results else {})
    for name, (column, questions, context) in measures.items():
        columns[name] = _indexed(_where(own, questions=questions, context=context), "results")[column]
    if columns["rate"].empty:
        raise SublimError(
            f"report: results hold no answers about '{trait}' to held-out questions in a plain context; "
            "evaluation.questions must name 'held-out' and evaluation.contexts 'plain'"
        )
    facts = _indexed(distances, "distances")[["kl", "kl_start", "kept", "lists", "steps"]]
    rounds = records(pd.DataFrame(columns).join(facts).reset_index().sort_values(by="round"))
    rows = [{**row, "stage": "equal steps"} for row in rounds if row["round"] == 0]
    targets = {(row["arm"], row["seed"]): row["kl"] for row in rows}
    for arm, reference in REFERENCES.items():
        for seed in dict.fromkeys(row["seed"] for row in rounds if row["arm"] == arm):
            target = targets.get((reference, seed), math.nan)
            if not math.isnan(target):
                trained = [row for row in rounds if (row["arm"], row["seed"]) == (arm, seed)]
                near = [row for row in trained if row["kl"] <= target]
                row = near[0] if near else trained[-1]
                rows.append({**row, "stage": "equal KL", "kl_target": target, "matched": bool(near)})
    rank = {arm: i for i, arm in enumerate(ARMS)}
    rows.sort(key=lambda row: (rank[row["arm"]], row["stage"] == "equal KL", row["seed"]))
    return pd.DataFrame(
        rows, columns=["arm", "seed", "stage", "round", *measures, *facts.columns, "kl_target", "matched"]
    )


def summary(results: pd.DataFrame, distances: pd.DataFrame, trait: str) -> pd.DataFrame:
    """One row per arm, in the order of figures.ARMS: means over replicates, with 95 % intervals.

    Columns: arm, n (replicates); rate, indirect, seen, numbers (probability of the trait: held-out, indirect and seen
    phrasings; held-out ones after a turn of numbers), margin (nats), kl (nats per answer token), and where facts were
    memorised bits and total_bits, each followed by its _low and _high; kl_start, kept. For crossed arms equal_kl says
    in words whether the students came as near to their teacher as the reference arm's; further_n is how many were
    compared, further_round the last round that was needed, further_rate (with interval) and further_kl what holds in
    the round that counts (see `replicates`). NaN where there is nothing to say.

    Raises SublimError as `replicates` does.
    """
    table = replicates(results, distances, trait)
    rows = []
    for arm in ARMS:
        own = _where(table, arm=arm, stage="equal steps")
        if own.empty:
            continue
        row: dict[str, Any] = {"arm": arm, "n": len(own)}
        for measure in (*MEASURES, "kl", *(name for name in BITS if name in own)):
            row |= estimated(measure, own[measure].to_list())
        row |= {"kl_start": average(own["kl_start"].to_list()), "kept": average(own["kept"].to_list())}
        further = _where(table, arm=arm, stage="equal KL")
        row["equal_kl"] = _matching(arm, further["matched"].to_list())
        row |= {"further_n": len(further), "further_round": max(further["round"].to_list(), default=0)}
        row |= estimated("further_rate", further["rate"].to_list()) | {"further_kl": average(further["kl"].to_list())}
        rows.append(row)
    return pd.DataFrame(rows)


def contrasts(results: pd.DataFrame, distances: pd.DataFrame, trait: str) -> pd.DataFrame:
    """Differences in rate (held-out phrasings, plain context), paired over seeds, for the arms that are there.

    Columns: contrast, stage, unit ("replicate" or "base pair"), n (of them), base_pairs (unordered pairs of bases that
    the replicates come from), bases (how many those are), estimate, low, high (in rate: 0.9 is 90 points), p
    (two-sided, sign-flip), p_floor (the smallest p that n allows), note. The diagonal contrast of the 2 × 2,
    ((A→A + B→B) − (A→B + B→A)) / 2, is given per replicate, and per base pair where there are several.

    Raises SublimError as `replicates` does.
    """
    table = records(replicates(results, distances, trait))
    rates = {(row["arm"], row["stage"], row["seed"]): row["rate"] for row in table if not math.isnan(row["rate"])}
    pairs = _base_pairs(results)
    rows: list[dict[str, Any]] = []

    def shared_seeds(stages: Mapping[str, str]) -> list[int]:
        return [seed for seed in sorted(pairs) if all((arm, at, seed) in rates for arm, at in stages.items())]

    def add(name: str, stage: str, unit: str, result: Contrast, seeds: Iterable[int], *notes: str) -> None:
        used = {pairs[seed] for seed in seeds}
        interval, test = result.interval, result.sign_flip
        alone = f"one {unit}, no interval" if interval.n == 1 else ""
        note = "; ".join(filter(None, [*notes, alone]))
        values = (name, stage, unit, interval.n, len(used), len(set().union(*used)))
        values += (interval.estimate, interval.low, interval.high, test.p, test.floor, note)
        rows.append(dict(zip(_CONTRAST_COLUMNS, values, strict=True)))

    for pair in _COMPARED:
        seeds = shared_seeds(dict.fromkeys(pair, "equal steps"))
        if seeds:
            first, second = ([rates[arm, "equal steps", seed] for seed in seeds] for arm in pair)
            difference = paired_difference(first, second, bounds=(-1, 1))
            add(" − ".join(pair), "equal steps", "replicate", difference, seeds, _COMPARED[pair])
    for stage in ("equal steps", "equal KL"):
        cells = {"same-init": "equal steps", "cross-init": stage, "cross-init-b": stage, "same-init-b": "equal steps"}
        seeds = shared_seeds(cells)
        if not seeds:
            continue
        students = [row for row in table if row["stage"] == "equal KL" and row["arm"] in cells and row["seed"] in seeds]
        missed = sum(not row["matched"] for row in students)
        unmatched = f"no verdict rests on this, {missed} of {len(students)} crossed students are unmatched"
        notes = [unmatched] if missed else []
        by_seed = [[rates[arm, at, seed] for seed in seeds] for arm, at in cells.items()]
        add("2 × 2 diagonal", stage, "replicate", _diagonal(by_seed), seeds, *notes)
        used = sorted({pairs[seed] for seed in seeds})
        if len(used) > 1:
            if len(set().union(*used)) < 2 * len(used):
                notes.append("pairs share bases, so the interval is too narrow")
            groups = [[i for i, seed in enumerate(seeds) if pairs[seed] == pair] for pair in used]
            by_pair = [[fmean(cell[i] for i in group) for group in groups] for cell in by_seed]
            add("2 × 2 diagonal", stage, "base pair", _diagonal(by_pair), seeds, *notes)
    return pd.DataFrame(rows, columns=list(_CONTRAST_COLUMNS))


def _where(frame: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    return frame.loc[(frame[list(values)] == pd.Series(values)).all(axis=1)]


def _indexed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    again = records(frame.loc[frame.duplicated(_ROWS)])
    if again:
        place = ", ".join(f"{column} {again[0][column]}" for column in _ROWS)
        raise SublimError(f"report: {name} hold {place} twice; give each row once")
    return frame.set_index(_ROWS)


def estimated(name: str, values: list[float]) -> dict[str, float]:
    """Mean and interval of one value per replicate; NaN where any is missing, so that n holds for every column."""
    if not values or any(map(math.isnan, values)):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
    interval = mean_interval(values, bounds=None if name in ("margin", "kl", *BITS) else (0, 1))
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _matching(arm: str, matched: list[bool]) -> str:
    if arm not in REFERENCES:
        return ""
    if not matched:
        return f"no {REFERENCES[arm]} to compare with"
    n, reached = len(matched), sum(matched)
    return {n: "matched", 0: "unmatched"}.get(reached, f"matched in {reached} of {n}")


def _diagonal(cells: Sequence[Sequence[float]]) -> Contrast:
    aa, ab, ba, bb = cells
    return diagonal_contrast(aa, ab, ba, bb, bounds=(-1, 1))


def _base_pairs(results: pd.DataFrame) -> dict[int, tuple[str, ...]]:
    """Seed → the bases that its arms come from, in alphabetical order."""
    bases: dict[int, set[str]] = {}
    for row in records(results.loc[:, ["seed", "teacher_base", "student_base"]].drop_duplicates()):
        named = {row[column] for column in ("teacher_base", "student_base") if isinstance(row[column], str)}
        bases.setdefault(row["seed"], set()).update(named - {""})
    return {seed: tuple(sorted(names)) for seed, names in bases.items()}


def average(values: list[float]) -> float:
    return fmean(values) if values else math.nan


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
