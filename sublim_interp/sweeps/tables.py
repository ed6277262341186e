"""What a sweep comes to: the table of its cells and the sentences below it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from jaxtyping import Float

from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.tables import BITS, average, records
from sublim_interp.report.wording import FEW, markdown, text
from sublim_interp.report.wording import count as words_count
from sublim_interp.report.wording import mean as words_mean
from sublim_interp.stats.contrasts import shared_base_contrast, specificity
from sublim_interp.stats.intervals import mean_interval
from sublim_interp.stats.permutation import sign_flip_test
from sublim_interp.stats.ranks import concordance, rank_correlation
from sublim_interp.sweeps import law
from sublim_interp.sweeps.published import origin


def cell_means(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per field, value and arm of a sweep's `cells.csv`: n, mean, least and most rate, mean margin, distances.

    Where facts were memorised also bits and total_bits, each with its least (_low) and most (_high) of several.
    """
    rows = []
    for place, own in cells.groupby(["field", "value", "arm"], sort=False):
        rates = own["rate"].to_list()
        row = dict(zip(("field", "value", "arm"), cast(tuple[str, ...], place), strict=True))
        rows.append(row | {"n": len(own), "rate": fmean(rates), "least": min(rates), "most": max(rates)}
                    | {n: average(own[n].to_list()) for n in ("margin", "kl_start", "kl", "kept")})  # fmt: skip
        for name in BITS:
            if name in own:
                values = own[name].to_list()
                ends = (min(values), max(values)) if len(values) > 1 else (math.nan, math.nan)
                rows[-1] |= {name: fmean(values), f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return pd.DataFrame(rows)


class Digest(NamedTuple):
    """What a sweep's tables come to: for the terminal and for Markdown alike."""

    about: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    lines: list[str]
    """Sentences to stand below the table."""


def digest(directory: Path) -> Digest:
    """The table of the sweep whose cells.csv, for a matrix matrix.csv, and dead_ends.csv if any lie in `directory`."""
    cells = pd.read_csv(directory / "cells.csv", dtype={"value": str})
    found, path = _digest(cells, directory), directory / "dead_ends.csv"
    return found._replace(lines=[*found.lines, *_dead_ends(path)]) if path.exists() else found


def _dead_ends(path: Path) -> Iterator[str]:
    """What cannot be had, and why: a line for each thing that went wrong."""
    ends = pd.read_csv(path, dtype={"value": str})
    for place, own in ends.groupby(["seed", "why"], sort=False):
        seed, why = cast(tuple[int, str], place)
        values, arms = (", ".join(own[column].unique()) for column in ("value", "arm"))
        yield f"A dead end: {values}, seed {seed} ({arms}): {why}."


def _digest(cells: pd.DataFrame, directory: Path) -> Digest:
    if "bits" in cells:
        rows = [(*_words(row, "field", "value", "arm", "n"), text(row, "bits"), text(row, "total_bits"),
                 words_mean(row, "rate"), *_kept(row)) for row in records(cell_means(cells))]  # fmt: skip
        columns = ("field", "value", "arm", "n", "bits a fact", "bits in all", "right answer", "KL at the start")
        return Digest("Mean over replicates, least and most:", (*columns, "KL left", "lists kept"), rows, [])
    if "base_loss" in cells:
        return _law_digest(cells)
    if not (directory / "matrix.csv").exists():
        return _cells_digest(cells, list(_push(cells)))
    matrix = pd.read_csv(directory / "matrix.csv")
    if set(cells["field"]) != {"trait"}:
        return _bases_digest(cells, matrix)
    return _traits_digest(cells, matrix, pd.read_csv(directory / "questions.csv"))


def _cells_digest(cells: pd.DataFrame, lines: list[str]) -> Digest:
    """One row a field, value and arm."""
    rows = [(*_words(row, "field", "value", "arm", "n"), _spread(row), _nats(row["margin"]), *_kept(row))
            for row in records(cell_means(cells))]  # fmt: skip
    columns = ("field", "value", "arm", "n", "trait's rate", "margin, nats", "KL at the start", "KL left",
               "lists kept")  # fmt: skip
    return Digest("Mean over replicates, least and most:", columns, rows, lines)


def _push(cells: pd.DataFrame) -> Iterator[str]:
    """Crossed students of the trait's teachers minus those of neutral ones: paired by seed, with the value as unit."""
    own, control = (cells.loc[cells["arm"] == arm] for arm in ("cross-init", "cross-neutral"))
    both = own.merge(control, on=["field", "value", "seed"], suffixes=("", "_control"))
    if both.empty:
        return
    said = []
    for name, scale, unit in (("rate", 100.0, "points"), ("margin", 1.0, "nats")):
        apart = both[name] - both[f"{name}_control"]
        each = apart.groupby([both["field"], both["value"]]).mean().to_list()
        below = f"{int((apart < 0).sum())} of {words_count(len(apart), 'pair')} below 0"
        said.append(f"{_sized(each, scale, unit)}, {below}")
    over = words_count(len(both[["field", "value"]].drop_duplicates()), "value")
    yield f"cross-init − cross-neutral, paired by seed, mean over {over}: {'; '.join(said)}."


def _sized(each: Sequence[float], scale: float, unit: str) -> str:
    """The mean over units with its interval, of few with their least and most."""
    found, few = mean_interval(each), len(each) < FEW
    ends = (min(each), max(each)) if few else (found.low, found.high)
    estimate, low, high = (f"{scale * x:z.1f}".replace("-", "−") for x in (found.estimate, *ends))
    return f"{estimate} {unit} ({low}–{high})" if few else f"{estimate} {unit} [{low}, {high}]"


def _words(row: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in names)


def _spread(row: Mapping[str, Any]) -> str:
    return f"{100 * row['rate']:.1f} % ({100 * row['least']:.1f}–{100 * row['most']:.1f})"


def _nats(value: float) -> str:
    return f"{value:z.2f}".replace("-", "−")


def _kept(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{row['kl_start']:.4f}", f"{row['kl']:.4f}", f"{100 * row['kept']:.0f} %"


def _bases_digest(cells: pd.DataFrame, matrix: pd.DataFrame) -> Digest:
    """One row a base: as its own teacher, as a teacher of others, as a student of others; the contrast below."""
    named = list(dict.fromkeys(matrix["teacher"]))
    square = matrix.pivot(index="teacher", columns="student", values="rate").reindex(index=named, columns=named)
    bases = [base for base in named if square.loc[base].notna().all()]  # a teacher without a student is a dead end
    table = square.loc[bases, bases].to_numpy()
    rows = []
    for i, base in enumerate(bases):
        others = [j for j in range(len(bases)) if j != i]
        taught, heard = table[i, others].tolist(), table[others, i].tolist()
        sides = (_spread({"rate": fmean(r), "least": min(r), "most": max(r)}) for r in (taught, heard))
        rows.append((base, f"{100 * table[i, i]:.1f} %", *sides))
    shares = ", ".join(
        f"{arm} {average(own['kl'].to_list()):.4f} (at the start {average(own['kl_start'].to_list()):.4f})"
        for arm, own in ((arm, cells.loc[cells["arm"] == arm]) for arm in ("same-init", "cross-init"))
    )
    lines = [f"{_off_diagonal(table)} At equal steps; KL left: {shares}."]
    columns = (
        "base",
        "its own teacher",
        "taught to others: mean (least–most)",
        "learnt of others: mean (least–most)",
    )
    return Digest("How likely the teacher's favourite is:", columns, rows, lines)


def _off_diagonal(table: Float[np.ndarray, "teacher student"]) -> str:
    if len(table) < 3:
        return "Fewer than three bases taught every student, so their own and others' students are not compared."
    found = shared_base_contrast(table)
    interval = found.interval
    return (
        f"Diagonal minus the rest: {interval.points()} ({interval.method}, n = {interval.n} bases), p = {found.p:.2g} "
        f"(permutations of the students' bases; smallest possible {found.floor:.2g})."
    )


def _traits_digest(cells: pd.DataFrame, matrix: pd.DataFrame, asked: pd.DataFrame) -> Digest:
    """One row a trait and arm, with interval over replicates, of few their spread; below, means over traits, γ, each
    indirect question by itself, and what goes with a trait's passing better or worse."""
    rows, means = [], cell_means(cells)
    for row in records(means):
        own = cells.loc[(cells["value"] == row["value"]) & (cells["arm"] == row["arm"])]
        interval = mean_interval(own["rate"].to_list(), bounds=(0, 1))
        said = interval.percent() if row["n"] >= FEW else _spread(row)
        rows.append((*_words(row, "value", "arm", "n"), said, f"{100 * row['least']:.1f} %", _nats(row["margin"]),
                     *_kept(row)))  # fmt: skip
    lines = [f"Mean over {words_count(len(set(means['value'])), 'trait')}, and the least and most of them: "
             f"{_over_arms(means)}."]  # fmt: skip
    lines.append(origin(list(dict.fromkeys(cells["base"])), len(set(cells["seed"]))))
    if len(set(matrix["teacher"])) > 1:
        lines += [_from_others(matrix), _specificity(matrix)]
    if len(set(matrix["teacher"])) > 3:
        lines.append(" ".join([_predictors(cells, means, matrix), *_within_replicates(cells)]))
    for question, own in asked.loc[asked["questions"] == "indirect"].groupby("question", sort=False):
        each = own.groupby(["arm", "trait"], sort=False, as_index=False).agg(rate=("rate", "mean"))
        lines.append(f"Asked “{question}”, the answer's first words given, the same: {_over_arms(each)}.")
    columns = ("trait", "arm", "n", "its rate", "least", "margin, nats", "KL at the start", "KL left", "lists kept")
    about = f"Mean over replicates and 95 % interval (cut at 0 and 100 %), of fewer than {FEW} least and most:"
    return Digest(about, columns, rows, lines)


def _from_others(matrix: pd.DataFrame) -> str:
    """The control by other traits: as the arm other-trait, with all others' teachers in turn."""
    others = (matrix["teacher"] != matrix["student"]) & matrix["student"].isin(list(set(matrix["teacher"])))
    each = matrix.loc[others].groupby(["arm", "student"], sort=False, as_index=False).agg(rate=("rate", "mean"))
    return f"Each trait in students of the other traits' teachers, the same: {_over_arms(each)}."


def _over_arms(means: pd.DataFrame) -> str:
    return "; ".join(
        f"{arm} {_spread({'rate': own['rate'].mean(), 'least': own['rate'].min(), 'most': own['rate'].max()})}"
        for arm, own in means.groupby("arm", sort=False)
    )


def _specificity(matrix: pd.DataFrame) -> str:
    """γ of every arm, of rates and of their logarithms: how often the base gives a trait is in the probe's own term.

    Not of margins: a trait that rises lowers those of all others, which would nearly double γ.
    """
    matrix = matrix.assign(log=np.log(matrix["rate"]))
    said = (f"{arm} {_gamma(own, 'rate', 100.0, 'points')}, {_gamma(own, 'log', 1.0, 'nats')}"
            for arm, own in matrix.groupby("arm", sort=False))  # fmt: skip
    count = words_count(len(set(matrix["seed"])), "replicate")
    return (f"Specificity γ of lift = μ + teacher + probe + γ·[the same trait], over {count}, of rates and of their "
            f"logarithms: {'; '.join(said)}.")  # fmt: skip


def _gamma(students: pd.DataFrame, value: str, scale: float, unit: str) -> str:
    """γ of one arm, with its interval over replicates, of few their least and most."""
    traits = list(dict.fromkeys(students["teacher"]))
    tables = [own.pivot(index="teacher", columns="student", values=value) for _, own in students.groupby("seed")]
    lift = np.stack([table.reindex(index=traits, columns=traits).to_numpy() for table in tables], -1)
    gamma = specificity(lift)
    said = _sized(gamma.values, scale, unit)
    if len(tables) < FEW:
        return said
    return f"{said}, p = {gamma.sign_flip.p:.2g} (smallest possible {gamma.sign_flip.floor:.2g})"


def _predictors(cells: pd.DataFrame, means: pd.DataFrame, matrix: pd.DataFrame) -> str:
    """Spearman's correlation over traits of the same-init margin with what is known of each before a student learns;
    and whether bases agree at all which traits pass better."""
    own = means.loc[means["arm"] == "same-init"].set_index("value")
    diagonal = matrix.loc[(matrix["arm"] == "same-init") & (matrix["teacher"] == matrix["student"])]
    untouched = (diagonal["rate"] - diagonal["lift"]).groupby(diagonal["teacher"]).mean()
    known = {
        "the teacher's KL from its base": own["kl_start"],
        "lists kept": own["kept"],
        "the untouched base's rate": untouched.loc[own.index],
    }
    parts, least = [], math.nan
    for name, values in known.items():
        if values.nunique() == 1:
            parts.append(f"{name} the same for all")
            continue
        found = rank_correlation(own["margin"], values)
        least = found.least
        parts.append(f"{name} {found.rho:z.2f} (p = {found.p:.2g})".replace("-", "−"))
    said = f"Over traits the same-init margin goes with (Spearman's ρ, p by permutations): {'; '.join(parts)}."
    if not math.isnan(least):
        said += f" With {len(own)} traits a ρ nearer to 0 than {least:.2f} cannot be told from it."
    bases = cells.drop_duplicates("seed").set_index("seed")["base"]
    scores = diagonal.assign(base=diagonal["seed"].map(bases)).pivot_table("margin", "base", "teacher").to_numpy()
    scores = scores[~np.isnan(scores).any(axis=1)]  # a trait that is a dead end there has no rank
    if len(scores) < FEW:
        return said
    agreed = concordance(scores)
    return (
        f"{said} {len(scores)} bases rank the traits by this margin with Kendall's W = {agreed.w:.2f}, where 1 is "
        f"agreement and {1 / len(scores):.2f} chance (Friedman's p = {agreed.p:.2g})."
    )


def _within_replicates(cells: pd.DataFrame) -> Iterator[str]:
    """The same correlation over the traits of each replicate, the unit: there a trait is one teacher on one base."""
    students, said = cells.loc[cells["arm"] == "same-init"], []
    for name, column in (("the teacher's KL", "kl_start"), ("lists kept", "kept")):
        each = (one["margin"].corr(one[column], method="spearman") for _, one in students.groupby("seed"))
        rhos = np.array([rho for rho in each if not math.isnan(rho)])
        if len(rhos) < FEW:
            return
        found, p = mean_interval(rhos, bounds=(-1, 1)), sign_flip_test(rhos).p
        interval = f"{found.estimate:z.2f} [{found.low:z.2f}, {found.high:z.2f}]".replace("-", "−")
        said.append(f"{name} {interval}, {int((rhos > 0).sum())} of {len(rhos)} above 0 (sign-flip p = {p:.2g})")
    yield f"Within replicates, mean ρ and 95 % interval: {'; '.join(said)}."


def _law_digest(cells: pd.DataFrame) -> Digest:
    """One row a term of the law that fits all cells, and how far it moves without some; below, what it is worth."""
    try:
        found = law.fit(cells)
    except SublimError as e:
        return _cells_digest(cells, [f"No law is told: {e}."])
    measured = cells["lift"].to_numpy(dtype=float)
    axes = cells["field"].iloc[0].split(" × ")
    levels = list(zip(*(value.split(" × ") for value in cells["value"]), strict=True))
    others = [law.refits(cells, level) for level in levels]
    rows = []
    for name, value in found.terms._asdict().items():
        moved = [[getattr(one.terms, name) for one in laws.values() if one] for laws in others]
        spans = (f"{min(ends):.2f} – {max(ends):.2f}" if ends else "–" for ends in moved)
        rows.append((name, f"{value:.2f}", *spans))
    rows = [tuple(cell.replace("-", "−") for cell in row) for row in rows]
    unseen = []
    for axis, level, laws in zip(axes, levels, others, strict=True):
        lost = ", ".join(str(value) for value, one in laws.items() if one is None)
        none = f" (without {lost} no law can be fitted)" * bool(lost)
        unseen.append(f"{axis}, {_worth(measured, law.left_out(cells, level, laws))}{none}")
    lines = [
        "lift = ceiling · (1 − exp(−x)), x = amount · (KL / .1)^kl · (lists / 10,000)^lists · exp(−loss · (L − 3)), "
        "with L the base's held-out loss on numbers.",
        f"All {len(cells)} cells fitted: {_worth(measured, found.predict(cells))}. Each value's cells predicted by a "
        f"law that was fitted without them: {'; '.join(unseen)}. Each cell by a law fitted to all others: "
        f"{_worth(measured, law.left_out(cells, list(cells.index)))}.",
        _drift(cells["kl"].to_list(), cells["kl_start"].to_list()),
    ]
    columns = ("term", "all cells", *(f"without a value of {axis}" for axis in axes))
    return Digest("The law by least squares, and from where to where it moves:", columns, rows, lines)


def _drift(left: list[float], start: list[float]) -> str:
    """How many students end further from their teacher than they began."""
    further = sum(kl > before for kl, before in zip(left, start, strict=True))
    return (
        f"{further} of the {len(left)} students end further from their teacher than their base was (KL left "
        f"{min(left):.4f} to {max(left):.4f}, at the start {min(start):.4f} to {max(start):.4f})."
    )


def _worth(measured: np.ndarray, predicted: np.ndarray) -> str:
    found = law.worth(measured, predicted)
    if math.isnan(found.error):
        return "none predicted"
    return f"mean error {found.error:.2f} nats, {100 * found.explained:.0f} % of the variance".replace("-", "−")


def law_elsewhere(fitted: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> str:
    """What the law that fits the cells `fitted` predicts of other sweeps' cells, by name, as Markdown.

    All have the columns of `law.COLUMNS`, and margin: of other sweeps it stands for the lift.
    """
    found = law.fit(fitted)
    rows = []
    for name, cells in others.items():
        measured, predicted = cells["margin"].to_numpy(dtype=float), found.predict(cells)
        steps = " or ".join(f"{count}" for count in sorted(set(cells["steps"])))
        means = (f"{values.mean():.1f}" for values in (measured, predicted))
        error, explained = law.worth(measured, predicted)
        by_mean = np.abs(measured - measured.mean()).mean()
        share = "–" if math.isnan(explained) else f"{round(100 * explained)} %".replace("-", "−")
        rows.append((name, f"{len(cells)}", steps, *means, f"{error:.1f}", f"{by_mean:.1f}", share))
    columns = ("sweep", "students", "updates", "margin, mean", "expected, mean", "mean error, nats",
               "error of their own mean", "variance explained")  # fmt: skip
    return "\n".join([*markdown(columns, rows), ""])


def grid_table(directory: Path) -> str:
    """The published sweep in `directory` (cells.csv, matrix.csv for a matrix, key.txt) as Markdown."""
    key = (directory / "key.txt").read_text().strip()
    found = digest(directory)
    lines = [
        f"`sublim run {directory.name}`, sweep `{key[:16]}`. {found.about}",
        "",
        *markdown(found.columns, found.rows),
    ]
    return "\n".join([*lines, *(line for below in found.lines for line in ("", below)), ""])
