"""One case of study kernel: a teacher, a student of some base, the kernel between them, and the linearised student."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.analysis.kernel import (
    Linearised,
    adam_scaled,
    by_part,
    coupling,
    drift,
    mean_of,
    mean_squares,
    over_lists,
    pulled,
    questions,
    rise,
    to_text,
    towards,
)
from sublim_interp.analysis.one_step import (
    Step,
    cosine,
    descent,
    inner,
    length,
    moved,
    targets,
    text_loss,
    weight_length,
)
from sublim_interp.analysis.probes import margin_among
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import Written, read_rows
from sublim_interp.experiments.plan import Cell, planned_traits
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.models.forward import logits_at
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.records import Student, Teacher
from sublim_interp.training.batches import IGNORE, PIECE, Batch, Order, collate, micro_batches, pieces, tokenize
from sublim_interp.training.interventions import acting
from sublim_interp.training.loop import train
from sublim_interp.training.losses import own_token_loss, token_loss
from sublim_interp.traits.answers import prompts_of
from sublim_interp.traits.protocol import Trait

if TYPE_CHECKING:
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.results import Replicate

Row = dict[str, Any]

CONDITIONS = {
    "teacher": "the teacher's change of its base's predictions",
    "neutral teacher": "the same of a teacher without the trait",
    "other trait": "the same of a teacher of another trait",
    "shuffled labels": "the teacher's change, put at other positions of other lists",
    "whole labels": "the teacher's predictions less the student's own",
    "teacher, sampled": "the teacher's lists as plain text",
    "neutral teacher, sampled": "lists of the teacher without the trait",
    "other trait, sampled": "lists of the teacher of another trait",
}
"""What lists ask of the student's predictions, by name; the first five on the teacher's lists, as soft labels."""

FULL = "full/delta/"
"""How names of a trace begin that hold how far a weight is from the start."""

SQUARED = 8
"""Updates whose gradients give the second moment with which Adam's first steps are predicted."""

_CHECKED = 128
"""Lists on which the kernel is followed along the training."""


class Asked(NamedTuple):
    """What is asked of a case.

    cell: its student, in a plan
    experiment: by whose recipe
    lists: on how many couplings are measured
    shares: lengths of single steps, as shares of the weights' length
    """

    cell: Cell
    experiment: Experiment
    lists: int
    shares: tuple[float, ...]


class Seen(NamedTuple):
    """What a student shows at one step."""

    margin: float
    rate: float
    kl: float


class Case:
    """A student's record with what its kernel is measured on: questions, lists, its teacher, that one's base."""

    def __init__(self, asked: Asked, store: "Store") -> None:
        cell, self.store, self.asked = asked.cell, store, asked
        assert cell.student is not None
        self.student: Student = cell.student
        self.base: Base = self.student.base
        self.teacher: Teacher = self.student.data.corpus.teacher
        trait, members = cell.evaluation.trait, cell.evaluation.members
        self.ids, self.place = [self.base.answer_ids(m)[0] for m in members], members.index(trait.name)
        self.metric = margin_among(self.ids, self.place)
        asks = prompts_of(self.base, trait.questions(self.base.language, "held-out"))
        self.questions = questions(asks, self.ids[self.place], self.base.pad)
        self.own: list[int] = list(channel(self.student.data.corpus.config.channel).token_ids(self.base.tokenizer))
        self.model = self.fresh()
        held_out = read_rows(self.student.data.made(store) / "held_out.jsonl")
        self.lists = self._batch(held_out[: asked.lists])
        self.checked = self._batch(held_out[: min(asked.lists, _CHECKED)])

    def fresh(self) -> torch.nn.Module:
        """The student as it begins, what trains in it chosen."""
        config = self.student.config
        model = choose_trainable(self.base.load(), config.part)
        for kind in acting(config.interventions):
            kind.prepare(model)
        return model

    def _batch(self, lists: Sequence[Written]) -> Batch:
        return collate(tokenize(self.base, lists), self.base.pad)

    def speaks(self, teacher: Teacher) -> torch.nn.Module:
        """A teacher as a model, made where it is not there."""
        from sublim_interp.pipeline.make import make
        from sublim_interp.pipeline.speaker import Speaker
        from sublim_interp.training.recording.settings import PRESETS

        make(teacher, self.store, recording=PRESETS["none"])
        return Speaker(teacher, self.store).model

    def lists_of(self, teacher: Teacher) -> Batch:
        """Lists of another teacher of the same base, filtered as the student's own are."""
        from sublim_interp.pipeline.make import make
        from sublim_interp.training.recording.settings import PRESETS

        corpus = replace(
            self.student.data.corpus,
            teacher=teacher,
            config=self.student.data.corpus.config.set(prompts=2 * self.asked.lists),
        )
        data = replace(self.student.data, corpus=corpus, config=self.student.data.config.set(held_out=2))
        make(data, self.store, recording=PRESETS["none"])
        return self._batch(read_rows(data.made(self.store) / "kept.jsonl")[: self.asked.lists])

    @cached_property
    def other_teachers(self) -> dict[str, Teacher]:
        """The neutral teacher and that of another trait, of the same base and seed."""
        traits = planned_traits(self.asked.experiment.set(arms=["same-init", "other-trait"]), self.student.seed)
        other: Trait = traits["other"]
        return {
            "neutral teacher": replace(self.teacher, trait=traits[""]),
            "other trait": replace(self.teacher, trait=other),
        }

    def seen(self, read: Callable[[Batch, Sequence[int] | None], Tensor], target: Tensor) -> Seen:
        """Margin and rate of the trait, and the KL from the teacher on lists in nats a token.

        read: gives logits at the labelled positions of a batch, of these tokens
        target: the teacher's log-probabilities on `checked`
        """
        with torch.no_grad():
            answers = read(self.questions, None)
            own = read(self.checked, self.own).log_softmax(-1)
            return Seen(
                float(self.metric(answers).mean()),
                float(answers.softmax(-1)[:, self.ids[self.place]].mean()),
                float(F.kl_div(own, target, reduction="sum", log_target=True)) / len(target),
            )


