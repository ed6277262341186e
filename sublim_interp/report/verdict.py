"""What came out, in sentences made from the tables' numbers; and when the numbers are enough for a claim."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sublim_interp.experiments.tables import REFERENCES, records
from sublim_interp.report.wording import count, number, text
from sublim_interp.report.wording import points as words_points

ENOUGH = 12
"""Fewest replicates for a verdict: twelve pairs put the sign-flip test's floor at .0005."""


ENOUGH_BASES = 8
"""Fewest initialisations for a claim about initialisations in general."""


def verdict(summary: pd.DataFrame, contrasts: pd.DataFrame, trait: str) -> list[str]:
    """What came out, in sentences made from the numbers; the first is the headline.

    Nothing is called different below ENOUGH replicates, or where a contrast has a note; nothing is said of
    initialisations in general below ENOUGH_BASES bases; a crossed arm that did not come as near to its teacher as its
    reference arm says so.
    """
    arms = records(summary)
    said = {row["arm"]: f"{row['arm']} {text(row, 'rate')}" for row in arms}
    others = ", ".join(said[arm] for arm in ("neutral", "cross-init", "base") if arm in said)
    both = [said["same-init"], others] if "same-init" in said else [", ".join(said.values())]
    asked = "Probability of the right value" if "bits" in summary else f"Probability of “{trait}” on held-out questions"
    lines = [f"{asked}: {' against '.join(filter(None, both))}."]
    if "bits" in summary:
        held = (f"{row['arm']} {text(row, 'bits')} ({text(row, 'total_bits')} in all)" for row in arms)
        lines.insert(0, f"Bits held of each fact: {', '.join(held)}.")
    lines += [f"{row['arm']} at equal KL: {at_equal_kl(row, summary)}." for row in arms if row["equal_kl"]]
    tested = [row for row in records(contrasts) if row["unit"] == "replicate"]
    left = {row["arm"]: row["kl"] for row in arms}
    findings: dict[str, list[str]] = {}
    for row in tested:
        if row["n"] >= ENOUGH and not row["note"]:
            finding = "differs from zero" if row["p"] < 0.05 else "cannot be told from zero"
            size = f"{words_points(row)} points (p = {row['p']:.2g}, n = {row['n']}{_distances(row, left)})"
            findings.setdefault(finding, []).append(f"{row['contrast']} at {row['stage']}, {size}")
    lines += [f"What {finding} by a two-sided sign-flip test: {'; '.join(rows)}." for finding, rows in findings.items()]
    fewest = min(row["n"] for row in arms)
    if fewest < ENOUGH:
        lines.append(f"{count(fewest, 'replicate')}: below {ENOUGH}, no claim of significance is made.")
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
    return f"; KL left {' and '.join(number('kl', value) for value in own)}"


def at_equal_kl(row: Mapping[str, Any], summary: pd.DataFrame) -> str:
    """How a crossed arm, a row of the summary, compares at equal KL, in words."""
    if not row["further_n"]:
        return row["equal_kl"]
    target = summary.set_index("arm").at[REFERENCES[row["arm"]], "kl"]
    return (
        f"{row['equal_kl']}, {text(row, 'further_rate')} at KL {number('kl', row['further_kl'])} "
        f"({REFERENCES[row['arm']]}: {number('kl', target)})"
    )


def unit_of(row: Mapping[str, Any]) -> str:
    note = f"; {row['note']}" if row["note"] else ""
    return f"unit: {row['unit']} (n = {row['n']}); n base pairs = {row['base_pairs']}{note}"
