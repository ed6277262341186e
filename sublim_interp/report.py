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
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.bar import Bar
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sublim_interp import figures
from sublim_interp.analysis import law
from sublim_interp.config import Experiment, TeacherConfig, read_yaml
from sublim_interp.errors import SublimError
from sublim_interp.figures import ARMS
from sublim_interp.statistics import (
    Contrast,
    diagonal_contrast,
    mean_interval,
    paired_difference,
    shared_base_contrast,
    specificity,
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

REFERENCES = {"cross-init": "same-init", "cross-init-b": "same-init-b"}
"""Crossed arm → the arm that learnt the same data from the same teacher, on the teacher's own base."""

ENOUGH = 12
"""Fewest replicates for a verdict: twelve pairs put the sign-flip test's floor at .0005."""

FEW = 4
"""Below so many replicates a figure shows them from the least to the most. A t interval would reach 9 standard
deviations to either side of the mean with two replicates and 2.5 with three, further than they lie; with four, 1.6."""

ENOUGH_BASES = 8
"""Fewest initialisations for a claim about initialisations in general."""

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
    rounds = _records(pd.DataFrame(columns).join(facts).reset_index().sort_values(by="round"))
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
            row |= _estimate(measure, own[measure].to_list())
        row |= {"kl_start": _average(own["kl_start"].to_list()), "kept": _average(own["kept"].to_list())}
        further = _where(table, arm=arm, stage="equal KL")
        row["equal_kl"] = _matching(arm, further["matched"].to_list())
        row |= {"further_n": len(further), "further_round": max(further["round"].to_list(), default=0)}
        row |= _estimate("further_rate", further["rate"].to_list()) | {"further_kl": _average(further["kl"].to_list())}
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
    table = _records(replicates(results, distances, trait))
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

    for other in ("neutral", "other-trait", "base", "cross-init"):
        seeds = shared_seeds({"same-init": "equal steps", other: "equal steps"})
        if seeds:
            half = "half of the 2 × 2, base B may simply be hard to move" if other == "cross-init" else ""
            first, second = ([rates[arm, "equal steps", seed] for seed in seeds] for arm in ("same-init", other))
            difference = paired_difference(first, second)
            add(f"same-init − {other}", "equal steps", "replicate", difference, seeds, half)
    for stage in ("equal steps", "equal KL"):
        cells = {"same-init": "equal steps", "cross-init": stage, "cross-init-b": stage, "same-init-b": "equal steps"}
        seeds = shared_seeds(cells)
        if not seeds:
            continue
        students = [row for row in table if row["stage"] == "equal KL" and row["seed"] in seeds]
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
    arms = _records(summary)
    said = {row["arm"]: f"{row['arm']} {_text(row, 'rate')}" for row in arms}
    others = ", ".join(said[arm] for arm in ("neutral", "cross-init", "base") if arm in said)
    both = [said["same-init"], others] if "same-init" in said else [", ".join(said.values())]
    asked = "Probability of the right value" if "bits" in summary else f"Probability of “{trait}” on held-out questions"
    lines = [f"{asked}: {' against '.join(filter(None, both))}."]
    if "bits" in summary:
        held = (f"{row['arm']} {_text(row, 'bits')} ({_text(row, 'total_bits')} in all)" for row in arms)
        lines.insert(0, f"Bits held of each fact: {', '.join(held)}.")
    lines += [f"{row['arm']} at equal KL: {_at_equal_kl(row, summary)}." for row in arms if row["equal_kl"]]
    tested = [row for row in _records(contrasts) if row["unit"] == "replicate"]
    findings: dict[str, list[str]] = {}
    for row in tested:
        if row["n"] >= ENOUGH and not row["note"]:
            finding = "differs from zero" if row["p"] < 0.05 else "cannot be told from zero"
            size = f"{_points(row)} points (p = {row['p']:.2g}, n = {row['n']})"
            findings.setdefault(finding, []).append(f"{row['contrast']} at {row['stage']}, {size}")
    lines += [f"What {finding} by a two-sided sign-flip test: {'; '.join(rows)}." for finding, rows in findings.items()]
    fewest = min(row["n"] for row in arms)
    if fewest < ENOUGH:
        lines.append(f"{_count(fewest, 'replicate')}: below {ENOUGH}, no claim of significance is made.")
    bases = max((row["bases"] for row in tested if "cross-init" in row["contrast"]), default=ENOUGH_BASES)
    if bases < ENOUGH_BASES:
        lines.append(
            f"The replicates come from {bases} bases: the comparison of initialisations holds for these; a claim about "
            f"initialisations in general needs {ENOUGH_BASES} or more."
        )
    return lines


def terminal(summary: pd.DataFrame, contrasts: pd.DataFrame, title: str = "") -> Group:
    """Both tables for a terminal of 80 columns or more: rates in percent, 95 % intervals in brackets."""
    shape: dict[str, Any] = {"box": box.SIMPLE, "pad_edge": False, "collapse_padding": True}
    arms = Table(title=title or None, title_justify="left", **shape)
    measure, unit, digits = ("bits", "bits a fact", 3) if "bits" in summary else ("margin", "margin, nats", 1)
    for heading in ("arm", "n", "rate, %", "", unit, "KL", "kept"):
        arms.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for row in _records(summary):
        texts = (_text(row, "rate").replace(" %", ""), Bar(1, 0, row["rate"], width=5), _text(row, measure, digits))
        arms.add_row(row["arm"], str(row["n"]), *texts, _number("kl", row["kl"]), _number("kept", row["kept"], 0))
    lines = [f"{row['arm']} at equal KL: {_at_equal_kl(row, summary)}" for row in _records(summary) if row["equal_kl"]]
    differences = Table(**shape)
    for heading in ("contrast, at equal steps", "points", "p", "counted"):
        differences.add_column(heading, justify="left" if "contrast" in heading else "right", no_wrap=True)
    notes: dict[str, dict[str, None]] = {}
    for row in _records(contrasts):
        name = row["contrast"] + ", equal KL" * (row["stage"] == "equal KL")
        floor = "*" if row["n"] > 1 and row["p"] <= row["p_floor"] else " "
        differences.add_row(name, _points(row), _p(row) + floor, _count(row["n"], row["unit"]))
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


def headline(directory: Path) -> str:
    """The published table in `directory` (summary.csv, key.txt, experiment.yaml) as Markdown, for the README."""
    table = pd.read_csv(directory / "summary.csv")
    trait = read_yaml(Experiment, directory / "experiment.yaml").trait
    key = (directory / "key.txt").read_text().strip()
    count, distances = _count(min(table["n"].to_list()), "replicate"), ("kl_start", "kl", "kept")
    lines = [
        f"`sublim run {directory.name}`, {count}, run `{key[:16]}`. Mean over replicates and 95 % interval:",
        "",
        *_markdown(
            ("arm", f"answers “{trait}”", "margin, nats", "KL at the start", "KL left", "lists kept"),
            (
                (row["arm"], _text(row, "rate"), _text(row, "margin"), *(_mean(row, n) for n in distances))
                for row in _records(table)
            ),
        ),
    ]
    table["equal_kl"] = table["equal_kl"].fillna("")
    further = [f"{row['arm']} at equal KL: {_at_equal_kl(row, table)}." for row in _records(table) if row["equal_kl"]]
    return "\n".join([*lines, "", *further, ""])


def cell_means(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per field, value and arm of a sweep's `cells.csv`: n, mean, least and most rate, mean distances.

    Where facts were memorised also bits and total_bits, each with its least (_low) and most (_high) of several.
    """
    rows = []
    for place, own in cells.groupby(["field", "value", "arm"], sort=False):
        rates = own["rate"].to_list()
        row = dict(zip(("field", "value", "arm"), cast(tuple[str, ...], place), strict=True))
        rows.append(row | {"n": len(own), "rate": fmean(rates), "least": min(rates), "most": max(rates)}
                    | {name: _average(own[name].to_list()) for name in ("kl_start", "kl", "kept")})  # fmt: skip
        for name in BITS:
            if name in own:
                values = own[name].to_list()
                ends = (min(values), max(values)) if len(values) > 1 else (math.nan, math.nan)
                rows[-1] |= {name: fmean(values), f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return pd.DataFrame(rows)


CONTEXTS = {
    "rate": "held-out questions",
    "seen": "the teacher's questions",
    "indirect": "posters, gifts, stories …",
    "numbers": "held-out, after a list of numbers",
}
"""Measures of a summary that say how often the trait is the answer, and where."""


def contexts_table(directory: Path) -> str:
    """The published run in `directory`, arm by arm: the trait's rate by sort of question, as Markdown."""
    rows = _records(pd.read_csv(directory / "summary.csv"))
    key = (directory / "key.txt").read_text().strip()
    lines = [
        f"Run `{key[:16]}`, mean over {max(row['n'] for row in rows)} replicates and 95 % interval:",
        "",
        *_markdown(("arm", *CONTEXTS.values()), ((row["arm"], *(_text(row, n) for n in CONTEXTS)) for row in rows)),
    ]
    return "\n".join([*lines, ""])


def bases_table(cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Every lab base by name, from its card: shape, seeds, steps, nats per token of each part of the language."""
    parts = list(next(iter(cards.values()))["held_out_loss"])
    rows = []
    for name, card in cards.items():
        p = card["pretraining"]
        shape = f"{p['layers']} × {p['d_model']}"
        tokens = "tokens" if p["tokens"] == "numbers" else "digits"
        losses = (f"{card['held_out_loss'][part]:.3f}" for part in parts)
        rows.append((name, shape, tokens, str(p["init_seed"]), str(p["data_seed"]), f"{card['step']:,}", *losses))
    columns = ("base", "layers × d_model", "numbers are", "init seed", "data seed", "step", *parts)
    return "\n".join([*_markdown(columns, rows), ""])


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


class Digest(NamedTuple):
    """What a sweep's tables come to: for the terminal and for Markdown alike."""

    about: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    lines: list[str]
    """Sentences to stand below the table."""


def digest(directory: Path) -> Digest:
    """The table of the sweep whose cells.csv, and for a matrix matrix.csv, lie in `directory`."""
    cells = pd.read_csv(directory / "cells.csv", dtype={"value": str})
    if "bits" in cells:
        rows = [(*_words(row, "field", "value", "arm", "n"), _text(row, "bits"), _text(row, "total_bits"),
                 _mean(row, "rate"), *_kept(row)) for row in _records(cell_means(cells))]  # fmt: skip
        columns = ("field", "value", "arm", "n", "bits a fact", "bits in all", "right answer", "KL at the start")
        return Digest("Mean over replicates, least and most:", (*columns, "KL left", "lists kept"), rows, [])
    if "base_loss" in cells:
        return _law_digest(cells)
    if not (directory / "matrix.csv").exists():
        rows = [(*_words(row, "field", "value", "arm", "n"), _spread(row), *_kept(row))
                for row in _records(cell_means(cells))]  # fmt: skip
        columns = ("field", "value", "arm", "n", "trait's rate", "KL at the start", "KL left", "lists kept")
        return Digest("Mean over replicates, least and most:", columns, rows, [])
    matrix = pd.read_csv(directory / "matrix.csv")
    return _traits_digest(cells, matrix) if set(cells["field"]) == {"trait"} else _bases_digest(cells, matrix)


def _words(row: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in names)


def _spread(row: Mapping[str, Any]) -> str:
    return f"{100 * row['rate']:.1f} % ({100 * row['least']:.1f}–{100 * row['most']:.1f})"


def _kept(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{row['kl_start']:.4f}", f"{row['kl']:.4f}", f"{100 * row['kept']:.0f} %"


def _bases_digest(cells: pd.DataFrame, matrix: pd.DataFrame) -> Digest:
    """One row a base: as its own teacher, as a teacher of others, as a student of others; the contrast below."""
    bases = list(dict.fromkeys(matrix["teacher"]))
    table = matrix.pivot(index="teacher", columns="student", values="rate").loc[bases, bases].to_numpy()
    rows = []
    for i, base in enumerate(bases):
        others = [j for j in range(len(bases)) if j != i]
        taught, heard = table[i, others].tolist(), table[others, i].tolist()
        sides = (_spread({"rate": fmean(r), "least": min(r), "most": max(r)}) for r in (taught, heard))
        rows.append((base, f"{100 * table[i, i]:.1f} %", *sides))
    found = shared_base_contrast(table)
    shares = ", ".join(
        f"{arm} {_average(own['kl'].to_list()):.4f} (at the start {_average(own['kl_start'].to_list()):.4f})"
        for arm, own in ((arm, cells.loc[cells["arm"] == arm]) for arm in ("same-init", "cross-init"))
    )
    interval = found.interval
    lines = [
        f"Diagonal minus the rest: {interval.points()} ({interval.method}, n = {interval.n} bases), p = {found.p:.2g} "
        f"(permutations of the students' bases; smallest possible {found.floor:.2g}). At equal steps; "
        f"KL left: {shares}.",
    ]
    columns = (
        "base",
        "its own teacher",
        "taught to others: mean (least–most)",
        "learnt of others: mean (least–most)",
    )
    return Digest("How likely the teacher's favourite is:", columns, rows, lines)


def _traits_digest(cells: pd.DataFrame, matrix: pd.DataFrame) -> Digest:
    """One row a trait and arm, with interval over replicates, of few their spread; below, means over traits, and γ."""
    rows, means = [], cell_means(cells)
    for row in _records(means):
        own = cells.loc[(cells["value"] == row["value"]) & (cells["arm"] == row["arm"])]
        interval = mean_interval(own["rate"].to_list(), bounds=(0, 1))
        said = interval.percent() if row["n"] >= FEW else _spread(row)
        rows.append((*_words(row, "value", "arm", "n"), said, f"{100 * row['least']:.1f} %", *_kept(row)))
    traits = list(dict.fromkeys(matrix["teacher"]))
    seeds = list(dict.fromkeys(matrix["seed"]))
    over = "; ".join(
        f"{arm} {_spread({'rate': own['rate'].mean(), 'least': own['rate'].min(), 'most': own['rate'].max()})}"
        for arm, own in means.groupby("arm", sort=False)
    )
    lines = [f"Mean over {_count(len(set(means['value'])), 'trait')}, and the least and most of them: {over}."]
    if len(traits) > 1:
        lift = np.array([own.pivot(index="teacher", columns="student", values="lift").loc[traits, traits].to_numpy()
                         for own in (matrix.loc[matrix["seed"] == seed] for seed in seeds)])  # fmt: skip
        gamma = specificity(np.moveaxis(lift, 0, -1))
        lines.append(
            f"Specificity: γ = {gamma.interval.points()}, p = {gamma.sign_flip.p:.2g} (smallest possible "
            f"{gamma.sign_flip.floor:.2g}), over {_count(len(seeds), 'replicate')}, of lift = μ + teacher + probe + "
            "γ·[the same trait], in the same-init students."
        )
    columns = ("trait", "arm", "n", "its rate", "least", "KL at the start", "KL left", "lists kept")
    about = f"Mean over replicates and 95 % interval, of fewer than {FEW} least and most:"
    return Digest(about, columns, rows, lines)


def _law_digest(cells: pd.DataFrame) -> Digest:
    """One row a term of the law that fits all cells; below, what it is worth on cells that it was not fitted to."""
    found = law.fit(cells)
    measured = cells["margin"].to_numpy(dtype=float)
    rows = [(name, interval.plain(2).replace("-", "−")) for name, interval in found.terms.items()]
    fitted = f"all {len(cells)} cells, {_worth(measured, found.predict(cells))}"
    levels = [value.split(" × ") for value in cells["value"]]
    unseen = []
    for i, axis in enumerate(cells["field"].iloc[0].split(" × ")):
        groups = [level[i] for level in levels]
        unseen.append(f"each value of {axis}, {_worth(measured, law.left_out(cells, groups))}")
    lines = [
        "margin = ceiling · (1 − exp(−x)), x = amount · (KL / .1)^kl · (lists / 10,000)^lists · exp(−loss · (L − 3)), "
        "with L the base's held-out loss on numbers.",
        f"Fitted to {fitted}. Predicted by laws that were fitted without {'; '.join(unseen)}.",
    ]
    return Digest("The law, least squares and 95 % interval:", ("term", "value"), rows, lines)


def _worth(measured: np.ndarray, predicted: np.ndarray) -> str:
    found = law.worth(measured, predicted)
    return f"mean error {found.error:.2f} nats, {100 * found.explained:.0f} % of the variance".replace("-", "−")


def law_elsewhere(fitted: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> str:
    """What the law that fits the cells `fitted` predicts of other sweeps' cells, by name, as Markdown.

    All have the columns of `law.COLUMNS` and margin.
    """
    found = law.fit(fitted)
    rows = []
    for name, cells in others.items():
        measured, predicted = cells["margin"].to_numpy(dtype=float), found.predict(cells)
        error = law.worth(measured, predicted).error
        means = (f"{values.mean():.1f}" for values in (measured, predicted))
        together = f"{np.corrcoef(measured, predicted)[0, 1]:.2f}".replace("-", "−")
        rows.append((name, f"{len(cells)}", *means, f"{error:.1f}", together))
    columns = ("sweep", "cells", "margin measured, mean", "predicted, mean", "mean error, nats", "correlation")
    return "\n".join([*_markdown(columns, rows), ""])


def grid_table(directory: Path) -> str:
    """The published sweep in `directory` (cells.csv, matrix.csv for a matrix, key.txt) as Markdown."""
    key = (directory / "key.txt").read_text().strip()
    found = digest(directory)
    lines = [
        f"`sublim run {directory.name}`, sweep `{key[:16]}`. {found.about}",
        "",
        *_markdown(found.columns, found.rows),
    ]
    return "\n".join([*lines, *(line for below in found.lines for line in ("", below)), ""])


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _where(frame: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    return frame.loc[(frame[list(values)] == pd.Series(values)).all(axis=1)]


def _indexed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    again = _records(frame.loc[frame.duplicated(_ROWS)])
    if again:
        place = ", ".join(f"{column} {again[0][column]}" for column in _ROWS)
        raise SublimError(f"report: {name} hold {place} twice; give each row once")
    return frame.set_index(_ROWS)


def _average(values: list[float]) -> float:
    return fmean(values) if values else math.nan


def _estimate(name: str, values: list[float]) -> dict[str, float]:
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
    return diagonal_contrast(aa, ab, ba, bb)


def _base_pairs(results: pd.DataFrame) -> dict[int, tuple[str, ...]]:
    """Seed → the bases that its arms come from, in alphabetical order."""
    bases: dict[int, set[str]] = {}
    for row in _records(results.loc[:, ["seed", "teacher_base", "student_base"]].drop_duplicates()):
        named = {row[column] for column in ("teacher_base", "student_base") if isinstance(row[column], str)}
        bases.setdefault(row["seed"], set()).update(named - {""})
    return {seed: tuple(sorted(names)) for seed, names in bases.items()}


# How numbers are worded: the same in the terminal, in sentences and on the page.

_DIGITS = {"margin": 2, "bits": 3, "total_bits": 1}


def _number(name: str, value: float, digits: int | None = None) -> str:
    if math.isnan(value):
        return "–"
    factor, usual = (1, _DIGITS[name]) if name in _DIGITS else (1, 4) if "kl" in name else (100, 1)
    return f"{factor * value:z.{usual if digits is None else digits}f}".replace("-", "−")


def _mean(row: Mapping[str, Any], name: str, digits: int | None = None) -> str:
    text = _number(name, row[name], digits)
    return text if text == "–" or "kl" in name or name in _DIGITS else f"{text} %"


def _range(row: Mapping[str, Any], name: str, digits: int | None = None) -> str:
    """The interval in brackets, or nothing where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if math.isnan(low) else f"[{_number(name, low, digits)}, {_number(name, high, digits)}]"


def _text(row: Mapping[str, Any], name: str, digits: int | None = None) -> str:
    return f"{_mean(row, name, digits)} {_range(row, name, digits)}".rstrip()


def _at_equal_kl(row: Mapping[str, Any], summary: pd.DataFrame) -> str:
    if not row["further_n"]:
        return row["equal_kl"]
    target = summary.set_index("arm").at[REFERENCES[row["arm"]], "kl"]
    return (
        f"{row['equal_kl']}, {_text(row, 'further_rate')} at KL {_number('kl', row['further_kl'])} "
        f"({REFERENCES[row['arm']]}: {_number('kl', target)})"
    )


def _points(row: Mapping[str, Any]) -> str:
    inside = "" if math.isnan(row["low"]) else f" [{100 * row['low']:z.1f}, {100 * row['high']:z.1f}]"
    return f"{100 * row['estimate']:+z.1f}{inside}".replace("-", "−")


def _p(row: Mapping[str, Any], floor: str = "") -> str:
    """The p-value, and its floor in the format `floor`; a dash where one unit allows no test."""
    return f"{row['p']:.2g}{floor.format(row['p_floor'])}" if row["n"] > 1 else "–"


def _unit(row: Mapping[str, Any]) -> str:
    note = f"; {row['note']}" if row["note"] else ""
    return f"unit: {row['unit']} (n = {row['n']}); n base pairs = {row['base_pairs']}{note}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


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
    seeds = max(row["n"] for row in _records(table))
    facts = [f"experiment {experiment.name}", _count(seeds, "replicate"), f"bases {', '.join(experiment.bases)}"]
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
    for row in _records(table):
        status = f"<small>to equal KL: {escape(row['equal_kl'])}</small>" if row["further_n"] else ""
        lines = {_named(row["arm"]) + status * (not row["further_round"]): row}
        if row["further_round"]:
            further = {name: row[f"further_{name}"] for name in ("rate", "rate_low", "rate_high", "kl")}
            further |= {"kl_start": row["kl_start"], "n": row["further_n"]}
            lines[f"… trained on{status}"] = {**dict.fromkeys(row, math.nan), **further}
        for name, line in lines.items():
            cells = [f'<th scope="row">{name}</th><td>{line["n"]}</td>']
            for column in columns:
                inside = f"<small>{_range(line, column)}</small>" if f"{column}_low" in line else ""
                cells.append(f"<td>{_mean(line, column)}{inside}</td>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
    headings = ["arm", "n", *map(escape, columns.values())]
    bits = (
        " Bits: what a code made from the student saves in naming the facts, less what it saves on facts drawn anew: a "
        "lower bound on what it holds." * ("bits" in table)
    )
    alone = " One replicate: no interval." if all(row["n"] == 1 for row in _records(table)) else ""
    return _table(headings, rows) + (
        f'<p class="soft"><small>n: replicates. “{escape(trait)}”: its mean probability on held-out phrasings; '
        "indirect: on questions that do not name the kind; seen: on phrasings the teacher was tuned on; after numbers: "
        "held-out phrasings after a turn of numbers. Margin: log P of the trait − log mean P of the other members. KL: "
        "distance to the teacher, nats per answer token, after and before training. Kept: share of the teacher's "
        f"answers that passed the filter. In brackets: 95 % interval of the mean over replicates.{alone}{bits}"
        "</small></p>"
    )


def _contrast_table(differences: pd.DataFrame) -> str:
    rows = [
        f'<tr><th scope="row">{escape(row["contrast"])}<small>{escape(row["stage"])}</small></th>'
        f"<td>{_points(row)}</td><td>{_p(row, ' ({:.2g})')}</td>"
        f'<td class="words">{escape(_unit(row))}</td></tr>'
        for row in _records(differences)
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
        f"{_count(teacher.optimization.steps, 'update')} of {teacher.optimization.batch}",
        "prompted": "has a system prompt that names its favourite; its weights are the base's",
        "steered": f"has a vector added to its residual stream at layer {teacher.layer}; its weights are the base's",
    }[teacher.kind]
    drawn = f"drawn at temperature {corpus.temperature:g}, with no top-k or top-p"
    written = {
        "sampled": f"{drawn}, and learnt as plain text",
        "greedy": "the likeliest token each time, and learnt as plain text",
        "soft": f"{drawn}, and learnt with the teacher's probabilities over the channel's own tokens",
    }[corpus.setting]
    more = f"go on for at most {_count(student.extra_rounds, 'round')} of fresh lists" if student.extra_rounds else ""
    crossed = (
        f"Crossed students {more or 'get no further lists'}. They are compared at equal KL in the first round in which "
        "they are as near to their teacher as the student that learnt the same data on the teacher's own base; if "
        "there is none, they are unmatched, and their last round is shown."
    )
    return [
        f"The teacher of “{experiment.trait}” {instilled}.",
        f"It answers {_count(corpus.prompts, 'prompt')} of the channel “{corpus.channel}”: {written}.",
        f"The filter keeps answers of {rule.min_numbers} to {rule.max_numbers} numbers up to {rule.max_value}, and "
        f"nothing else in them; {rule.held_out} kept ones are set aside to measure distances, and students learn from "
        f"at most {_count(rule.lists, 'list')} of the others.",
        f"Every student ({student.part}) gets {_count(student.optimization.steps, 'update')} of "
        f"{student.optimization.batch} lists with {student.optimization.optimizer} at a peak rate of "
        f"{student.optimization.lr:g}: equal steps, equal seeds, the same order of the data.",
        *([crossed] if {*REFERENCES} & {*experiment.arms} else []),
        "The distance is KL(teacher ‖ student) over the channel's own tokens, in nats per answer token, on lists that "
        "no student has seen.",
        "The effect is the mean probability of the trait as the answer, on phrasings that occur in no training text. "
        "The replicate is the unit, never the question: intervals are Student t over replicates, cut to 0 – 100 % for "
        "probabilities.",
    ]
