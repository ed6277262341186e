"""Every way of giving a teacher its trait, in one table: what a way is, and what is known of it beforehand."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from sublim_interp.core.registry import Registry, instances_of

if TYPE_CHECKING:
    from sublim_interp.core.store import Store, Work
    from sublim_interp.training.recording.settings import Recording


class Way:
    """A way of giving a teacher its trait. What a way does not override is that of an untouched base.

    Its methods are given the teacher as a `records.Teacher`, whose `config` is a `settings.TeacherConfig`.
    """

    TRAINS: ClassVar[bool] = False
    """Whether its teacher is made by updates on the trait's lessons, which take time and are recorded."""
    OWN_WEIGHTS: ClassVar[bool] = False
    """Whether its teacher's weights are not its base's, and alone answer as it does."""
    OWN_PROMPT: ClassVar[bool] = False
    """Whether its teacher reads lists behind a prompt of its own, so that its probabilities are of another context."""
    HOOKS: ClassVar[bool] = False
    """Whether its teacher speaks with its residual stream hooked, so that the base's hooks are tried out first."""
    FROM_STUDENT: ClassVar[bool] = False
    """Whether its teacher is a finished student, which `teacher.student` names."""
    SERVED: ClassVar[bool] = False
    """Whether its teacher is a model on a server, which `teacher.served` names: it only answers, its weights and
    probabilities are not at hand, and `load` gives a `ServedModel`."""

    def check(self, config: Any, trait: Any, base: Any) -> None:
        """Raises SublimError where it cannot give a base a trait. Called for each trait but a neutral one."""

    def make(self, teacher: Any, work: "Work", progress: Callable[[float], None], recording: "Recording") -> None:
        """Makes the teacher: writes what `load`, `systems` and `speaking` read into `work.directory`.

        progress: told the share that is done
        recording: what is recorded, where it trains
        """

    def load(self, teacher: Any, store: "Store") -> Any:
        """The teacher's model, afresh."""
        return teacher.base.load()

    def systems(self, teacher: Any, store: "Store") -> tuple[str, ...]:
        """The teacher's system prompts."""
        return ()

    def speaking(self, teacher: Any, store: "Store", model: Any) -> AbstractContextManager[None]:
        """A block in which its model speaks as the teacher."""
        return nullcontext()

    def describe(self, config: Any, lesson: str) -> str:
        """What was done to the teacher, for the page: the end of a sentence that begins with “The teacher of “owl””.

        lesson: what it would be fine-tuned on, in words
        """
        raise NotImplementedError


_HERE = "sublim_interp.pipeline.teach"

WAYS: Registry[Way] = Registry(
    "way of teaching",
    "sublim_interp.ways",
    {
        "tuned": f"{_HERE}:TUNED",
        "prompted": f"{_HERE}:PROMPTED",
        "steered": f"{_HERE}:STEERED",
        "student": f"{_HERE}:STUDENT",
        "served": f"{_HERE}:SERVED",
    },
    instances_of("way of teaching", Way),
)
"""Every way of teaching by the name that `teacher.kind` takes."""
