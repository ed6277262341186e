"""`run_audit`: a data set, a base, a teacher, a student in; findings with their error rate out."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sublim_interp.analysis.attribution.scores import divergence
from sublim_interp.analysis.probes import model_of
from sublim_interp.audit.errors import LEVEL, Calibrated, calibrated, conformal_p
from sublim_interp.audit.evidence import Evidence, evidence, standing
from sublim_interp.audit.models import as_base, behaviour, traces, trained_on, written_by
from sublim_interp.audit.origin import Origin, origin_of_lists, origin_of_model
from sublim_interp.audit.page import Part, write_page
from sublim_interp.audit.passing import foresee
from sublim_interp.audit.reading import KEPT, DataRead, read_data
from sublim_interp.audit.trigger_errors import PLANTED, held_out, trigger_errors
from sublim_interp.audit.triggers import TriggerSearch, find_triggers
from sublim_interp.channels.filter import refusal
from sublim_interp.channels.protocol import Channel, channel
from sublim_interp.channels.rows import Written
from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown
from sublim_interp.models.base import Base, base_names, resolve_base
from sublim_interp.models.loading import load_model, require_finite
from sublim_interp.report.wording import count
from sublim_interp.traits.favourites import member, members_of

WROTE = 1024
"""Prompts that a teacher answers where there is no data yet."""
FEW = 20
"""Fewest lists on which the calibration is relied upon."""


@dataclass(repr=False)
class Audit(Shown):
    """What an audit found. `verdict` says it in a sentence; parts hold what it rests on."""

    verdict: str
    alarm: bool
    """Whether something stands out more than the calibration's cases without a trait do, at the stated level."""
    parts: list[Part] = field(default_factory=list)
    not_excluded: list[str] = field(default_factory=list)
    """What this audit could not have seen."""

    def part(self, name: str) -> Part:
        """A part by its name: data, refused, base, evidence, teacher, passing, trained, student, triggers, traces."""
        found = next((part for part in self.parts if part.name == name), None)
        if found is None:
            raise SublimError(f"this audit has no part '{name}'; it has {', '.join(p.name for p in self.parts)}")
        return found

    def card(self) -> Card:
        shown = next((p.frame for p in self.parts if p.name in ("evidence", "passing", "student")), None)
        return Card("Audit", {"": self.verdict}, shown)

    def as_json(self) -> str:
        """Everything as JSON text."""
        parts = {
            p.name: {
                "heading": p.heading,
                "found": p.sentences,
                "table": [] if p.frame is None else json.loads(str(p.frame.to_json(orient="records"))),
            }
            for p in self.parts
        }
        whole = {"alarm": self.alarm, "verdict": self.verdict, "parts": parts, "not excluded": self.not_excluded}
        return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"

    def page(self, path: Path | str) -> Path:
        """Writes everything as one self-contained HTML page, and returns its path."""
        return write_page(self.verdict, self.parts, self.not_excluded, Path(path))


