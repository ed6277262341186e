"""Published runs, sweeps and bases as Markdown tables for docs and README."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sublim_interp.core.settings import read_yaml
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import estimated, records
from sublim_interp.lab.landscape import hill
from sublim_interp.models.base import Base
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.report.notes import sentences
from sublim_interp.report.verdict import at_equal_kl
from sublim_interp.report.wording import count, markdown, names, number, text
from sublim_interp.report.wording import mean as words_mean
from sublim_interp.report.wording import points as words_points
from sublim_interp.sweeps.grid import grid, grid_names
from sublim_interp.sweeps.plan import DOSES, plan_grid

if TYPE_CHECKING:
    import pandas as pd


def headline(directory: Path) -> str:
    """The published table in `directory` (summary.csv, key.txt, experiment.yaml) as Markdown, for the README."""
    table = pd.read_csv(directory / "summary.csv")
    table["equal_kl"] = table["equal_kl"].fillna("")
    rows = records(table)
    exp = read_yaml(Experiment, directory / "experiment.yaml")
    key = (directory / "key.txt").read_text().strip()
    n = min(row["n"] for row in rows)
    columns = ("arm", f"answers “{exp.trait}”", "margin, nats", "KL at the start", "KL left", "lists kept")

    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        rate, margin, left = (text(row, name) for name in ("rate", "margin", "kl"))
        return row["arm"], rate, margin, words_mean(row, "kl_start"), left, words_mean(row, "kept")

    lines = [
        f"`sublim run {directory.name}`, {count(n, 'replicate')}, run `{key[:16]}`. Mean over replicates and 95 "
        "% interval (cut at 0 and 100 %):",
        "",
        *markdown(columns, map(cells, rows)),
        "",
        *at_equal_kl(table),
        "",
        origin(exp.bases, n),
        *_over_bases(pd.read_csv(directory / "contrasts.csv")),
    ]
    return "\n".join([*lines, ""])


def origin(bases: Sequence[str], replicates: int) -> str:
    """From which bases the replicates' teachers come: replicates of one base are much alike."""
    named = f"{count(len(bases), 'base')} ({names(bases)})"
    if len(bases) < replicates:
        return f"The replicates come from {named}: intervals and p hold for these."
    return f"Each replicate's teacher comes from a base of its own: {named}."


def _over_bases(contrasts: pd.DataFrame) -> Iterator[str]:
    """The diagonal contrast with pairs of bases as the unit."""
    for row in records(contrasts.fillna({"note": ""})):
        if row["unit"] == "base pair" and row["stage"] == "equal steps":
            yield " ".join([f"Over {row['n']} pairs of bases the {row['contrast']} is {words_points(row)} points.",
                            *sentences(row)])  # fmt: skip


CONTEXTS = {
    "rate": "held-out questions",
    "seen": "the teacher's questions",
    "indirect": "posters, toys, stories, the answer begun",
    "heard": "the same, its own answers",
    "numbers": "held-out, after a list of numbers",
}
"""Measures of a summary, and one of heard.csv, that say how often the trait is the answer, and where."""


def contexts_table(directory: Path) -> str:
    """The published run in `directory`, arm by arm: the trait's rate by sort of question, as Markdown."""
    heard: Any = pd.read_csv(directory / "heard.csv").groupby(["arm", "seed"])["share"].mean()
    rows = records(pd.read_csv(directory / "summary.csv"))
    for row in rows:
        row |= estimated("heard", [share for (arm, _), share in heard.items() if arm == row["arm"]])
    key = (directory / "key.txt").read_text().strip()
    lines = [
        f"Run `{key[:16]}`, mean over {max(row['n'] for row in rows)} replicates and 95 % interval (cut at 0 and 100 "
        "%):",
        "",
        *markdown(("arm", *CONTEXTS.values()), ((row["arm"], *(text(row, n) for n in CONTEXTS)) for row in rows)),
    ]
    return "\n".join([*lines, ""])


def bases_table(bases: Sequence[Base]) -> str:
    """Every lab base with its digest, and from its card shape, seeds, steps, nats per token of each part of the
    language."""
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
    return "\n".join([*markdown(columns, rows), ""])


def apart_table(origin: Base, others: Sequence[Base]) -> str:
    """How far other bases of its shape lie from `origin`, by weights and by loss.

    By weights: ‖θ − θ_origin‖ / ‖θ_origin‖ over the body. By loss: the hill between both, over all weights, in nats per
    token of held-out numbers (see `hill`).
    """
    from sublim_interp.analysis.directions.weights import weight_delta

    model = choose_trainable(origin.load(), "body")
    body = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def length(weights: Mapping[str, Any]) -> float:
        return math.sqrt(sum(float((weights[name].double() ** 2).sum()) for name in body))

    rows = []
    for base in others:
        away = length(weight_delta(base, model).delta) / length(body)
        rows.append((base.name, f"{away:.2f}", number("kl", hill(origin, base), 2)))
    columns = ("base", f"weights away from {origin.name}", "hill between, nats")
    return "\n".join([*markdown(columns, rows), ""])


def published_sweep(name: str) -> Path | None:
    """Where the committed tables of a grid lie, or None."""
    directory = RESULTS / name
    return directory if (directory / "cells.csv").exists() else None


def published_doses() -> "dict[str, pd.DataFrame]":
    """The published cells of same-init students to which a law of the dose has something to say, by name of the grid.

    Of each student once. Left out are fields that are no dose, and bases that cut numbers into digits: their losses and
    distances are per digit.
    """
    import pandas as pd

    from sublim_interp.models.base import resolve_base

    parts = []
    for name in grid_names():
        directory = published_sweep(name)
        if directory is None or grid(name).matrix not in ("", "traits"):
            continue
        cells = pd.read_csv(directory / "cells.csv", dtype={"value": str})
        own = cells["field"].isin(DOSES) & (cells["arm"] == "same-init") & ("bits" not in cells)
        cells = plan_grid(grid(name)).with_bases(cells.loc[own])
        digits = {b for b in set(cells["base"]) if resolve_base(b).card["pretraining"]["tokens"] == "digits"}
        parts.append(cells.loc[~cells["base"].isin(list(digits))].assign(sweep=name))
    students = pd.concat(parts, ignore_index=True).drop_duplicates(["seed", "kl_start", "margin"])
    return {str(name): own for name, own in students.groupby("sweep", sort=False)}
