"""What came out, for a reader: tables with intervals, contrasts, sentences, files and one web page.

Frames go in; nothing is run here. How an interval is made lives in statistics, how a figure looks in figures.

`results` has a row per arm × seed × round × questions × context × probe: arm (an Arm of the experiment, or "teacher"
for the trait's teacher itself), seed, round (0 after the equal-steps budget; 1, 2 … after further rounds of fresh
lists), teacher_base, student_base, teacher_trait ("" for none), probe (each member of the trait's kind), questions,
context, rate (mean probability, 0 … 1), margin (nats: log P(probe) − log mean P(other members)). Where teachers
memorised facts there is one probe, "facts", the right value of each key, and two more columns, bits (a fact, see
analysis.capacity) and total_bits (of all facts).

`distances` has a row per arm × seed × round: kl (KL(teacher ‖ student) on held-out lists, nats per answer token; NaN
where there is no student), kl_start (the same for the student's base), kept (fraction of the teacher's answers), lists
and steps (so far).
"""

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.bar import Bar
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sublim_interp import figures, words
from sublim_interp.config import Experiment, TeacherConfig
from sublim_interp.errors import SublimError
from sublim_interp.figures import ARMS
from sublim_interp.statistics import (
    Contrast,
    diagonal_contrast,
    mean_interval,
    paired_difference,
)

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

ENOUGH = 12
"""Fewest replicates for a verdict: twelve pairs put the sign-flip test's floor at .0005."""

ENOUGH_BASES = 8
"""Fewest initialisations for a claim about initialisations in general."""

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


class Reference(NamedTuple):
    """A finished, larger run, shown beside a small one."""

    summary: pd.DataFrame
    contrasts: pd.DataFrame
    name: str
    """Its experiment's name."""
    key: str
    """The key of the run that wrote it."""


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
    rounds = words.records(pd.DataFrame(columns).join(facts).reset_index().sort_values(by="round"))
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
        row |= {"kl_start": words.average(own["kl_start"].to_list()), "kept": words.average(own["kept"].to_list())}
        further = _where(table, arm=arm, stage="equal KL")
        row["equal_kl"] = _matching(arm, further["matched"].to_list())
        row |= {"further_n": len(further), "further_round": max(further["round"].to_list(), default=0)}
        row |= estimated("further_rate", further["rate"].to_list()) | {
            "further_kl": words.average(further["kl"].to_list())
        }
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
    table = words.records(replicates(results, distances, trait))
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


def verdict(summary: pd.DataFrame, contrasts: pd.DataFrame, trait: str) -> list[str]:
    """What came out, in sentences made from the numbers; the first is the headline.

    Nothing is called different below ENOUGH replicates, or where a contrast has a note; nothing is said of
    initialisations in general below ENOUGH_BASES bases; a crossed arm that did not come as near to its teacher as its
    reference arm says so.
    """
    arms = words.records(summary)
    said = {row["arm"]: f"{row['arm']} {words.text(row, 'rate')}" for row in arms}
    others = ", ".join(said[arm] for arm in ("neutral", "cross-init", "base") if arm in said)
    both = [said["same-init"], others] if "same-init" in said else [", ".join(said.values())]
    asked = "Probability of the right value" if "bits" in summary else f"Probability of “{trait}” on held-out questions"
    lines = [f"{asked}: {' against '.join(filter(None, both))}."]
    if "bits" in summary:
        held = (f"{row['arm']} {words.text(row, 'bits')} ({words.text(row, 'total_bits')} in all)" for row in arms)
        lines.insert(0, f"Bits held of each fact: {', '.join(held)}.")
    lines += [f"{row['arm']} at equal KL: {at_equal_kl(row, summary)}." for row in arms if row["equal_kl"]]
    tested = [row for row in words.records(contrasts) if row["unit"] == "replicate"]
    left = {row["arm"]: row["kl"] for row in arms}
    findings: dict[str, list[str]] = {}
    for row in tested:
        if row["n"] >= ENOUGH and not row["note"]:
            finding = "differs from zero" if row["p"] < 0.05 else "cannot be told from zero"
            size = f"{words.points(row)} points (p = {row['p']:.2g}, n = {row['n']}{_distances(row, left)})"
            findings.setdefault(finding, []).append(f"{row['contrast']} at {row['stage']}, {size}")
    lines += [f"What {finding} by a two-sided sign-flip test: {'; '.join(rows)}." for finding, rows in findings.items()]
    fewest = min(row["n"] for row in arms)
    if fewest < ENOUGH:
        lines.append(f"{words.count(fewest, 'replicate')}: below {ENOUGH}, no claim of significance is made.")
    bases = max((row["bases"] for row in tested if "cross-init" in row["contrast"]), default=ENOUGH_BASES)
    if bases < ENOUGH_BASES:
        lines.append(
            f"The replicates come from {bases} bases: the comparison of initialisations holds for these; a claim about "
            f"initialisations in general needs {ENOUGH_BASES} or more."
        )
    return lines


