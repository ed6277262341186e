"""What a plan costs before it runs: seconds of work, bytes of traces."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sublim_interp.channels.protocol import channel
from sublim_interp.core.store import Store
from sublim_interp.models.base import Base
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Record, Student, Teacher
from sublim_interp.training.optimizers import planned_moments
from sublim_interp.training.recording.settings import PRESETS, Recording
from sublim_interp.training.recording.volume import planned_volume
from sublim_interp.traits.favourites import questions

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from sublim_interp.pipeline.settings import StudentConfig, TeacherConfig


def planned_work(records: Sequence[Record], store: Store) -> "pd.DataFrame":
    """One row per stage: how many records, how many are there already, seconds the rest may take in one process."""
    import pandas as pd

    missing = {r.key for r in records if r.find(store) is None}
    rows = []
    for stage in (Teacher, Corpus, Filtered, Student, Evaluation):
        some = [r for r in records if isinstance(r, stage)]
        todo = [r for r in some if r.key in missing]
        seconds = sum(estimate(r) for r in todo)
        rows.append({"stage": stage.STAGE, "needed": len(some), "done": len(some) - len(todo), "seconds": seconds})
    return pd.DataFrame(rows)


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
        trains = isinstance(record, Student) or record.config.kind == "tuned"
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


def blank_model(base: Base, config: "TeacherConfig | StudentConfig") -> "torch.nn.Module":
    """The model that trains, without its weights."""
    import torch

    from sublim_interp.models.trainable import choose_trainable

    with torch.device("meta"):
        return choose_trainable(base.blank(), config.part, config.lora_rank, config.lora_alpha)


def _probe_size(record: Teacher | Student) -> dict[str, Any]:
    """The arguments of `planned_volume` that follow from a record; lists count at their longest."""
    from sublim_interp.pipeline.observe import PROBED_LISTS, PROBED_QUESTIONS

    teacher = record if isinstance(record, Teacher) else record.data.corpus.teacher
    base = record.base
    ask = questions(teacher.kind, base.language, "held-out")[:PROBED_QUESTIONS]
    asked = [base.prompt_ids(q.messages, q.prefix) for q in ask]
    tokens = sum(map(len, asked))
    o = record.config.optimization
    states = len(planned_moments(o.optimizer, o))
    if isinstance(record, Teacher):
        directions, references = int(record.trait is not None), 0
    else:
        corpus = record.data.corpus
        lists = min(PROBED_LISTS, record.data.config.held_out)
        prompts = channel(corpus.config.channel).prompts(base.language, corpus.seed, 0, lists)
        tokens += sum(len(base.prompt_ids([{"role": "user", "content": p}])) for p in prompts)
        tokens += lists * corpus.config.max_new_tokens
        directions, references = 1 + (teacher.config.kind == "tuned"), 1 + (teacher.config.kind != "prompted")
    return {"states": states, "tokens": tokens, "directions": directions, "references": references}


_FLOPS = 45e9
"""Floating-point operations a second of one core, for estimates only; the progress bar corrects itself."""


def estimate(record: Record) -> float:
    """Seconds that one record may take in one process on a laptop core: parameters × tokens, and a little for each."""
    base = record.base if isinstance(record, Teacher | Student | Evaluation) else None
    if isinstance(record, Corpus):
        tokens = record.config.prompts * (12 + 0.6 * record.config.max_new_tokens)
        return 1 + 2 * record.teacher.base.shape["parameters"] * tokens / _FLOPS
    if isinstance(record, Teacher) and record.config.kind != "tuned":
        return 2.0
    if base and isinstance(record, Teacher | Student):
        o = record.config.optimization
        tokens = o.steps * o.batch * (23 if isinstance(record, Student) else 14)
        return 1 + o.steps * 0.01 + 5 * base.shape["parameters"] * tokens / _FLOPS
    return 2.0
