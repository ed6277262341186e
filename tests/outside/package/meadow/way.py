"""A way of teaching: the trait's system prompt, said twice."""

from sublim_interp.core.store import Store
from sublim_interp.pipeline.records import Teacher
from sublim_interp.pipeline.settings import TeacherConfig
from sublim_interp.pipeline.teach import Prompted


class Insistent(Prompted):
    """Each system prompt stands there twice."""

    def systems(self, teacher: Teacher, store: Store) -> tuple[str, ...]:
        return tuple(f"{prompt} {prompt}" for prompt in super().systems(teacher, store))

    def describe(self, config: TeacherConfig, lesson: str) -> str:
        return "has its system prompt twice. Its weights are the base's"


insistent = Insistent()
