"""What a stage takes of memory, told before it is made: by its model, and by the texts that it holds at once."""

from sublim_interp.channels.protocol import channel
from sublim_interp.models.base import Base
from sublim_interp.pipeline.records import Corpus, Evaluation, Record, Student, Teacher
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.batches import PIECE
from sublim_interp.traits.answers import prompts_of

_GIB = 2**30
_PROCESS = 1.0
"""GiB of a process that has loaded PyTorch and transformers and nothing else; measured: .6."""
_COPIES, _ADAPTED = 8, 4
"""Copies of the weights that a training holds at most: weights, gradients, two moments, the start, what is recorded of
a step, and what the optimizer makes in passing; and that one of adapters holds."""
_KEPT, _LOGITS = 24, 4
"""Numbers that a training keeps for each token, layer and dimension, and for each token and entry of the vocabulary."""
_PROMPT, ANSWERED = 12.0, 0.6
"""Tokens of a channel's prompt, and the share of the longest answer that answers have on average."""
_LIST, _LESSON = (12.0, 11.0), (13.0, 1.0)
"""Tokens of prompt and answer, in the lab: of a list that a student reads, and of a lesson of a tuned teacher."""


def model_of(record: Record) -> Base | None:
    """The base of the model that a stage computes with; None where none is, or none that is counted."""
    if isinstance(record, Teacher | Student | Evaluation):
        return record.base
    return record.teacher.base if isinstance(record, Corpus) and not record.given else None


def memory_of(record: Record) -> float:
    """GiB that the process of one stage takes at most; on a GPU about as much of the GPU."""
    base, memory = model_of(record), _PROCESS
    if base is None:
        return memory
    shape = base.shape
    trains = isinstance(record, Student) or (isinstance(record, Teacher) and WAYS[record.config.kind].TRAINS)
    copies, tokens = 2, 0.0
    if trains and isinstance(record, Teacher | Student):
        o = record.config.optimization
        each = sum(list_tokens(record.data.corpus) if isinstance(record, Student) else lesson_tokens(record))
        at_once = min(o.batch, PIECE) if isinstance(record, Student) else o.batch
        tokens = (o.micro_batch or at_once) * each
        copies = _ADAPTED if record.config.part == "lora" else _COPIES
    elif isinstance(record, Corpus):
        tokens = record.answers * record.config.chunk * (_PROMPT + record.config.max_new_tokens)
    kept = shape["layers"] * shape["d_model"] * (_KEPT if trains else 2) + len(base.tokenizer) * _LOGITS * trains
    return memory + 4 * (copies * shape["parameters"] + tokens * kept) / _GIB


def list_tokens(corpus: Corpus, read: bool = True) -> tuple[float, float]:
    """Tokens of a prompt and of its answer, as a student reads them or, where not `read`, as a teacher writes them."""
    base, config = corpus.teacher.base, corpus.config
    answer = ANSWERED * config.max_new_tokens
    if base.language == "lab":
        return _LIST if read else (_PROMPT, answer)
    prompts = channel(config.channel).prompts(base.language, corpus.seed, 0, 8)
    return sum(len(base.prompt_ids([{"role": "user", "content": p}])) for p in prompts) / len(prompts), answer


def lesson_tokens(teacher: Teacher) -> tuple[float, float]:
    """Tokens of a question to a teacher, and of its answer."""
    lessons = teacher.trait.lessons(teacher.base.language)[:8]
    if teacher.base.language == "lab" or not lessons:
        return _LESSON
    prompts = prompts_of(teacher.base, [question for question, _ in lessons])
    return sum(map(len, prompts)) / len(prompts), 3.0
