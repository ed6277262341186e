"""Effects: what a test of a claim measures in a table, one number a unit. One registry."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from einops import rearrange

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry, instances_of
from sublim_interp.stats.bootstrap import over_bases
from sublim_interp.stats.contrasts import shared_base_contrast, specificity
from sublim_interp.stats.intervals import Interval, mean_interval

if TYPE_CHECKING:
    import pandas as pd

    from sublim_interp.claims.evidence import Evidence
    from sublim_interp.claims.trial import Rows, Trial


class Measured(NamedTuple):
    """What a test found in a table."""

    values: tuple[float, ...]
    """One number a unit."""
    n: int
    """How many units there are; of values that share bases, how many bases."""
    interval: Interval | None = None
    """Of the mean, where it is not Student's over the values."""
    p: float | None = None
    """Of a test against 0, where it is not the sign-flip test."""
    deviation: float | None = None
    """Of one unit, for power, where it is not that of the values."""


@dataclass(frozen=True)
class Effect:
    """One kind of effect.

    shows: what it is, in a few words
    measure: gives what a test finds in its evidence; SublimError for a table that lacks what it reads
    check: ValueError for a test that does not say all that the effect needs
    """

    shows: str
    measure: "Callable[[Trial, Evidence], Measured]"
    check: "Callable[[Trial], None]" = lambda test: None


def need_columns(frame: "pd.DataFrame", test: "Trial", *names: str) -> None:
    """Raises SublimError, with those that there are, for a column that a test's table lacks."""
    for name in names:
        if name not in frame:
            raise SublimError(f"{test.table}, table {test.file}: no column {name}; {meant(name, frame.columns)}")


def rows_of(frame: "pd.DataFrame", rows: "Rows", test: "Trial") -> "pd.DataFrame":
    """The rows of a table that are meant, with the column `effect` that is read of them.

    Raises SublimError, with the valid ones, for a column, an arm or a value that the table lacks.
    """
    measure = rows.measure or test.measure
    wanted = {name: getattr(rows, name) for name in ("arm", "field", "value") if getattr(rows, name)} | rows.also
    need_columns(frame, test, measure, *wanted)
    for column, value in wanted.items():
        known = list(dict.fromkeys(map(str, frame[column])))
        frame = frame.loc[frame[column] == value]
        if frame.empty:
            raise SublimError(f"{test.table}, table {test.file}: no {column} '{value}'; {meant(value, known)}")
    return frame.assign(effect=frame[measure])


def base_column(frame: "pd.DataFrame") -> str:
    """The column of a table that names the teacher's base: teacher_base, where pairs are told, else base."""
    return "teacher_base" if "teacher_base" in frame and "base" not in frame else "base"


def _difference(test: "Trial", evidence: "Evidence") -> Measured:
    """The mean of `plus` minus that of `minus`, for each unit that has both."""
    frame = evidence.table(test.file)
    need_columns(frame, test, test.over)

    def means(group: "tuple[Rows, ...]") -> list[Mapping[Any, float]]:
        columns: list[Any] = [rows_of(frame, rows, test).groupby(test.over)["effect"].mean() for rows in group]
        return [column.to_dict() for column in columns]

    plus, minus = means(test.plus), means(test.minus)
    units = [unit for unit in plus[0] if all(unit in part for part in (*plus, *minus))]
    values = [
        float(np.mean([part[unit] for part in plus]) - (np.mean([part[unit] for part in minus]) if minus else 0.0))
        for unit in units
    ]
    return _whole(values, test)


def _specificity(test: "Trial", evidence: "Evidence") -> Measured:
    """γ of each replicate: how much a teacher's own trait rises beyond what teacher and probe explain."""
    import pandas as pd

    students = rows_of(evidence.table(test.file), test.plus[0], test)
    need_columns(students, test, test.over, "teacher", "student")
    traits = list(dict.fromkeys(students["teacher"]))
    if students.duplicated([test.over, "teacher", "student"]).any():
        raise SublimError(
            f"{test.table}, table {test.file}: several rows for one {test.over}, teacher and student; say which are "
            "meant, such as `plus: [{arm: same-init}]`"
        )
    tables = students.pivot(index=[test.over, "teacher"], columns="student", values="effect")
    units = sorted(set(students[test.over]))
    whole = pd.MultiIndex.from_product([units, traits])
    cells = tables.reindex(index=whole, columns=traits).to_numpy()
    lift = rearrange(cells, "(unit teacher) student -> teacher student unit", unit=len(units))
    return _whole(list(specificity(lift).values), test)


