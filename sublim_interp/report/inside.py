"""What lies inside a run, for its page: lists that its students learnt, and answers that its models gave."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sublim_interp.channels.rows import Written
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Replicate, Run
from sublim_interp.pipeline.evaluate import SAID_ANSWERS, SAID_QUESTIONS
from sublim_interp.traits.answers import LONGEST

LISTS = 10
"""How many lists of each arm are shown."""


class Lists(NamedTuple):
    """Some lists that students learnt."""

    arms: tuple[str, ...]
    """The arms that learnt them, in the order of the run."""
    of: int
    """From how many they are drawn."""
    rows: Sequence[Written]


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


def inside(run: Run, ask: bool = False) -> Inside | None:
    """Lists and answers of the first replicate of every arm; None for a run whose parts cannot be opened.

    ask: where an evaluation kept no answers, its model is loaded and asked

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
    return Inside(seed, list(lists.values()), answers, "; ".join(lacking))


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
    shown = sorted(random.Random(f"page/{key}").sample(range(len(rows)), min(LISTS, len(rows))))
    lists[key] = Lists((replicate.arm,), len(rows), [rows[i] for i in shown])


def _ask_now(replicate: Replicate) -> dict[str, list[str]]:
    """Answers as an evaluation would have kept them; none of a model that is not there or cannot be asked."""
    try:
        asked = replicate.questions[:SAID_QUESTIONS]
        return {q: replicate.ask(q, n=SAID_ANSWERS, max_new_tokens=LONGEST) for q in asked}
    except SublimError:
        return {}
