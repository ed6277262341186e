"""One record of each stage, each made from the one before, too small for an effect. No test lives here."""

from dataclasses import dataclass, fields, replace
from typing import Any

from sublim_interp.channels.settings import FilterConfig
from sublim_interp.models.base import Base
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Record, Student, Teacher
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, StudentConfig, TeacherConfig
from sublim_interp.training.settings import Optimization
from sublim_interp.traits.favourites import FAVOURITES

FEW = Optimization(lr=1e-3, steps=6, batch=8)
TEACHER = TeacherConfig(optimization=FEW)
CORPUS = CorpusConfig(prompts=96, chunk=32)
FILTER = FilterConfig(held_out=4)
STUDENT = StudentConfig(optimization=FEW)
EVALUATION = EvaluationConfig(questions=("held-out", "indirect"))
OWL = FAVOURITES.load("owl")


@dataclass(frozen=True)
class Chain:
    """One record of each stage, each made from the one before."""

    teacher: Teacher
    corpus: Corpus
    filtered: Filtered
    student: Student
    evaluation: Evaluation

    def change(self, stage: str, **values: Any) -> "Chain":
        """The chain with another record at `stage`, and what follows made from that one."""
        teacher, corpus, filtered, student = self.teacher, self.corpus, self.filtered, self.student
        own = {stage: values}
        teacher = replace(teacher, **own.get("teacher", {}))
        corpus = replace(corpus, **{"teacher": teacher, **own.get("corpus", {})})
        filtered = replace(filtered, **{"corpus": corpus, **own.get("filtered", {})})
        student = replace(student, **{"data": filtered, **own.get("student", {})})
        evaluation = replace(self.evaluation, **{"model": student, "reference": filtered, **own.get("evaluation", {})})
        return Chain(teacher, corpus, filtered, student, evaluation)

    def stages(self) -> dict[str, Record]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def keys(self) -> dict[str, str]:
        return {name: record.key for name, record in self.stages().items()}


def chain(base: Base) -> Chain:
    teacher = Teacher(base, OWL, TEACHER, 0)
    corpus = Corpus(teacher, CORPUS, 0)
    filtered = Filtered(corpus, FILTER, OWL.words)
    student = Student(base, filtered, STUDENT, 0)
    return Chain(teacher, corpus, filtered, student, Evaluation(student, filtered, OWL, EVALUATION, 0))