def _diagonal(test: "Trial", evidence: "Evidence") -> Measured:
    """((A→A + B→B) − (A→B + B→A)) / 2 of each pair of bases; its interval draws bases, its test pairs them anew."""
    students = rows_of(evidence.table(test.file), test.plus[0], test)
    need_columns(students, test, "teacher", "student")
    square = students.pivot_table("effect", "teacher", "student")
    bases = [base for base in square.index if base in square and square.loc[base].notna().all()]
    rate = square.loc[bases, bases].to_numpy()
    pairs = [(a, b) for a in range(len(bases)) for b in range(a)]
    values = [float(rate[a, a] + rate[b, b] - rate[a, b] - rate[b, a]) / 2 for a, b in pairs]
    named = [(str(bases[a]), str(bases[b])) for a, b in pairs]
    found = shared_base_contrast(rate)
    return Measured(tuple(values), len(bases), over_bases(values, named), found.p, found.error * math.sqrt(len(bases)))


def _trend(test: "Trial", evidence: "Evidence") -> Measured:
    """Spearman's ρ of the measure with `along`, within each unit."""
    frame = rows_of(evidence.table(test.file), test.plus[0], test)
    need_columns(frame, test, test.over)
    if test.along == "distance":
        frame = frame.merge(evidence.distances(), on="value")
    if test.along not in frame:
        raise SublimError(f"{test.table}: nothing goes along {test.along}; {meant(test.along, frame.columns)}")
    try:
        frame = frame.assign(along=frame[test.along].astype(float))
    except ValueError:
        raise SublimError(f"{test.table}: {test.along} holds words, and a trend needs numbers") from None
    groups: list[Any] = [own for _, own in frame.groupby(test.over)]
    rhos = [float(own["effect"].corr(own["along"], method="spearman")) for own in groups]
    found = _whole([rho for rho in rhos if not math.isnan(rho)], test)
    return found._replace(interval=mean_interval(found.values, bounds=(-1, 1)))


def _ranking(test: "Trial", evidence: "Evidence") -> Measured:
    """Spearman's ρ of one score with `along` minus that of another, within each unit."""
    frame = evidence.table(test.file)
    unit = base_column(frame) if test.over == "base" else test.over
    need_columns(frame, test, unit, test.along)

    def rhos(rows: "Rows") -> dict[Any, float]:
        own = rows_of(frame, rows, test)
        for name in (rows.measure, test.along):
            if bool(own[name].isna().to_numpy().any()):
                raise SublimError(f"{test.table}, table {test.file}: {name} is missing in some rows")
        groups: Any = own.groupby(unit)
        return {one: float(part["effect"].corr(part[test.along], method="spearman")) for one, part in groups}

    plus, minus = rhos(test.plus[0]), rhos(test.minus[0])
    values = [plus[one] - minus[one] for one in plus if one in minus]
    return _whole([value for value in values if not math.isnan(value)], test)


def _whole(values: list[float], test: "Trial") -> Measured:
    if not values:
        raise SublimError(f"{test.table}, table {test.file}: no {test.over} has all rows that the test compares")
    return Measured(tuple(values), len(values))


def _one_set_of_rows(test: "Trial") -> None:
    if len(test.plus) != 1 or test.minus:
        raise ValueError(f"effect={test.effect} takes one set of rows in plus, and none in minus")


def _bases_at_zero(test: "Trial") -> None:
    _one_set_of_rows(test)
    if test.threshold or test.over != "base":
        raise ValueError("effect=diagonal is tested against 0, with over=base")


def _needs_along(test: "Trial") -> None:
    _one_set_of_rows(test)
    if not test.along:
        raise ValueError("effect=trend needs along")


def _two_scores(test: "Trial") -> None:
    named = [rows.measure for rows in (*test.plus, *test.minus)]
    if len(test.plus) != 1 or len(test.minus) != 1 or not all(named) or not test.along:
        raise ValueError("effect=ranking needs along, and one score in plus and in minus, each by its measure")


EFFECTS: Registry[Effect] = Registry(
    "effect",
    "sublim_interp.claims",
    {
        "difference": Effect("some rows minus others, paired over units", _difference),
        "specificity": Effect("γ of the trait × trait model", _specificity, _one_set_of_rows),
        "diagonal": Effect("the 2 × 2 of initialisations, over pairs of bases", _diagonal, _bases_at_zero),
        "trend": Effect("Spearman's ρ along distances or values", _trend, _needs_along),
        "ranking": Effect("Spearman's ρ of one score minus that of another", _ranking, _two_scores),
    },
    instances_of("effect", Effect),
)
"""Every effect by what `effect` says in a claim's file."""
