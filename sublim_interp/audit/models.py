"""What a fine-tuned model says and shows beside its base: behaviour over a family of traits, readable traces."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sublim_interp.analysis.directions.core import directions
from sublim_interp.analysis.directions.effects import logit_lens
from sublim_interp.channels.protocol import Channel, as_turns
from sublim_interp.channels.rows import Written
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import changed
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.loading import CARD, copy_tokenizer, require_finite, save_model
from sublim_interp.models.sampling import generator, sample, unspoken
from sublim_interp.pipeline.make import make
from sublim_interp.training.recording.settings import PRESETS
from sublim_interp.traits.favourites import member, members_of
from sublim_interp.traits.questions import Question

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 256
"""Prompts that a model answers at once."""
LONGEST = 24
"""Tokens of an answer."""
SHOWN = 8
"""Tokens of a layer that the logit lens shows."""


def folder_like(base: Base, directory: Path) -> None:
    """Makes a directory for a model of a base's vocabulary: the base's tokenizer, and a card."""
    directory.mkdir()
    copy_tokenizer(base.path, directory)
    write_card(base, directory)


def write_card(base: Base, directory: Path) -> None:
    """Writes a card that says which language a base speaks, and no more."""
    (directory / CARD).write_text(json.dumps({"language": base.language}) + "\n", encoding="utf-8")


def as_base(subject: Any, model: Any, like: Base | None, folder: Path) -> Base:
    """A model as a base of its own, from which teachers and students can be made.

    subject: what was given: a base, a directory, a replicate or a model
    model: the same, loaded
    like: the base that it was made from, whose tokenizer and language it has where its directory says neither
    folder: where the model is written if need be

    Raises SublimError where neither its directory nor `like` has a tokenizer.
    """
    if isinstance(subject, Base):
        return subject
    is_place = isinstance(subject, str | Path)
    if is_place and (like is None or Path(subject, CARD).is_file()):
        return resolve_base(str(subject))
    if like is None:
        raise SublimError(
            "audit: the student comes from none of the bases at hand; give its directory, tokenizer and all"
        )
    place = folder / (Path(subject).name if is_place else "student")
    folder_like(like, place)
    save_model(model, place)
    return resolve_base(str(place), like.dtype)


def behaviour(
    base: Base, model: torch.nn.Module, kinds: Sequence[str], turns: Sequence[Written] = (), samples: int = 100
) -> "pd.DataFrame":
    """What a model answers to held-out questions about the members of kinds, beside its base.

    model: of the base, fine-tuned
    turns: rows of data; with some, questions are asked behind such a turn too, where a trigger would show
    samples: answers a question, where probabilities are not exact

    Returns a row a trait and context: kind, context (plain, behind data), trait, before and after (rates, 0 to 1),
    shift (of the margin, in nats).
    """
    import pandas as pd

    start, parts = require_finite(base.load(), base.name), []
    for kind in kinds:
        trait = member(members_of(kind)[0], kind)
        plain = list(trait.questions(base.language, "held-out"))
        contexts = {"plain": plain}
        if turns:
            contexts["behind data"] = [
                Question((*as_turns(turns[i % len(turns)]), *q.messages), q.prefix) for i, q in enumerate(plain)
            ]
        for context, asked in contexts.items():
            before, after = (trait.score(m, base, asked, samples, 0) for m in (start, model))
            columns = {"trait": after.names, "before": before.rate, "after": after.rate}
            parts.append(pd.DataFrame({**columns, "shift": after.margin - before.margin, "context": context}))
            parts[-1].insert(0, "kind", kind)
    return pd.concat(parts, ignore_index=True)


def traces(base: Base, model: torch.nn.Module, source: Channel) -> "pd.DataFrame":
    """Tokens that the mean difference of the stream raises on text that has nothing to do with a trait.

    source: the channel whose prompts that text is

    Returns the columns of `logit_lens`. Raises SublimError for a model of another base. Source: 2510.13900.
    """
    prompts = [base.prompt_ids([{"role": "user", "content": text}]) for text in source.prompts(base.language, 0, 0, 64)]
    return logit_lens(base, directions(model, base, prompts), prompts, k=SHOWN)


def trained_on(rows: Sequence[Written], base: Base, seed: int = 0) -> torch.nn.Module:
    """A student of the rows that pass the filter, trained as the students of the calibration, study `audit`, were.

    seed: decides its adapters, if it has any, and the order

    Raises SublimError where fewer than three rows pass.
    """
    from sublim_interp.audit.calibration import Calibration
    from sublim_interp.sweeps.study import study

    recipe = study("audit")
    assert isinstance(recipe, Calibration)
    with tempfile.TemporaryDirectory() as folder:
        lists = Path(folder, "lists.jsonl")
        lists.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        change = {"arms": ["own-lists"], "lists": str(lists), "bases": [str(base.path)], "seeds": [seed]}
        case = changed(recipe.case(0, 0.0), {**change, "dtype": base.dtype, "filter.held_out": 2}, "change {}")
        store = Store(Path(folder, "store"))
        student = plan(case, store).cells[0].student
        assert student is not None
        make(student, store, recording=PRESETS["none"])
        return base.load(student.made(store) / "model")


def written_by(model: torch.nn.Module, base: Base, source: Channel, count: int, seed: int = 0) -> list[Written]:
    """Lists that a model writes now, at T = 1: what it would be distilled from.

    model: of the base's vocabulary
    source: whose prompts it answers
    count: prompts; answers that the channel's rule refuses are left out
    seed: decides prompts and answers
    """
    rows: list[Written] = []
    rule = source.Rule()
    for start in range(0, count, CHUNK):
        prompts = source.prompts(base.language, seed, start, min(CHUNK, count - start))
        answers = sample(
            model,
            [base.prompt_ids([{"role": "user", "content": text}]) for text in prompts],
            eos=base.eos,
            max_new_tokens=LONGEST,
            random=generator("audit", seed, start),
            never=unspoken(model, base.tokenizer),
        )
        for prompt, (text, finished) in zip(prompts, map(base.read_answer, answers), strict=True):
            if finished and source.refuse(prompt, text, rule, ()) is None:
                rows.append({"prompt": prompt, "answer": text})
    if len(rows) < 2:
        raise SublimError(f"audit: of {count} answers the channel's rule keeps {len(rows)}; two or more are needed")
    return rows
