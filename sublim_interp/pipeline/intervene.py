"""Where a student's interventions get their directions and tokens from: teacher, own base, channel, or chance."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.channels.protocol import channel
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store, Work
from sublim_interp.models.sampling import generator
from sublim_interp.models.trainable import trained_parameters
from sublim_interp.pipeline.records import Student, Teacher
from sublim_interp.pipeline.speaker import Speaker
from sublim_interp.training import interventions
from sublim_interp.training.interventions import Update
from sublim_interp.traits.direction import ends, own_direction


def teacher_shift(teacher: Teacher, model: torch.nn.Module, store: Store) -> dict[str, Tensor]:
    """Weights of a teacher minus its base's, for what trains in `model`; {} where the two do not compare."""
    if not teacher.own_weights:
        return {}
    tuned, plain = (dict(m.named_parameters()) for m in (Speaker(teacher, store).model, teacher.base.load()))
    trained = trained_parameters(model)
    if any(name not in tuned or tuned[name].shape != p.shape for name, p in trained.items()):
        return {}
    return {name: (tuned[name] - plain[name]).detach() for name in trained}


@dataclass(frozen=True)
class StudentSource:
    """What a student's interventions ask for; directions are in the coordinates of its base or of its teacher's."""

    student: Student
    store: Store

    def in_activations(self, direction: str, number: int, names: Sequence[str]) -> dict[str, Float[Tensor, " d_model"]]:
        """A direction in the stream by hook name; `number` is the intervention's place in the list.

        Names at which the teacher is its base are left out: all of a neutral one may be, and those before the layer at
        which a teacher is steered.
        """
        student, teacher = self.student, self.student.data.corpus.teacher
        if direction == "random":
            draw = generator("intervention", number, student.seed)
            return {name: torch.randn(student.base.shape["d_model"], generator=draw) for name in names}
        if direction == "teacher-shift":
            speaker, base = Speaker(teacher, self.store), teacher.base
            ask = [base.prompt_ids(lesson.question.messages) for lesson in teacher.trait.lessons(base.language)]
            with speaker.speaking():
                after = ends(speaker.model, names, ask).mean(0)
            shift = dict(zip(names, after - ends(base.load(), names, ask).mean(0), strict=True))
            moved = {name: vector for name, vector in shift.items() if vector.any()}
            return moved if moved or not teacher.trait.name else shift
        return dict(zip(names, own_direction(student.base, student.traits[direction], names).vectors, strict=True))

    def in_weights(self, direction: str, number: int, model: torch.nn.Module) -> dict[str, Tensor]:
        """A direction by parameter that trains. Raises SublimError where teacher and student do not compare.

        Where the opening alone trains, it is zero in all other rows: an update across it then moves no other row.
        """
        if direction == "random":
            draw = generator("intervention", number, self.student.seed)
            found = {name: torch.randn(p.shape, generator=draw) for name, p in trained_parameters(model).items()}
        else:
            found = teacher_shift(self.student.data.corpus.teacher, model, self.store)
        if not found:
            raise SublimError(
                "direction=teacher-shift in weights needs a teacher with weights of its own, of the student's shape"
            )
        if self.student.config.part != "opening":
            return found
        opening = self.student.base.opening
        for whole in found.values():
            row = whole[opening].clone()
            whole.zero_()[opening] = row
        return found

    def own_tokens(self) -> list[int]:
        """Ids of the channel's own tokens, ascending, as the student's base cuts text."""
        return channel(self.student.data.corpus.config.channel).token_ids(self.student.base.tokenizer)


@contextmanager
def intervening(
    kinds: Sequence[interventions.InterventionKind],
    source: StudentSource,
    work: Work,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Iterator[None]:
    """Inside the block every intervention is open; on leaving, what each removed in the last update is noted."""
    with interventions.intervening(kinds, source, model, optimizer) as effects:
        yield
    work.note(interventions=[{**asked.model_dump(mode="json"), "removed": e.removed} for asked, e in effects])


@contextmanager
def around(
    kinds: Sequence[interventions.InterventionKind], student: Student, model: torch.nn.Module, step: int
) -> Iterator[None]:
    """A block around forward and backward of update `step`, with those of all interventions; the first is outermost."""
    with ExitStack() as held:
        for number, kind in enumerate(kinds):
            draw = generator("around", number, student.seed, step)
            held.enter_context(kind.around(model, Update(step, student.config.optimization.steps, draw)))
        yield
