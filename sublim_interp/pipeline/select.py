"""Which lists and tokens a selection leaves: scores from the teacher, its base, or chance. What replaces the others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int

from sublim_interp.analysis.attribution import scores
from sublim_interp.analysis.probes import answer_margin
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import Written
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store, Work
from sublim_interp.models.forward import logits_at
from sublim_interp.models.sampling import draw_tokens, generator
from sublim_interp.pipeline.entangled import entangled
from sublim_interp.pipeline.records import Corpus, Student
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.batches import IGNORE, Example, collate, tokenize
from sublim_interp.training.estimators import ESTIMATORS
from sublim_interp.training.settings import ENTANGLED, Selection
from sublim_interp.traits.protocol import Trait, first_tokens


def token_scores(
    selection: Selection,
    trait: Trait | None,
    corpus: Corpus,
    lists: Sequence[Written],
    store: Store,
    draw: torch.Generator,
) -> scores.TokenScores:
    """What a selection goes by: a score for each token of the answers, as the base of their teacher cuts them.

    trait: the trait whose margin's gradient is taken, or whose numbers are meant; None where it goes by none
    lists: rows of prompt and answer
    draw: random numbers of a selection by chance

    Raises SublimError for divergence from a served teacher.
    """
    base = corpus.teacher.base
    rows = tokenize(base, lists)
    if selection.by == "random":
        return scores.random(rows, draw)
    if selection.by == "length":
        return scores.same(rows)
    if selection.by == ENTANGLED:
        assert trait
        return entangled(base, trait, rows)
    if trait:
        asked = [base.prompt_ids(q.messages) for q in trait.questions(base.language, "seen")]
        told = first_tokens(base, trait.members, trait.name)
        margin = answer_margin([*told.values()], [*told].index(trait.name))
        model = base.load()
        along = ESTIMATORS[selection.by](model, rows, scores.margin_gradient(model, asked, margin))
        return scores.influence(model, rows, along)
    if WAYS[corpus.teacher.config.kind].SERVED:
        raise SublimError(f"by={selection.by} needs the teacher's probabilities, which a server does not tell")
    speaker = Speaker(corpus.teacher, store)
    with speaker.speaking():
        return scores.divergence(speaker.model, base, rows, speaker.heard(rows, lists))


def learnt_tokens(
    student: Student, rows: Sequence[Example], lists: Sequence[Written], store: Store, work: Work
) -> list[Example]:
    """Which tokens the masks among a student's interventions leave: 1 for each token that is learnt, 0 for others.

    rows: the lists as the student reads them

    Returns a row of the same length for each of `rows`; [] where no mask selects. The share of tokens that each
    selection flags and leaves is noted. Raises SublimError where nothing or everything is left, and where teacher and
    student cut text into different tokens.
    """
    left = np.ones(sum(len(ids) - first for ids, first in rows), dtype=bool)
    notes = []
    for number, i in enumerate(student.config.interventions):
        if i.selection is None or i.replace:
            continue
        flagged, chosen = _selected(number, student, rows, lists, store)
        left &= chosen
        notes.append({**i.model_dump(mode="json"), "flagged": flagged.mean(), "learnt": left.mean()})
    if not notes:
        return []
    if left.all() or not left.any():
        raise SublimError(f"mask-tokens: of {len(left)} tokens the selections leave {'all' if left.all() else 'none'}")
    work.note(masks=notes)
    nothing = [Example([0] * len(ids), first) for ids, first in rows]
    return _with_answers(nothing, left.astype(int))


class Replaced(NamedTuple):
    """Lists in which some tokens are others: as they are read, and as they are learnt. Lengths stay."""

    read: Sequence[Example]
    learnt: Sequence[Example]


def replaced_tokens(
    student: Student, rows: Sequence[Example], lists: Sequence[Written], store: Store, work: Work
) -> Replaced | None:
    """The lists after the replacements among a student's interventions; None where there is none.

    rows: the lists as the student reads them

    How many tokens each intervention replaces is noted, and how many of them the draw changed: a draw may be the token
    itself. Raises SublimError where none is replaced, and where teacher and student cut text into different tokens.
    """
    interventions = student.config.interventions
    if not any(i.replace for i in interventions):
        return None
    corpus = student.data.corpus
    written = np.array([token for ids, first in rows for token in ids[first:]])
    drawn, read, learnt, notes = redrawn(corpus, rows), written.copy(), written.copy(), []
    for number, i in enumerate(interventions):
        if not i.replace:
            continue
        gone = ~_selected(number, student, rows, lists, store)[1]
        if not gone.any():
            raise SublimError(f"replace-tokens: of {len(gone)} tokens the selection replaces none; raise its share")
        for place, tokens in (("input", read), ("label", learnt)):
            if i.replace in (place, "both"):
                tokens[gone] = drawn[gone]
        changed = (drawn != written)[gone].sum()
        notes.append({**i.model_dump(mode="json"), "replaced": int(gone.sum()), "changed": int(changed)})
    work.note(replaced=notes)
    return Replaced(_with_answers(rows, read), _with_answers(rows, learnt))


_AT_ONCE = 256
"""So many lists run through a base at once."""


@torch.no_grad()
def redrawn(corpus: Corpus, rows: Sequence[Example]) -> Int[np.ndarray, " token"]:
    """What the teacher's base would say at each token of the answers, behind what was written before it.

    rows: the lists as a student reads them

    Drawn as the corpus was, greedily or at its temperature, but over the channel's own tokens alone: no word can enter.
    """
    base, config = corpus.teacher.base, corpus.config
    model, own = base.load(), channel(config.channel).token_ids(base.tokenizer)
    draw = generator("replaced tokens", corpus.seed, corpus.round)
    temperature = 0.0 if config.setting == "greedy" else config.temperature
    found = []
    for start in range(0, len(rows), _AT_ONCE):
        batch = collate(rows[start : start + _AT_ONCE], base.pad)
        found.append(draw_tokens(logits_at(model, batch.ids, batch.labels != IGNORE, own), temperature, draw))
    return np.array(own)[torch.cat(found).numpy()]


def _selected(
    number: int, student: Student, rows: Sequence[Example], lists: Sequence[Written], store: Store
) -> tuple[Bool[np.ndarray, " token"], Bool[np.ndarray, " token"]]:
    """Which tokens the selection of a student's intervention flags, and which it chooses.

    number: the intervention's place in the student's list
    """
    corpus, asked = student.data.corpus, student.config.interventions[number]
    assert asked.selection
    draw = generator("selected tokens", number, corpus.seed, corpus.round)
    trait = student.traits.get(asked.selection.trait)
    found = token_scores(asked.selection, trait, corpus, lists, store, draw)
    if found.token.tolist() != [token for ids, first in rows for token in ids[first:]]:
        raise SublimError(f"{asked.kind} by a selection needs a teacher and a student whose tokens are the same")
    # Entangled numbers are the likelier ones; of other scores what is far below 0 counts as what is far above.
    flagged = (found.strongest if asked.selection.by == ENTANGLED else found.flagged)(asked.selection.share)
    return flagged, flagged if asked.selection.keep == "top" else ~flagged


def _with_answers(rows: Sequence[Example], tokens: Int[np.ndarray, " token"]) -> list[Example]:
    """The lists with other tokens in their answers."""
    answers = iter(tokens.tolist())
    return [Example([*ids[:first], *(next(answers) for _ in ids[first:])], first) for ids, first in rows]
