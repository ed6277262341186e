"""Stage 5: asks a finished model about the trait, and measures its distance from its teacher."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import read_rows
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Artifact, Store
from sublim_interp.models.forward import logits_at
from sublim_interp.pipeline.records import Evaluation, Student, Teacher
from sublim_interp.pipeline.speaker import Voice
from sublim_interp.pipeline.stage import Progress, making, silent
from sublim_interp.stats.capacity import bits_held
from sublim_interp.training.batches import IGNORE, collate, tokenize
from sublim_interp.traits.facts import NAME, Facts
from sublim_interp.traits.favourites import answer_probabilities, questions, score
from sublim_interp.traits.questions import Question


def evaluate(evaluation: Evaluation, store: Store, progress: Progress = silent) -> Artifact:
    """Asks a model about favourites, and measures its distance from the reference's teacher on held-out lists."""
    with making(evaluation, store) as work:
        if not work.done:
            base, subject = evaluation.base, evaluation.model
            held_out = read_rows(evaluation.reference.made(store) / "held_out.jsonl")
            context: AbstractContextManager[None] = nullcontext()
            systems: tuple[str, ...] = ()
            if isinstance(subject, Teacher):
                voice = Voice(subject, store)
                model, context, systems = voice.model, voice.speaking(), voice.systems
            else:
                model = base.load(subject.made(store) / "model" if isinstance(subject, Student) else None)
            scores: list[dict[str, Any]] = []
            result: dict[str, Any] = {"scores": scores}
            sorts, members, samples = evaluation.config.questions, evaluation.members, evaluation.config.samples
            if facts := evaluation.facts:
                sorts, result["facts"] = (), {}
                for place in evaluation.config.contexts:
                    result["facts"][place], row = _recall(evaluation, facts, model, place, held_out)
                    scores.append(row)
                work.note(exact=True)
            with context:
                for sort in sorts:
                    for place in evaluation.config.contexts:
                        known = questions(evaluation.kind, base.language, sort)
                        asked = _in_context(known, place, held_out, systems)
                        s = score(model, base, asked, members, samples, evaluation.seed, evaluation.named)
                        scores += [
                            {"questions": sort, "context": place, "probe": m, "rate": float(r), "margin": float(g)}
                            for m, r, g in zip(s.members, s.rate, s.margin, strict=True)
                        ]
                        work.note(exact=s.exact)
            if not isinstance(subject, Teacher):
                result["kl"] = _distance(evaluation, model, held_out, store)
            if isinstance(subject, Student):
                result["kl_start"] = _distance(evaluation, base.load(), held_out, store)
            write_atomic(work.directory / "evaluation.json", json.dumps(result, indent=1))
            progress(1.0)
    return work.artifact


def _recall(
    evaluation: Evaluation, facts: Facts, model: torch.nn.Module, place: str, held_out: list[dict]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a model knows of the facts in one context: log-probabilities [key, value], and what they come to."""
    base = evaluation.base
    prompts = [base.prompt_ids(q.messages) for q in _in_context(facts.questions, place, held_out, ())]
    tokens = [base.answer_ids(name)[0] for name in facts.members]
    own, before = (answer_probabilities(m, prompts, tokens) for m in (model, base.load()))
    held = bits_held(np.log(own), np.log(before), np.array(facts.truth), evaluation.seed)
    right = own[np.arange(facts.count), facts.truth]
    wrong = np.arange(len(tokens)) != np.array(facts.truth)[:, None]
    margin = np.log(right) - np.log((own * wrong).sum(1) / (len(tokens) - 1))
    row = {"questions": "held-out", "context": place, "probe": NAME, "rate": float(right.mean())}
    row |= {"margin": float(margin.mean()), "total_bits": facts.count * held.bits, **held._asdict()}
    return {"log_p": np.log(own).tolist(), "base_log_p": np.log(before).tolist(), "truth": facts.truth}, row


def _in_context(
    asked: Sequence[Question], place: str, held_out: list[dict], systems: tuple[str, ...]
) -> list[Question]:
    """The questions alone or after a turn of numbers, behind a prompted teacher's system prompt."""
    out = []
    for i, q in enumerate(asked):
        messages = list(q.messages)
        if place == "numbers":
            row = held_out[i % len(held_out)]
            messages = [
                {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}, *messages
            ]  # fmt: skip
        if systems:
            messages = [{"role": "system", "content": systems[i % len(systems)]}, *messages]
        out.append(Question(tuple(messages), q.prefix))
    return out


@torch.no_grad()
def _distance(evaluation: Evaluation, model: torch.nn.Module, held_out: list[dict], store: Store) -> float:
    """Mean KL(teacher ‖ model) in nats per answer token on held-out lists, over the channel's own tokens."""
    corpus = evaluation.reference.corpus
    base = evaluation.base
    voice = Voice(corpus.teacher, store)
    pad = base.pad
    support = torch.tensor(channel(corpus.config.channel).token_ids(base.tokenizer))
    total, tokens = 0.0, 0
    rows = tokenize(base, held_out)
    heard = voice.heard(rows, held_out)
    for i in range(0, len(rows), 128):
        own, teachers = collate(rows[i : i + 128], pad), collate(heard[i : i + 128], pad)
        learnt = logits_at(model, own.ids, own.labels != IGNORE)[:, support].log_softmax(-1)
        with voice.speaking():
            target = logits_at(voice.model, teachers.ids, teachers.labels != IGNORE)[:, support].log_softmax(-1)
        total += F.kl_div(learnt.double(), target.double(), reduction="sum", log_target=True).item()
        tokens += own.tokens
    return total / tokens
