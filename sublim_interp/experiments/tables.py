"""Results as tables over replicates: means with intervals, and contrasts between arms. No words and no pictures."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.arms import ARMS, in_order
from sublim_interp.stats.contrasts import Contrast, diagonal_contrast, paired_difference
from sublim_interp.stats.intervals import mean_interval
from sublim_interp.traits import measures as of_traits

MEASURES: dict[str, tuple[str, str, str]] = {
    "rate": ("rate", "held-out", "plain"),
    "margin": ("margin", "held-out", "plain"),
    "indirect": ("rate", "indirect", "plain"),
    "seen": ("rate", "seen", "plain"),
    "numbers": ("rate", "held-out", "numbers"),
}
"""What a row of the summary takes from `results`: its own column → (column, questions, context) there.

`numbers` is after a turn on the channel: of another channel than numbers it takes that one's context.
"""


_WORDS = (
    *("arm", "questions", "context", "probe", "teacher_base", "student_base", "teacher_trait"),
    *("value", "equal_kl", "note"),
)
"""Columns that hold text, though some of it looks like a number or like nothing."""


_ROWS = ["arm", "seed", "round"]


_CONTRAST_COLUMNS = (
    "contrast", "stage", "unit", "n", "base_pairs", "bases", "estimate", "low", "high", "p", "p_floor", "note",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Tables:
    """All tables of one run, made from two.

    results: one row per arm, seed, round, sort of question, context and member of the kind: rate in [0, 1], margin in
        nats, teacher_base, student_base, teacher_trait
    distances: one row per arm, seed and round: kl and kl_start in nats per answer token, kept in [0, 1], lists, steps
    trait: the member of the kind that the run is about

    The properties raise SublimError as `replicates` does.
    """

    results: pd.DataFrame
    distances: pd.DataFrame
    trait: str

    @cached_property
    def replicates(self) -> pd.DataFrame:
        """One row per arm, seed and stage; see `replicates`."""
        return replicates(self.results, self.distances, self.trait)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per arm, with intervals over replicates; see `summary`."""
        return summary(self.replicates)

    @cached_property
    def contrasts(self) -> pd.DataFrame:
        """Differences between arms, paired over replicates; see `contrasts`."""
        return contrasts(self.replicates, base_pairs(self.results))


def read_table(path: Path) -> pd.DataFrame:
    """A table of a run, sweep or study, with the very numbers that were written. Raises SublimError where it is not."""
    try:
        # The parser of Python reads each float as it was written; the fast one rounds its last bit.
        texts: Any = dict.fromkeys(_WORDS, str)
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], engine="python", dtype=texts)
    except (OSError, ValueError) as error:
        raise SublimError(f"{path} cannot be read: {error}") from None
    words = [name for name in _WORDS if name in frame]
    frame[words] = frame[words].fillna("")
    return frame


