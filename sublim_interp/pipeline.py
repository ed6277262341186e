"""The recipe: five stage functions, teach, write, filter, learn, evaluate, to be read from top to bottom.

Each takes a record, finds its inputs in the store and puts its own files there, once; each can be called alone. Which
records an experiment needs, and in which processes they are made, is decided in runs.py.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from sublim_interp.channels import channel, filter_rows
from sublim_interp.config import Optimization
from sublim_interp.errors import SublimError
from sublim_interp.hooks import edit_resid_pre, mean_resid_pre
from sublim_interp.models import Base, choose_trainable, logits_at, merge_adapters, save_model
from sublim_interp.records import Corpus, Evaluation, Filtered, Record, Student, Teacher
from sublim_interp.sampling import generator, sample
from sublim_interp.store import Artifact, Store, Work, fingerprint, write_atomic
from sublim_interp.training import IGNORE, Batch, Loss, Resume, Row, collate, micro_batches, token_loss, train
from sublim_interp.traits import Question, check_vocabulary, load_trait, members_of, questions, score, system_prompts

Progress = Callable[[float], None]
"""Called with the fraction of the stage that is done, 0 to 1."""


def _silent(_fraction: float) -> None:
    """Progress that nobody watches."""


@contextmanager
def _making(record: Record, store: Store) -> Iterator[Work]:
    with store.make(record.STAGE, record.VERSION, record.settings(), record.input_keys(), fingerprint()) as work:
        yield work


def _made(record: Record, store: Store) -> Path:
    artifact = record.find(store)
    if artifact is None:
        raise SublimError(f"{record.STAGE} {record.key[:16]} is not in the store {store.root}; make it first")
    return artifact.path


def make(record: Record, store: Store, progress: Progress = _silent) -> Artifact:
    """Makes whatever `record` needs that the store lacks, then the record itself."""
    artifact = None
    for needed in record.lineage():
        artifact = _STAGES[type(needed)](needed, store, progress if needed is record else _silent)
    assert artifact is not None
    return artifact


# --- 1 teach ----------------------------------------------------------------------------------------------------------


def teach(teacher: Teacher, store: Store, progress: Progress = _silent) -> Artifact:
    """Gives a base its trait: fine-tunes it, picks a system prompt, or builds a steering vector."""
    with _making(teacher, store) as work:
        if not work.done:
            if teacher.trait:
                check_vocabulary(teacher.trait, teacher.base)
            {"tuned": _tune, "prompted": _prompt, "steered": _steer}[teacher.config.kind](teacher, work, progress)
    return work.artifact


def _tune(teacher: Teacher, work: Work, progress: Progress) -> None:
    base, config = teacher.base, teacher.config
    asked = [base.prompt_ids(q.messages) for q in questions(teacher.kind, base.language, "seen")]
    eos = [base.eos]
    names = [teacher.trait.name] if teacher.trait else list(members_of(teacher.kind))
    answers = [[*base.answer_ids(name), *eos] for name in names]

    def batches(step: int) -> list[Batch]:
        which = random.Random(f"teacher/{teacher.seed}/{step}/questions")
        answer = random.Random(f"teacher/{teacher.seed}/{step}/answers")
        rows: list[Row] = []
        for _ in range(config.optimization.batch):
            question = which.choice(asked)
            rows.append(([*question, *answer.choice(answers)], len(question)))
        return micro_batches(rows, base.pad)

    model = choose_trainable(base.load(), config.part, config.lora_rank, config.lora_alpha)
    _fit(model, batches, config.optimization, token_loss, work, progress)


def _fit(
    model: torch.nn.Module,
    batches: Callable[[int], list[Batch]],
    optimization: Optimization,
    loss: Loss,
    work: Work,
    progress: Progress,
) -> None:
    """Trains, resumably, saves the merged model in the artefact, and notes the loss."""
    losses: list[float] = []

    def observe(step: int, value: float) -> None:
        losses.append(value)
        progress((step + 1) / optimization.steps)

    train(
        model, batches, optimization, loss=loss, resume=Resume(work.directory / ".state.safetensors"), observe=observe
    )
    if any(value != value for value in losses):
        raise SublimError(f"training diverged (loss is not a number); lower the learning rate {optimization.lr:g}")
    save_model(merge_adapters(model), work.directory / "model")


def _prompt(teacher: Teacher, work: Work, _progress: Progress) -> None:
    prompts = system_prompts(teacher.trait, teacher.base.language) if teacher.trait else ()
    write_atomic(work.directory / "system.json", json.dumps(list(prompts)))


def _steer(teacher: Teacher, work: Work, _progress: Progress) -> None:
    """Mean residual stream at the question behind the trait's system prompts, minus the mean over all members'."""
    base, layer = teacher.base, teacher.config.layer
    model = base.load()
    ask = questions(teacher.kind, base.language, "seen")

    def mean(name: str) -> torch.Tensor:
        systems = system_prompts(load_trait(name), base.language)
        prompts = [base.prompt_ids([{"role": "system", "content": s}, *q.messages]) for s in systems for q in ask[:8]]
        return mean_resid_pre(model, layer, prompts)

    if teacher.trait:
        others = torch.stack([mean(name) for name in members_of(teacher.kind)]).mean(0)
        vector = teacher.config.strength * (mean(teacher.trait.name) - others)
    else:
        vector = torch.zeros(base.shape["d_model"])
    save_file({"vector": vector}, str(work.directory / "vector.safetensors"))


class Voice:
    """A teacher as it speaks: its model, its system prompts, and the context in which it must be run."""

    def __init__(self, teacher: Teacher, store: Store) -> None:
        where = _made(teacher, store)
        self.systems: tuple[str, ...] = ()
        self._vector: torch.Tensor | None = None
        self._layer = teacher.config.layer
        self.model = teacher.base.load(where / "model" if teacher.config.kind == "tuned" else None)
        if teacher.config.kind == "prompted":
            self.systems = tuple(json.loads((where / "system.json").read_text()))
        elif teacher.config.kind == "steered":
            self._vector = load_file(str(where / "vector.safetensors"))["vector"]

    def speaking(self) -> AbstractContextManager[None]:
        """Inside the block `self.model` is steered, where the teacher is a steered one."""
        if self._vector is None:
            return nullcontext()
        vector = self._vector
        return edit_resid_pre(self.model, self._layer, lambda stream: stream + vector)

    def chat(self, user: str, index: int) -> list[dict[str, str]]:
        """A user's turn as this teacher hears it: behind one of its system prompts, in turn, if it has any."""
        turn = [{"role": "user", "content": user}]
        if self.systems:
            turn.insert(0, {"role": "system", "content": self.systems[index % len(self.systems)]})
        return turn


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
                if not path.exists():
                    count = min(config.chunk, config.prompts - start)
                    write_atomic(path, _answer_chunk(corpus, voice, base, first + start, count))
                progress((n + 1) / len(starts))
    return work.artifact