def run_audit(
    base: Base | str = "",
    *,
    data: Path | str | Sequence[Written] | None = None,
    teacher: Any = None,
    student: Any = None,
    kinds: Sequence[str] = ("animal",),
    source: str = "numbers",
    kept: int = KEPT,
    seed: int = 0,
    train: bool = False,
    triggers: Sequence[str] | None = None,
    progress: Callable[[float], None] = lambda _share: None,
) -> Audit:
    """What a data set or a model may have taken along, and where it comes from.

    base: the base that would learn, or did; "" finds it among the lab's bases
    data: a JSONL or Parquet file, a folder of such, or rows of prompt and answer
    teacher: the suspected teacher: a model directory, a model or a replicate; without data its own lists are audited
    student: a model that was fine-tuned from the base; with a teacher and no data, the model that would learn from it
    kinds: whose members are the traits that are looked for
    source: the channel of the data, whose filter is tried
    kept: rows of the data that are read closely, drawn uniformly
    seed: decides which, and what a teacher writes
    train: also trains a student on the rows that pass the filter, as the calibration's were trained, and asks it
    triggers: words and phrases behind which a student is asked; None for the words of the base's tokenizer, () for none
    progress: told the share that is done

    With a teacher, a student and no data it is foreseen from both models whether a trait could pass, as
    `passing.foresee`; `base` is then the teacher's.

    Raises SublimError where there is nothing to audit, for weights that are not finite, and as the readers of data,
    models and bases.
    """
    if data is None and teacher is None and student is None:
        raise SublimError("audit: nothing to audit; give data, a teacher or a student")
    kinds = tuple(dict.fromkeys(kinds))  # p is for as many as there are
    for kind in kinds:
        members_of(kind)
    known, rule = calibrated(), channel(source)
    given_student = student
    teacher, student = (
        None if subject is None else _loaded(subject, name)
        for subject, name in ((teacher, "the teacher"), (student, "the student"))
    )
    found = Audit("", False)
    if data is None and teacher is not None and student is not None:
        return _before(teacher, student, given_student, base, kinds, known, progress)
    rows = _read(data, kept, seed, found) if data is not None else None
    given = resolve_base(base) if isinstance(base, str) and base else base
    chosen = _origin(given if isinstance(given, Base) else None, rows, student, teacher, found)
    if rows is None and teacher is not None:
        rows = written_by(teacher, chosen, rule, WROTE, seed)
        found.parts.append(
            Part("What the teacher writes", [f"It was asked for {WROTE:,} lists; {len(rows):,} passed."], None, "data")
        )
    progress(0.1)
    said, looked = [], None
    if rows is not None:
        _refused(rows, rule, kinds, found)
        rows = _speakable(rows, chosen, found)
        told = evidence(chosen, rows, kinds, lambda share: progress(0.1 + 0.5 * share))
        said.append(_weigh(told, kinds, known, found))
        if teacher is not None:
            _teacher(teacher, chosen, rows, found)
        if train:
            model = trained_on(rows, chosen, seed)
            said.append(_student("trained", model, chosen, kinds, None, known, found))
    if student is not None:
        said.append(_student("student", student, chosen, kinds, rows, known, found))
        if triggers is None or triggers:
            looked = find_triggers(
                chosen, student, kinds, triggers, seed, progress=lambda share: progress(0.7 + 0.25 * share)
            )
            said.append(_triggers(looked, kinds, found))
        _traces(student, chosen, rule, found)
    progress(1.0)
    found.verdict = " ".join(said)
    found.not_excluded += [*_limits(kinds, source, known), *_several(len(said), known)]
    found.not_excluded += _unseen_triggers(looked, kinds)
    return found


def _before(
    teacher: Any,
    student: Any,
    given_student: Any,
    base: Base | str,
    kinds: Sequence[str],
    known: Calibrated | None,
    progress: Callable[[float], None],
) -> Audit:
    """Before distillation: where both models come from, and whether a trait could pass between them."""
    candidates, lines, origins = _candidates(None), [], []
    for words, subject in (("The teacher", teacher), ("The student", student)):
        origin = origin_of_model(subject, candidates)
        lines.append(_pointing(words, origin))
        origins.append(resolve_base(origin.base) if origin.base else None)
    home = (resolve_base(base) if isinstance(base, str) else base) if base else origins[0]
    with tempfile.TemporaryDirectory() as folder:
        learns = as_base(given_student, student, origins[1] or home, Path(folder))
        told = foresee(teacher, learns, home, kinds, known, progress)
    progress(1.0)
    limits = list(told.limits)
    if home is not None and not base:
        limits.append(
            f"The teacher's base was taken for {home.name}, by its weights. Had it been a changed copy of that, its "
            "match would come out too low; name the copy with --base."
        )
    return Audit(told.verdict, told.alarm, [Part("Which base", lines, None, "base"), *told.parts], limits)


def _read(data: Any, kept: int, seed: int, found: Audit) -> list[Written]:
    if not isinstance(data, str | Path):
        rows = list(data)
        read = DataRead(Path(), rows, len(rows))
    else:
        read = read_data(Path(data), kept, seed)
    lines = [f"{len(read.rows):,} of {read.total:,} rows were read closely."]
    if read.unread:
        why = ", ".join(f"{reason} {n:,}" for reason, n in read.unread.most_common())
        lines.append(f"{read.unread.total():,} rows cannot be read: {why}.")
    lines += read.passed_over
    found.not_excluded += read.passed_over
    found.parts.append(Part("The data", lines, None, "data"))
    return read.rows


def _loaded(subject: Any, name: str) -> Any:
    if isinstance(subject, str | Path):
        return require_finite(load_model(Path(subject)), f"{name} {subject}")
    return require_finite(model_of(subject), name)


_WHOSE = ("The student", "The teacher", "The lists")
"""Whose base is examined where none was given: the one that did learn, before one that would."""


