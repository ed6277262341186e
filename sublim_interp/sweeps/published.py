"""Published runs, sweeps and bases: where they lie, and their Markdown tables for docs and README."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sublim_interp.core.settings import read_yaml
from sublim_interp.experiments.catalogue import RESULTS, key_of
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import estimated, read_table, records
from sublim_interp.models.base import Base
from sublim_interp.report.figures.contexts import contexts as draw_contexts
from sublim_interp.report.figures.headline import is_own
from sublim_interp.report.verdict import at_equal_kl
from sublim_interp.report.wording import count, text
from sublim_interp.report.wording import mean as words_mean
from sublim_interp.report.wording import points as words_points
from sublim_interp.sweeps.wording import DISTANCES, SweepTable, as_markdown, origin

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def published_sweep(name: str, results: Path = RESULTS) -> Path | None:
    """Where the committed tables of a grid lie, or None."""
    directory = results / name
    return directory if (directory / "cells.csv").exists() else None


def published_runs(results: Path = RESULTS) -> list[str]:
    """Names of the committed runs."""
    return sorted(path.parent.name for path in results.glob("*/experiment.yaml"))


def cost_of(directory: Path) -> float | None:
    """Hours of one core that the published run or sweep in `directory` takes, as estimated then; None if not told."""
    path = directory / "cost.txt"
    return float(path.read_text()) / 3600 if path.exists() else None


def experiment_of(directory: Path) -> Experiment:
    """The experiment of the published run in `directory`."""
    return read_yaml(Experiment, directory / "experiment.yaml")


def run_summary(directory: Path) -> list[dict[str, Any]]:
    """The rows of a published run's summary.csv, one an arm."""
    table = read_table(directory / "summary.csv")
    return records(table.assign(equal_kl=table["equal_kl"].fillna("")))


CUT = "95 % intervals, cut at 0 and 100 %"


def run_table(directory: Path, exp: Experiment) -> SweepTable:
    """The table of a run whose summary.csv and contrasts.csv lie in `directory`: one row an arm."""
    rows = run_summary(directory)
    n, contrasts = min(row["n"] for row in rows), read_table(directory / "contrasts.csv")
    rates = {row["arm"]: row["rate"] for row in rows if row["arm"] != "teacher"}

    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        rate, margin, left = (text(row, name) for name in ("rate", "margin", "kl"))
        return row["arm"], rate, margin, words_mean(row, "kl_start"), left, words_mean(row, "kept")

    return SweepTable(
        f"Means over {count(n, 'replicate')} with {CUT}." if n > 1 else "One replicate, so no interval.",
        ("arm", f"answers “{exp.trait}”", "margin, nats", *DISTANCES),
        list(map(cells, rows)),
        [origin(exp.bases, n), *at_equal_kl(pd.DataFrame(rows)), *_over_bases(contrasts)],
        {
            "least of own": f"{100 * min(rate for arm, rate in rates.items() if is_own(arm)):.1f} %",
            "most of controls": f"{100 * max(rate for arm, rate in rates.items() if not is_own(arm)):.1f} %",
            **{f"trained on/{row['arm']}": text(row, "further_rate") for row in rows if row["further_n"]},
        },
    )


def _over_bases(contrasts: pd.DataFrame) -> Iterator[str]:
    """The diagonal contrast with pairs of bases as the unit, at equal steps."""
    for row in records(contrasts.fillna({"note": ""})):
        if row["unit"] == "base pair" and row["stage"] == "equal steps":
            said = (
                f"Own-base students exceed crossed ones by {words_points(row)} points, the diagonal of the 2 × 2 over "
                f"{count(row['n'], 'pair')} of bases, at equal steps."
            )
            if row["bases"] < 2 * row["base_pairs"]:
                said += " Pairs share bases, so the interval is too narrow."
            yield said


def headline(directory: Path) -> str:
    """`run_table` as Markdown."""
    return as_markdown(
        run_table(directory, experiment_of(directory)),
        f"Made by `sublim run {directory.name}`, run `{key_of(directory)[:16]}`.",
    )


CONTEXTS = {
    "rate": "held-out questions",
    "seen": "the teacher's questions",
    "indirect": "posters, toys, stories, the answer begun",
    "heard": "the same, its own answers",
    "numbers": "held-out, after a turn on the channel",
}
"""Measures of a summary, and one of heard.csv, that say how often the trait is the answer, and where."""


def contexts_rows(directory: Path) -> list[dict[str, Any]]:
    """One row an arm of the published run in `directory`: what `CONTEXTS` names, each with its interval."""
    heard: Any = read_table(directory / "heard.csv").groupby(["arm", "seed"])["share"].mean()
    rows = run_summary(directory)
    for row in rows:
        row |= estimated("heard", [share for (arm, _), share in heard.items() if arm == row["arm"]])
    return rows


def contexts(directory: Path) -> SweepTable:
    """How likely the trait is in the published run in `directory`, arm by arm, by sort of question."""
    rows = contexts_rows(directory)
    n = max(row["n"] for row in rows)
    asked = {name: words for name, words in CONTEXTS.items() if any(row[name] == row[name] for row in rows)}
    return SweepTable(
        f"How likely the trait is as the answer: means over {count(n, 'replicate')} with {CUT}.",
        ("arm", *asked.values()),
        [(row["arm"], *(text(row, name) for name in asked)) for row in rows],
        [],
    )


def contexts_figure(directory: Path) -> "Figure":
    """The same as a figure."""
    return draw_contexts(contexts_rows(directory), CONTEXTS, experiment_of(directory).trait)


def contexts_table(directory: Path) -> str:
    """`contexts` as Markdown."""
    return as_markdown(contexts(directory), f"Made by `sublim run {directory.name}`, run `{key_of(directory)[:16]}`.")


def shelf(bases: Sequence[Base]) -> SweepTable:
    """Every lab base: its shape, seeds and steps, nats a token of each part of the language, its digest."""
    parts = list(bases[0].card["held_out_loss"])
    rows = []
    for base in bases:
        card, p = base.card, base.card["pretraining"]
        shape = f"{p['layers']} × {p['d_model']}"
        tokens = "tokens" if p["tokens"] == "numbers" else "digits"
        losses = (f"{card['held_out_loss'][part]:.3f}" for part in parts)
        shuffled = f", order {p['order_seed']}" if p.get("order_seed") else ""
        seeds = (str(p["init_seed"]), f"{p['data_seed']}{shuffled}")
        rows.append((base.name, shape, tokens, *seeds, f"{card['step']:,}", *losses, f"`{base.digest[:12]}`"))
    columns = ("base", "layers × d_model", "numbers are", "init seed", "data seed", "step", *parts, "digest")
    return SweepTable("The lab's bases, with their held-out loss on each part of the language.", columns, rows, [])
