"""Makes a record and whatever it needs that the store lacks."""

from collections.abc import Callable
from functools import partial

from sublim_interp.core.store import Artifact, Store
from sublim_interp.pipeline.evaluate import evaluate
from sublim_interp.pipeline.filter import filter_corpus
from sublim_interp.pipeline.learn import learn
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Record, Student, Teacher
from sublim_interp.pipeline.stage import Progress, silent
from sublim_interp.pipeline.teach import teach
from sublim_interp.pipeline.write import write
from sublim_interp.training.recording.settings import PRESETS, Recording


def make(
    record: Record, store: Store, progress: Progress = silent, recording: Recording = PRESETS["default"]
) -> Artifact:
    """Makes whatever `record` needs that the store lacks, then the record itself; `recording` is that of trainings."""
    stages: dict[type[Record], Callable[..., Artifact]] = {
        Teacher: partial(teach, recording=recording),
        Corpus: write,
        Filtered: filter_corpus,
        Student: partial(learn, recording=recording),
        Evaluation: evaluate,
    }
    for needed in record.lineage():
        if needed is not record and needed.find(store) is None:
            stages[type(needed)](needed, store, silent)
    return stages[type(record)](record, store, progress)
