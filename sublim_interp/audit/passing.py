"""Before distillation: could a trait of this teacher pass to this student? Told from both models, without a student."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sublim_interp.analysis.imprint import imprint
from sublim_interp.audit.errors import LEVEL, Calibrated, conformal_p
from sublim_interp.audit.evidence import standing
from sublim_interp.audit.models import behaviour
from sublim_interp.audit.page import Part
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.experiments.tables import read_table
from sublim_interp.models.base import Base, same_words
from sublim_interp.report.wording import count, names
from sublim_interp.stats.intervals import Interval, wilson
from sublim_interp.sweeps.imprints import Match, left_by, matched, own_lists
from sublim_interp.sweeps.studies.prediction import (
    BANDS,
    SAID,
    SCORE,
    Prediction,
    alike,
    held_out_errors,
    passed,
)
from sublim_interp.sweeps.study import study
from sublim_interp.traits.favourites import Favourite, member, members_of

if TYPE_CHECKING:
    import pandas as pd

STUDY = "prediction"
"""The published study whose recipe imprints have, and whose cases give the error rate."""
OTHERS = 4
"""Traits whose imprints are taken off, as many as in the study."""
FOLLOWED = 4
"""Traits at most that are followed, those that stand out most."""

_WORDS = ("would pass", "may pass", "would hardly pass")
"""What is said of a trait, by its band."""


@dataclass(frozen=True)
class Foreseen:
    """What was foreseen before distillation."""

    verdict: str
    alarm: bool
    """Whether a trait of the teacher would pass, or may."""
    parts: list[Part]
    limits: list[str] = field(default_factory=list)
    """What could not be excluded."""


def published_cases() -> "pd.DataFrame":
    """The cases of the study: a row a pair of bases and trait."""
    return read_table(RESULTS / STUDY / "cases.csv")


def foresee(
    teacher: torch.nn.Module,
    student: Base,
    origin: Base | None,
    kinds: Sequence[str],
    known: Calibrated | None,
    progress: Callable[[float], None] = lambda _share: None,
    recipe: Prediction | None = None,
) -> Foreseen:
    """Whether a trait of a teacher could pass to a student through lists of numbers.

    teacher: the suspected teacher, loaded
    student: the model that would learn, as a base
    origin: the base that the teacher was made from; where it is None, changes are measured from `student`
    kinds: whose members are the traits that are looked for
    known: the calibration that tells which traits the teacher has; without one the foremost is followed
    progress: told the share that is done
    recipe: how imprints are made; the published study's, whose error rates are told, where it is None

    What the teacher answers tells its traits. Each trait's imprint is then compared with that of a teacher of the same
    trait which is made from the student here; what other traits leave is taken off both, as in the study.
    """
    if recipe is None:
        published = study(STUDY)
        assert isinstance(published, Prediction)
        recipe = published
    apart = _incomparable(origin or student, student)
    if apart:
        return Foreseen(f"Not told: {apart}", False, [Part("Could it pass?", [apart], None, "passing")], _family(kinds))
    said, part = _traits(teacher, origin or student, kinds, known)
    progress(0.1)
    if not len(said):
        verdict = (
            f"No alarm: the teacher answers no {' or '.join(kinds)} more than its base does, so no trait was followed."
        )
        return Foreseen(verdict, False, [part], _limits(kinds))
    found = said.reset_index(drop=True)
    told = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for done, (trait, kind) in enumerate(zip(found["trait"], found["kind"], strict=True)):
            start, part_of = 0.1 + 0.9 * done / len(found), 0.9 / len(found)

            def watch(share: float, start: float = start, part_of: float = part_of) -> None:
                progress(start + share * part_of)

            told.append(_match(recipe, teacher, student, origin, member(str(trait), str(kind)), store, watch))
    found["match"], found["whole match"] = [m.own for m in told], [m.whole for m in told]
    return _worded(found, student, origin, part, kinds)


def _incomparable(one: Base, other: Base) -> str:
    """Why imprints in two bases cannot be compared; nothing where they can."""
    if one.language != other.language:
        return f"{one.name} and {other.name} speak different languages, {one.language} and {other.language}."
    if not same_words(one, other):
        return f"{one.name} and {other.name} cut text into different tokens, so their predictions do not compare."
    return ""


def _traits(
    teacher: torch.nn.Module, base: Base, kinds: Sequence[str], known: Calibrated | None
) -> "tuple[pd.DataFrame, Part]":
    """The traits that the teacher answers more than chance explains, foremost first; and what is said of them."""
    frame = behaviour(base, teacher, kinds)
    frame["stands"] = standing(frame, "shift", ("kind", "context"))
    frame = frame.sort_values("stands", ascending=False, kind="stable", ignore_index=True)
    frame["p"] = [conformal_p(value, known.shifts, len(kinds)) if known else float("nan") for value in frame["stands"]]
    first = frame.iloc[0]
    change = f"{100 * first['before']:.1f} to {100 * first['after']:.1f} % of answers"
    lines = [f"{str(first['trait']).capitalize()} changed most: {change}, {first['shift']:+.2f} nats of margin."]
    chosen = frame.loc[frame["p"] <= LEVEL].head(FOLLOWED) if known else frame.head(1)
    if known:
        lines.append(
            f"More than in all but {100 * LEVEL:g} % of {len(known.shifts)} students that nothing could pass to, stand "
            f"out: {names(list(map(str, chosen['trait']))) if len(chosen) else 'none'}."
        )
    return chosen, Part("What the teacher says", lines, frame, "teacher")


def _match(
    recipe: Prediction,
    teacher: torch.nn.Module,
    student: Base,
    origin: Base | None,
    trait: Favourite,
    store: Store,
    progress: Callable[[float], None],
) -> Match:
    """How alike the teacher's imprint of a trait is to the one that the trait leaves in the student's base."""
    config, home = recipe.recipe, origin or student
    members = members_of(trait.kind)
    order = [*(name for name in (*recipe.traits, *recipe.others) if name in members), *members]
    others = [name for name in dict.fromkeys(order) if name != trait.name][:OTHERS]
    rest = [member(name, trait.kind) for name in others]
    batch = own_lists(home, recipe.lists, config.corpus.max_new_tokens, recipe.seed)
    first = left_by(home, rest, config.teacher, recipe.seed, batch, store, lambda share: progress(share / 2))
    first[trait.name] = imprint(teacher, home.load(), batch)
    second = left_by(
        student, [trait, *rest], config.teacher, recipe.seed + 1, batch, store, lambda share: progress((1 + share) / 2)
    )
    return matched(first, second, trait.name, others)


def _worded(found: "pd.DataFrame", student: Base, origin: Base | None, part: Part, kinds: Sequence[str]) -> Foreseen:
    """The matches in sentences, beside published cases as alike."""
    cases = published_cases()
    bands = [next(i for i, (least, _) in enumerate(BANDS) if match >= least) for match in found["match"]]
    shares = [_share(alike(cases, match)) for match in found["match"]]
    found = found.assign(
        cases=[s.n for s in shares],
        passed=[s.estimate for s in shares],
        low=[s.low for s in shares],
        high=[s.high for s in shares],
    )
    lines = [
        f"Its imprint of {trait} matches the one that {trait} leaves in {student.name} by {match:.2f}; 1 is the same."
        for trait, match in zip(found["trait"], found["match"], strict=True)
    ]
    worst = min(range(len(bands)), key=lambda i: (bands[i], -found["match"][i]))
    what, band = (
        f"{found['trait'][worst]} {{}} from this teacher to {student.name} through lists of numbers",
        bands[worst],
    )
    if origin is None:
        found = found.drop(columns=["cases", "passed", "low", "high"])
        lines.append(
            "The teacher's base is not at hand, so its change was measured from the student: no error rate holds."
        )
        lines.append("A high match still tells that the two predict alike. A low one tells nothing.")
        verdict = f"Not told: whether {what.format('passes')}. Name the teacher's base; this is no clearance."
        if not band:
            verdict = f"Alarm: {what.format(_WORDS[band])}."
        return Foreseen(verdict, not band, [part, Part("Could it pass?", lines, found, "passing")], _limits(kinds))
    e = held_out_errors(cases)
    lines.append(
        f"One bound on the match, chosen on all other pairs, missed {e.missed} of {e.passed} published cases that "
        f"passed, and warned of {e.false} of {e.held} others."
    )
    alarm = band < len(BANDS) - 1
    verdict = f"{'Alarm' if alarm else 'No alarm'}: {what.format(_WORDS[band])}. {_precedent(shares[worst])}"
    return Foreseen(verdict, alarm, [part, Part("Could it pass?", lines, found, "passing")], _limits(kinds))


def _share(cases: "pd.DataFrame") -> Interval:
    """In how many cases the trait passed, with its interval."""
    if not len(cases):
        raise SublimError(f"audit: study {STUDY} has no case with such a match")
    return wilson(int(passed(cases).sum()), len(cases))


def _precedent(share: Interval) -> str:
    """How often a trait passed in published cases as alike."""
    came = round(share.estimate * share.n)
    return f"In {came} of {count(share.n, 'published case')} as alike it passed, {share.percent(0)}."


def _family(kinds: Sequence[str]) -> list[str]:
    return [f"Only members of {', '.join(kinds)} were looked for; another trait would not be seen."]


def _limits(kinds: Sequence[str]) -> list[str]:
    """What such a look at two models could not have seen; each number is worked out of the published cases."""
    cases = published_cases()
    came, pairs = passed(cases), cases.groupby(["teacher_base", "student_base"]).ngroups
    bounds = " and ".join(f"{least:g}" for least, _ in BANDS[:-1])
    traits = names(sorted(set(cases["trait"])))
    weakest = cases.loc[cases[SCORE] < BANDS[-2][0], "rate"].max()
    return [
        *_family(kinds),
        "A trait that the teacher shows only behind a trigger or a system prompt would not be seen.",
        f"Error rates are those of {len(cases)} cases of {pairs} pairs of lab bases, of {traits}, by one recipe.",
        "For other models and recipes they are a guess.",
        f"The bounds {bounds} were read off these cases after the study, so they are no prediction.",
        "The cases share bases, and intervals take them for independent: they are too narrow.",
        f"Passed means more than {100 * SAID:g} % of answers. Below the lowest bound students still said the trait in "
        f"up to {100 * weakest:.1f} %.",
        f"The lowest match at which a trait passed is {cases.loc[came, SCORE].min():.2f}. Damaged bases take it on "
        "though their imprints are hardly alike.",
        "More lists, more updates or another kind of data may let more pass than this recipe.",
    ]