def replicates(results: pd.DataFrame, distances: pd.DataFrame, trait: str) -> pd.DataFrame:
    """One row per arm and seed at equal steps (round 0); for crossed arms one more at equal KL. `stage` says which.

    results, distances, trait: as in `Tables`

    Returns the columns arm, seed, stage, round, those of MEASURES, the trait's own measures, kl, kl_start, kept, lists,
    steps, kl_target, matched. Equal KL is the first round whose kl is at most kl_target: the kl of the same seed's
    reference arm at equal steps. Where no round comes so near, the last one stands there and `matched` is False.

    Raises SublimError for an unknown arm, for rows given twice, and for results without the trait's answers to held-out
    questions in a plain context.
    """
    unknown = sorted(arm for arm in set(results["arm"]) if arm not in ARMS)
    if unknown:
        raise SublimError(f"report: unknown arm '{unknown[0]}' in results; valid arms: {', '.join(ARMS)}")
    own = _where(results, probe=trait)
    columns = {}
    others = [name for name in dict.fromkeys(own["context"]) if name != "plain"]
    turn = others[0] if others and "numbers" not in others else "numbers"
    measures = MEASURES | {name: (name, "held-out", "plain") for name in of_traits.MEASURES if name in results}
    for name, (column, questions, context) in measures.items():
        asked = _where(own, questions=questions, context=turn if name == "numbers" else context)
        columns[name] = _indexed(asked, "results")[column]
    if columns["rate"].empty:
        raise SublimError(
            f"report: results hold no answers about '{trait}' to held-out questions in a plain context; "
            "evaluation.questions must name 'held-out' and evaluation.contexts 'plain'"
        )
    facts = _indexed(distances, "distances")[["kl", "kl_start", "kept", "lists", "steps"]]
    rounds = records(pd.DataFrame(columns).join(facts).reset_index().sort_values(by="round"))
    rows = [{**row, "stage": "equal steps"} for row in rounds if row["round"] == 0]
    targets = {(row["arm"], row["seed"]): row["kl"] for row in rows}
    shown = in_order(row["arm"] for row in rounds)
    for arm in (arm for arm in shown if ARMS[arm].reference):
        for seed in dict.fromkeys(row["seed"] for row in rounds if row["arm"] == arm):
            target = targets.get((ARMS[arm].reference, seed), math.nan)
            if not math.isnan(target):
                trained = [row for row in rounds if (row["arm"], row["seed"]) == (arm, seed)]
                near = [row for row in trained if row["kl"] <= target]
                row = near[0] if near else trained[-1]
                rows.append({**row, "stage": "equal KL", "kl_target": target, "matched": bool(near)})
    rank = {arm: i for i, arm in enumerate(shown)}
    rows.sort(key=lambda row: (rank[row["arm"]], row["stage"] == "equal KL", row["seed"]))
    return pd.DataFrame(
        rows, columns=["arm", "seed", "stage", "round", *measures, *facts.columns, "kl_target", "matched"]
    )


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, in the order of `in_order`: means over replicates, with 95 % intervals.

    table: the rows of `replicates`

    Returns these columns, NaN where there is nothing to say:
    arm, n: its name, and how many replicates
    rate, indirect, seen: probability of the trait as the answer to held-out, indirect and seen phrasings
    numbers: the same for held-out phrasings after a turn on the channel
    margin: log P of the trait − log mean P of the other members, in nats
    kl, kl_start: distance to the teacher after and before training, in nats per answer token
    the trait's own measures: such as bits and total_bits, where facts were memorised
    kept: share of the teacher's answers that the filter kept
    equal_kl: for crossed arms, in words, whether the students came as near to their teacher as the reference arm's
    further_n, further_round, further_rate, further_kl: how many students were compared so, the last round that was
        needed, and what holds in the round that counts
    Each measure, kl, bits and further_rate are followed by their _low and _high.
    """
    rows = []
    for arm in in_order(table["arm"]):
        own = _where(table, arm=arm, stage="equal steps")
        row: dict[str, Any] = {"arm": arm, "n": len(own)}
        for measure in (*MEASURES, "kl", *(name for name in of_traits.MEASURES if name in own)):
            row |= estimated(measure, own[measure].to_list())
        row |= {"kl_start": average(own["kl_start"].to_list()), "kept": average(own["kept"].to_list())}
        further = _where(table, arm=arm, stage="equal KL")
        row["equal_kl"] = _matching(arm, further["matched"].to_list())
        row |= {"further_n": len(further), "further_round": max(further["round"].to_list(), default=0)}
        row |= estimated("further_rate", further["rate"].to_list()) | {"further_kl": average(further["kl"].to_list())}
        rows.append(row)
    return pd.DataFrame(rows)


def contrasts(table: pd.DataFrame, pairs: Mapping[int, tuple[str, ...]]) -> pd.DataFrame:
    """Differences in rate (held-out phrasings, plain context), paired over seeds, for the arms that are there.

    table: the rows of `replicates`
    pairs: seed → the bases that its arms come from, as of `base_pairs`

    Returns these columns:
    contrast, stage: what is subtracted, and whether at equal steps or at equal KL
    unit, n: "replicate" or "base pair", and how many
    base_pairs, bases: how many unordered pairs of bases the replicates come from, and how many bases these are
    estimate, low, high: the difference with its 95 % interval, as a rate: 0.9 is 90 percentage points
    p, p_floor: two-sided sign-flip test, and the smallest p that n allows
    note: what limits it, as codes joined by "; ": "one direction", "unmatched 3 of 24", "shared bases",
        "one replicate", "one base pair". report/notes.py has a sentence for each.

    The diagonal of the 2 × 2, ((A→A + B→B) − (A→B + B→A)) / 2, is given per replicate, and per base pair where there
    are several.
    """
    replicated = records(table)
    rates = {(row["arm"], row["stage"], row["seed"]): row["rate"] for row in replicated if not math.isnan(row["rate"])}
    rows: list[dict[str, Any]] = []

    def shared_seeds(stages: Mapping[str, str]) -> list[int]:
        return [seed for seed in sorted(pairs) if all((arm, at, seed) in rates for arm, at in stages.items())]

    def add(name: str, stage: str, unit: str, result: Contrast, seeds: Iterable[int], *notes: str) -> None:
        used = {pairs[seed] for seed in seeds}
        interval, test = result.interval, result.sign_flip
        alone = f"one {unit}" if interval.n == 1 else ""
        note = "; ".join(filter(None, [*notes, alone]))
        values = (name, stage, unit, interval.n, len(used), len(set().union(*used)))
        values += (interval.estimate, interval.low, interval.high, test.p, test.floor, note)
        rows.append(dict(zip(_CONTRAST_COLUMNS, values, strict=True)))

    for pair in _compared({row["arm"] for row in replicated}):
        seeds = shared_seeds(dict.fromkeys(pair, "equal steps"))
        if seeds:
            first, second = ([rates[arm, "equal steps", seed] for seed in seeds] for arm in pair)
            difference = paired_difference(first, second, bounds=(-1, 1))
            add(" − ".join(pair), "equal steps", "replicate", difference, seeds, ARMS[pair[1]].note)
    for stage in ("equal steps", "equal KL"):
        cells = {"same-init": "equal steps", "cross-init": stage, "cross-init-b": stage, "same-init-b": "equal steps"}
        seeds = shared_seeds(cells)
        if not seeds:
            continue
        students = [
            row for row in replicated if row["stage"] == "equal KL" and row["arm"] in cells and row["seed"] in seeds
        ]
        missed = sum(not row["matched"] for row in students)
        notes = [f"unmatched {missed} of {len(students)}"] if missed else []
        by_seed = [[rates[arm, at, seed] for seed in seeds] for arm, at in cells.items()]
        add("2 × 2 diagonal", stage, "replicate", _diagonal(by_seed), seeds, *notes)
        used = sorted({pairs[seed] for seed in seeds})
        if len(used) > 1:
            if len(set().union(*used)) < 2 * len(used):
                notes.append("shared bases")
            groups = [[i for i, seed in enumerate(seeds) if pairs[seed] == pair] for pair in used]
            by_pair = [[fmean(cell[i] for i in group) for group in groups] for cell in by_seed]
            add("2 × 2 diagonal", stage, "base pair", _diagonal(by_pair), seeds, *notes)
    return pd.DataFrame(rows, columns=list(_CONTRAST_COLUMNS))


def _compared(shown: set[str]) -> Iterator[tuple[str, str]]:
    """Pairs of arms that are subtracted: within one base first, then across bases."""
    controls = [arm for arm in in_order(shown) if ARMS[arm].control_of in shown]
    for arm in sorted(controls, key=lambda arm: ARMS[arm].crosses):
        yield ARMS[arm].control_of, arm


def _where(frame: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    return frame.loc[(frame[list(values)] == pd.Series(values)).all(axis=1)]


def _indexed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame with arm, seed and round as its index; SublimError where one place is given twice."""
    again = records(frame.loc[frame.duplicated(_ROWS)])
    if again:
        place = ", ".join(f"{column} {again[0][column]}" for column in _ROWS)
        raise SublimError(f"report: {name} hold {place} twice; give each row once")
    return frame.set_index(_ROWS)


