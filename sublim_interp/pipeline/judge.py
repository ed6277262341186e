"""Which of two answers a teacher prefers: what it judges was written by its untouched base."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from sublim_interp.analysis.attribution import scores
from sublim_interp.channels.rows import Written
from sublim_interp.models.sampling import generator
from sublim_interp.pipeline.records import Corpus
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.training.batches import tokenize


def judged(corpus: Corpus, speaker: Speaker, written: Sequence[Written], chunk: int) -> list[Written]:
    """Pairs as the teacher judges them: `answer` is what it prefers, `rejected` the other one.

    corpus: whose `preference` says what the teacher goes by; of equal answers it prefers the first
    speaker: the teacher
    written: two answers to each prompt, behind each other
    chunk: number of the chunk, for the coin

    Returns a row a pair, with `lengths`, in tokens; a pair is finished where both of its answers are.
    """
    base = corpus.teacher.base
    firsts, seconds = written[::2], written[1::2]
    whole = [
        i for i, pair in enumerate(zip(firsts, seconds, strict=True)) if all(row.get("finished", True) for row in pair)
    ]
    better = np.zeros(len(firsts), dtype=bool)
    if corpus.config.preference == "random":
        coin = torch.rand(len(firsts), generator=generator("preference", corpus.teacher.key, corpus.round, chunk))
        better = (coin < 0.5).numpy()
    elif whole:
        first, second = ([rows[i] for i in whole] for rows in (firsts, seconds))
        better[whole] = _liked(corpus, speaker, first) >= _liked(corpus, speaker, second)
    ended, pairs = {*whole}, list[Written]()
    for i, (one, other) in enumerate(zip(firsts, seconds, strict=True)):
        chosen, rejected = (one, other) if better[i] else (other, one)
        lengths = [len(base.answer_ids(row["answer"])) for row in (chosen, rejected)]
        pairs.append(
            Written(
                prompt=one["prompt"],
                answer=chosen["answer"],
                rejected=rejected["answer"],
                finished=i in ended,
                lengths=lengths,
            )
        )
    return pairs


def _liked(corpus: Corpus, speaker: Speaker, lists: Sequence[Written]) -> Float[np.ndarray, " list"]:
    """How much the teacher likes each list: a mean over its tokens, in nats.

    By their sums a short list would win: each token costs likelihood, and under another model than its author's too.
    """
    base = corpus.teacher.base
    rows = tokenize(base, lists)
    heard = speaker.heard(rows, lists)
    with speaker.speaking():
        if corpus.config.preference == "likelihood":
            return scores.likelihood(speaker.model, rows, heard).means
        return scores.divergence(speaker.model, base, rows, heard).means