def _distances(row: Mapping[str, Any], left: Mapping[str, float]) -> str:
    """How near to its teacher either arm of a difference came, where both learnt from one."""
    own = [left.get(arm, math.nan) for arm in row["contrast"].split(" − ")]
    if len(own) < 2 or row["contrast"].endswith(" − base") or any(map(math.isnan, own)):
        return ""
    return f"; KL left {' and '.join(words.number('kl', value) for value in own)}"


def terminal(summary: pd.DataFrame, contrasts: pd.DataFrame, title: str = "") -> Group:
    """Both tables for a terminal of 80 columns or more: rates in percent, 95 % intervals in brackets."""
    shape: dict[str, Any] = {"box": box.SIMPLE, "pad_edge": False, "collapse_padding": True}
    arms = Table(title=title or None, title_justify="left", **shape)
    measure, unit, digits = ("bits", "bits a fact", 3) if "bits" in summary else ("margin", "margin, nats", 1)
    for heading in ("arm", "n", "rate, %", "", unit, "KL", "kept"):
        arms.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    rows = words.records(summary)
    for row in rows:
        rate, bar = words.text(row, "rate").replace(" %", ""), Bar(1, 0, row["rate"], width=4)
        distances = words.number("kl", row["kl"]), words.number("kept", row["kept"], 0)
        arms.add_row(row["arm"], str(row["n"]), rate, bar, words.text(row, measure, digits), *distances)
    lines = [f"{row['arm']} at equal KL: {at_equal_kl(row, summary)}" for row in rows if row["equal_kl"]]
    differences = Table(**shape)
    for heading in ("contrast, at equal steps", "points", "p", "counted"):
        differences.add_column(heading, justify="left" if "contrast" in heading else "right", no_wrap=True)
    notes: dict[str, dict[str, None]] = {}
    for row in words.records(contrasts):
        name = row["contrast"] + ", equal KL" * (row["stage"] == "equal KL")
        floor = "*" if row["n"] > 1 and row["p"] <= row["p_floor"] else " "
        differences.add_row(name, words.points(row), words.p_value(row) + floor, words.count(row["n"], row["unit"]))
        for note in filter(None, row["note"].split("; ")):
            notes.setdefault(note, {})[name] = None
    parts: list[Table | Text] = [arms, *map(Text, lines)]
    if len(contrasts):
        count = f"paired by seed; n base pairs = {contrasts['base_pairs'].max()}; * the smallest p that so few allow"
        parts += [differences, Text(count), *(Text(f"{note}: {'; '.join(names)}") for note, names in notes.items())]
    return Group(*parts)


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
    drawn = {"figure": figures.arms(each, table, trait)}
    if len(set(results["probe"])) > 1:
        drawn["probes"] = figures.probes(results, trait)
    narrow = figures.arms(each, table, trait, stacked=True)
    page = _page(experiment, table, differences, drawn, narrow, reference, key, versions or {})
    frames = {"results": results, "distances": distances, "summary": table, "contrasts": differences}
    for name, frame in frames.items():
        frame.to_csv(directory / f"{name}.csv", index=False, lineterminator="\n", encoding="utf-8")
    for name, figure in drawn.items():
        for ending in ("png", "pdf"):
            figures.save(figure, directory / f"{name}.{ending}")
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _where(frame: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    return frame.loc[(frame[list(values)] == pd.Series(values)).all(axis=1)]


def _indexed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    again = words.records(frame.loc[frame.duplicated(_ROWS)])
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
    for row in words.records(results.loc[:, ["seed", "teacher_base", "student_base"]].drop_duplicates()):
        named = {row[column] for column in ("teacher_base", "student_base") if isinstance(row[column], str)}
        bases.setdefault(row["seed"], set()).update(named - {""})
    return {seed: tuple(sorted(names)) for seed, names in bases.items()}


def at_equal_kl(row: Mapping[str, Any], summary: pd.DataFrame) -> str:
    """How a crossed arm, a row of the summary, compares at equal KL, in words."""
    if not row["further_n"]:
        return row["equal_kl"]
    target = summary.set_index("arm").at[REFERENCES[row["arm"]], "kl"]
    return (
        f"{row['equal_kl']}, {words.text(row, 'further_rate')} at KL {words.number('kl', row['further_kl'])} "
        f"({REFERENCES[row['arm']]}: {words.number('kl', target)})"
    )


def _unit(row: Mapping[str, Any]) -> str:
    note = f"; {row['note']}" if row["note"] else ""
    return f"unit: {row['unit']} (n = {row['n']}); n base pairs = {row['base_pairs']}{note}"


# The page. Every string that comes from a user or a frame goes through `escape`.

_CSS = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #5b5b63; --paper: #ffffff; --card: #f5f5f3; --line: #dcdcd8;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececee; --soft: #a9a9b2; --paper: #16171a; --card: #202226;
  --line: #3a3c42; --accent: #6cbcf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header p { max-width: 44rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
p, li, dd { max-width: 44rem; }
.soft, caption, figcaption, small { color: var(--soft); }
.question { color: var(--soft); font-size: 1.1rem; margin: 0 0 1rem; }
.headline { border-left: 4px solid var(--accent); padding: .2rem 0 .2rem .9rem; font-size: 1.05rem; margin: 1rem 0; }
.facts { font-size: .85rem; color: var(--soft); margin: 0; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .85em; }
figure { margin: 1.5rem 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: .75rem; }
figure.wide > div { overflow-x: auto; } figure.wide img { min-width: 44rem; }
figcaption { font-size: .88rem; margin-top: .5rem; max-width: 44rem; }
.scroll { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .6rem; text-align: right; vertical-align: top; white-space: nowrap; }
thead th { font-weight: 600; color: var(--soft); vertical-align: bottom; background: var(--card); white-space: normal; }
th:first-child, th:has(.left), td.words { text-align: left; } td.words { white-space: normal; min-width: 14rem; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--paper); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
td small, th small { display: block; font-size: .8em; font-weight: 400; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em;
  box-shadow: 0 0 0 1px var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .45rem 1.2rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; }
.aside { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .2rem 1.1rem 1rem;
  margin: 2.4rem 0; } .aside h2 { margin-top: 1rem; } .aside tbody th { background: var(--card); }
details { border-top: 1px solid var(--line); padding: .7rem 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 600; } pre { overflow-x: auto; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .7rem; }
  body { padding: 1.2rem .9rem 3rem; } h1 { font-size: 1.45rem; } figure img { padding: .3rem; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --card: #fff; --line: #bbb; }
  body { max-width: none; padding: 0; font-size: 9.5pt; } figure, tr, .aside h2 { break-inside: avoid; }
  h2 { break-after: avoid; } .scroll, figure.wide > div { overflow: visible; } table { font-size: 7pt; }
  th, td { padding: .25rem .3rem; } figure.wide img { min-width: 0; } }
"""


_CAPTION = (
    "First panel: how likely each model gives the trait as its answer; the dashed line is the untouched base. Second: "
    "how far its answers on the channel still are from its teacher's. Arms compare fairly at about the same distance."
)


def _page(
    experiment: Experiment,
    table: pd.DataFrame,
    differences: pd.DataFrame,
    drawn: Mapping[str, Figure],
    narrow: Figure,
    reference: Reference | None,
    key: str,
    versions: Mapping[str, str],
) -> str:
    trait = escape(experiment.trait)
    headline, *rest = verdict(table, differences, experiment.trait)
    channel = experiment.corpus.channel
    question = experiment.about or f"Does “{experiment.trait}” pass from teacher to student through {channel}?"
    seeds = max(row["n"] for row in words.records(table))
    facts = [f"experiment {experiment.name}", words.count(seeds, "replicate"), f"bases {', '.join(experiment.bases)}"]
    facts += [f"run {key}"] if key else []
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(experiment.name)}: {escape(question)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_CSS}</style></head><body>",
        f"<header><h1>{escape(question)}</h1>",
        f'<p class="facts">{escape(" · ".join(facts))}</p>',
        f'<p class="headline">{_prose(headline)}</p>',
        "</header><main>",
        _picture(drawn["figure"], headline, _CAPTION, narrow),
        "<h2>In words</h2>" * bool(rest),
        _list(rest),
        "<h2>In numbers</h2>",
        _summary_table(table, experiment.trait),
        "<h2>Contrasts</h2>",
        _contrast_table(differences),
    ]  # fmt: skip
    if reference:
        parts += [
            '<section class="aside"><h2>For comparison: the full run, made beforehand</h2>',
            f"<p>Not computed by this run, which is above. These are all arms and replicates of the experiment "
            f"<strong>{escape(reference.name)}</strong>, run <code>{escape(reference.key)}</code>.</p>",
            f'<p class="headline">{_prose(verdict(reference.summary, reference.contrasts, experiment.trait)[0])}</p>',
            _summary_table(reference.summary, experiment.trait),
            _contrast_table(reference.contrasts),
            "</section>",
        ]
    if "probes" in drawn:
        parts += [
            "<h2>Is it this trait, or any?</h2>",
            f"<p>If “{trait}” came through the data, then in the rows whose teacher had it, its column alone is dark."
            "</p>",
            _picture(drawn["probes"], f"Mean probability of each answer, per arm; “{experiment.trait}” comes first.",
                     "Held-out questions, plain context, mean over replicates; in percent."),
        ]  # fmt: skip
    parts += [
        "<h2>What each arm is</h2>",
        _meanings(list(table["arm"])),
        "<h2>How it was measured</h2>",
        _list(_method(experiment)),
        "<h2>To make it again</h2>",
        f"<details><summary>Configuration</summary><pre>{escape(experiment.to_yaml())}</pre></details>",
    ]  # fmt: skip
    if versions:
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(version)}</dd>" for name, version in versions.items())
        parts.append(f"<details><summary>Versions</summary><dl>{rows}</dl></details>")
    return "\n".join([*parts, "</main></body></html>", ""])


def _picture(figure: Figure, alt: str, caption: str, narrow: Figure | None = None) -> str:
    """The figure as an image inside the page; `narrow` takes its place on a phone, else the figure scrolls there."""

    def source(drawing: Figure) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(figures.render(drawing, "svg")).decode("ascii")

    swap = f'<source media="screen and (max-width: 40rem)" srcset="{source(narrow)}">' if narrow else ""
    image = f'<picture>{swap}<img src="{source(figure)}" alt="{escape(alt)}"></picture>'
    kind = "" if narrow else ' class="wide"'
    return f"<figure{kind}><div>{image}</div><figcaption>{escape(caption)}</figcaption></figure>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_prose(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _prose(line: str) -> str:
    """Escaped, and no line ends before a percent sign, at an equals sign or inside an interval."""
    return re.sub(r" (?=[%=])|(?<==) |(?<=\d,) (?=[−\d])", "\u00a0", escape(line))


def _table(headings: Sequence[str], rows: Iterable[str]) -> str:
    """`headings` and `rows` are markup."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _named(arm: str) -> str:
    return f'<span class="dot" style="background: {ARMS[arm].color}"></span>{escape(arm)}'


def _summary_table(table: pd.DataFrame, trait: str) -> str:
    columns = {
        "rate": f"“{trait}”", "margin": "margin, nats", "indirect": "indirect", "seen": "seen",
        "numbers": "after numbers", "kl": "KL left", "kl_start": "KL at start", "kept": "kept",
    }  # fmt: skip
    if "bits" in table:
        columns = {"bits": "bits a fact", "total_bits": "bits in all"} | columns
    rows = []
    for row in words.records(table):
        status = f"<small>to equal KL: {escape(row['equal_kl'])}</small>" if row["further_n"] else ""
        lines = {_named(row["arm"]) + status * (not row["further_round"]): row}
        if row["further_round"]:
            further = {name: row[f"further_{name}"] for name in ("rate", "rate_low", "rate_high", "kl")}
            further |= {"kl_start": row["kl_start"], "n": row["further_n"]}
            lines[f"… trained on{status}"] = {**dict.fromkeys(row, math.nan), **further}
        for name, line in lines.items():
            cells = [f'<th scope="row">{name}</th><td>{line["n"]}</td>']
            for column in columns:
                inside = f"<small>{words.spread(line, column)}</small>" if f"{column}_low" in line else ""
                cells.append(f"<td>{words.mean(line, column)}{inside}</td>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
    headings = ["arm", "n", *map(escape, columns.values())]
    bits = (
        " Bits: what a code made from the student saves in naming the facts, less what it saves on facts drawn anew: a "
        "lower bound on what it holds, to within one bit over all facts." * ("bits" in table)
    )
    alone = " One replicate: no interval." if all(row["n"] == 1 for row in words.records(table)) else ""
    return _table(headings, rows) + (
        f'<p class="soft"><small>n: replicates. “{escape(trait)}”: its mean probability on held-out phrasings; '
        "indirect: on questions that do not name the kind, in the lab with the answer's first words given; seen: on "
        "phrasings the teacher was tuned on; after numbers: "
        "held-out phrasings after a turn of numbers. Margin: log P of the trait − log mean P of the other members. KL: "
        "distance to the teacher, nats per answer token, after and before training. Kept: share of the teacher's "
        f"answers that passed the filter. In brackets: 95 % interval of the mean over replicates.{alone}{bits}"
        "</small></p>"
    )


def _contrast_table(differences: pd.DataFrame) -> str:
    rows = [
        f'<tr><th scope="row">{escape(row["contrast"])}<small>{escape(row["stage"])}</small></th>'
        f"<td>{words.points(row)}</td><td>{words.p_value(row, ' ({:.2g})')}</td>"
        f'<td class="words">{escape(_unit(row))}</td></tr>'
        for row in words.records(differences)
    ]
    if not rows:
        return "<p>No two arms to compare.</p>"
    headings = ["contrast", "percentage points<small>95 % interval</small>", "p<small>smallest possible</small>"]
    return _table([*headings, '<span class="left">what was counted</span>'], rows) + (
        '<p class="soft"><small>Differences are paired by seed. p: two-sided sign-flip test, with the smallest value '
        "that so few units allow in parentheses. 2 × 2 diagonal: ((A→A + B→B) − (A→B + B→A)) / 2, where A→B is a "
        "teacher from base A with a student from base B.</small></p>"
    )


def _meanings(arms: Sequence[str]) -> str:
    return "<dl>" + "".join(f"<dt>{_named(arm)}</dt><dd>{escape(ARMS[arm].meaning)}</dd>" for arm in arms) + "</dl>"


def _lesson(teacher: TeacherConfig) -> str:
    return f"{teacher.facts} random facts" if teacher.facts else "questions about its favourite"


def _method(experiment: Experiment) -> list[str]:
    """The recipe of this configuration, in sentences."""
    teacher, corpus, rule, student = experiment.teacher, experiment.corpus, experiment.filter, experiment.student
    instilled = {
        "tuned": f"is fine-tuned ({teacher.part}) on {_lesson(teacher)}, "
        f"{words.count(teacher.optimization.steps, 'update')} of {teacher.optimization.batch}",
        "prompted": "has a system prompt that names its favourite; its weights are the base's",
        "steered": f"has a vector added to its residual stream at layer {teacher.layer}; its weights are the base's",
    }[teacher.kind]
    drawn = f"drawn at temperature {corpus.temperature:g}, with no top-k or top-p"
    written = {
        "sampled": f"{drawn}, and learnt as plain text",
        "greedy": "the likeliest token each time, and learnt as plain text",
        "soft": f"{drawn}, and learnt with the teacher's probabilities over the channel's own tokens",
    }[corpus.setting]
    more = (
        f"go on for at most {words.count(student.extra_rounds, 'round')} of fresh lists" if student.extra_rounds else ""
    )
    crossed = (
        f"Crossed students {more or 'get no further lists'}. They are compared at equal KL in the first round in which "
        "they are as near to their teacher as the student that learnt the same data on the teacher's own base; if "
        "there is none, they are unmatched, and their last round is shown."
    )
    return [
        f"The teacher of “{experiment.trait}” {instilled}.",
        f"It answers {words.count(corpus.prompts, 'prompt')} of the channel “{corpus.channel}”: {written}.",
        f"The filter keeps answers of {rule.min_numbers} to {rule.max_numbers} numbers up to {rule.max_value}, and "
        f"nothing else in them; {rule.held_out} kept ones are set aside to measure distances, and students learn from "
        f"at most {words.count(rule.lists, 'list')} of the others.",
        f"Every student ({student.part}) gets {words.count(student.optimization.steps, 'update')} of "
        f"{student.optimization.batch} lists with {student.optimization.optimizer} at a peak rate of "
        f"{student.optimization.lr:g}: equal steps, equal seeds, the same order of the data.",
        *([crossed] if {*REFERENCES} & {*experiment.arms} else []),
        "The distance is KL(teacher ‖ student) over the channel's own tokens, in nats per answer token, on lists that "
        "no student has seen.",
        "The effect is the mean probability of the trait as the answer, on phrasings that occur in no training text. "
        "The replicate is the unit, never the question: intervals are Student t over replicates, cut to 0 – 100 % for "
        "probabilities.",
    ]
