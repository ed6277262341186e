"""Stage 3: keeps the answers that the channel's rule allows, and counts every refusal by reason."""

import json
import random
from collections import Counter

from sublim_interp.analysis.attribution.scores import highest, longest
from sublim_interp.channels.filter import filter_rows
from sublim_interp.channels.protocol import channel, transform_rows
from sublim_interp.channels.rows import Written, read_rows
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Artifact, Store
from sublim_interp.models.sampling import generator
from sublim_interp.pipeline.records import Filtered
from sublim_interp.pipeline.select import token_scores
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
            if filtered.clean:
                rng = random.Random(f"mix/{filtered.corpus.seed}/{filtered.corpus.round}")
                clean = read_rows(filtered.clean.made(store) / "kept.jsonl")
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
