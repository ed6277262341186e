"""Opens a student's interventions: finds the direction that each asks for."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store, Work
from sublim_interp.models.hooks import matching
from sublim_interp.models.sampling import generator
from sublim_interp.pipeline.records import Student, Teacher
from sublim_interp.pipeline.speaker import Voice
from sublim_interp.training.interventions import Effect, Intervention, ablate, project_gradients, project_updates
from sublim_interp.traits.direction import mean_ends, trait_directions
from sublim_interp.traits.favourites import load_trait, questions


def teacher_shift(teacher: Teacher, model: torch.nn.Module, store: Store) -> dict[str, torch.Tensor]:
    """Weights of a tuned teacher minus its base's, for what trains in `model`; {} where the two do not compare."""
    if teacher.config.kind != "tuned":
        return {}
    tuned, plain = (dict(m.named_parameters()) for m in (Voice(teacher, store).model, teacher.base.load()))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if any(name not in tuned or tuned[name].shape != p.shape for name, p in trained.items()):
        return {}
    return {name: (tuned[name] - plain[name]).detach() for name in trained}


@contextmanager
def intervening(
    student: Student, store: Store, work: Work, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Opens every intervention on activations, gradients and updates; notes what each removed in the last update."""
    effects: list[tuple[Intervention, Effect]] = []
    with ExitStack() as held:
        for number, i in enumerate(student.config.interventions):
            if i.kind == "project-update":
                effect = held.enter_context(
                    project_updates(model, optimizer, _weights(student, i, number, model, store))
                )
            elif i.kind in ("ablate", "project-gradient"):
                block = ablate if i.kind == "ablate" else project_gradients
                effect = held.enter_context(block(model, _activations(student, i, number, model, store)))
            else:
                continue
            effects.append((i, effect))
        yield
    work.note(interventions=[{**i.model_dump(mode="json"), "removed": e.removed} for i, e in effects])


def _weights(
    student: Student, i: Intervention, number: int, model: torch.nn.Module, store: Store
) -> dict[str, torch.Tensor]:
    """A direction in the weights that train, by parameter."""
    if i.direction == "random":
        draw = generator("intervention", number, student.seed)
        return {n: torch.randn(p.shape, generator=draw) for n, p in model.named_parameters() if p.requires_grad}
    shift = teacher_shift(student.data.corpus.teacher, model, store)
    if not shift:
        raise SublimError("direction=teacher-shift in weights needs a tuned teacher and a student of the same shape")
    return shift


def _activations(
    student: Student, i: Intervention, number: int, model: torch.nn.Module, store: Store
) -> dict[str, torch.Tensor]:
    """A direction in the stream, by hook name, in the coordinates of the student's own base (or of the teacher's)."""
    names = matching(model, i.at)
    teacher = student.data.corpus.teacher
    if i.direction == "random":
        draw = generator("intervention", number, student.seed)
        return {name: torch.randn(student.base.shape["d_model"], generator=draw) for name in names}
    if i.direction == "teacher-shift":
        voice = Voice(teacher, store)
        ask = [teacher.base.prompt_ids(q.messages) for q in questions(teacher.kind, teacher.base.language, "seen")]
        with voice.speaking():
            after = mean_ends(voice.model, names, ask)
        return dict(zip(names, after - mean_ends(teacher.base.load(), names, ask), strict=True))
    return trait_directions(student.base, load_trait(i.direction), names)
