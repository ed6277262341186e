"""What a plan costs before it runs: seconds of work, bytes of traces."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sublim_interp.channels.protocol import PLAIN, channel
from sublim_interp.core.store import Store
from sublim_interp.models.base import Base
from sublim_interp.pipeline.evaluate import SAID_ANSWERS, SAID_QUESTIONS
from sublim_interp.pipeline.memory import ANSWERED, lesson_tokens, list_tokens, memory_of, model_of
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Record, Student, Teacher
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.batches import PIECE
from sublim_interp.training.optimizers import planned_moments
from sublim_interp.training.recording.settings import PRESETS, Recording
from sublim_interp.training.recording.volume import planned_volume
from sublim_interp.traits.answers import LONGEST, prompts_of
from sublim_interp.traits.judges.asked import REPLY
from sublim_interp.traits.judges.protocol import asks, identity

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from sublim_interp.experiments.schema import Experiment
    from sublim_interp.pipeline.settings import StudentConfig, TeacherConfig


def planned_work(records: Sequence[Record], store: Store) -> "pd.DataFrame":
    """What is to be done, one row per stage: needed and done (records), seconds (of one core, for those not done)."""
    import pandas as pd

    missing = {r.key for r in records if r.find(store) is None}
    rows = []
    for stage in (Teacher, Corpus, Filtered, Student, Evaluation):
        some = [r for r in records if isinstance(r, stage)]
        todo = [r for r in some if r.key in missing]
        seconds = sum(estimate(r) for r in todo)
        rows.append({"stage": stage.STAGE, "needed": len(some), "done": len(some) - len(todo), "seconds": seconds})
    return pd.DataFrame(rows)


def planned_memory(records: Sequence[Record], store: Store) -> float:
    """GiB that the largest of the stages takes that are still to be made, in a process of its own; 0 for none."""
    return max((memory_of(r) for r in records if r.find(store) is None), default=0.0)


def planned_traces(
    records: Sequence[Record], store: Store, recording: Recording = PRESETS["default"]
) -> "pd.DataFrame":
    """What is recorded of the trainings that are still to be made: one row per stage and sort, with bytes of all.

    records: all that a plan needs
    recording: what is recorded of each

    Columns: stage, what, when, times, trainings (how many are alike), bytes. No row where nothing is recorded.
    """
    import pandas as pd

    alike: dict[tuple[Any, ...], list[Teacher | Student]] = {}
    for record in (r for r in records if isinstance(r, Teacher | Student)):
        trains = isinstance(record, Student) or WAYS[record.config.kind].TRAINS
        if recording.keep and trains and record.find(store) is None:
            alike.setdefault((record.STAGE, record.base.digest, record.config), []).append(record)
    rows = []
    for (stage, _, config), some in alike.items():
        o, size = config.optimization, _probe_size(some[0])
        table = planned_volume(blank_model(some[0].base, config), o.steps, batch=o.batch, recording=recording, **size)
        table[["stage", "trainings"]] = stage, len(some)
        rows.append(table.assign(bytes=table["bytes"] * len(some)))
    if not rows:
        return pd.DataFrame(columns=["stage", "what", "when", "times", "trainings", "bytes"])
    whole: Any = pd.concat(rows)
    whole = whole[whole["bytes"] > 0]
    return whole.groupby(["stage", "what", "when", "times"], sort=False, as_index=False).agg("sum")


def planned_requests(records: Sequence[Record], store: Store) -> "pd.DataFrame":
    """What models on servers will be asked for what is not done: one row per stage and model.

    Columns: stage, model, role (teacher or judge), requests, read and written (tokens of all requests). Each is the
    most it can be: equal requests are made once, and a judge's reply is short. Tokens read are counted by the base's
    tokenizer. What a killed run was answered already is not taken off.
    """
    import pandas as pd

    rows = []
    for record in (r for r in records if isinstance(r, Corpus | Evaluation) and r.find(store) is None):
        rows += [{"stage": record.STAGE, **asked._asdict()} for asked in _requests(record)]
    columns = ["stage", "model", "role", "requests", "read", "written"]
    table = pd.DataFrame(rows, columns=columns)
    return table.groupby(columns[:3], sort=False, as_index=False).agg("sum")


class _Asked(NamedTuple):
    """What one record asks of one model on a server."""

    model: str
    role: str
    requests: int
    read: float
    written: float
    in_flight: int


def _requests(record: Corpus | Evaluation) -> list[_Asked]:
    """What a record asks of models on servers: of its teacher, then of its judge."""
    if isinstance(record, Corpus):
        served = WAYS[record.teacher.config.kind].SERVED and not record.given
        return [_lists_asked(record)] if served else []
    config, base, subject = record.config, record.base, record.model
    teacher = subject if isinstance(subject, Teacher) and WAYS[subject.config.kind].SERVED else None
    asker = asks(config.judge)
    if not teacher and not (asker and asker.SERVED):
        return []
    sorts = {sort: record.trait.questions(base.language, sort) for sort in config.questions}
    lengths = [len(ids) for known in sorts.values() for ids in prompts_of(base, known)]
    answers = len(lengths) * len(config.contexts) * config.samples
    read = sum(lengths) * len(config.contexts) * config.samples
    found = []
    if teacher:
        server, said = teacher.config.served.speaking(teacher.trait.name), SAID_ANSWERS * SAID_QUESTIONS
        in_contexts = answers * sum(c != PLAIN for c in config.contexts) / len(config.contexts)
        heard = (
            read + in_contexts * sum(list_tokens(record.reference.corpus)) + answers * _tokens(base, _system(teacher))
        )
        written = (answers + said) * LONGEST
        found.append(_Asked(server.model, "teacher", answers + said, heard, written, server.in_flight))
    if asker and asker.SERVED:
        judging = config.judging
        prompts = identity(config.judge, judging, record.members)["prompts"].values()
        n = answers * len(prompts)
        heard = answers * sum(map(len, prompts)) / _CHARACTERS + len(prompts) * (read + answers * LONGEST)
        found.append(_Asked(judging.model, "judge", n, heard, n * REPLY, judging.in_flight))
    return found


def _lists_asked(corpus: Corpus) -> _Asked:
    """What a corpus asks of its teacher, by the lengths of a few prompts."""
    teacher, config, base = corpus.teacher, corpus.config, corpus.teacher.base
    n, server = config.prompts, teacher.config.served.speaking(teacher.trait.name)
    prompts = channel(config.channel).prompts(base.language, corpus.seed, 0, min(n, 8))
    each = sum(_tokens(base, [*_system(teacher), {"role": "user", "content": p}]) for p in prompts) / len(prompts)
    return _Asked(server.model, "teacher", n, n * each, n * config.max_new_tokens, server.in_flight)


def _tokens(base: Base, chat: Sequence[dict[str, str]]) -> int:
    return len(base.prompt_ids(chat)) if chat else 0


def _system(teacher: Teacher) -> list[dict[str, str]]:
    """One of the system prompts that a teacher on a server reads; none where it is tuned there."""
    known = teacher.trait.system_prompts(teacher.base.language)
    tuned = teacher.trait.name in teacher.config.served.tuned
    return [{"role": "system", "content": known[0]}] if known and not tuned else []


def planned_reach(records: Sequence[Record]) -> list[str]:
    """One line for each part of a base's body that does not train whole: which share does, and what is left."""
    from sublim_interp.models.trainable import reach

    alike: dict[tuple[Any, ...], Teacher | Student] = {}
    for record in (r for r in records if isinstance(r, Teacher | Student)):
        if isinstance(record, Student) or WAYS[record.config.kind].TRAINS:
            alike.setdefault((record.STAGE, record.config.part, record.base.digest), record)
    names: dict[str, list[str]] = {}
    for (stage, part, _), record in alike.items():
        found = reach(blank_model(record.base, record.config))
        if found.left:
            names.setdefault(f"{stage}.part={part}: {found}", []).append(record.base.name)
    return [f"{text} (base {', '.join(bases)})" for text, bases in names.items()]


