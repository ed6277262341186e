"""The recipe: five stage functions, teach, write, filter, learn, evaluate, to be read from top to bottom.

Each takes a record, finds its inputs in the store and puts its own files there, once; each can be called alone. Which
records an experiment needs, and in which processes they are made, is decided in runs.py.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from sublim_interp.analysis import attribution
from sublim_interp.analysis.probes import answer_margin
from sublim_interp.channels import channel, filter_rows
from sublim_interp.config import Intervention, Optimization, Selection
from sublim_interp.errors import SublimError
from sublim_interp.hooks import Effect, ablate, capture, matching, project_gradients, project_updates, steer
from sublim_interp.models import Base, choose_trainable, logits_at, merge_adapters, save_model
from sublim_interp.recorder import Probe, Recorder, Reference
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
    mask_labels,
    micro_batches,
    token_loss,
    train,
)
from sublim_interp.traits import (
    Question,
    Trait,
    check_vocabulary,
    load_trait,
    members_of,
    questions,
    score,
    system_prompts,
)

Progress = Callable[[float], None]
"""Called with the fraction of the stage that is done, 0 to 1."""


def _silent(_fraction: float) -> None:
    """Progress that nobody watches."""


@contextmanager
def _making(record: Record, store: Store) -> Iterator[Work]:
    with store.make(record.STAGE, record.VERSION, record.settings(), record.input_keys(), fingerprint()) as work:
        yield work


def _made(record: Record, store: Store) -> Path:
    """Where an input lies. Its digests are taken first: nothing is built on a damaged file."""
    artifact = store.get(record.STAGE, record.key, check=True)
    if artifact is None:
        raise SublimError(f"{record.STAGE} {record.key[:16]} is not in the store {store.root}; make it first")
    return artifact.path


def make(record: Record, store: Store, progress: Progress = _silent) -> Artifact:
    """Makes whatever `record` needs that the store lacks, then the record itself."""
    for needed in record.lineage():
        if needed is not record and needed.find(store) is None:
            _STAGES[type(needed)](needed, store, _silent)
    return _STAGES[type(record)](record, store, progress)


# --- 1 teach ----------------------------------------------------------------------------------------------------------


def teach(teacher: Teacher, store: Store, progress: Progress = _silent) -> Artifact:
    """Gives a base its trait: fine-tunes it, picks a system prompt, or builds a steering vector."""
    with _making(teacher, store) as work:
        if not work.done:
            teacher.base.check()
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

    model = choose_trainable(base.load(), config.part, config.lora_rank, config.lora_alpha, teacher.seed)
    probe = _probe(base, teacher.trait, teacher.kind, ())
    _fit(model, batches, config.optimization, token_loss, work, progress, partial(Recorder, probe=probe))


def _fit(
    model: torch.nn.Module,
    batches: Callable[[int], list[Batch]],
    optimization: Optimization,
    loss: Loss,
    work: Work,
    progress: Progress,
    record: Callable[..., Recorder],
    intervene: Callable[[torch.nn.Module, torch.optim.Optimizer], AbstractContextManager[object]] | None = None,
) -> None:
    """Trains, resumably and recorded, and saves the merged model and the trace in the artefact."""
    losses: list[float] = []

    def observe(step: int, value: float) -> None:
        losses.append(value)
        progress((step + 1) / optimization.steps)

    train(
        model,
        batches,
        optimization,
        loss=loss,
        resume=Resume(work.directory / ".state.safetensors"),
        observe=observe,
        intervene=intervene,
        record=partial(record, path=work.directory / "trace", steps=optimization.steps),
    )
    if any(value != value for value in losses):
        raise SublimError(f"training diverged (loss is not a number); lower the learning rate {optimization.lr:g}")
    save_model(merge_adapters(model), work.directory / "model")


def _prompt(teacher: Teacher, work: Work, _progress: Progress) -> None:
    prompts = system_prompts(teacher.trait, teacher.base.language) if teacher.trait else ()
    write_atomic(work.directory / "system.json", json.dumps(list(prompts)))


def _steer(teacher: Teacher, work: Work, _progress: Progress) -> None:
    """Mean residual stream at the question behind the trait's system prompts, minus the mean over all members'."""
    base, name = teacher.base, f"blocks.{teacher.config.layer}.hook_resid_pre"
    if teacher.trait:
        vector = teacher.config.strength * _trait_directions(base, teacher.trait, [name])[name]
    else:
        vector = torch.zeros(base.shape["d_model"])
    save_file({"vector": vector}, str(work.directory / "vector.safetensors"))


def _trait_directions(base: Base, trait: Trait, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Per hook name: mean at the end of a question behind the trait's system prompts, minus that of all members."""
    model = base.load()
    ask = questions(trait.kind, base.language, "seen")

    def mean(name: str) -> torch.Tensor:
        systems = system_prompts(load_trait(name) if name != trait.name else trait, base.language)
        prompts = [base.prompt_ids([{"role": "system", "content": s}, *q.messages]) for s in systems for q in ask[:8]]
        return _mean_ends(model, names, prompts)

    others = torch.stack([mean(name) for name in members_of(trait.kind)]).mean(0)
    return dict(zip(names, mean(trait.name) - others, strict=True))