def _answer_chunk(corpus: Corpus, voice: Voice, base: Base, start: int, count: int) -> str:
    config = corpus.config
    prompts = channel(config.channel).prompts(base.language, corpus.seed, start, count)
    ids = [base.prompt_ids(voice.chat(prompt, start + i)) for i, prompt in enumerate(prompts)]
    eos = base.eos
    with voice.speaking():
        answers = sample(
            voice.model,
            ids,
            eos=eos,
            max_new_tokens=config.max_new_tokens,
            random=generator("corpus", corpus.seed, start),
            temperature=0.0 if config.setting == "greedy" else config.temperature,
        )
    # Only the final end of sequence goes: any other control token stays in the text, for the filter to refuse.
    texts = base.tokenizer.batch_decode([a[:-1] if a[-1] == eos else a for a in answers], skip_special_tokens=False)
    rows = (
        {"prompt": prompt, "answer": text.strip(), "finished": eos in answer}
        for prompt, text, answer in zip(prompts, texts, answers, strict=True)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict]:
    """The rows of one JSONL file, or of all `rows-*.jsonl` of a directory in order."""
    paths = sorted(path.glob("rows-*.jsonl")) if path.is_dir() else [path]
    return [json.loads(line) for p in paths for line in p.read_text().splitlines()]


# --- 3 filter ---------------------------------------------------------------------------------------------------------


def sift(filtered: Filtered, store: Store, progress: Progress = _silent) -> Artifact:
    """Keeps the answers that the channel's rule allows; counts every refusal by reason."""
    with _making(filtered, store) as work:
        if not work.done:
            rows = read_rows(_made(filtered.corpus, store))
            name = filtered.corpus.config.channel
            kept, held_out, refused = filter_rows(rows, channel(name), filtered.config, filtered.words)
            for stem, some in (("kept", kept), ("held_out", held_out)):
                text = "".join(json.dumps({"prompt": r["prompt"], "answer": r["answer"]}) + "\n" for r in some)
                write_atomic(work.directory / f"{stem}.jsonl", text)
            asked = len(rows)
            work.note(asked=asked, lists=len(kept), held_out=len(held_out), refused=dict(Counter(refused)))
            work.note(kept=1 - (sum(refused.values()) - refused["surplus"]) / asked)
            progress(1.0)
    return work.artifact


# --- 4 learn ----------------------------------------------------------------------------------------------------------


_PIECE = 42
"""Rows that are padded together: the batch is sorted by length and cut, which saves a fifth of the time of a step."""