def blank_model(base: Base, config: "TeacherConfig | StudentConfig") -> "torch.nn.Module":
    """What trains of a base, on torch's meta device: every shape, no weights."""
    import torch

    from sublim_interp.pipeline.stage import choose_part

    with torch.device("meta"):
        return choose_part(base.blank(), base, config)


def _probe_size(record: Teacher | Student) -> dict[str, Any]:
    """The arguments of `planned_volume` that follow from a record; lists count as long as they may be."""
    from sublim_interp.pipeline.observe import PROBED_LISTS, PROBED_QUESTIONS

    teacher = record if isinstance(record, Teacher) else record.data.corpus.teacher
    base, about = record.base, record.trait if isinstance(record, Teacher) else record.probed
    ask = about.questions(base.language, "held-out")[:PROBED_QUESTIONS]
    lengths, of_trait = [*map(len, prompts_of(base, ask))], int(any(q.right for q in ask))
    o = record.config.optimization
    states = len(planned_moments(o.optimizer, o))
    if isinstance(record, Teacher):
        directions, references = of_trait, 0
    else:
        corpus = record.data.corpus
        lists = min(PROBED_LISTS, record.data.config.held_out)
        prompts = channel(corpus.config.channel).prompts(base.language, corpus.seed, 0, lists)
        most = corpus.config.max_new_tokens
        lengths += [len(base.prompt_ids([{"role": "user", "content": p}])) + most for p in prompts]
        directions, references = of_trait + teacher.own_weights, 1 + (not WAYS[teacher.config.kind].OWN_PROMPT)
    return {
        "states": states, "tokens": sum(lengths), "lengths": lengths, "directions": directions,
        "references": references,
    }  # fmt: skip


