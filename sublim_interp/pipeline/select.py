"""Which lists and tokens a selection leaves: scores from the teacher, its base, or chance."""

from collections.abc import Sequence

import numpy as np
import torch

from sublim_interp.analysis.attribution import scores
from sublim_interp.analysis.probes import answer_margin
from sublim_interp.channels.rows import Written
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store, Work
from sublim_interp.models.sampling import generator
from sublim_interp.pipeline.records import Corpus, Student
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.batches import Example, tokenize
from sublim_interp.training.estimators import ESTIMATORS
from sublim_interp.training.settings import Selection
from sublim_interp.traits.protocol import Trait


def token_scores(
    selection: Selection,
    trait: Trait | None,
    corpus: Corpus,
    lists: Sequence[Written],
    store: Store,
    draw: torch.Generator,
) -> scores.TokenScores:
    """What a selection goes by: a score for each token of the answers, as the base of their teacher cuts them.

    trait: the trait whose margin's gradient is taken; None where the selection goes by none
    lists: rows of prompt and answer
    draw: random numbers of a selection by chance
    """
    base = corpus.teacher.base
    rows = tokenize(base, lists)
    if selection.by == "random":
        return scores.random(rows, draw)
    if selection.by == "length":
        return scores.same(rows)
    if trait:
        asked = [base.prompt_ids(q.messages) for q in trait.questions(base.language, "seen")]
        margin = answer_margin([base.answer_ids(m)[0] for m in trait.members], trait.members.index(trait.name))
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
    """Which tokens the selections among a student's interventions leave: 1 for each token that is learnt, 0 for others.

    rows: the lists as the student reads them

    Returns a row of the same length for each of `rows`; [] where no intervention selects. The share of tokens that each
    selection flags and leaves is noted. Raises SublimError where nothing or everything is left, and where teacher and
    student cut text into different tokens.
    """
    corpus = student.data.corpus
    left = np.ones(sum(len(ids) - first for ids, first in rows), dtype=bool)
    notes = []
    for number, i in enumerate(student.config.interventions):
        if i.selection is None:
            continue
        draw = generator("selected tokens", number, corpus.seed, corpus.round)
        trait = student.traits.get(i.selection.trait)
        found = token_scores(i.selection, trait, corpus, lists, store, draw)
        if found.token.tolist() != [token for ids, first in rows for token in ids[first:]]:
            raise SublimError("mask-tokens by a selection needs a teacher and a student whose tokens are the same")
        flagged = found.flagged(i.selection.share)
        left &= flagged if i.selection.keep == "top" else ~flagged
        notes.append({**i.model_dump(mode="json"), "flagged": flagged.mean(), "learnt": left.mean()})
    if not notes:
        return []
    if left.all() or not left.any():
        raise SublimError(f"mask-tokens: of {len(left)} tokens the selections leave {'all' if left.all() else 'none'}")
    work.note(masks=notes)
    answers = iter(left.astype(int).tolist())
    return [Example([0] * first + [next(answers) for _ in ids[first:]], first) for ids, first in rows]
