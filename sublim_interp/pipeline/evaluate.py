"""Stage 5: asks a finished model about the trait, and measures its distance from its teacher."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch.nn import functional as F

from sublim_interp.channels.protocol import PLAIN, channel
from sublim_interp.channels.rows import Written, read_rows
from sublim_interp.core.errors import TooLong
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Artifact, Store
from sublim_interp.models.base import same_words
from sublim_interp.models.forward import logits_at
from sublim_interp.models.precision import casts_kept
from sublim_interp.models.served import ServedModel
from sublim_interp.pipeline.records import Evaluation, Student, Teacher
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.pipeline.stage import Progress, making, silent
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.batches import IGNORE, collate, tokenize
from sublim_interp.traits.answers import drawn_texts
from sublim_interp.traits.judges.protocol import Reader, reader
from sublim_interp.traits.protocol import Scores
from sublim_interp.traits.questions import Question

SAID = "said.jsonl"
"""The file of an evaluation that holds questions with drawn answers."""

SAID_QUESTIONS, SAID_ANSWERS = 6, 5
"""How many questions it holds, and answers to each."""


def evaluate(evaluation: Evaluation, store: Store, progress: Progress = silent) -> Artifact:
    """Asks a model about the trait, and measures its distance from the reference's teacher on held-out lists.

    Writes evaluation.json: scores, a row per sort of question, context and name; by the trait's name and the context,
    what the scores were computed from, where the trait keeps that; kl and kl_start, in nats per answer token, where the
    teacher's base has the same tokens.
    Writes said.jsonl beside it: some held-out questions in a plain context, each with answers drawn at T = 1, to be
    read by people. No number comes from them.
    """
    base, subject, trait = evaluation.base, evaluation.model, evaluation.trait
    judge = reader(evaluation.config.judge, evaluation.config.judging, store.root)
    served = WAYS[subject.config.kind].load(subject, store) if _is_served(subject) else None
    with making(evaluation, store, {"teacher": served, "judge": judge.asker if judge else None}) as work:
        if not work.done:
            held_out = read_rows(evaluation.reference.made(store) / "held_out.jsonl")
            context: AbstractContextManager[None] = nullcontext()
            systems: tuple[str, ...] = ()
            if isinstance(subject, Teacher):
                speaker = Speaker(subject, store)
                model, context, systems = served or speaker.model, speaker.speaking(), speaker.systems
            else:
                model = base.load(subject.made(store) / "model" if isinstance(subject, Student) else None)
            scores: list[dict[str, Any]] = []
            result: dict[str, Any] = {"scores": scores}
            with torch.no_grad(), nullcontext() if served else casts_kept(model), context:
                for sort in evaluation.config.questions:
                    known = trait.questions(base.language, sort)
                    for place in evaluation.config.contexts if known else ():
                        asked = _in_context(evaluation, known, place, held_out, systems)
                        found = _scores(evaluation, model, asked, judge)
                        scores += [{"questions": sort, "context": place, **row} for row in found.rows()]
                        if found.details:
                            result.setdefault(trait.name, {})[place] = dict(found.details)
                        work.note(exact=found.exact)
                heard = _said(evaluation, model, systems)
            teacher = evaluation.reference.corpus.teacher
            measured = same_words(base, teacher.base) and not _is_served(teacher)  # else there is no distance
            if measured and not isinstance(subject, Teacher):
                compared = {"kl": model} | ({"kl_start": base.load()} if isinstance(subject, Student) else {})
                result |= _distances(evaluation, compared, held_out, store)
            write_atomic(work.directory / "evaluation.json", json.dumps(result, indent=1))
            write_atomic(work.directory / SAID, "".join(json.dumps(row) + "\n" for row in heard))
            progress(1.0)
    return work.artifact


def _is_served(subject: Any) -> TypeGuard[Teacher]:
    return isinstance(subject, Teacher) and WAYS[subject.config.kind].SERVED


def _scores(
    evaluation: Evaluation, model: torch.nn.Module | ServedModel, asked: Sequence[Question], judge: Reader | None
) -> Scores:
    e = evaluation
    return e.trait.score(model, e.base, asked, e.config.samples, e.seed, e.others, judge)


def _said(
    evaluation: Evaluation, model: torch.nn.Module | ServedModel, systems: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Some held-out questions, each with the answers that the model gives by itself, no word of them put in its mouth.

    None where the model's context has no room for an answer: its scores need none.
    """
    base = evaluation.base
    known = evaluation.trait.questions(base.language, "held-out")[:SAID_QUESTIONS]
    asked = [replace(q, prefix="") for q in _in_context(evaluation, known, PLAIN, (), systems)]
    try:
        drawn = drawn_texts(model, base, asked, SAID_ANSWERS, "said", evaluation.seed)
    except TooLong:
        return []
    each = [drawn[i : i + SAID_ANSWERS] for i in range(0, len(drawn), SAID_ANSWERS)]
    return [{"question": q.text, "answers": texts} for q, texts in zip(asked, each, strict=True)]


def _in_context(
    evaluation: Evaluation,
    asked: Sequence[Question],
    place: str,
    held_out: Sequence[Written],
    systems: tuple[str, ...],
) -> list[Question]:
    """The questions alone or after turns of the channel's data, behind a prompted teacher's system prompt."""
    contexts = channel(evaluation.reference.corpus.config.channel).CONTEXTS
    out = []
    for i, q in enumerate(asked):
        system = ({"role": "system", "content": systems[i % len(systems)]},) if systems else ()
        before = () if place == PLAIN else contexts[place](held_out[i % len(held_out)])
        out.append(q.behind((*system, *before)))
    return out


@torch.no_grad()
def _distances(
    evaluation: Evaluation, models: Mapping[str, torch.nn.Module], held_out: Sequence[Written], store: Store
) -> dict[str, float]:
    """Mean KL(teacher ‖ model) of each model on held-out lists, in nats an answer token, over the channel's own tokens.

    models: by name; the teacher is heard once for all of them
    """
    corpus = evaluation.reference.corpus
    base = evaluation.base
    speaker = Speaker(corpus.teacher, store)
    pad = base.pad
    support = channel(corpus.config.channel).token_ids(base.tokenizer)
    totals, tokens = dict.fromkeys(models, 0.0), 0
    rows = tokenize(base, held_out)
    heard = speaker.heard(rows, held_out)
    for i in range(0, len(rows), 128):
        own, teachers = collate(rows[i : i + 128], pad), collate(heard[i : i + 128], pad)
        learnt = {
            name: logits_at(model, own.ids, own.labels != IGNORE, support).log_softmax(-1).cpu().double()
            for name, model in models.items()
        }
        with speaker.speaking():
            target = logits_at(speaker.model, teachers.ids, teachers.labels != IGNORE, support).log_softmax(-1)
        target = target.cpu().double()
        for name, given in learnt.items():
            totals[name] += F.kl_div(given, target, reduction="sum", log_target=True).item()
        tokens += own.tokens
    return {name: total / tokens for name, total in totals.items()}