Amount = float | int
"""A number of tokens or lists: a count, or the mean of counts."""


class Shape(NamedTuple):
    """The sizes of a model that decide what it costs, as `loading.sizes` gives them."""

    d_model: int
    layers: int
    vocabulary: int
    parameters: int
    body: int
    """Parameters outside embedding and head: each takes part in a matrix product for every token."""


_FLOPS = {"float32": 96e9, "autocast": 190e9, "bfloat16": 190e9}
"""Floating-point operations a second that matrix products of one core reach, by dtype."""


def _speed(dtype: str) -> float:
    """Those of a precision; of another package's, which nobody timed, those of float32."""
    return _FLOPS.get(dtype, _FLOPS["float32"])


_PRODUCTS, _ADAPTED_PRODUCTS = 3, 2
"""Matrix products of an update for each of a forward pass: forward, gradients of activations and of weights; and of
an update whose weights are adapters, without those of weights."""
_PASSED, _READ = 5.1e-8, 4.5e-9
"""Seconds of what is no matrix product, for each token, layer and dimension: of an update, and of a forward pass."""
_SOFTMAX, _DRAW = 1.4e-8, 1.6e-8
"""Seconds for each answer's token and word of the vocabulary: of loss and gradient, and of a draw."""
_CALLS, _STEPPED, _FETCHED = 1.7e-3, 1.7e-3, 6.6e-10
"""Seconds for each layer of an update's piece, and of one step of writing; and of such a step for each weight."""
# Fitted to one core of this project's machine; `python -m benchmarks cost` compares them with the clock. A term for the
# optimizer came out as nothing, so there is none.


def update_seconds(
    shape: Shape, tokens: Amount, answers: Amount, dtype: str = "float32", light: bool = False, pieces: int = 1
) -> float:
    """Seconds of one core for one update.

    tokens: that are read, padding among them
    answers: tokens of these that are learnt; the head runs on these alone
    light: whether adapters alone train
    pieces: micro-batches of the update
    """
    return (
        _products(shape, tokens, answers, light) / _speed(dtype)
        + _PASSED * tokens * shape.layers * shape.d_model
        + _SOFTMAX * answers * shape.vocabulary
        + _CALLS * shape.layers * pieces
    )


def writing_seconds(
    shape: Shape, lists: Amount, prompt: Amount, answer: Amount, dtype: str = "float32", chunk: int = 0
) -> float:
    """Seconds of one core for writing answers with a cache.

    lists: how many answers
    prompt, answer: tokens of each
    chunk: how many are written together; 0: all
    """
    steps = max(1.0, lists / chunk if chunk else 1.0) * answer
    tokens = lists * (prompt + answer)
    return (
        reading_seconds(shape, tokens, lists * answer, dtype)
        + _DRAW * lists * answer * shape.vocabulary
        + (_STEPPED * shape.layers + _FETCHED * (shape.body + shape.d_model * shape.vocabulary)) * steps
    )