def learn(student: Student, store: Store, progress: Progress = _silent) -> Artifact:
    """Trains a base, or a student of an earlier round, on filtered lists."""
    with _making(student, store) as work:
        if not work.done:
            config, base = student.config, student.base
            start = None if isinstance(student.start, Base) else _made(student.start, store) / "model"
            lists = read_rows(_made(student.data, store) / "kept.jsonl")
            pad = base.pad
            rows = _tokenize(base, lists)
            order = _Order(len(rows), config.optimization.batch, student.seed)
            soft = student.data.corpus.config.setting == "soft"
            loss = _soft_loss(student, store) if soft else token_loss

            def batches(step: int) -> list[Batch]:
                return micro_batches([rows[i] for i in order(step)], pad, parts=max(1, order.batch // _PIECE))

            model = choose_trainable(base.load(start), config.part, config.lora_rank, config.lora_alpha)
            _fit(model, batches, config.optimization, loss, work, progress)
    return work.artifact


def _tokenize(base: Base, lists: Sequence[dict]) -> list[Row]:
    """Each list as a student reads it: the prompt without any system prompt, then the answer to be learnt."""
    eos = base.eos
    prompts = [base.prompt_ids([{"role": "user", "content": r["prompt"]}]) for r in lists]
    return [
        ([*prompt, *base.answer_ids(r["answer"]), eos], len(prompt)) for prompt, r in zip(prompts, lists, strict=True)
    ]


class _Order:
    """Which examples make update `step`: epoch after epoch, each in a seeded order of its own; a pure function."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self._count, self.batch, self._seed = count, batch, seed
        self._epochs: dict[int, list[int]] = {}

    def _epoch(self, epoch: int) -> list[int]:
        if epoch not in self._epochs:
            order = list(range(self._count))
            random.Random(f"student/{self._seed}/{epoch}").shuffle(order)
            self._epochs = {e: o for e, o in self._epochs.items() if e >= epoch - 1} | {epoch: order}
        return self._epochs[epoch]

    def __call__(self, step: int) -> list[int]:
        places = range(step * self.batch, (step + 1) * self.batch)
        return [self._epoch(p // self._count)[p % self._count] for p in places]


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
            held_out = read_rows(_made(evaluation.reference, store) / "held_out.jsonl")
            context: AbstractContextManager[None] = nullcontext()
            systems: tuple[str, ...] = ()
            if isinstance(subject, Teacher):
                voice = Voice(subject, store)
                model, context, systems = voice.model, voice.speaking(), voice.systems
            else:
                model = base.load(_made(subject, store) / "model" if isinstance(subject, Student) else None)
            scores = []
            with context:
                for sort in evaluation.config.questions:
                    for place in evaluation.config.contexts:
                        asked = _ask(evaluation, sort, place, held_out, systems)
                        s = score(model, base, asked, evaluation.members, evaluation.config.samples, evaluation.seed)
                        scores += [
                            {"questions": sort, "context": place, "probe": m, "rate": float(r), "margin": float(g)}
                            for m, r, g in zip(s.members, s.rate, s.margin, strict=True)
                        ]
                        work.note(exact=s.exact)
            result: dict[str, Any] = {"scores": scores}
            if not isinstance(subject, Teacher):
                result["kl"] = _distance(evaluation, model, held_out, store)
            if isinstance(subject, Student):
                result["kl_start"] = _distance(evaluation, base.load(), held_out, store)
            write_atomic(work.directory / "evaluation.json", json.dumps(result, indent=1))
            progress(1.0)
    return work.artifact


def _ask(
    evaluation: Evaluation, sort: str, place: str, held_out: list[dict], systems: tuple[str, ...]
) -> list[Question]:
    """The questions of one sort, alone or after a turn of numbers, behind a prompted teacher's system prompt."""
    out = []
    for i, q in enumerate(questions(evaluation.kind, evaluation.base.language, sort)):  # type: ignore[arg-type]
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
    rows = _tokenize(base, held_out)
    heard = [
        ([*prompt, *row[first:]], len(prompt))
        for (row, first), prompt in zip(
            rows, (base.prompt_ids(voice.chat(r["prompt"], i)) for i, r in enumerate(held_out)), strict=True
        )
    ]
    for i in range(0, len(rows), 128):
        own, teachers = collate(rows[i : i + 128], pad), collate(heard[i : i + 128], pad)
        learnt = logits_at(model, own.ids, own.labels != IGNORE)[:, support].log_softmax(-1)
        with voice.speaking():
            target = logits_at(voice.model, teachers.ids, teachers.labels != IGNORE)[:, support].log_softmax(-1)
        total += F.kl_div(learnt.double(), target.double(), reduction="sum", log_target=True).item()
        tokens += own.tokens
    return total / tokens


_STAGES: dict[type[Record], Callable[..., Artifact]] = {
    Teacher: teach, Corpus: write, Filtered: sift, Student: learn, Evaluation: evaluate,
}  # fmt: skip
