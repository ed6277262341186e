"""Null experiments: published tables whose labels are shuffled, so that every verdict on them is false."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sublim_interp.claims.evidence import Evidence, published_evidence
from sublim_interp.claims.judge import ALPHA, WEAK, finding_of
from sublim_interp.claims.trial import Rows, Trial
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.stats.intervals import Interval, wilson

if TYPE_CHECKING:
    import pandas as pd


class Nulls(NamedTuple):
    """What came of null experiments."""

    tables: int
    """How many tables were shuffled."""
    false: int
    """On how many of them the verdict was supported or contradicted."""

    @property
    def interval(self) -> Interval:
        """The rate of false verdicts with its 95 % binomial interval."""
        return wilson(self.false, self.tables)

    @property
    def nominal(self) -> float:
        """The rate that the tests promise."""
        return ALPHA


def _between(table: str, file: str, measure: str, one: Rows, other: Rows) -> Trial:
    return Trial(
        asks="", table=table, file=file, measure=measure, plus=(one,), minus=(other,), above=0, counts=1,
        threshold_stated="before",
    )  # fmt: skip


def _own(table: str) -> Trial:
    return Trial(
        asks="", table=table, file="matrix", effect="specificity", measure="rate", plus=(Rows(arm="same-init"),),
        above=0, counts=1, threshold_stated="before",
    )  # fmt: skip


DESIGNS = (
    _between("mnist", "replicates", "accuracy", Rows(arm="same-init"), Rows(arm="cross-init")),
    _between("animals", "cells", "margin", Rows(arm="same-init"), Rows(arm="cross-init")),
    _own("animals"),
    _own("trees"),
)
"""The tests that are put to shuffled tables: those of arms, and of the trait × trait model."""


def null_experiments(each: int = 50, seed: int = 0, results: Path = RESULTS) -> Nulls:
    """Puts every test of DESIGNS to as many shuffled tables, and counts the verdicts.

    each: shuffles of each table
    seed: decides the shuffles
    results: the folder of committed results

    Arms are exchanged within each replicate or not, by a coin; of the trait × trait model the probes' names are
    permuted within each. Raises SublimError for fewer than one shuffle.
    """
    if each < 1:
        raise SublimError(f"null experiments: {each} shuffles of each table; needs 1 or more")
    outcomes = [
        finding_of(test, evidence).outcome for test, evidence in _shuffled(each, np.random.default_rng(seed), results)
    ]
    return Nulls(len(outcomes), sum(outcome != WEAK for outcome in outcomes))


def _shuffled(each: int, draw: np.random.Generator, results: Path) -> "Iterator[tuple[Trial, Evidence]]":
    for test in DESIGNS:
        evidence = published_evidence(test.table, results)
        if evidence is None:
            raise SublimError(f"null experiments: {test.table} is not published")
        frame = evidence.table(test.file)
        for _ in range(each):
            labels = _permuted_probes(frame, draw) if test.effect == "specificity" else _swapped_arms(frame, test, draw)
            yield test, Evidence(test.table, evidence.key, evidence.directory, {test.file: labels})


def _swapped_arms(frame: "pd.DataFrame", test: Trial, draw: np.random.Generator) -> "pd.DataFrame":
    """Both arms of a test exchanged in half of the replicates."""
    one, other = test.plus[0].arm, test.minus[0].arm
    seeds = sorted(set(frame["seed"]))
    turned = dict(zip(seeds, draw.random(len(seeds)) < 0.5, strict=True))
    swapped = {one: other, other: one}
    places = zip(frame["seed"], frame["arm"], strict=True)
    return frame.assign(arm=[swapped.get(arm, arm) if turned[seed] else arm for seed, arm in places])


def _permuted_probes(frame: "pd.DataFrame", draw: np.random.Generator) -> "pd.DataFrame":
    """The names of the traits asked about, permuted within each replicate."""
    names = sorted(set(frame["student"]))
    seeds = sorted(set(frame["seed"]))
    to = {seed: dict(zip(names, draw.permutation(names), strict=True)) for seed in seeds}
    renamed = [to[seed][name] for seed, name in zip(frame["seed"], frame["student"], strict=True)]
    return frame.assign(student=renamed)