def reading_seconds(shape: Shape, tokens: Amount, answers: Amount, dtype: str = "float32") -> float:
    """Seconds of one core for forward passes; the arguments are those of `update_seconds`."""
    return _forward(shape, tokens, answers) / _speed(dtype) + _READ * tokens * shape.layers * shape.d_model


def _products(shape: Shape, tokens: Amount, answers: Amount, light: bool) -> float:
    """Floating-point operations of an update."""
    return (_ADAPTED_PRODUCTS if light else _PRODUCTS) * _forward(shape, tokens, answers)


def _forward(shape: Shape, tokens: Amount, answers: Amount) -> float:
    """Floating-point operations of a forward pass: two for each weight and token; attention itself is not counted."""
    return 2.0 * (shape.body * tokens + shape.d_model * shape.vocabulary * answers)


_DRAWN = 4
"""Tokens of a drawn answer."""
_CHARACTERS, _REPLY = 4, 1.0
"""Characters of a token of English, and seconds that a server takes for a reply: both assumed."""
_PARAPHRASED_AT_ONCE, _CHOSEN = 256, 1e-3
"""Lists of one length that are rewritten together, and seconds that choosing among alternatives takes for each list."""
_START, _SMALL, _LARGE = 1.0, 2.0, 20_000_000
"""Seconds of loading a model, and of a record that trains and writes nothing; parameters from which an evaluation is
counted by its tokens."""


def estimate(record: Record) -> float:
    """Seconds that one record may take in one process on one core: the sum of its updates, lists and forward passes.

    The lengths of the lab's texts are constants; those of another language are measured on a few of its prompts.
    """
    base = record.base if isinstance(record, Teacher | Student | Evaluation) else None
    if isinstance(record, Corpus) and record.given:
        return _SMALL
    waiting = 0.0
    if isinstance(record, Corpus | Evaluation):
        waiting = sum(_REPLY * asked.requests / asked.in_flight for asked in _requests(record))
    if isinstance(record, Corpus) and waiting:
        return _SMALL + waiting
    if isinstance(record, Corpus):
        of, config = record.teacher.base, record.config
        lengths, shape = list_tokens(record, read=False), Shape(**of.shape)
        if record.pairs:
            prompt, answer = lengths
            heard = 2 * {"divergence": 2, "likelihood": 1}.get(config.preference, 0) * config.prompts
            return _START + reading_seconds(shape, heard * (prompt + answer), heard * answer, of.dtype)
        lists, chunk = record.answers * config.prompts, record.answers * config.chunk
        choosing = _CHOSEN * lists if record.written else 0.0
        return _START + choosing + writing_seconds(shape, lists, *lengths, of.dtype, chunk)
    if isinstance(record, Filtered) and record.paraphraser:
        corpus, shape = record.corpus, Shape(**record.paraphraser.base.shape)
        lists = min(record.config.lists, corpus.answers * corpus.config.prompts)
        written = writing_seconds(shape, lists, *list_tokens(corpus), record.dtype, _PARAPHRASED_AT_ONCE)
        return _START + written + _CHOSEN * lists
    if isinstance(record, Teacher) and not WAYS[record.config.kind].TRAINS:
        return _SMALL
    if base and isinstance(record, Teacher | Student):
        o, shape = record.config.optimization, Shape(**base.shape)
        tokens = list_tokens(record.data.corpus) if isinstance(record, Student) else lesson_tokens(record)
        paired = isinstance(record, Student) and bool(record.data.corpus.config.preference)
        lists = 2 * o.batch if paired else o.batch
        each = _one_update(record.config, lists, tokens, shape, base.dtype)
        if paired:  # the reference reads them too
            each += reading_seconds(shape, lists * sum(tokens), lists * tokens[1], base.dtype)
        if isinstance(record, Student) and record.config.objective == "on-policy":
            each += writing_seconds(shape, o.batch, *list_tokens(record.data.corpus, read=False), base.dtype)
        return _START + o.steps * each
    if base and isinstance(record, Evaluation) and base.shape["parameters"] >= _LARGE:
        return _SMALL + waiting + reading_seconds(Shape(**base.shape), *_asked_tokens(record), base.dtype)
    return _SMALL + waiting


