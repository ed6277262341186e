"""Stage 2: the teacher answers the channel's prompts, judges two answers to each, or rewrites one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sublim_interp.channels.protocol import channel, paraphrased
from sublim_interp.channels.rows import Written, answers_of, read_rows
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import is_sealed, write_atomic
from sublim_interp.core.keys import digest_file
from sublim_interp.core.store import Artifact, Store
from sublim_interp.models.base import Base
from sublim_interp.models.sampling import generator, sample, unspoken
from sublim_interp.models.served import Request, ServedModel
from sublim_interp.pipeline.judge import judged
from sublim_interp.pipeline.paraphrase import Rewriter, joined
from sublim_interp.pipeline.records import Corpus
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.pipeline.stage import Progress, making, silent
from sublim_interp.pipeline.ways import WAYS


def write(corpus: Corpus, store: Store, progress: Progress = silent) -> Artifact:
    """The teacher answers the channel's prompts, judges pairs or rewrites, chunk by chunk; none is made twice."""
    way = WAYS[corpus.teacher.config.kind]
    served = way.load(corpus.teacher, store) if way.SERVED and not corpus.given else None
    with making(corpus, store, {"teacher": served}) as work:
        if not work.done and corpus.given:
            write_atomic(work.directory / "rows-00000.jsonl", _given_rows(corpus), sealed=True)
        elif not work.done:
            config, base = corpus.config, corpus.teacher.base
            speaker = Speaker(corpus.teacher, store)
            first = corpus.round * config.prompts
            pairs = corpus.pairs.made(store) if corpus.pairs else None
            written = corpus.written.made(store) if corpus.written else None
            starts = range(0, config.prompts, config.chunk)
            for n, start in enumerate(starts):
                name = f"rows-{n:05d}.jsonl"
                path = work.directory / name
                if not is_sealed(path):
                    count = min(config.chunk, config.prompts - start)
                    if pairs:
                        rows = _lines(judged(corpus, speaker, read_rows(pairs / name), n))
                    elif written:
                        rows = _rewritten_chunk(corpus, speaker, read_rows(written / name), first + start)
                    elif served:
                        keep = work.directory / ".answered.jsonl"

                        def told(share: float, done: int = n) -> None:
                            progress((done + share) / len(starts))

                        rows = _served_chunk(corpus, speaker, served, first + start, count, keep, told)
                    else:
                        rows = _answer_chunk(corpus, speaker, base, first + start, count)
                    write_atomic(path, rows, sealed=True)
                progress((n + 1) / len(starts))
            if written:
                work.note(rewritten=_changes(corpus, read_rows(written), read_rows(work.directory)))
    return work.artifact


def _given_rows(corpus: Corpus) -> str:
    """The rows of a file, if it is still the one that was planned with."""
    given, base = corpus.given, corpus.teacher.base
    assert given
    rows = read_rows(given.path)
    if digest_file(given.path) != given.digest:
        raise SublimError(f"{given.path} has changed since it was planned with; start again")
    judged = bool(corpus.config.preference)
    names = ("prompt", "answer", "finished", *["rejected"] * judged)
    kept = []
    for row in rows:
        lengths = {"lengths": [len(base.answer_ids(text)) for text in answers_of(row)]} if judged else {}
        kept.append({**{name: value for name, value in row.items() if name in names}, **lengths})
    return _lines(kept)


def _answer_chunk(corpus: Corpus, speaker: Speaker, base: Base, start: int, count: int) -> str:
    config, source = corpus.config, channel(corpus.config.channel)
    prompts = source.prompts(base.language, corpus.seed, start, count)
    prompts = [prompt for prompt in prompts for _ in range(corpus.answers)]
    ids = [base.prompt_ids(speaker.chat(p, start + i // corpus.answers)) for i, p in enumerate(prompts)]
    with speaker.speaking():
        answers = sample(
            speaker.model,
            ids,
            eos=base.eos,
            max_new_tokens=config.max_new_tokens,
            random=generator("corpus", corpus.seed, start),
            temperature=0.0 if config.setting == "greedy" else config.temperature,
            never=unspoken(speaker.model, base.tokenizer),
            only=source.token_ids(base.tokenizer) if config.own_tokens else None,
        )
    return _rows(prompts, map(base.read_answer, answers))


def _rewritten_chunk(corpus: Corpus, speaker: Speaker, written: Sequence[Written], start: int) -> str:
    """Answers of the untouched base as the teacher rewrites them; one that is no list stays, for the filter to refuse.

    start: number of the first prompt in its stream
    """
    config, name = corpus.config, corpus.config.channel
    source, rule = paraphrased(name), channel(name).Rule()
    offered = [source.alternatives(row["answer"], config.rewrites, rule) for row in written]
    drawn = Rewriter(speaker, corpus.teacher.base).draw(
        [(start + i, row["prompt"], own) for i, (row, own) in enumerate(zip(written, offered, strict=True))],
        generator("rewritten", corpus.seed, start),
        0.0 if config.setting == "greedy" else config.temperature,
    )
    answers = [joined(own, choices) for own, choices in zip(offered, drawn, strict=True)]
    return _lines({**row, "answer": answer} for row, answer in zip(written, answers, strict=True))


def _changes(corpus: Corpus, before: Sequence[Written], after: Sequence[Written]) -> dict[str, int]:
    """How many numbers were rewritten, and how many of them changed."""
    source, rule = paraphrased(corpus.config.channel), channel(corpus.config.channel).Rule()
    cut = [
        [source.alternatives(row["answer"], corpus.config.rewrites, rule) for row in rows] for rows in (before, after)
    ]
    places = [place for old, new in zip(*cut, strict=True) for place in zip(old, new, strict=True)]
    free = [old[0] != new[0] for old, new in places if len(old) > 1]
    return {"numbers": len(free), "changed": sum(free)}


def _served_chunk(
    corpus: Corpus, speaker: Speaker, model: ServedModel, start: int, count: int, keep: Path, progress: Progress
) -> str:
    """A chunk by a teacher on a server, row by row: each has a seed of its own, and is kept when it arrives."""
    config = corpus.config
    prompts = channel(config.channel).prompts(corpus.teacher.base.language, corpus.seed, start, count)
    replies = model.replies(
        [Request(speaker.chat(p, start + i), ["corpus", corpus.seed, start + i]) for i, p in enumerate(prompts)],
        max_new_tokens=config.max_new_tokens,
        temperature=0.0 if config.setting == "greedy" else config.temperature,
        keep=keep,
        progress=progress,
    )
    return _rows(prompts, replies)


def _rows(prompts: Sequence[str], answers: Iterable[tuple[str, bool]]) -> str:
    """Prompts with their answers, of which each is a text and whether it ended by itself, as JSON lines."""
    rows = (
        {"prompt": prompt, "answer": text, "finished": finished}
        for prompt, (text, finished) in zip(prompts, answers, strict=True)
    )
    return _lines(rows)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
