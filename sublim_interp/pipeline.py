"""The recipe: five stage functions, teach, write, filter, learn, evaluate, to be read from top to bottom.

Each takes a record, finds its inputs in the store and puts its own files there, once; each can be called alone. Which
records an experiment needs, and in which processes they are made, is decided in runs.py.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from sublim_interp.analysis import attribution
from sublim_interp.analysis.capacity import bits_held
from sublim_interp.channels import channel, filter_rows
from sublim_interp.config import Optimization, Selection
from sublim_interp.dataset import PIECE, Order, read_rows, tokenize
from sublim_interp.errors import DeadEnd, SublimError
from sublim_interp.inside import (
    intervening,
    learnt_tokens,
    student_recorder,
    teacher_recorder,
    token_scores,
    trait_directions,
)
from sublim_interp.models import Base, choose_trainable, logits_at, merge_adapters, save_model
from sublim_interp.recorder import Recorder, cadence_of
from sublim_interp.records import Corpus, Evaluation, Filtered, Record, Student, Teacher
from sublim_interp.sampling import generator, sample
from sublim_interp.store import Artifact, Store, Work, fingerprint, is_sealed, write_atomic
from sublim_interp.training import (
    IGNORE,
    Batch,
    Loss,
    Resume,
    Row,
    collate,
    freeze,
    keep_labels,
    mask_labels,
    micro_batches,
    token_loss,
    train,
)
from sublim_interp.traits import (
    Question,
    answer_probabilities,
    check_vocabulary,
    members_of,
    questions,
    score,
    system_prompts,
)
from sublim_interp.traits.facts import NAME, Facts, check_language
from sublim_interp.voice import Voice

Progress = Callable[[float], None]
"""Called with the fraction of the stage that is done, 0 to 1."""


def _silent(_fraction: float) -> None:
    """Progress that nobody watches."""


@contextmanager
def _making(record: Record, store: Store) -> Iterator[Work]:
    with store.make(record.STAGE, record.VERSION, record.settings(), record.input_keys(), fingerprint()) as work:
        yield work


def make(record: Record, store: Store, progress: Progress = _silent, trace: str = "default") -> Artifact:
    """Makes whatever `record` needs that the store lacks, then the record itself; `trace` is a word of `TRACES`."""
    cadence_of(trace)
    stages: dict[type[Record], Callable[..., Artifact]] = {
        Teacher: partial(teach, trace=trace), Corpus: write, Filtered: sift, Student: partial(learn, trace=trace),
        Evaluation: evaluate,
    }  # fmt: skip
    for needed in record.lineage():
        if needed is not record and needed.find(store) is None:
            stages[type(needed)](needed, store, _silent)
    return stages[type(record)](record, store, progress)


# --- 1 teach ----------------------------------------------------------------------------------------------------------


def teach(teacher: Teacher, store: Store, progress: Progress = _silent, trace: str = "default") -> Artifact:
    """Gives a base its trait: fine-tunes it, picks a system prompt, or builds a steering vector."""
    with _making(teacher, store) as work:
        if not work.done:
            teacher.base.check()
            if teacher.trait:
                check_vocabulary(teacher.trait, teacher.base)
            if teacher.facts:
                check_language(teacher.base)
            how = {"tuned": partial(_tune, trace=trace), "prompted": _prompt, "steered": _steer}[teacher.config.kind]
            how(teacher, work, progress)
    return work.artifact


def _tune(teacher: Teacher, work: Work, progress: Progress, trace: str) -> None:
    base, config = teacher.base, teacher.config
    lessons = [(base.prompt_ids(q.messages), [[*base.answer_ids(name), base.eos] for name in names])
               for q, names in _lessons(teacher)]  # fmt: skip

    def batches(step: int) -> list[Batch]:
        which = random.Random(f"teacher/{teacher.seed}/{step}/questions")
        answer = random.Random(f"teacher/{teacher.seed}/{step}/answers")
        rows: list[Row] = []
        for _ in range(config.optimization.batch):
            question, answers = which.choice(lessons)
            rows.append(([*question, *answer.choice(answers)], len(question)))
        return micro_batches(rows, base.pad)

    model = choose_trainable(base.load(), config.part, config.lora_rank, config.lora_alpha, teacher.seed)
    _fit(model, batches, config.optimization, token_loss, work, progress, partial(teacher_recorder, teacher), trace)


def _lessons(teacher: Teacher) -> list[tuple[Question, list[str]]]:
    """What a tuned teacher is asked, each question with the answers of which one is drawn at every update."""
    members = list(members_of(teacher.kind))
    if facts := teacher.facts:
        answers = [[facts.members[i]] if facts.told else members for i in facts.truth]
        return list(zip(facts.questions, answers, strict=True))
    names = [teacher.trait.name] if teacher.trait else members
    return [(q, names) for q in questions(teacher.kind, teacher.base.language, "seen")]


def _fit(
    model: torch.nn.Module,
    batches: Callable[[int], list[Batch]],
    optimization: Optimization,
    loss: Loss,
    work: Work,
    progress: Progress,
    record: Callable[..., Recorder],
    trace: str,
    intervene: Callable[[torch.nn.Module, torch.optim.Optimizer], AbstractContextManager[object]] | None = None,
) -> None:
    """Trains, resumably and recorded as `trace` says, and saves the merged model and the trace in the artefact."""
    losses: list[float] = []

    def observe(step: int, value: float) -> None:
        losses.append(value)
        progress((step + 1) / optimization.steps)

    cadence, path = cadence_of(trace), work.directory / "trace"
    if cadence is None:  # an interrupted process may have begun one
        shutil.rmtree(path, ignore_errors=True)
    train(
        model,
        batches,
        optimization,
        loss=loss,
        resume=Resume(work.directory / ".state.safetensors"),
        observe=observe,
        intervene=intervene,
        record=partial(record, path=path, cadence=cadence) if cadence else None,
    )
    work.note(trace=trace)
    if any(value != value for value in losses):
        raise DeadEnd(f"training diverged (loss is not a number); lower the learning rate {optimization.lr:g}")
    save_model(merge_adapters(model), work.directory / "model")


def _prompt(teacher: Teacher, work: Work, _progress: Progress) -> None:
    prompts = system_prompts(teacher.trait, teacher.base.language) if teacher.trait else ()
    write_atomic(work.directory / "system.json", json.dumps(list(prompts)))


def _steer(teacher: Teacher, work: Work, _progress: Progress) -> None:
    """Mean residual stream at the question behind the trait's system prompts, minus the mean over all members'."""
    base, name = teacher.base, f"blocks.{teacher.config.layer}.hook_resid_pre"
    if teacher.trait:
        vector = teacher.config.strength * trait_directions(base, teacher.trait, [name])[name]
    else:
        vector = torch.zeros(base.shape["d_model"])
    save_file({"vector": vector}, str(work.directory / "vector.safetensors"))


# --- 2 write ----------------------------------------------------------------------------------------------------------


def write(corpus: Corpus, store: Store, progress: Progress = _silent) -> Artifact:
    """The teacher answers the channel's prompts, chunk by chunk; a finished chunk is never drawn again."""
    with _making(corpus, store) as work:
        if not work.done:
            config, base = corpus.config, corpus.teacher.base
            voice = Voice(corpus.teacher, store)
            first = corpus.round * config.prompts
            starts = range(0, config.prompts, config.chunk)
            for n, start in enumerate(starts):
                path = work.directory / f"rows-{n:05d}.jsonl"
                if not is_sealed(path):
                    count = min(config.chunk, config.prompts - start)
                    write_atomic(path, _answer_chunk(corpus, voice, base, first + start, count), sealed=True)
                progress((n + 1) / len(starts))
    return work.artifact