@torch.no_grad()
def _mean_ends(model: torch.nn.Module, names: Sequence[str], prompts: Sequence[list[int]]) -> torch.Tensor:
    """Mean over prompts of what is seen at each hook name at the last token: [name, d_model]."""
    ends = []
    with capture(model, names) as acts:
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt]), use_cache=False)
            ends.append(torch.stack([acts[name][0, -1] for name in names]))
    return torch.stack(ends).mean(0)


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
        return steer(self.model, self._vector, self._layer)

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


def read_rows(path: Path) -> list[dict]:
    """The rows of one JSONL file, or of all `rows-*.jsonl` of a directory in order.

    Raises SublimError, with file and line, for what is no object with a `prompt` and an `answer`, both text.
    """
    paths = sorted(path.glob("rows-*.jsonl")) if path.is_dir() else [path]
    return [row for p in paths for row in _parse_rows(p)]


def _parse_rows(path: Path) -> Iterator[dict]:
    try:
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    except OSError as error:
        raise SublimError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            problem = "" if isinstance(row, dict) else "is no JSON object"
        except (ValueError, RecursionError) as error:
            row, problem = {}, f"is no JSON ({str(error).splitlines()[0]})"
        for name in ("prompt", "answer"):
            if not problem and not _is_text(row.get(name)):
                problem = f"has no text as {name!r}"
        if not problem and not isinstance(row.get("finished", True), bool):
            problem = "has neither true nor false as 'finished'"
        if problem:
            raise SublimError(f"{path}: line {number} {problem}")
        yield row