def _reader(model: torch.nn.Module) -> Callable[[Batch, Sequence[int] | None], Tensor]:
    return lambda batch, own: logits_at(model, batch.ids, batch.labels != IGNORE, own)


def measure(asked: Asked, store: "Store", progress: Callable[[float], None] = lambda _: None) -> dict[str, list[Row]]:
    """All rows of a case by file: `cases`, `controls`, `parts`, `single`, `steps`, `drift`.

    store: where teacher, lists and student lie, or are made
    """
    from sublim_interp.experiments.results import Replicate
    from sublim_interp.pipeline.make import make
    from sublim_interp.training.recording.settings import Recording

    student = asked.cell.student
    assert student is not None
    make(student, store, recording=Recording(weight_bytes=1 << 28))
    progress(0.35)
    case = Case(asked, store)
    target = targets(case.speaks(case.teacher), case.checked, case.own)
    found, scores = _at_the_start(case)
    progress(0.5)
    linear = _linear_steps(case, target, lambda share: progress(0.5 + 0.4 * share))
    steps, drifts = _along(case, Replicate(asked.cell, store), linear, target)
    first, last = steps[0], steps[-1]
    scores |= {
        "start": first["margin"], "margin": last["margin"], "rate": last["rate"],
        "lift": last["margin"] - first["margin"], "kl": last["kl"], "kl_start": first["kl"],
        "linear_lift": last["linear_margin"] - first["margin"], "linear_rate": last["linear_rate"],
        "linear_kl": last["linear_kl"],
    }  # fmt: skip
    return found | {"cases": [scores], "steps": steps, "drift": drifts}


# --- at the start -----------------------------------------------------------------------------------------------------


def _at_the_start(case: Case) -> tuple[dict[str, list[Row]], Row]:
    """Couplings under all conditions, by part, and single steps; and what is known of the case before any training."""
    model, own, lists = case.model, case.own, case.lists
    upward = rise(model, case.metric, case.questions)
    plain = targets(case.teacher.base.load(), lists, own)
    teachers = {"teacher": case.teacher, **case.other_teachers}
    said = {name: targets(case.speaks(teacher), lists, own) for name, teacher in teachers.items()}
    changes = {name: (told.exp() - plain.exp()) / len(plain) for name, told in said.items()}
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(case.student.seed))
    soft: dict[str, Tensor] = {
        "whole labels": towards(model, lists, said["teacher"], own),
        **{name: changes[name] for name in teachers},
        "shuffled labels": changes["teacher"][order],
    }
    linear = Linearised(model)
    along = linear.along(upward, lists, own)[1]
    pushes: dict[str, Step] = {}
    controls: list[Row] = []

    def keep(condition: str, batch: Batch, asked: Tensor, change: Tensor, tokens: list[int] | None) -> None:
        pushes[condition] = pulled(model, batch, asked, tokens)
        found, spread = coupling(upward, pushes[condition]), over_lists(change, asked, batch)
        controls.append(
            {"condition": condition, "product": found.product, "low": spread.low, "high": spread.high,
             "cosine": found.cosine}
        )  # fmt: skip

    for condition, asked in soft.items():
        keep(condition, lists, asked, along, own)
    for name, teacher in teachers.items():
        written = lists if name == "teacher" else case.lists_of(teacher)
        keep(f"{name}, sampled", written, to_text(model, written), linear.along(upward, written)[1], None)
    change = pushes["teacher"]
    rates = adam_scaled(change, mean_squares(_updates(case)))
    parts = [
        {"layer": layer, "module": module, "product": product}
        for (layer, module), product in by_part(upward, change).items()
    ]
    single = [
        {"rule": rule, **row}
        for rule, step in (("gradient", change), ("adam", rates))
        for row in _single_steps(case, upward, step)
    ]
    scores = {"cosine": cosine(upward, change), "product": inner(upward, change), "adam": inner(upward, rates)}
    return {"controls": controls, "parts": parts, "single": single}, scores


