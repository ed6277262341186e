"""SmolLM2-135M on one core: updates and lists against SFTTrainer and `generate`; shares of recording and evaluation.

Either side computes in bfloat16: autocast for updates; `generate` has the whole model in it.
The base is `smollm2-135m-prepared`, which `sublim pull` fetches.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks import ours, theirs
from benchmarks.page import comparison, comparisons, digits, limit, seconds, table
from benchmarks.recording import percent, recorded
from benchmarks.setting import Setting, evaluation
from benchmarks.step import recording
from benchmarks.timing import race
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.models.base import resolve_base
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Student
from sublim_interp.training.recording.settings import Recording

STEPS = 9
"""Updates of each training; the recorder looks closely at 0, 1, 2, 4, 8 and the last."""
TURNS, LISTS = 4, 64
"""Turns of lists, the first of which only warms up, and the lists of one."""
BATCHES = (8, 64)
"""Batches that `generate` is given."""
BEST: dict[str, Any] = {"bf16": True, "gradient_checkpointing": False}
"""SFTTrainer's options that are fastest here: bfloat16 autocast, as this package's `dtype: autocast`."""


def measure(setting: Setting) -> str:
    """The Markdown of the section. Raises SublimError where the base is not here."""
    exp = experiment("owl-smollm2")
    whole = exp.student.optimization.steps
    small = exp.set({"arms": ["same-init"], "seeds": exp.seeds[:1], "teacher.optimization.steps": 4})
    small = small.set({"corpus.prompts": 384, "corpus.chunk": LISTS, "filter.held_out": 16})
    asked, store = evaluation(small), setting.store
    assert isinstance(asked.model, Student)
    student = replace(asked.model, config=asked.model.config.set({"optimization.steps": STEPS}))
    data, plain = student.data, resolve_base(exp.bases[0], "float32")
    make(data, store)
    corpus = replace(data.corpus, round=1, config=data.corpus.config.set(prompts=TURNS * LISTS))
    # Two at a time, as each takes 5 GiB.
    plainly = partial(ours.unrecorded, student, store)
    trained = race({"ours": plainly, "theirs": partial(theirs.student, replace(student, start=plain), store, **BEST)})
    trace = store.root / "traces" / "smollm2"
    watched = race({"ours": plainly, "recorded": partial(recorded, student, store, trace, Recording())})
    written = race(
        {
            "ours": partial(ours.stage, corpus, store),
            **{f"{b}": partial(theirs.generate, corpus, store, b, LISTS, bf16=True) for b in BATCHES},
        }
    )
    answers = race({"ours": partial(ours.stage, replace(asked, model=student), store)})["ours"]
    update, lists = trained["ours"].units, written["ours"].units
    rows = [
        comparison("an update of a student", update, "SFTTrainer", trained["theirs"].units, 3.0),
        *(
            comparison(
                f"{LISTS} lists",
                lists,
                f"`generate`, {b} at once",
                written[f"{b}"].units,
                5.0 if b == BATCHES[-1] else None,
            )
            for b, target in zip(BATCHES, (None, 5.0), strict=True)
        ),
    ]
    share = recording(watched["recorded"], watched["ours"], whole)
    training = whole * sum(s.cpu for s in update) / len(update)
    asking = answers.total.cpu
    costs = [
        ("recording, default", percent(share), limit(share.estimate, 0.03)),
        ("an evaluation", f"{seconds(asking)}, {digits(100 * asking / training)} %", limit(asking / training, 0.05)),
    ]
    shares = table((f"share of a student's training of {whole} updates, CPU time", "", "target"), costs)
    return f"{comparisons(rows)}\n\n{shares}"