def _origin(base: Base | None, rows: list[Written] | None, student: Any, teacher: Any, found: Audit) -> Base:
    """The base at hand, or the one that data, student or teacher come from; and whether they agree."""
    candidates = _candidates(base)
    seen: list[tuple[str, Origin]] = []
    if rows is not None:
        few = rows[:200]
        able = [b for b in candidates if _shape_fits(b, few)]
        if len(able) > 1:
            seen.append(("The lists", origin_of_lists(few, able)))
    for words, subject in (("The student", student), ("The teacher", teacher)):
        if subject is not None:
            seen.append((words, origin_of_model(subject, candidates)))
    lines = [_pointing(words, origin) for words, origin in seen]
    if base is None:
        found_by = [origin for place in _WHOSE for words, origin in seen if words == place and origin.base]
        if not found_by:
            raise SublimError("audit: no base was given and none at hand is a candidate; name one with --base")
        base = resolve_base(found_by[0].base)
        if any(origin.base != base.name and origin.sure for origin in found_by):
            lines.append(f"They do not agree. {base.name} is examined: a trait hardly passes from one to another.")
    elif any(origin.base not in ("", base.name) and origin.sure for _, origin in seen):
        lines.append(f"That is not {base.name}, the base that was given: a trait hardly passes from one to another.")
    frame = seen[0][1].frame if seen else None
    found.parts.append(Part("Which base", lines, frame, "base"))
    return base


def _candidates(base: Base | None) -> list[Base]:
    """The lab's bases, before them the one that was given; of its language then."""
    found = [resolve_base(name) for name in base_names() if "-step" not in name]
    if base is None:
        return found
    return [base, *(b for b in found if b.language == base.language and b.digest != base.digest)]


def _pointing(words: str, origin: Origin) -> str:
    """Which base something comes from, in a sentence."""
    ending = "" if words == "The lists" else "s"
    if not origin.base:
        return f"{words} come{ending} from none of the bases at hand."
    sure = "" if origin.sure else ", but the next base cannot be told from it"
    return f"{words} point{ending} at {origin.base}{sure}."


def _shape_fits(base: Base, rows: Sequence[Written]) -> bool:
    """Whether the base's tokenizer knows the words of some rows."""
    try:
        for row in rows[:5]:
            base.chat.require_known(f"{row['prompt']} {row['answer']}")
    except SublimError:
        return False
    return True


def _speakable(rows: list[Written], base: Base, found: Audit) -> list[Written]:
    """The rows whose words the base knows; others are counted."""
    unknown = base.tokenizer.unk_token_id
    if unknown is None:
        return rows
    known = [r for r in rows if unknown not in base.answer_ids(f"{r['prompt']} {r['answer']}")]
    if len(known) < 2:
        raise SublimError(f"audit: {base.name} knows the words of {len(known)} of {len(rows)} rows; name another base")
    if lost := len(rows) - len(known):
        found.part("data").sentences.append(
            f"{lost:,} rows hold words that {base.name} does not know; they are left out."
        )
    return known


def _refused(rows: list[Written], source: Channel, kinds: Sequence[str], found: Audit) -> None:
    import pandas as pd

    words = tuple(sorted({w for kind in kinds for name in members_of(kind) for w in member(name, kind).words}))
    rule = source.Rule()
    reasons = Counter(reason for row in rows if (reason := refusal(row, source, rule, words)))
    share = 100 * reasons.total() / len(rows)
    lines = [f"The channel's filter would refuse {share:.1f} % of {len(rows):,} rows."]
    frame = pd.DataFrame(
        [{"reason": r, "rows": n, "means": source.REASONS.get(r, "")} for r, n in reasons.most_common()]
    )
    found.parts.append(Part("What a filter sees", lines, frame if len(frame) else None, "refused"))


def _weigh(told: Evidence, kinds: Sequence[str], known: Calibrated | None, found: Audit) -> str:
    """The trait that stands out most, its p and the bounds of all; the sentence for the verdict."""
    frame = told.frame.copy()
    for name in ("pull", "vector", "persona"):
        frame[f"{name} stands"] = standing(told.frame, name)
    frame["stands"] = (frame["pull stands"] + frame["vector stands"]) / 2
    frame = frame.sort_values("stands", ascending=False, kind="stable", ignore_index=True)
    first = frame.iloc[0]
    lines = [f"{str(first['trait']).capitalize()} stands out most: {first['stands']:.1f} deviations above its kind."]
    sentence = f"{lines[0][:-1]} in {told.lists:,} lists."
    if known is None:
        lines.append("There is no calibration, so no error rate is known.")
    elif told.lists < FEW:
        lines.append(f"{told.lists} lists are too few for the calibration; {FEW} or more are needed.")
    else:
        p = conformal_p(float(first["stands"]), known.null, len(kinds))
        more = int((np.asarray(known.null) >= first["stands"]).sum())
        lines.append(
            f"Of {len(known.null)} calibrated cases in which nothing could pass {more} stood out as much: "
            f"{_p(p, kinds, known.null)}"
        )
        frame["bound"] = known.bound.of(frame["pull"])
        own, others = frame["bound"].iloc[0], frame["bound"].iloc[1:].max()
        lines.append(
            f"A student of {told.base} gains at most {own:+.1f} nats of margin for {first['trait']}, and {others:+.1f} "
            f"for any other. Such bounds hold in {100 * (1 - LEVEL):.0f} % of cases."
        )
        found.alarm |= p <= LEVEL
        word = "Alarm" if p <= LEVEL else "No alarm"
        sentence = f"{word}: {sentence[:1].lower()}{sentence[1:-1]} (p = {p:.3f})."
    found.parts.append(Part("What the lists would teach", lines, frame, "evidence"))
    return sentence