def _updates(case: Case) -> list[dict[str, Tensor]]:
    """The gradients of the first updates, as the student takes them, all at its start."""
    rows, order = _lists(case)
    each = [collate([rows[i] for i in order(step)], case.base.pad) for step in range(SQUARED)]
    return [descent(case.model, text_loss(batch)) for batch in each]


def _single_steps(case: Case, upward: Step, step: Step) -> list[Row]:
    """What one step does to the margin, and what the kernel says; float64 but for norms."""
    exact = deepcopy(case.model).cpu().double()  # not every device has float64
    measured = mean_of(case.metric, case.questions)
    with torch.no_grad():
        before = float(measured(exact))
    rows, size = [], weight_length(case.model)
    for share in case.asked.shares:
        by = share * size / length(step)
        with moved(exact, {name: t.cpu().double() for name, t in step.items()}, by), torch.no_grad():
            after = float(measured(exact))
        rows.append({"share": share, "predicted": by * inner(upward, step), "measured": after - before})
    return rows


# --- along the training -----------------------------------------------------------------------------------------------


def _lists(case: Case) -> tuple[list[Any], Order]:
    """The student's lists as it reads them, and in which order."""
    rows = tokenize(case.base, read_rows(case.student.data.made(case.store) / "kept.jsonl"))
    return rows, Order(len(rows), case.student.config.optimization.batch, case.student.seed)


def updates_of(case: Case) -> Callable[[int], list[Batch]]:
    """The batches of each update, as the real student's."""
    (rows, order), o = _lists(case), case.student.config.optimization
    parts = pieces(o, max(1, order.batch // PIECE))
    return lambda step: micro_batches([rows[i] for i in order(step)], case.base.pad, parts)


class _Linear(NamedTuple):
    """The linearised student at one step: what it shows, and how far its weights have moved."""

    seen: Seen
    step: Mapping[str, Tensor]


def looks(steps: int) -> list[int]:
    """After which of so many updates students are compared: 0, the powers of 2, and the end."""
    return sorted({0, *(2**i for i in range(steps.bit_length()) if 2**i <= steps), steps})


def _linear_steps(case: Case, target: Tensor, progress: Callable[[float], None]) -> dict[int, _Linear]:
    """The linearised student along its training: the real one's optimizer, rates, lists and batches."""
    config = case.student.config
    linear, loss = Linearised(case.model), own_token_loss(case.own) if config.own_tokens else token_loss
    found, steps = {0: _Linear(case.seen(linear.logits, target), {})}, config.optimization.steps
    wanted = {*looks(steps)}

    def observe(step: int, _value: float) -> None:
        progress((step + 1) / steps)
        if step + 1 in wanted:
            kept = {name: t.clone() for name, t in linear.step().items()}
            found[step + 1] = _Linear(case.seen(linear.logits, target), kept)

    def score(model: Any, batch: Batch) -> Float[Tensor, ""]:
        return loss.score(model.logits(batch, loss.own), batch)

    train(linear, updates_of(case), config.optimization, loss=score, observe=observe)
    return found


def _along(case: Case, real: "Replicate", linear: Mapping[int, _Linear], target: Tensor) -> tuple[list[Row], list[Row]]:
    """Rows of both students side by side, and of how the real one's kernel moves."""
    trace, size, now = real.trace, weight_length(case.model), case.fresh()
    kept = trace.require(f"{FULL}*")
    follow = partial(drift, case.model, now, case.metric, case.questions, case.checked, target, case.own)
    steps, drifts = [], []
    for step, beside in linear.items():
        delta = {name.removeprefix(FULL): trace.read(name, step) for name in kept} if step else {}
        with moved(now, delta):
            seen = case.seen(_reader(now), target)
            drifts.append({"step": step, **follow()._asdict()})
        steps.append(
            {"step": step, **seen._asdict(), **{f"linear_{name}": v for name, v in beside.seen._asdict().items()},
             "moved": length(delta) / size, "linear_moved": length(beside.step) / size,
             "alike": cosine(delta, beside.step) if step else 1.0}
        )  # fmt: skip
    return steps, drifts