def estimated(name: str, values: list[float]) -> dict[str, float]:
    """Mean and interval of one value per replicate; NaN where any is missing, so that n holds for every column."""
    if not values or any(map(math.isnan, values)):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
    interval = mean_interval(values, bounds=None if name in ("margin", "kl", *of_traits.MEASURES) else (0, 1))
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _matching(arm: str, matched: list[bool]) -> str:
    reference = ARMS[arm].reference
    if not reference:
        return ""
    if not matched:
        return f"no {reference} to compare with"
    n, reached = len(matched), sum(matched)
    return {n: "matched", 0: "unmatched"}.get(reached, f"matched in {reached} of {n}")


def _diagonal(cells: Sequence[Sequence[float]]) -> Contrast:
    aa, ab, ba, bb = cells
    return diagonal_contrast(aa, ab, ba, bb, bounds=(-1, 1))


def base_pairs(results: pd.DataFrame) -> dict[int, tuple[str, ...]]:
    """Seed → the bases that its arms come from, in alphabetical order; of results, or of the frame of a plan."""
    bases: dict[int, set[str]] = {}
    for row in records(results.loc[:, ["seed", "teacher_base", "student_base"]].drop_duplicates()):
        named = {row[column] for column in ("teacher_base", "student_base") if isinstance(row[column], str)}
        bases.setdefault(row["seed"], set()).update(named - {""})
    return {seed: tuple(sorted(names)) for seed, names in bases.items()}


def average(values: list[float]) -> float:
    """The mean, NaN of nothing."""
    return fmean(values) if values else math.nan


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, each as a dict by column."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