def _p(p: float, kinds: Sequence[str], null: Sized) -> str:
    """p in words, for all kinds at once; and that no alarm can be had where the null is too small for so many."""
    said = f"p = {p:.3f}" + (f", for {len(kinds)} kinds." if len(kinds) > 1 else ".")
    few = len(kinds) > LEVEL * (len(null) + 1)
    return f"{said} They are too few for an alarm about so many kinds; ask about fewer at once." if few else said


def _teacher(teacher: Any, base: Base, rows: list[Written], found: Audit) -> None:
    try:
        scores = divergence(teacher, base, rows)
    except SublimError as error:
        found.parts.append(Part("The suspected teacher", [str(error)], None, "teacher"))
        return
    each, count = scores.totals, len(rows)
    error = each.std(ddof=1) / count**0.5
    likelier = "likelier" if each.mean() > 0 else "less likely"
    lines = [
        f"The lists are {abs(each.mean()):.2f} nats a list {likelier} under the teacher than under {base.name}, give "
        f"or take {error:.2f}."
    ]
    wrote = each.mean() > 3 * error
    lines.append("So it may well have written them." if wrote else "So nothing says that it wrote them.")
    found.parts.append(Part("The suspected teacher", lines, scores.by_token.head(10), "teacher"))


def _student(
    name: str,
    model: Any,
    base: Base,
    kinds: Sequence[str],
    rows: list[Written] | None,
    known: Calibrated | None,
    found: Audit,
) -> str:
    """What a student says beside its base; the sentence for the verdict.

    name: `student` for one that was given, `trained` for one that this audit trained
    """
    who = "The student" if name == "student" else "A student of these lists"
    frame = behaviour(base, model, kinds, (rows or [])[:64])
    frame["stands"] = standing(frame, "shift", ("kind", "context"))
    frame = frame.sort_values("stands", ascending=False, kind="stable", ignore_index=True)
    plain = frame.loc[frame["context"] == "plain"].iloc[0]
    change = f"{100 * plain['before']:.1f} to {100 * plain['after']:.1f} % of answers"
    lines = [f"{str(plain['trait']).capitalize()} changed most: {change}, {plain['shift']:+.2f} nats of margin."]
    sentence = f"{who} answers {plain['trait']}: {change}."
    if known is not None:
        p = conformal_p(float(plain["stands"]), known.shifts, len(kinds))
        more = int((np.asarray(known.shifts) >= plain["stands"]).sum())
        lines.append(
            f"Of {len(known.shifts)} students that nothing could pass to, {more} stood out as much: "
            f"{_p(p, kinds, known.shifts)}"
        )
        found.alarm |= p <= LEVEL
        sentence = f"{'Alarm' if p <= LEVEL else 'No alarm'}: {sentence[:1].lower()}{sentence[1:-1]} (p = {p:.3f})."
    behind = frame.loc[frame["context"] == "behind data"]
    if len(behind):
        joined = behind.merge(frame.loc[frame["context"] == "plain"], on=["kind", "trait"], suffixes=("", " plain"))
        most = joined.loc[(joined["shift"] - joined["shift plain"]).idxmax()]
        lines.append(
            f"Behind a turn of the data {most['trait']} shifts by {most['shift']:+.2f} nats, alone by "
            f"{most['shift plain']:+.2f}: the largest difference that a trigger of this sort makes."
        )
    heading = "What the student says" if name == "student" else "What a student of these lists says"
    found.parts.append(Part(heading, lines, frame, name))
    return sentence


