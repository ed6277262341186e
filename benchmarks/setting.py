"""What the benchmarks run on: the experiment `owl` with one arm of one replicate, and its data, made anew each time."""

from dataclasses import dataclass, replace
from functools import cached_property

from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Student, Teacher

OWL = experiment("owl").set({"bases": ["lab-small-0"], "arms": ["same-init"], "seeds": [0]})
"""The experiment whose cost is told, at its full size."""
PREPARED = OWL.set({"teacher.optimization.steps": 100, "corpus.prompts": 4096})
"""The experiment that gives the lists to learn from: a shorter training and fewer lists, for the sake of time."""


def evaluation(exp: Experiment) -> Evaluation:
    """The last record of the same-init arm; all others are among what it is made from."""
    return next(cell.evaluation for cell in plan(exp).cells if cell.arm == "same-init")


@dataclass(frozen=True)
class Setting:
    """A store, and the records whose making is timed in it."""

    store: Store

    @cached_property
    def data(self) -> Filtered:
        """A teacher's lists, made when they are first asked for."""
        data = evaluation(PREPARED).reference
        make(data, self.store)
        return data

    def teacher(self, steps: int) -> Teacher:
        """A teacher to be tuned for so many steps of the full experiment's training."""
        teacher = evaluation(OWL).reference.corpus.teacher
        return replace(teacher, config=teacher.config.set({"optimization.steps": steps}))

    def corpus(self, prompts: int) -> Corpus:
        """Answers to so many prompts, none of them in the prepared data."""
        corpus = self.data.corpus
        return replace(corpus, round=1, config=corpus.config.set(prompts=prompts))

    def student(self, steps: int) -> Student:
        """A student of the prepared lists, trained for so many steps."""
        config = OWL.student.set({"optimization.steps": steps})
        return Student(self.data.corpus.teacher.base, self.data, config, seed=0)

    def evaluation(self, student: Student) -> Evaluation:
        """The full experiment's questions to a student."""
        return replace(evaluation(OWL), model=student, reference=self.data)
