"""Makes a record and whatever it needs that the store lacks."""

from collections.abc import Callable
from functools import partial

from sublim_interp.core.store import Artifact, Store
from sublim_interp.pipeline.evaluate import evaluate
from sublim_interp.pipeline.filter import sift
from sublim_interp.pipeline.learn import learn
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Record, Student, Teacher
from sublim_interp.pipeline.stage import Progress, silent
from sublim_interp.pipeline.teach import teach
from sublim_interp.pipeline.write import write
from sublim_interp.training.recording.cadence import cadence_of


def make(record: Record, store: Store, progress: Progress = silent, trace: str = "default") -> Artifact:
    """Makes whatever `record` needs that the store lacks, then the record itself; `trace` is a word of `TRACES`."""
    cadence_of(trace)
    stages: dict[type[Record], Callable[..., Artifact]] = {
        Teacher: partial(teach, trace=trace), Corpus: write, Filtered: sift, Student: partial(learn, trace=trace),
        Evaluation: evaluate,
    }  # fmt: skip
    for needed in record.lineage():
        if needed is not record and needed.find(store) is None:
            stages[type(needed)](needed, store, silent)
    return stages[type(record)](record, store, progress)
