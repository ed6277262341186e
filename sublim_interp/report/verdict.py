"""What came out, in sentences made from the tables' numbers; and when the numbers are enough for a claim."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sublim_interp.experiments.arms import ARMS, split_generation
from sublim_interp.experiments.tables import records
from sublim_interp.report.wording import count, number, text
from sublim_interp.report.wording import points as words_points

if TYPE_CHECKING:
    import pandas as pd

ENOUGH = 12
"""Fewest replicates for a verdict: twelve pairs put the sign-flip test's floor at .0005."""


ENOUGH_BASES = 8
"""Fewest initialisations for a claim about initialisations in general."""


def verdict(summary: "pd.DataFrame", contrasts: "pd.DataFrame", trait: str) -> list[str]:
    """What came out, in sentences: the finding, then the contrasts, then what limits them.

    summary, contrasts: as `Tables` has them
    trait: the answer that the run is about

    No difference is claimed below ENOUGH replicates, or where a contrast has a note. Nothing is said of initialisations
    in general below ENOUGH_BASES bases.
    """
    arms = records(summary)
    tested = [row for row in records(contrasts) if row["unit"] == "replicate"]
    left = {row["arm"]: row["kl"] for row in arms}
    lines = [finding(summary, trait), *_generations(arms)]
    lines += [_tested(row, left) for row in tested if row["n"] >= ENOUGH and not row["note"]]
    lines += at_equal_kl(summary)
    return lines + list(_too_few(arms, tested))


def finding(summary: "pd.DataFrame", trait: str) -> str:
    """What came out, in one sentence: the student that shares its teacher's base, against the highest control."""
    arms = {row["arm"]: row for row in records(summary)}
    students = ["same-init", "same-init-b", *(arm for arm in arms if ARMS[arm].route), *arms]
    own = next(arm for arm in students if arm in arms)
    column = "bits" if "bits" in summary else "rate"
    said = f"{_says(own, arms[own]['n'], trait, column)} {_amount(arms[own][column], column)}"
    controls = {
        arm: row[column] for arm, row in arms.items() if arm != own and _is_control(arm) and not math.isnan(row[column])
    }
    if not controls or not ARMS[own].route:
        return f"{said}."
    highest = max(controls, key=lambda arm: controls[arm])
    above = _above(controls[highest], column)
    if above <= arms[own][column]:
        end = "the controls stay" if len(controls) > 1 else f"the control, {highest}, stays"
        return f"{said}; {end} below {_bound(above, column)}."
    verb = "holds" if column == "bits" else "in"
    return f"{said}; the highest control, {highest}, {verb} {_amount(controls[highest], column)}."


def _generations(arms: list[dict[str, Any]]) -> Iterator[str]:
    """The rates of every arm whose students taught each other, from the first generation to the last."""
    chains: dict[str, list[float]] = {}
    for row in arms:
        chains.setdefault(split_generation(row["arm"])[0], []).append(row["rate"])
    for arm, rates in chains.items():
        if len(rates) > 1:
            yield f"From student to student, {arm}: {', '.join(number('rate', rate) for rate in rates)} %."


def _is_control(arm: str) -> bool:
    """Whether an arm shows what the trait's teacher does not do to a student of its own base."""
    route = ARMS[arm].route
    return arm == "base" or (route is not None and (route.favourite != "trait" or ARMS[arm].crosses))


def _says(arm: str, n: int, trait: str, column: str) -> str:
    """Who says what, up to the amount: "The student says “owl” in"."""
    many = n > 1
    named = {
        "teacher": ("The teacher", "Teachers"),
        "base": ("The untouched base", "Untouched bases"),
        "same-init": ("The student", "Students of the teacher's own base"),
    }
    name = named.get(arm, (f"The {arm} student", f"{arm} students"))[many]
    return f"{name} hold{'s' * (not many)}" if column == "bits" else f"{name} say{'s' * (not many)} “{trait}” in"


def _amount(value: float, column: str) -> str:
    """A rate or bits with its unit."""
    return f"{number(column, value)} bits of each fact" if column == "bits" else f"{number(column, value)} % of answers"


def _above(value: float, column: str) -> float:
    """The next round number above a value: whole percents, tenths of a bit."""
    steps = 10 if column == "bits" else 100
    return (math.floor(steps * value) + 1) / steps


def _bound(value: float, column: str) -> str:
    """A value of `_above` with its unit."""
    return f"{value:.1f} bits" if column == "bits" else f"{100 * value:.0f} %"


def _tested(row: Mapping[str, Any], left: Mapping[str, float]) -> str:
    """One difference with its interval, and what the test says of it."""
    finding = "It differs from zero" if row["p"] < 0.05 else "It cannot be told from zero"
    at = " at equal KL" if row["stage"] == "equal KL" else ""
    return (
        f"{row['contrast']}{at}: {words_points(row)} points. {finding}: sign-flip p = {row['p']:.2g} with "
        f"{count(row['n'], 'replicate')}.{_distances(row, left)}"
    )


def _distances(row: Mapping[str, Any], left: Mapping[str, float]) -> str:
    """How near to its teacher either arm of a difference came, where both learnt from one."""
    own = [left.get(arm, math.nan) for arm in row["contrast"].split(" − ")]
    if len(own) < 2 or row["contrast"].endswith(" − base") or any(map(math.isnan, own)):
        return ""
    return f" KL left: {' and '.join(number('kl', value) for value in own)}."


def at_equal_kl(summary: "pd.DataFrame") -> list[str]:
    """How every crossed arm compares once it is as near to its teacher as its reference arm: an item each."""
    arms = {row["arm"]: row for row in records(summary)}
    return [_at_equal_kl(row, arms) for row in arms.values() if row["equal_kl"]]


def _at_equal_kl(row: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> str:
    """The same of one arm; `arms` has the rows of all."""
    arm, reference = row["arm"], ARMS[row["arm"]].reference
    if not row["further_n"]:
        return f"{arm} cannot be compared at equal distance: the run has no {reference}."
    distances = f"KL {number('kl', row['further_kl'])} against {number('kl', arms[reference]['kl'])}"
    rate = text(row, "further_rate")
    if row["equal_kl"] == "matched":
        return f"{arm} came as close to its teacher as {reference}: {distances}. Its rate there is {rate}."
    if row["equal_kl"] == "unmatched":
        return f"{arm} never came as close to its teacher as {reference}: {distances}. Its rate there is {rate}."
    matched = row["equal_kl"].removeprefix("matched in ")
    return f"{matched} {arm} students came as close to their teacher as {reference}: {distances}. Their rate is {rate}."


def _too_few(arms: list[dict[str, Any]], tested: list[dict[str, Any]]) -> Iterator[str]:
    """What so few replicates, or bases, cannot show."""
    fewest = min(row["n"] for row in arms)
    if fewest < ENOUGH:
        yield f"With {count(fewest, 'replicate')}, below {ENOUGH}, no significance is claimed."
    bases = max((row["bases"] for row in tested if "cross-init" in row["contrast"]), default=ENOUGH_BASES)
    if bases < ENOUGH_BASES:
        yield (
            f"The replicates come from {bases} bases. A claim about initialisations in general needs {ENOUGH_BASES} or "
            "more."
        )


def counted(row: Mapping[str, Any]) -> str:
    """What a contrast counts, and from how many pairs of bases it comes."""
    pairs = count(row["base_pairs"], "pair of bases", "pairs of bases")
    return pairs if row["unit"] == "base pair" else f"{count(row['n'], row['unit'])} from {pairs}"
