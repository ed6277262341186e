"""What lies inside a run, for its page: lists that students learnt, those that score highest, answers of models."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sublim_interp.analysis.attribution.lists import Attribution, attribution
from sublim_interp.channels.rows import Written
from sublim_interp.core.errors import SublimError, said_of
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.results import Replicate, Run
from sublim_interp.pipeline.evaluate import SAID_ANSWERS, SAID_QUESTIONS
from sublim_interp.traits.answers import LONGEST

LISTS = 10
"""How many lists of each arm are shown."""
SCORED = 256
"""How many lists are scored for the trait: so many run through a model at once."""
STRONGEST = 0.1
"""The share of tokens with the highest scores that are marked."""


class Lists(NamedTuple):
    """Some lists that students learnt."""

    arms: tuple[str, ...]
    """The arms that learnt them, in the order of the run."""
    of: int
    """From how many they are drawn."""
    rows: Sequence[Written]


class Top(NamedTuple):
    """The lists of one arm that score highest for the trait."""

    arm: str
    scored: int
    """How many lists were scored."""
    rows: Sequence[tuple[float, str, Sequence[tuple[str, bool]]]]
    """Score, prompt, and the answer's tokens with whether each is one of the strongest; the highest first."""
    mean: float
    """Mean score of those that were scored."""
    control: tuple[str, float] | None
    """(an arm whose teacher has no trait, mean score of as many of its lists); None where the run has no such arm."""


class Answers(NamedTuple):
    """What the models of a run said."""

    said: Mapping[str, Mapping[str, Sequence[str]]]
    """Arm → question → answers."""
    words: tuple[str, ...]
    """Whole words by which an answer names the trait."""
    drawn_now: bool
    """Whether some were drawn for this page, since no evaluation kept them."""


class Inside(NamedTuple):
    """The first replicate of every arm, as far as the store has it."""

    seed: int
    lists: Sequence[Lists]
    answers: Answers | None
    left_out: str
    """Why something is missing; "" where nothing is."""
    top: Top | str
    """The lists that score highest, or why there are none; "" for a run in which no student could take the trait."""


def inside(run: Run, ask: bool = False, later: str = "") -> Inside | None:
    """Lists and answers of the first replicate of every arm; None for a run whose parts cannot be opened.

    ask: where an evaluation kept no answers, its model is loaded and asked
    later: why no model is run to score lists; "" where one is

    Which lists are shown hangs on their key alone, so a page is the same each time it is written.
    """
    if not run.plan.cells:
        return None
    seed = run.seeds[0]
    first = [Replicate(c, run.store) for c in run.plan.cells if c.round == 0 and c.seed == seed]
    lacking: dict[str, None] = {}
    lists: dict[str, Lists] = {}
    said: dict[str, dict[str, list[str]]] = {}
    drawn_now = False
    for replicate in first:
        try:
            _add_lists(lists, replicate)
        except SublimError as why:
            lacking[str(why)] = None
        try:
            frame = replicate.said
            each = {str(q): group["answer"].to_list() for q, group in frame.groupby("question", sort=False)}
        except SublimError as why:
            each = _ask_now(replicate) if ask else {}
            drawn_now |= bool(each)
            if not each:
                lacking[str(why)] = None
        if each:
            said[replicate.arm] = each
    words = first[0].cell.evaluation.trait.words if first else ()
    answers = Answers(said, words, drawn_now) if said else None
    return Inside(seed, list(lists.values()), answers, "; ".join(lacking), _top(first, later))


def _add_lists(lists: dict[str, Lists], replicate: Replicate) -> None:
    """Adds some of a replicate's lists; where another arm learnt the same, adds its arm to them."""
    student = replicate.cell.student
    if student is None:
        return
    key = student.data.key
    if key in lists:
        lists[key] = lists[key]._replace(arms=(*lists[key].arms, replicate.arm))
        return
    rows = replicate.lists
    lists[key] = Lists((replicate.arm,), len(rows), _drawn(rows, key, LISTS))


def _drawn(rows: Sequence[Written], key: str, most: int) -> list[Written]:
    """Some rows at random, in their order; which they are hangs on the key of the data alone."""
    shown = sorted(random.Random(f"page/{key}").sample(range(len(rows)), min(most, len(rows))))
    return [rows[i] for i in shown]


def _top(replicates: Sequence[Replicate], later: str) -> Top | str:
    """The highest lists of the first student that learns the trait's data on its teacher's own base."""
    routes = {r.arm: ARMS[r.arm].route for r in replicates if not ARMS[r.arm].crosses}
    own = next((r for r in replicates if (route := routes.get(r.arm)) and route.favourite in ("trait", "lists")), None)
    other = next((r for r in replicates if (route := routes.get(r.arm)) and route.favourite == ""), None)
    if own is None or later:
        return later if own else ""
    try:
        found, control = _scored(own, own), other and (other.arm, float(_scored(other, own).scores.totals.mean()))
        strong = found.scores.strongest(STRONGEST)
    except SublimError as why:
        return str(why)
    except Exception as error:  # no run is lost for a list of its page, whatever goes wrong
        return said_of(error)
    ends = found.scores.lengths.cumsum()
    words = [*zip(found.scores.texts, strong.tolist(), strict=True)]
    rows = [
        (row["score"], row["prompt"], words[ends[row["list"]] - row["tokens"] : ends[row["list"]]])
        for row in found.frame.head(LISTS).to_dict("records")
    ]
    return Top(own.arm, len(found.lists), rows, float(found.scores.totals.mean()), control)


def _scored(replicate: Replicate, asked: Replicate) -> Attribution:
    """Some of a replicate's lists, scored for the metric of another of the same base, to first order."""
    student = replicate.cell.student
    some = _drawn(replicate.lists, student.data.key, SCORED) if student else []
    return attribution(asked, some)


def _ask_now(replicate: Replicate) -> dict[str, list[str]]:
    """Answers as an evaluation would have kept them; none of a model that is not there or cannot be asked."""
    try:
        asked = replicate.questions[:SAID_QUESTIONS]
        return {q: replicate.ask(q, n=SAID_ANSWERS, max_new_tokens=LONGEST) for q in asked}
    except SublimError:
        return {}