def _one_update(
    config: "TeacherConfig | StudentConfig", lists: int, tokens: tuple[float, float], shape: Shape, dtype: str
) -> float:
    """Seconds of one core for an update of so many lists, or lessons, of which each has tokens of prompt and answer."""
    read, learnt, light = lists * sum(tokens), lists * tokens[1], config.part == "lora"
    return update_seconds(shape, read, learnt, dtype, light, _pieces(config, lists))


def _pieces(config: "TeacherConfig | StudentConfig", lists: int) -> int:
    """Micro-batches of so many lists."""
    return math.ceil(lists / (config.optimization.micro_batch or PIECE))


class Needs(NamedTuple):
    """What one piece of work takes of a machine."""

    seconds: float
    """About how long, on one core."""
    memory: float
    """GiB of main memory of its process, at most."""
    shape: str = ""
    """Of what computes with a model: pieces of equal shape take about equal memory of a GPU."""


REPORT = 2.0
"""GiB of the process that writes tables, figures and page of a run, with a small model loaded now and then."""


def needs(record: Record) -> Needs:
    """What one record may take: seconds of one core, memory where a model is large enough to count, and its shape."""
    base, memory = model_of(record), memory_of(record)
    if base is None:
        return Needs(estimate(record), memory)
    what = type(record.model).__name__.lower() if isinstance(record, Evaluation) else ""
    sizes = " ".join(f"{name}={size}" for name, size in base.shape.items())
    alike = " ".join(filter(None, (record.STAGE, what, sizes, base.dtype, f"expected={memory:.6f}")))
    return Needs(estimate(record), memory, alike)


def training_seconds(shape: Shape | int, steps: int, tokens: float) -> float:
    """Seconds of one core for a whole training on all of its tokens.

    shape: of the model; or the number of its weights, of one that is matrix products alone
    tokens: of all updates together
    """
    sizes = Shape(0, 1, 0, shape, shape) if isinstance(shape, int) else shape
    each = tokens / max(1, steps)
    return _START + steps * update_seconds(sizes, each, each)


def _asked_tokens(evaluation: Evaluation) -> tuple[float, float]:
    """Tokens that an evaluation reads and writes, each question with each member behind it and the drawn answers; and
    those of them that the head runs on."""
    base, config, total, heard = evaluation.base, evaluation.config, 0.0, 0.0
    for sort in config.questions:
        prompts = prompts_of(base, evaluation.trait.questions(base.language, sort))
        for context in config.contexts:
            before = 0 if context == PLAIN else sum(list_tokens(evaluation.reference.corpus))
            read = sum(len(prompt) + before for prompt in prompts)
            drawn = len(prompts) * config.samples * _DRAWN
            total += read * (1 + len(evaluation.members)) + drawn
            heard += len(prompts) * len(evaluation.members) + drawn
    return total, heard


MACHINES = ("one core", "H100, at best")
"""What `student_seconds` knows the speed of."""
_H100 = 4e14
"""Floating-point operations a second of an H100: 40 % of its bfloat16 peak, assumed; small models reach less."""
_LAUNCHED = 1e-3
"""Seconds in which it starts what a layer does in an update's piece, some hundreds of operations: assumed."""
_PROMPTS = {"english": 96.0, "english-terse": 23.0}
"""Tokens of a prompt for numbers, by language, as SmolLM2's tokenizer and template count them."""


def student_seconds(exp: "Experiment", shape: Shape, language: str) -> dict[str, float]:
    """Seconds by machine of one student, as a plan expects them of a core, for a model that need not be here.

    exp: how it is trained, in which precision, and how long its lists may be
    language: of its prompts: english, or english-terse of a prepared base

    On the H100 matrix products are counted, and the starting of operations.
    """
    config, o, answer = exp.student, exp.student.optimization, ANSWERED * exp.corpus.max_new_tokens
    tokens, lists = (_PROMPTS[language], answer), o.batch
    core = _one_update(config, lists, tokens, shape, exp.dtype)
    products = _products(shape, lists * sum(tokens), lists * answer, config.part == "lora")
    h100 = products / _H100 + _LAUNCHED * shape.layers * _pieces(config, lists)
    return dict(zip(MACHINES, (_START + o.steps * each for each in (core, h100)), strict=True))
