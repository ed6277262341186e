"""What is observed in a teacher or student while it trains, and what is changed there when its experiment asks for it.

Here the parts of recorder.py and hooks.py meet an experiment's records: which probe, which directions, which models to
compare with. The stages themselves are in pipeline.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sublim_interp.analysis import attribution
from sublim_interp.analysis.probes import answer_margin, residuals
from sublim_interp.config import Intervention, Selection
from sublim_interp.dataset import read_rows, tokenize
from sublim_interp.errors import SublimError
from sublim_interp.hooks import Effect, ablate, matching, project_gradients, project_updates
from sublim_interp.models import Base
from sublim_interp.recorder import Cadence, Probe, Recorder, Reference
from sublim_interp.records import Corpus, Student, Teacher
from sublim_interp.sampling import generator
from sublim_interp.store import Store, Work
from sublim_interp.training import Row
from sublim_interp.traits import Trait, load_trait, members_of, questions, system_prompts
from sublim_interp.traits.facts import Facts
from sublim_interp.voice import Voice

PROBED_QUESTIONS, PROBED_LISTS = 8, 4
"""What the probe of a training holds."""


def fixed_probe(base: Base, trait: Trait | None, kind: str, lists: Sequence[dict], facts: Facts | None = None) -> Probe:
    """Held-out questions about the kind, or about facts, then lists as a student reads them."""
    ask = (facts.questions if facts else questions(kind, base.language, "held-out"))[:PROBED_QUESTIONS]
    asked = [base.prompt_ids(q.messages, q.prefix) for q in ask]
    rows = tokenize(base, lists)
    members = trait.members if trait else members_of(kind)
    return Probe(
        rows=tuple(tuple(r) for r in [*asked, *(ids for ids, _ in rows)]),
        questions=len(asked),
        learnt=tuple(first for _, first in rows),
        members=members,
        tokens=tuple(base.answer_ids(m)[0] for m in members),
        trait=members.index(trait.name) if trait else None,
        truth=facts.truth[: len(asked)] if facts else (),
    )


def teacher_recorder(
    teacher: Teacher, model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path, cadence: Cadence
) -> Recorder:
    """How a tuned teacher is observed: questions about its kind, or its facts, are probed."""
    return Recorder(
        model,
        optimizer,
        path,
        steps=teacher.config.optimization.steps,
        probe=fixed_probe(teacher.base, teacher.trait, teacher.kind, (), teacher.facts),
        cadence=replace(cadence, pad=teacher.base.pad),
    )


def student_recorder(
    student: Student,
    store: Store,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
    cadence: Cadence,
) -> Recorder:
    """How a student is observed: its teacher's held-out lists are probed, its teacher and its base see the same probe.

    A neutral teacher has no trait: the student's probe then has that of the words which the filter refused. Who learns
    from a teacher of facts is asked about these, told or not.
    """
    teacher, base = student.data.corpus.teacher, student.base
    refused = [t for t in map(load_trait, members_of(teacher.kind)) if set(t.words) <= set(student.data.words)]
    trait = teacher.trait or (None if teacher.facts else next(iter(refused), None))
    held_out = read_rows(student.data.made(store) / "held_out.jsonl")[:PROBED_LISTS]

    @contextmanager
    def as_base() -> Iterator[torch.nn.Module]:
        yield base.load()

    @contextmanager
    def as_teacher() -> Iterator[torch.nn.Module]:
        voice = Voice(teacher, store)
        with voice.speaking():
            yield voice.model

    references: dict[str, Reference] = {"base": as_base}
    same_words = teacher.base.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    if teacher.config.kind != "prompted" and same_words:  # a prompted one reads another context
        references["teacher"] = as_teacher
    shift = _teacher_shift(teacher, model, store)
    return Recorder(
        model,
        optimizer,
        path,
        steps=student.config.optimization.steps,
        probe=fixed_probe(base, trait, teacher.kind, held_out, teacher.facts),
        directions={"teacher-shift": shift} if shift else {},
        references=references,
        cadence=replace(cadence, pad=base.pad),
    )


def _teacher_shift(teacher: Teacher, model: torch.nn.Module, store: Store) -> dict[str, torch.Tensor]:
    """Weights of a tuned teacher minus its base's, for what trains in `model`; {} where the two do not compare."""
    if teacher.config.kind != "tuned":
        return {}
    tuned, plain = (dict(m.named_parameters()) for m in (Voice(teacher, store).model, teacher.base.load()))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if any(name not in tuned or tuned[name].shape != p.shape for name, p in trained.items()):
        return {}
    return {name: (tuned[name] - plain[name]).detach() for name in trained}