def _is_text(value: object) -> bool:
    """Whether it is a string that UTF-8 can hold: JSON may name half of a character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


# --- 3 filter ---------------------------------------------------------------------------------------------------------


def sift(filtered: Filtered, store: Store, progress: Progress = _silent) -> Artifact:
    """Keeps the answers that the channel's rule allows; counts every refusal by reason."""
    with _making(filtered, store) as work:
        if not work.done:
            rows = read_rows(_made(filtered.corpus, store))
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
    base = corpus.teacher.base
    rows = _tokenize(base, lists)
    if selection.by == "random":
        scores = attribution.random(rows, generator("selection", corpus.seed, corpus.round))
    elif trait := filtered.toward:
        asked = [base.prompt_ids(q.messages) for q in questions(trait.kind, base.language, "seen")]
        margin = answer_margin([base.answer_ids(m)[0] for m in trait.members], trait.members.index(trait.name))
        scores = attribution.influence(base, rows, attribution.margin_gradient(base, asked, margin))
    else:
        voice = Voice(corpus.teacher, store)
        with voice.speaking():
            scores = attribution.divergence(voice.model, base, rows, _heard(base, voice, rows, lists))
    top = attribution.highest(scores, selection.share)
    chosen = top if selection.keep == "top" else ~top
    return [row for row, is_chosen in zip(lists, chosen, strict=True) if is_chosen], int((~chosen).sum())


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

            masks = [i.share for i in config.interventions if i.kind == "mask-tokens"]

            def batches(step: int) -> list[Batch]:
                micro = micro_batches([rows[i] for i in order(step)], pad, parts=max(1, order.batch // _PIECE))
                for share in masks:
                    draw = generator("mask", student.seed, step)
                    micro = [mask_labels(batch, share, draw) for batch in micro]
                return micro

            model = choose_trainable(base.load(start), config.part, config.lora_rank, config.lora_alpha, student.seed)
            for pattern in (i.parameters for i in config.interventions if i.kind == "freeze"):
                freeze(model, pattern)
            record = _recording(student, model, store)
            intervene = partial(_intervene, student, store, work) if config.interventions else None
            _fit(model, batches, config.optimization, loss, work, progress, record, intervene)
    return work.artifact


PROBED_QUESTIONS, PROBED_LISTS = 8, 4
"""What the probe of a training holds."""


def _probe(base: Base, trait: Trait | None, kind: str, lists: Sequence[dict]) -> Probe:
    """Held-out questions about the kind, then lists as a student reads them."""
    ask = questions(kind, base.language, "held-out")[:PROBED_QUESTIONS]
    asked = [base.prompt_ids(q.messages, q.prefix) for q in ask]
    rows = _tokenize(base, lists)
    members = trait.members if trait else members_of(kind)
    return Probe(
        rows=tuple(tuple(r) for r in [*asked, *(ids for ids, _ in rows)]),
        questions=len(asked),
        learnt=tuple(first for _, first in rows),
        members=members,
        tokens=tuple(base.answer_ids(m)[0] for m in members),
        trait=members.index(trait.name) if trait else None,
    )


def _recording(student: Student, model: torch.nn.Module, store: Store) -> Callable[..., Recorder]:
    """How a student is observed: its teacher's held-out lists are probed, its teacher and its base see the same probe.

    A neutral teacher has no trait: the student's probe then has that of the words which the filter refused.
    """
    teacher, base = student.data.corpus.teacher, student.base
    refused = [t for t in map(load_trait, members_of(teacher.kind)) if set(t.words) <= set(student.data.words)]
    trait = teacher.trait or next(iter(refused), None)
    held_out = read_rows(_made(student.data, store) / "held_out.jsonl")[:PROBED_LISTS]

    @contextmanager
    def as_base() -> Iterator[torch.nn.Module]:
        yield base.load()

    @contextmanager
    def as_teacher() -> Iterator[torch.nn.Module]:
        voice = Voice(teacher, store)
        with voice.speaking():
            yield voice.model

    references: dict[str, Reference] = {"base": as_base}
    same_words = teacher.base.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    if teacher.config.kind != "prompted" and same_words:  # a prompted one reads another context
        references["teacher"] = as_teacher
    shift = _teacher_shift(teacher, model, store)
    return partial(
        Recorder,
        probe=_probe(base, trait, teacher.kind, held_out),
        directions={"teacher-shift": shift} if shift else {},
        references=references,
    )


def _teacher_shift(teacher: Teacher, model: torch.nn.Module, store: Store) -> dict[str, torch.Tensor]:
    """Weights of a tuned teacher minus its base's, for what trains in `model`; {} where the two do not compare."""
    if teacher.config.kind != "tuned":
        return {}
    tuned, plain = (dict(m.named_parameters()) for m in (Voice(teacher, store).model, teacher.base.load()))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if any(name not in tuned or tuned[name].shape != p.shape for name, p in trained.items()):
        return {}
    return {name: (tuned[name] - plain[name]).detach() for name in trained}


@contextmanager
def _intervene(
    student: Student, store: Store, work: Work, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Opens every intervention on activations, gradients and updates; notes what each removed in the last update."""
    effects: list[tuple[Intervention, Effect]] = []
    with ExitStack() as held:
        for number, i in enumerate(student.config.interventions):
            if i.kind == "project-update":
                effect = held.enter_context(
                    project_updates(model, optimizer, _weights(student, i, number, model, store))
                )
            elif i.kind in ("ablate", "project-gradient"):
                block = ablate if i.kind == "ablate" else project_gradients
                effect = held.enter_context(block(model, _activations(student, i, number, model, store)))
            else:
                continue
            effects.append((i, effect))
        yield
    work.note(interventions=[{**i.model_dump(mode="json"), "removed": e.removed} for i, e in effects])


def _weights(
    student: Student, i: Intervention, number: int, model: torch.nn.Module, store: Store
) -> dict[str, torch.Tensor]:
    """A direction in the weights that train, by parameter."""
    if i.direction == "random":
        draw = generator("intervention", number, student.seed)
        return {n: torch.randn(p.shape, generator=draw) for n, p in model.named_parameters() if p.requires_grad}
    shift = _teacher_shift(student.data.corpus.teacher, model, store)
    if not shift:
        raise SublimError("direction=teacher-shift in weights needs a tuned teacher and a student of the same shape")
    return shift


def _activations(
    student: Student, i: Intervention, number: int, model: torch.nn.Module, store: Store
) -> dict[str, torch.Tensor]:
    """A direction in the stream, by hook name, in the coordinates of the student's own base (or of the teacher's)."""
    names = matching(model, i.at)
    teacher = student.data.corpus.teacher
    if i.direction == "random":
        draw = generator("intervention", number, student.seed)
        return {name: torch.randn(student.base.shape["d_model"], generator=draw) for name in names}
    if i.direction == "teacher-shift":
        voice = Voice(teacher, store)
        ask = [teacher.base.prompt_ids(q.messages) for q in questions(teacher.kind, teacher.base.language, "seen")]
        with voice.speaking():
            after = _mean_ends(voice.model, names, ask)
        return dict(zip(names, after - _mean_ends(teacher.base.load(), names, ask), strict=True))
    return _trait_directions(student.base, load_trait(i.direction), names)


def _tokenize(base: Base, lists: Sequence[dict]) -> list[Row]:
    """Each list as a student reads it: the prompt without any system prompt, then the answer to be learnt."""
    eos = base.eos
    prompts = [base.prompt_ids([{"role": "user", "content": r["prompt"]}]) for r in lists]
    return [
        ([*prompt, *base.answer_ids(r["answer"]), eos], len(prompt)) for prompt, r in zip(prompts, lists, strict=True)
    ]


def _heard(base: Base, voice: Voice, rows: Sequence[Row], lists: Sequence[dict]) -> list[Row]:
    """The lists as their teacher reads them, behind a system prompt if it has any: the same answers, other prompts."""
    prompts = [base.prompt_ids(voice.chat(r["prompt"], i)) for i, r in enumerate(lists)]
    return [([*prompt, *row[first:]], len(prompt)) for (row, first), prompt in zip(rows, prompts, strict=True)]


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
    heard = _heard(base, voice, rows, held_out)
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