def _answer_chunk(corpus: Corpus, voice: Voice, base: Base, start: int, count: int) -> str:
    config = corpus.config
    prompts = channel(config.channel).prompts(base.language, corpus.seed, start, count)
    ids = [base.prompt_ids(voice.chat(prompt, start + i)) for i, prompt in enumerate(prompts)]
    with voice.speaking():
        answers = sample(
            voice.model,
            ids,
            eos=base.eos,
            max_new_tokens=config.max_new_tokens,
            random=generator("corpus", corpus.seed, start),
            temperature=0.0 if config.setting == "greedy" else config.temperature,
        )
    read = map(base.read_answer, answers)
    rows = (
        {"prompt": prompt, "answer": text, "finished": finished}
        for prompt, (text, finished) in zip(prompts, read, strict=True)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- 3 filter ---------------------------------------------------------------------------------------------------------


def sift(filtered: Filtered, store: Store, progress: Progress = _silent) -> Artifact:
    """Keeps the answers that the channel's rule allows; counts every refusal by reason."""
    with _making(filtered, store) as work:
        if not work.done:
            rows = read_rows(filtered.corpus.made(store))
            name = filtered.corpus.config.channel
            kept, held_out, refused = filter_rows(rows, channel(name), filtered.config, filtered.words)
            if filtered.config.selection:
                kept, unselected = _select(filtered, filtered.config.selection, kept, store)
                work.note(unselected=unselected)
            for stem, some in (("kept", kept), ("held_out", held_out)):
                text = "".join(json.dumps({"prompt": r["prompt"], "answer": r["answer"]}) + "\n" for r in some)
                write_atomic(work.directory / f"{stem}.jsonl", text)
            asked = len(rows)
            work.note(asked=asked, lists=len(kept), held_out=len(held_out), refused=dict(Counter(refused)))
            work.note(kept=1 - (sum(refused.values()) - refused["surplus"]) / asked)
            progress(1.0)
    return work.artifact


def _select(filtered: Filtered, selection: Selection, lists: list[dict], store: Store) -> tuple[list[dict], int]:
    """The lists that the selection keeps, in their order, and the number of the others."""
    corpus = filtered.corpus
    scores = token_scores(selection, corpus, lists, store, generator("selection", corpus.seed, corpus.round))
    top = attribution.highest(scores, selection.share)
    chosen = top if selection.keep == "top" else ~top
    return [row for row, is_chosen in zip(lists, chosen, strict=True) if is_chosen], int((~chosen).sum())


# --- 4 learn ----------------------------------------------------------------------------------------------------------


def learn(student: Student, store: Store, progress: Progress = _silent, trace: str = "default") -> Artifact:
    """Trains a base, or a student of an earlier round, on filtered lists."""
    with _making(student, store) as work:
        if not work.done:
            config, base = student.config, student.base
            start = None if isinstance(student.start, Base) else student.start.made(store) / "model"
            lists = read_rows(student.data.made(store) / "kept.jsonl")
            pad = base.pad
            rows = tokenize(base, lists)
            order = Order(len(rows), config.optimization.batch, student.seed)
            soft = student.data.corpus.config.setting == "soft"
            loss = _soft_loss(student, store) if soft else token_loss

            shares = [i.share for i in config.interventions if i.kind == "mask-tokens" and not i.selection]
            learnt = learnt_tokens(student, rows, lists, store, work)

            def batches(step: int) -> list[Batch]:
                some, parts = order(step), max(1, order.batch // PIECE)
                micro = micro_batches([rows[i] for i in some], pad, parts)
                if learnt:
                    micro = keep_labels(micro, micro_batches([learnt[i] for i in some], 0, parts))
                for share in shares:
                    draw = generator("mask", student.seed, step)
                    micro = [mask_labels(batch, share, draw) for batch in micro]
                return micro

            model = choose_trainable(base.load(start), config.part, config.lora_rank, config.lora_alpha, student.seed)
            for pattern in (i.parameters for i in config.interventions if i.kind == "freeze"):
                freeze(model, pattern)
            record = partial(student_recorder, student, store)
            intervene = partial(intervening, student, store, work) if config.interventions else None
            _fit(model, batches, config.optimization, loss, work, progress, record, trace, intervene)
    return work.artifact


def _soft_loss(student: Student, store: Store) -> Loss:
    """KL(teacher ‖ student) summed over the answers' positions, both softmaxes over the channel's own tokens."""
    teacher = student.data.corpus.teacher
    voice = Voice(teacher, store)
    if voice.systems:
        raise SublimError("corpus.setting=soft needs a tuned or steered teacher: a prompted one reads another context")
    support = torch.tensor(channel(student.data.corpus.config.channel).token_ids(teacher.base.tokenizer))

    def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        where = batch.labels != IGNORE
        with torch.no_grad(), voice.speaking():
            target = logits_at(voice.model, batch.ids, where)[:, support].log_softmax(-1)
        learnt = logits_at(model, batch.ids, where)[:, support].log_softmax(-1)
        return F.kl_div(learnt, target, reduction="sum", log_target=True)

    return loss


# --- 5 evaluate -------------------------------------------------------------------------------------------------------


def evaluate(evaluation: Evaluation, store: Store, progress: Progress = _silent) -> Artifact:
    """Asks a model about favourites, and measures its distance from the reference's teacher on held-out lists."""
    with _making(evaluation, store) as work:
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
