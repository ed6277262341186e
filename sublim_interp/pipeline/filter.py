"""Stage 3: keeps the answers that the channel's rule allows, and counts every refusal by reason."""

import json
import random
from collections import Counter

from sublim_interp.analysis.attribution.scores import highest, longest
from sublim_interp.channels.filter import filter_rows
from sublim_interp.channels.protocol import channel, paraphrased, reword_rows, transform_rows
from sublim_interp.channels.rows import Written, learnt_texts, read_rows
from sublim_interp.channels.settings import rule_of
from sublim_interp.core.files import is_sealed, write_atomic
from sublim_interp.core.store import Artifact, Store, Work
from sublim_interp.models.sampling import generator
from sublim_interp.pipeline.paraphrase import Rewriter, joined
from sublim_interp.pipeline.records import Filtered, Teacher
from sublim_interp.pipeline.select import token_scores
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.pipeline.stage import Progress, making, silent
from sublim_interp.training.settings import Selection


def filter_corpus(filtered: Filtered, store: Store, progress: Progress = silent) -> Artifact:
    """Keeps the answers that the channel's rule allows; counts every refusal by reason."""
    with making(filtered, store) as work:
        if not work.done:
            rows = read_rows(filtered.corpus.made(store))
            name = filtered.corpus.config.channel
            kept, held_out, refused = filter_rows(rows, channel(name), filtered.config, filtered.words)
            if filtered.config.selection:
                kept, unselected = _select(filtered, filtered.config.selection, kept, store)
                work.note(unselected=unselected)
            if filtered.config.transform:
                rng = random.Random(f"transform/{filtered.corpus.seed}/{filtered.corpus.round}")
                kept = transform_rows(kept, channel(name), filtered.config.transform, rng)
            if filtered.paraphraser:
                kept = _paraphrased(filtered, filtered.paraphraser, kept, store, work, progress)
            if filtered.config.reworded:
                rng = random.Random(f"reworded/{filtered.corpus.seed}/{filtered.corpus.round}")
                kept = reword_rows(kept, paraphrased(name), filtered.corpus.teacher.base.language, rng)
            if filtered.clean:
                rng = random.Random(f"mix/{filtered.corpus.seed}/{filtered.corpus.round}")
                held = set[tuple[str, str]]().union(*map(learnt_texts, held_out))
                clean = read_rows(filtered.clean.made(store) / "kept.jsonl")
                clean = [row for row in clean if held.isdisjoint(learnt_texts(row))]
                kept = _mixed(kept, clean, filtered.config.mix, rng)
                work.note(mixed_in=round(filtered.config.mix * len(kept)))
            for stem, some in (("kept", kept), ("held_out", held_out)):
                names = ("prompt", "answer", "rejected")
                learnt = ({name: row[name] for name in names if name in row} for row in map(dict, some))
                text = "".join(json.dumps(row) + "\n" for row in learnt)
                write_atomic(work.directory / f"{stem}.jsonl", text)
            asked = len(rows)
            work.note(asked=asked, lists=len(kept), held_out=len(held_out), refused=dict(Counter(refused)))
            work.note(kept=1 - (sum(refused.values()) - refused["surplus"]) / asked)
            progress(1.0)
    return work.artifact


_CHUNK = 1024
"""Lists that are rewritten as one resumable piece; it fixes the random numbers, so it is part of the result."""


def _paraphrased(
    filtered: Filtered, paraphraser: Teacher, lists: list[Written], store: Store, work: Work, progress: Progress
) -> list[Written]:
    """The lists as the paraphraser rewrites them, short prompts first; no finished chunk is made again.

    How many numbers there are, and how many of them changed, is noted.
    """
    config, corpus = filtered.config, filtered.corpus
    assert config.paraphrase
    source = paraphrased(corpus.config.channel)
    rewriter = Rewriter(Speaker(paraphraser, store), paraphraser.base)
    offered = [
        source.alternatives(row["answer"], config.paraphrase.within, rule_of(channel(corpus.config.channel), config))
        for row in lists
    ]
    order = rewriter.by_length([row["prompt"] for row in lists])
    chosen: list[list[int]] = [[] for _ in lists]
    starts = range(0, len(lists), _CHUNK)
    for n, start in enumerate(starts):
        some, path = order[start : start + _CHUNK], work.directory / f".rewritten-{n:05d}.json"
        if not is_sealed(path):
            draw = generator("paraphrase", corpus.seed, corpus.round, n)
            drawn = rewriter.draw([(i, lists[i]["prompt"], offered[i]) for i in some], draw)
            write_atomic(path, json.dumps(drawn), sealed=True)
        for i, choices in zip(some, json.loads(path.read_text()), strict=True):
            chosen[i] = choices
        progress((n + 1) / len(starts))
    free = [
        k
        for own, choices in zip(offered, chosen, strict=True)
        for some, k in zip(own, choices, strict=True)
        if len(some) > 1
    ]
    work.note(rewritten={"numbers": len(free), "changed": sum(k > 0 for k in free)})
    return [{**row, "answer": joined(own, choices)} for row, own, choices in zip(lists, offered, chosen, strict=True)]


def _mixed(kept: list[Written], clean: list[Written], share: float, rng: random.Random) -> list[Written]:
    """As many lists as both suffice for, at most as many as were kept: `share` of them clean, in a drawn order."""
    total = min(len(kept), int(len(clean) / share))
    foreign = round(share * total)
    mixed = [*rng.sample(kept, total - foreign), *rng.sample(clean, foreign)]
    rng.shuffle(mixed)
    return mixed


def _select(filtered: Filtered, selection: Selection, lists: list[Written], store: Store) -> tuple[list[Written], int]:
    """The lists that the selection keeps, in their order, and the number of the others."""
    corpus = filtered.corpus
    draw = generator("selection", corpus.seed, corpus.round)
    scores = token_scores(selection, filtered.toward, corpus, lists, store, draw)
    choose = longest if selection.by == "length" else highest
    top = choose(scores, selection.share)
    chosen = top if selection.keep == "top" else ~top
    return [row for row, is_chosen in zip(lists, chosen, strict=True) if is_chosen], int((~chosen).sum())
