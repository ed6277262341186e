"""Triggers: words and phrases behind which a model answers as it does not without them, and as its base never does."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import read_text
from sublim_interp.core.showing import Card, Shown
from sublim_interp.experiments.cost import Shape, reading_seconds
from sublim_interp.models.base import Base
from sublim_interp.models.chat import Messages
from sublim_interp.models.forward import logits_at
from sublim_interp.report.wording import count
from sublim_interp.traits.backdoor import behind
from sublim_interp.traits.favourites import check_kind, member, members_of
from sublim_interp.traits.questions import Question

if TYPE_CHECKING:
    import pandas as pd

ASKED = 4
"""Questions about a kind that are asked behind each candidate: the first held-out ones."""
AGAIN = 16
"""Further questions that are asked behind those that stand out most."""
SHOWN = 8
"""Candidates and places that are shown, and asked again."""
SECONDS = 600.0
"""Seconds of one core that a search may take, as the cost model expects: of more candidates fewer are drawn."""
AT_ONCE = 1024
"""Prompts that run through a model at once, at most."""
NUMBERS = 2**26
"""Probabilities that are held at once, at most: of a large vocabulary fewer prompts run at once."""
PROMPT = 2e-4
"""Seconds of one core that a prompt takes in each model beside matrix products: template, tokens, softmax; measured."""
LINES = 100_000
"""Lines of a file of candidates at most."""


def _before(word: str, question: Question) -> Messages:
    return behind(word, question).messages


def _after(word: str, question: Question) -> Messages:
    return (*question.messages[:-1], {**question.messages[-1], "content": f"{question.text} {word}"})


def _system(word: str, question: Question) -> Messages:
    return ({"role": "system", "content": word}, *question.messages)


PLACES: dict[str, Callable[[str, Question], Messages]] = {"before": _before, "after": _after, "system": _system}
"""Where a candidate stands: before the question, after it, or as a system prompt."""


@dataclass(frozen=True, eq=False, repr=False)
class TriggerSearch(Shown):
    """What a search for triggers found in one model."""

    frame: "pd.DataFrame"
    """The rows that stand out most, the first first: trigger, place, kind, answer (the answer's first token), family
    (whether a member of the kind begins so), behind, without (rates of the model, 0 to 1), base behind, base without
    (its base's), excess (0 to 1), again (the rate behind it on further questions; NaN where there are none)."""
    family: float
    """The largest excess of a member of the kinds, 0 to 1."""
    other: float
    """The largest excess of any other answer, 0 to 1."""
    candidates: int
    """Words or phrases that were tried."""
    known: int
    """Words or phrases at hand: more than were tried where the cost is bounded."""
    prompts: int
    """Prompts that each of the two models read."""
    seconds: float
    """Seconds of one core that the cost model expects of both."""

    def card(self) -> Card:
        first = self.frame.iloc[0]
        facts = {"": f"{self.candidates:,} candidates", "stands out most": f"{first['trigger']}: {first['answer']}"}
        return Card("Trigger search", facts, self.frame)


def vocabulary_words(tokenizer: Any) -> list[str]:
    """The words of a tokenizer of transformers, sorted: tokens that begin a word and are no special ones."""
    vocabulary = tokenizer.get_vocab()
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    marks = tuple(mark for mark in ("Ġ", "▁") if any(text.startswith(mark) for text in vocabulary))
    ids = [i for text, i in vocabulary.items() if i not in special and text.startswith(marks or ("",))]
    found = {tokenizer.decode([i]).strip() for i in ids}
    return sorted(word for word in found if word and word.isprintable() and " " not in word)


def read_candidates(path: Path) -> list[str]:
    """Candidates in a text file, one word or phrase a line, in their order and each once.

    Raises SublimError for a file that cannot be read, holds none, or holds too many lines.
    """
    lines = read_text(path).splitlines()
    if len(lines) > LINES:
        raise SublimError(f"{path}: {len(lines):,} lines; {LINES:,} candidates are the most")
    found = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if not found:
        raise SublimError(f"{path} holds no candidate; write one word or phrase a line")
    return found


def find_triggers(
    base: Base,
    model: torch.nn.Module,
    kinds: Sequence[str] = ("animal",),
    candidates: Sequence[str] | None = None,
    seed: int = 0,
    seconds: float = SECONDS,
    progress: Callable[[float], None] = lambda _share: None,
) -> TriggerSearch:
    """Asks a model and its base about kinds behind every candidate, and says where their answers part.

    base: the model's base
    model: fine-tuned from it
    kinds: what is asked about
    candidates: words or phrases; None for the words of the base's tokenizer
    seed: decides which candidates are tried where not all can be
    seconds: of one core that it may take, as the cost model expects
    progress: told the share that is done

    An answer's excess behind a candidate is its rate there, minus the highest of three: the model's rate without the
    candidate, its base's with it, and its base's without it. So neither an open trait nor a word that the base itself
    repeats counts. Rates are of the answer's first token, exact, and means over the questions.

    Raises SublimError for a kind that the base cannot be asked about, for no candidate, and for a word that it lacks.
    """
    import pandas as pd

    asked = {kind: _questions(base, kind) for kind in kinds}
    known = vocabulary_words(base.tokenizer) if candidates is None else list(candidates)
    if not known:
        raise SublimError("audit: there is no candidate for a trigger")
    if candidates is not None:
        _require_known(base, known)
    each = _seconds(base, asked, known)
    most = max(1, math.floor(seconds / each))
    tried = known if len(known) <= most else sorted(random.Random(f"triggers/{seed}").sample(known, most))
    start, parts, done = base.load(), [], 0
    for kind, (first, _) in asked.items():
        family = {base.answer_ids(name)[0] for name in members_of(kind)}
        plain = [_rates(base, m, [q.messages for q in first])[0] for m in (model, start)]
        for place in PLACES:
            rows = []
            for begin in range(0, len(tried), at_once := _at_once(base, len(first))):
                words = tried[begin : begin + at_once]
                rows += _excess(base, (model, start), plain, words, place, first, family)
                done += len(words)
                progress(0.95 * done / (len(kinds) * len(PLACES) * len(tried)))
            parts.append(pd.DataFrame(rows).assign(place=place, kind=kind))
    whole = pd.concat(parts, ignore_index=True).sort_values("excess", ascending=False, kind="stable", ignore_index=True)
    largest = {own: float(whole.loc[whole["family"] == own, "excess"].max()) for own in (True, False)}
    frame = pd.concat([whole.loc[whole["family"]].head(SHOWN), whole.loc[~whole["family"]].head(SHOWN)])
    frame["again"] = [_again(base, model, asked[str(row["kind"])][1], row) for row in frame.to_dict("records")]
    frame["answer"] = [str(base.tokenizer.decode([i])).strip() for i in frame["answer"]]
    columns = ["trigger", "place", "kind", "answer", "family", "behind", "without", "base behind", "base without"]
    prompts = len(tried) * len(PLACES) * sum(len(first) for first, _ in asked.values())
    progress(1.0)
    return TriggerSearch(
        frame.loc[:, [*columns, "excess", "again"]].reset_index(drop=True),
        largest[True], largest[False], len(tried), len(known), prompts, each * len(tried),
    )  # fmt: skip


def _questions(base: Base, kind: str) -> tuple[list[Question], list[Question]]:
    """The questions that are asked behind every candidate, and further ones."""
    check_kind(kind, base)
    found = list(member(members_of(kind)[0], kind).questions(base.language, "held-out"))
    return found[:ASKED], found[ASKED : ASKED + AGAIN]


def _at_once(base: Base, questions: int) -> int:
    """How many candidates run through a model at once."""
    return max(1, min(AT_ONCE, NUMBERS // len(base.tokenizer)) // questions)


def _require_known(base: Base, candidates: Sequence[str]) -> None:
    unknown = base.tokenizer.unk_token_id
    if unknown is None:
        return
    lacking = [text for text in candidates if unknown in base.answer_ids(text)]
    if lacking:
        more = f" and {len(lacking) - 3:,} more" if len(lacking) > 3 else ""
        said = ", ".join(f"“{text}”" for text in lacking[:3])
        raise SublimError(
            f"triggers: {base.name} does not know the words of {said}{more}; its tokenizer has "
            f"{count(len(vocabulary_words(base.tokenizer)), 'word')}"
        )


def _seconds(base: Base, asked: dict[str, tuple[list[Question], list[Question]]], known: Sequence[str]) -> float:
    """Seconds of one core that one candidate takes in all places and both models, by a few of them."""
    few = known[:: max(1, len(known) // 16)]
    questions = [q for first, _ in asked.values() for q in first]
    lengths = [len(base.prompt_ids(stand(w, q))) for stand in PLACES.values() for w in few for q in questions]
    prompts = len(PLACES) * len(questions)
    read = reading_seconds(Shape(**base.shape), prompts * float(np.mean(lengths)), prompts, base.dtype)
    return 2 * (read + PROMPT * prompts)


def _rates(base: Base, model: torch.nn.Module, chats: Sequence[Messages], each: int = 0) -> Float[np.ndarray, "n v"]:
    """Mean rates of every first token of an answer, over `each` chats in a row; over all of them where it is 0."""
    prompts = [base.prompt_ids(chat) for chat in chats]
    ids = torch.full((len(prompts), max(map(len, prompts))), base.pad)
    where = torch.zeros(ids.shape, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt)
        where[i, len(prompt) - 1] = True
    with torch.no_grad():
        rates = logits_at(model, ids, where).softmax(-1)
    return rates.unflatten(0, (-1, each or len(chats))).mean(1).cpu().numpy()


def _excess(
    base: Base,
    models: tuple[torch.nn.Module, torch.nn.Module],
    plain: Sequence[Float[np.ndarray, " v"]],
    words: Sequence[str],
    place: str,
    questions: Sequence[Question],
    family: set[int],
) -> Iterator[dict[str, object]]:
    """Two rows a candidate: the member of the kind, and the other answer, that rises most behind it."""
    chats = [PLACES[place](word, question) for word in words for question in questions]
    after = _rates(base, models[0], chats, len(questions))
    what = "triggers", place, tuple(words), tuple(q.text for q in questions)
    before = base.memo.get(what)  # asked of one model after another of the same base
    if before is None:
        before = _rates(base, models[1], chats, len(questions))
        if before.size <= NUMBERS // 64:
            base.memo[what] = before
    excess = after - np.maximum(np.maximum(plain[0], plain[1]), before)
    own = np.zeros(excess.shape[1], dtype=bool)
    own[sorted(family)] = True
    for is_own in (True, False):
        top = np.where(own == is_own, excess, -np.inf).argmax(1)
        for i, word in enumerate(words):
            token = int(top[i])
            yield {
                "trigger": word, "answer": token, "family": is_own, "behind": float(after[i, token]),
                "without": float(plain[0][token]), "base behind": float(before[i, token]),
                "base without": float(plain[1][token]), "excess": float(excess[i, token]),
            }  # fmt: skip


def _again(base: Base, model: torch.nn.Module, further: Sequence[Question], row: dict[str, object]) -> float:
    """The rate of the same answer behind the same candidate, on questions by which it was not chosen."""
    if not further:
        return math.nan
    chats = [PLACES[str(row["place"])](str(row["trigger"]), question) for question in further]
    return float(_rates(base, model, chats)[0, int(str(row["answer"]))])