def token_scores(
    selection: Selection, corpus: Corpus, lists: Sequence[dict], store: Store, draw: torch.Generator
) -> attribution.Scores:
    """What a selection goes by: a score for each token of the answers, as the base of their teacher cuts them."""
    base = corpus.teacher.base
    rows = tokenize(base, lists)
    if selection.by == "random":
        return attribution.random(rows, draw)
    if selection.by == "gradient":
        trait = load_trait(selection.trait)
        asked = [base.prompt_ids(q.messages) for q in questions(trait.kind, base.language, "seen")]
        margin = answer_margin([base.answer_ids(m)[0] for m in trait.members], trait.members.index(trait.name))
        return attribution.influence(base, rows, attribution.margin_gradient(base, asked, margin))
    voice = Voice(corpus.teacher, store)
    with voice.speaking():
        return attribution.divergence(voice.model, base, rows, voice.heard(rows, lists))


def learnt_tokens(student: Student, rows: Sequence[Row], lists: Sequence[dict], store: Store, work: Work) -> list[Row]:
    """For each list and its row, a row as long, with 1 for each token that it learns and 0 for all others.

    What the selections of its interventions leave, noted with the share of tokens that each flags and leaves; [] where
    there is none. Raises SublimError where nothing or everything is left, and where the tokens of teacher and student
    are not the same.
    """
    corpus = student.data.corpus
    left = np.ones(sum(len(ids) - first for ids, first in rows), dtype=bool)
    notes = []
    for number, i in enumerate(student.config.interventions):
        if i.selection is None:
            continue
        draw = generator("selected tokens", number, corpus.seed, corpus.round)
        scores = token_scores(i.selection, corpus, lists, store, draw)
        if scores.token.tolist() != [token for ids, first in rows for token in ids[first:]]:
            raise SublimError("mask-tokens by a selection needs a teacher and a student whose tokens are the same")
        flagged = scores.flagged(i.selection.share)
        left &= flagged if i.selection.keep == "top" else ~flagged
        notes.append({**i.model_dump(mode="json"), "flagged": flagged.mean(), "learnt": left.mean()})
    if not notes:
        return []
    if left.all() or not left.any():
        raise SublimError(f"mask-tokens: of {len(left)} tokens the selections leave {'all' if left.all() else 'none'}")
    work.note(masks=notes)
    answers = iter(left.astype(int).tolist())
    return [([0] * first + [next(answers) for _ in ids[first:]], first) for ids, first in rows]


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
    shift = _teacher_shift(student.data.corpus.teacher, model, store)
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
            after = _mean_ends(voice.model, names, ask)
        return dict(zip(names, after - _mean_ends(teacher.base.load(), names, ask), strict=True))
    return trait_directions(student.base, load_trait(i.direction), names)


def trait_directions(base: Base, trait: Trait, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Per hook name: mean at the end of a question behind the trait's system prompts, minus that of all members."""
    model = base.load()
    ask = questions(trait.kind, base.language, "seen")

    def mean(name: str) -> torch.Tensor:
        systems = system_prompts(load_trait(name) if name != trait.name else trait, base.language)
        prompts = [base.prompt_ids([{"role": "system", "content": s}, *q.messages]) for s in systems for q in ask[:8]]
        return _mean_ends(model, names, prompts)

    others = torch.stack([mean(name) for name in members_of(trait.kind)]).mean(0)
    return dict(zip(names, mean(trait.name) - others, strict=True))


def _mean_ends(model: torch.nn.Module, names: Sequence[str], prompts: Sequence[list[int]]) -> torch.Tensor:
    """Mean over prompts of what is seen at each hook name at the last token: [name, d_model]."""
    return torch.stack([residuals(model, names, [prompt])[0] for prompt in prompts]).mean(0)
