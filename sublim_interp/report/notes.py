"""What limits a contrast, in sentences: for the codes in its column `note`, and for the texts of older runs."""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sublim_interp.experiments.tables import records

_ONE_DIRECTION = "One direction only. Base B may be hard to teach; run both directions to tell."
_SHARED = "Pairs share bases, so the interval over pairs is too narrow."

_SENTENCES = {
    "one direction": _ONE_DIRECTION,
    "shared bases": _SHARED,
    "one replicate": "One replicate gives no interval.",
    "one base pair": "One pair of bases gives no interval.",
    # As runs were stored before there were codes.
    "half of the 2 × 2, base B may simply be hard to move": _ONE_DIRECTION,
    "pairs share bases, so the interval is too narrow": _SHARED,
    "one replicate, no interval": "One replicate gives no interval.",
    "one base pair, no interval": "One pair of bases gives no interval.",
}

_UNMATCHED = re.compile(r"(?:unmatched|no verdict rests on this,) (\d+) of (\d+)(?: crossed students are unmatched)?")
_COMPARED = {
    "equal steps": "so this comparison is at equal steps, not at equal distance.",
    "equal KL": "so this comparison takes their last round, at a greater distance.",
}


def sentences(row: Mapping[str, Any]) -> list[str]:
    """What limits one contrast, a row of `tables.contrasts`. A note that is no known code stands as it is."""
    return [_sentence(note, row["stage"]) for note in row["note"].split("; ") if note]


def limits(contrasts: pd.DataFrame) -> list[str]:
    """What limits the contrasts: each sentence once, and before it the contrasts that it limits, if not all."""
    named: dict[str, dict[str, None]] = {}
    for row in records(contrasts):
        for sentence in sentences(row):
            named.setdefault(sentence, {})[_name(row)] = None
    every = set(map(_name, records(contrasts)))
    return [text if {*names} == every else f"{', '.join(names)}: {text}" for text, names in named.items()]


def _name(row: Mapping[str, Any]) -> str:
    return row["contrast"] + ", equal KL" * (row["stage"] == "equal KL")


def _sentence(note: str, stage: str) -> str:
    missed = _UNMATCHED.fullmatch(note)
    if missed is None:
        return _SENTENCES.get(note, note)
    some, every = missed.groups()
    students = "Crossed students" if some == every else f"{some} of {every} crossed students"
    return f"{students} never came as close to their teacher, {_COMPARED[stage]}"