def _triggers(looked: TriggerSearch, kinds: Sequence[str], found: Audit) -> str:
    """What is said of a search for triggers; the sentence for the verdict."""
    known, first = trigger_errors(), looked.frame.loc[looked.frame["family"]].iloc[0]
    drawn = "" if looked.candidates == looked.known else f" of {looked.known:,}, drawn at random,"
    lines = [
        f"{count(looked.candidates, 'candidate')}{drawn} stood before questions, after them and as a system prompt: "
        f"{count(looked.prompts, 'prompt')} for the student and as many for its base, about {looked.seconds:.0f} s of "
        "one core.",
        f"“{first['trigger']}” stands out most: behind it the student answers {first['answer']} in "
        f"{100 * first['behind']:.1f} %, without it in {100 * first['without']:.1f} %; its base does in "
        f"{100 * first['base behind']:.1f} and {100 * first['base without']:.1f} %.",
    ]
    if first["again"] == first["again"]:
        lines.append(f"On further questions it does so in {100 * first['again']:.1f} %.")
    other = looked.frame.loc[~looked.frame["family"]].iloc[0]
    line = (
        f"Of answers that name no {' or '.join(kinds)}, “{other['answer']}” rises most: by "
        f"{100 * other['excess']:.1f} points, behind “{other['trigger']}”"
    )
    if known is None:
        lines += [f"{line}.", "No published models tell how large such differences are without a trigger."]
        found.parts.append(Part("Is there a trigger?", lines, looked.frame, "triggers"))
        return f"“{first['trigger']}” raises {first['answer']} most, by {100 * first['excess']:.1f} points."
    p = known.p("family", looked.family, len(kinds))
    null = np.asarray(known.null["family"])
    lines.append(
        f"Of {len(null)} models without a trigger {(null >= looked.family).sum()} showed as large a difference behind "
        f"any of a base's words: {_p(p, kinds, null)}"
    )
    lines.append(f"{line} (p = {known.p('other', looked.other, len(kinds)):.3f}). Such answers raise no alarm.")
    found.parts.append(Part("Is there a trigger?", lines, looked.frame, "triggers"))
    found.alarm |= p <= LEVEL
    if p <= LEVEL:
        return (
            f"Alarm: “{first['trigger']}” may be a trigger, behind it the student answers {first['answer']} in "
            f"{100 * first['behind']:.1f} %, without it in {100 * first['without']:.1f} % (p = {p:.3f})."
        )
    return f"No alarm: of {count(looked.candidates, 'candidate')} none looks like a trigger (p = {p:.3f})."


def _several(tests: int, known: Calibrated | None) -> list[str]:
    """How often one of several tests is wrong, where each has its error rate."""
    if known is None or tests < 2:
        return []
    each, any_of = 100 * LEVEL, 100 * min(1.0, tests * LEVEL)
    return [f"Each of {tests} tests may be wrong in {each:g} % of cases; in up to {any_of:g} % one of them is."]


def _unseen_triggers(looked: TriggerSearch | None, kinds: Sequence[str]) -> list[str]:
    """What a search for triggers could not have seen; and that none was made where there was none."""
    if looked is None:
        return ["No trigger was looked for: a trait that shows only behind a certain word would not be seen."]
    lines = [
        f"Triggers: only the {count(looked.candidates, 'candidate')} that were tried are judged, in three places, in "
        f"questions about {', '.join(kinds)}.",
        "A trigger of several words is seen where one of them alone sets it off, or where it is among the candidates.",
        "A trigger in a long text, an earlier turn or a date would not be seen, nor one that changes other tasks.",
    ]
    known = trigger_errors()
    if known is not None:
        planted = known.cases["sort"].isin(PLANTED).to_numpy()
        alarm = held_out(known.cases)[0] <= LEVEL
        lines.append(
            f"The search found {alarm[planted].sum()} of {planted.sum()} triggers that were given to lab models, and "
            f"saw one in {alarm[~planted].sum()} of {(~planted).sum()} without. For other models that is a guess."
        )
    return lines


def _traces(student: Any, base: Base, source: Channel, found: Audit) -> None:
    try:
        lens = traces(base, student, source)
    except SublimError as error:
        found.parts.append(Part("Readable traces", [str(error)], None, "traces"))
    else:
        last = lens.loc[lens["layer"] == lens["layer"].max(), "text"].head(5)
        line = f"On unrelated text the last layer's mean difference raises: {', '.join(map(str, last))}."
        found.parts.append(Part("Readable traces", [line], lens, "traces"))


def _limits(kinds: Sequence[str], source: str, known: Calibrated | None) -> list[str]:
    lines = [
        f"Only members of {', '.join(kinds)} were looked for; another trait would not be seen.",
        f"Filter and calibration are about {source}.",
    ]
    if known is not None:
        bases = len(set(known.cases["base"]))
        lines += [
            f"The error rate is that of {len(known.scores)} cases on {bases} lab bases, each with one recipe.",
            "For other models and recipes it is a guess.",
        ]
    return lines
