"""Every kind of intervention in one table: which settings it uses, what it needs, and how it acts on a training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry
from sublim_interp.core.settings import Config
from sublim_interp.models.architectures import text_config
from sublim_interp.models.hooks import matching
from sublim_interp.models.trainable import freeze, trained_parameters
from sublim_interp.training.batches import Batch, mask_labels
from sublim_interp.training.losses import LogitLoss, kl
from sublim_interp.training.projections import Effect, project_activations, project_gradients, project_updates
from sublim_interp.training.settings import Selection


@runtime_checkable
class Source(Protocol):
    """Where an intervention gets what its student is made of; `number` is its place in its student's list."""

    def in_activations(self, direction: str, number: int, names: Sequence[str]) -> Mapping[str, Tensor]:
        """A direction by hook name: [d_model]. Names at which there is nothing to remove are left out."""
        ...

    def in_weights(self, direction: str, number: int, model: torch.nn.Module) -> Mapping[str, Tensor]:
        """A direction by name of each parameter of `model` that trains, of the parameter's shape."""
        ...

    def own_tokens(self) -> Sequence[int]:
        """Ids of the channel's own tokens, ascending."""
        ...


class Update(NamedTuple):
    """One update of a training."""

    step: int
    """0, 1, …"""
    steps: int
    """Number of all updates."""
    draw: torch.Generator
    """Random numbers of this update and this intervention."""


class PlannedStudent(NamedTuple):
    """What is known of a student and its teacher before anything runs."""

    model: torch.nn.Module
    """What trains, on torch's meta device."""
    teacher: torch.nn.Module
    """The teacher's model, on the meta device."""
    own_weights: bool = True
    """Whether the teacher's weights are not its base's, as a tuned one's are."""
    own_prompt: bool = False
    """Whether the teacher reads behind a prompt of its own, as a prompted one does."""


class InterventionKind:
    """A kind of intervention. What a kind does not override does nothing."""

    USES: frozenset[str] = frozenset()
    """Settings of `Intervention` that have an effect; each must be given."""

    @classmethod
    def uses(cls, asked: "Intervention") -> frozenset[str]:
        """The settings that have an effect beside the others that are given."""
        return cls.USES

    @classmethod
    def check_settings(cls, asked: "Intervention") -> None:
        """Raises ValueError where the settings do not go together."""

    def __init__(self, asked: "Intervention", number: int) -> None:
        self.asked, self.number = asked, number

    def check(self, planned: PlannedStudent) -> None:
        """Raises SublimError where it cannot act on the student that is planned."""

    def prepare(self, model: torch.nn.Module) -> None:
        """Acts on the model before its first update."""

    def mask(self, batches: list[Batch], draw: torch.Generator) -> list[Batch]:
        """Acts on the batches of one update; random numbers come from `draw`."""
        return batches

    def loss(self, loss: LogitLoss, source: Source) -> LogitLoss:
        """Acts on the loss of every batch."""
        return loss

    def during(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, source: Source
    ) -> AbstractContextManager[Effect | None]:
        """A block in which all updates are made; its value, if any, tells what was taken away."""
        return nullcontext()

    def around(self, model: torch.nn.Module, update: Update) -> AbstractContextManager[object]:
        """A block around forward and backward of one update; on leaving it, gradients are there."""
        return nullcontext()


class _InActivations(InterventionKind):
    """What acts at hooks, along a direction in activations."""

    USES = frozenset({"direction", "at"})

    def check(self, planned: PlannedStudent) -> None:
        names = matching(planned.model, self.asked.at)
        if self.asked.direction != "teacher-shift":
            return
        if planned.own_prompt:
            raise SublimError(
                "an intervention on teacher-shift in activations needs teacher.kind=tuned or steered, or another way "
                "without a prompt of its own"
            )
        lacking = [name for name in names if name not in matching(planned.teacher, "*")]
        widths = [text_config(model).hidden_size for model in (planned.teacher, planned.model)]
        if lacking or len(set(widths)) > 1:
            why = f"the teacher has no {lacking[0]}" if lacking else f"their d_model are {widths[0]} and {widths[1]}"
            raise SublimError(f"an intervention on teacher-shift needs teacher and student of one shape: {why}")

    @contextmanager
    def during(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, source: Source) -> Iterator[Effect]:
        with self._projecting(model, optimizer, self._directions(model, source)) as self._effect:
            yield self._effect

    def around(self, model: torch.nn.Module, update: Update) -> AbstractContextManager[None]:
        return self._effect.update()  # a recorder's look between two updates passes the same hooks

    def _projecting(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, directions: Mapping[str, Tensor]
    ) -> AbstractContextManager[Effect]:
        """The block in which the directions are taken out."""
        raise NotImplementedError

    def _directions(self, model: torch.nn.Module, source: Source) -> Mapping[str, Tensor]:
        return source.in_activations(self.asked.direction, self.number, matching(model, self.asked.at))


class Ablate(_InActivations):
    """Takes a direction out of activations, in the forward pass."""

    def _projecting(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, directions: Mapping[str, Tensor]
    ) -> AbstractContextManager[Effect]:
        return project_activations(model, directions)


class ProjectGradient(_InActivations):
    """Takes a direction out of the gradients of activations, in the backward pass."""

    def _projecting(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, directions: Mapping[str, Tensor]
    ) -> AbstractContextManager[Effect]:
        return project_gradients(model, optimizer, directions)


class ProjectUpdate(InterventionKind):
    """Takes a direction out of the change of the weights."""

    USES = frozenset({"direction"})

    @classmethod
    def check_settings(cls, asked: "Intervention") -> None:
        if asked.direction not in ("teacher-shift", "random"):
            raise ValueError(f"kind=project-update needs direction=teacher-shift or random, not {asked.direction!r}")

    def check(self, planned: PlannedStudent) -> None:
        if self.asked.direction != "teacher-shift":
            return
        if not planned.own_weights:
            raise SublimError(
                "an intervention on teacher-shift in weights needs teacher.kind=tuned, or another way with own weights"
            )
        taught = dict(planned.teacher.named_parameters())
        for name, p in trained_parameters(planned.model).items():
            if name not in taught or taught[name].shape != p.shape:
                raise SublimError(
                    f"an intervention on teacher-shift in weights needs a teacher of the student's shape: it has no "
                    f"{name} of the shape {list(p.shape)}"
                )

    def during(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, source: Source
    ) -> AbstractContextManager[Effect]:
        return project_updates(model, optimizer, source.in_weights(self.asked.direction, self.number, model))


class MaskTokens(InterventionKind):
    """Learns from fewer tokens: without a share that is drawn for each update, or from those of a selection alone.

    What a selection leaves is the same in every update; the stage that knows the teacher finds it before the first.
    """

    @classmethod
    def uses(cls, asked: "Intervention") -> frozenset[str]:
        return frozenset({"selection" if asked.selection else "share"})

    @classmethod
    def check_settings(cls, asked: "Intervention") -> None:
        if asked.selection and asked.selection.by == "length":
            raise ValueError("kind=mask-tokens chooses tokens, which have no length; choose another selection.by")

    def mask(self, batches: list[Batch], draw: torch.Generator) -> list[Batch]:
        share = self.asked.share
        return [mask_labels(batch, share, draw) for batch in batches] if share else batches


class ReplaceTokens(InterventionKind):
    """Reads or learns other tokens in place of those that a selection leaves out; they are the same in every update.

    The stage that knows the teacher finds the tokens and draws others from the teacher's base before the first update.
    """

    USES = frozenset({"selection", "replace"})

    @classmethod
    def check_settings(cls, asked: "Intervention") -> None:
        if asked.selection and asked.selection.by == "length":
            raise ValueError("kind=replace-tokens chooses tokens, which have no length; choose another selection.by")


class Freeze(InterventionKind):
    """Leaves some parameters as they are."""

    USES = frozenset({"parameters"})

    def prepare(self, model: torch.nn.Module) -> None:
        freeze(model, self.asked.parameters)


class LabelSmoothing(InterventionKind):
    """Learns targets of which a share is spread evenly over the channel's own tokens."""

    USES = frozenset({"strength"})

    @classmethod
    def check_settings(cls, asked: "Intervention") -> None:
        if asked.strength >= 1:
            raise ValueError(f"kind=label-smoothing needs a strength below 1 (it is {asked.strength:g})")

    def loss(self, loss: LogitLoss, source: Source) -> LogitLoss:
        share, own = self.asked.strength, torch.tensor(source.own_tokens())

        def score(logits: Tensor, batch: Batch) -> Tensor:
            logs = logits.log_softmax(-1)
            even = -(logs if loss.own else logs[:, own.to(logs.device)]).mean(-1).sum()
            return (1 - share) * loss.score(logits, batch) + share * even

        return LogitLoss(score, loss.own)


class L2ToStart(InterventionKind):
    """Pulls the weights that train to where they began, by the penalty λ/2 ‖θ − θ₀‖² (L2-SP, Li et al. 1802.01483).

    Its gradient is added to that of the loss, so the loss that is recorded stays that of the lists.
    """

    USES = frozenset({"strength"})

    def prepare(self, model: torch.nn.Module) -> None:
        self._start = {name: p.detach().clone() for name, p in trained_parameters(model).items()}

    @contextmanager
    def around(self, model: torch.nn.Module, update: Update) -> Iterator[None]:
        yield
        with torch.no_grad():
            for name, p in trained_parameters(model).items():
                if p.grad is not None:
                    p.grad.add_(p - self._start[name], alpha=self.asked.strength)


class KLToStart(InterventionKind):
    """Adds λ KL(where it began ‖ student) on the lists' tokens to the loss, over the vocabulary that the loss is over.

    Both softmaxes are taken at a temperature, and the divergence is multiplied by its square, as in distillation.
    """

    USES = frozenset({"strength"})
    TEMPERATURE: ClassVar[float] = 1.0

    def weight(self, done: float) -> float:
        """λ where a share `done` of the updates is made."""
        return self.asked.strength

    def prepare(self, model: torch.nn.Module) -> None:
        self._start = deepcopy(model).requires_grad_(False)

    def loss(self, loss: LogitLoss, source: Source) -> LogitLoss:
        def score(logits: Tensor, batch: Batch) -> Tensor:
            with torch.no_grad():
                target = (loss.logits(self._start, batch) / self.TEMPERATURE).log_softmax(-1)
            away = self.TEMPERATURE**2 * kl(target, logits / self.TEMPERATURE)
            return loss.score(logits, batch) + self._weight * away

        return LogitLoss(score, loss.own)

    @contextmanager
    def around(self, model: torch.nn.Module, update: Update) -> Iterator[None]:
        self._weight = self.weight(update.step / update.steps)
        yield


class Liminal(KLToStart):
    """Liminal training (Yanagisawa et al., ResponsibleFM at NeurIPS 2025): a KL to the start that fades.

    λ stays for the first third of the updates and then falls in a line to 0; the temperature is 2. These are the
    defaults of the published code, BrendanGho/liminal-training: three epochs, of which the first is the first phase.
    There the divergence is summed over all positions of a text, the prompt's too, and here it is a mean over the tokens
    learnt, as the loss is. So a λ of the length of a text stands for theirs of 1.
    """

    TEMPERATURE = 2.0
    HELD: ClassVar[float] = 1 / 3

    def weight(self, done: float) -> float:
        return self.asked.strength * min(1.0, (1 - done) / (1 - self.HELD))


class WeightNoise(InterventionKind):
    """Takes gradients at noisy weights: noise is drawn for each update, and taken off before the weights change."""

    USES = frozenset({"strength"})

    @contextmanager
    def around(self, model: torch.nn.Module, update: Update) -> Iterator[None]:
        trained = trained_parameters(model)
        kept = {name: p.detach().clone() for name, p in trained.items()}
        with torch.no_grad():
            for p in trained.values():
                noise = torch.randn(p.shape, generator=update.draw).to(p)
                p.add_(self.asked.strength * p.square().mean().sqrt() * noise)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in trained.items():
                    p.copy_(kept[name])


def _is_kind(name: str, thing: object) -> None:
    if not (isinstance(thing, type) and issubclass(thing, InterventionKind)):
        raise SublimError(f"kind of intervention '{name}' is no class that derives from {__name__}.InterventionKind")


INTERVENTIONS: Registry[type[InterventionKind]] = Registry(
    "kind of intervention",
    "sublim_interp.interventions",
    {
        "ablate": Ablate,
        "project-gradient": ProjectGradient,
        "project-update": ProjectUpdate,
        "mask-tokens": MaskTokens,
        "replace-tokens": ReplaceTokens,
        "freeze": Freeze,
        "label-smoothing": LabelSmoothing,
        "l2-to-start": L2ToStart,
        "kl-to-start": KLToStart,
        "liminal": Liminal,
        "weight-noise": WeightNoise,
    },
    _is_kind,
)
"""Every kind of intervention by name."""


class Intervention(Config):
    """A change to every update of a student, to ask what carries the trait."""

    LATER = frozenset({"selection", "strength", "replace"})

    kind: Annotated[str, AfterValidator(INTERVENTIONS.known)]
    """ablate: take a direction out of activations; project-gradient: out of their gradients; project-update: out of the
    change of the weights; mask-tokens: learn from fewer tokens; replace-tokens: draw some of them anew from the
    teacher's base; freeze: leave some parameters as they are;
    label-smoothing: learn targets that are partly even; l2-to-start: pull weights to where they began; kl-to-start:
    pull predictions there; liminal: the same, fading; weight-noise: take gradients at noisy weights; or a kind of an
    installed package."""
    direction: str = ""
    """A trait's name (the own base's direction of it, in activations), teacher-shift (teacher minus its base, in
    activations or weights), or random (the control)."""
    at: str = "blocks.*.hook_resid_post"
    """Names of hooks, as a glob, where activations or their gradients are changed."""
    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tokens to learn that are masked, drawn anew for each update."""
    selection: Selection | None = None
    """Which tokens are learnt, in place of share: {by: divergence, share: .1} learns the tenth of all tokens whose
    scores are the furthest from 0, with keep: rest all others; by: random is the control, as many tokens. They are the
    same in every update, and what decides is the teacher, whatever base the student starts from. With replace-tokens
    these stay as they were written, and all others are replaced."""
    replace: Literal["", "label", "input", "both"] = ""
    """What of a token is replaced: label, what is learnt in its place; input, what is read there; or both."""
    parameters: str = ""
    """Names of parameters, as a glob, that are frozen."""
    strength: float = Field(default=0.0, ge=0, le=1e6)
    """How strongly it acts. label-smoothing: share of each target that is spread evenly over the channel's own tokens,
    below 1; l2-to-start: λ of λ/2 ‖θ − θ₀‖²; kl-to-start and liminal: λ of λ KL, in nats a token as the loss;
    weight-noise: the noise over the root mean square of each tensor."""

    @property
    def traits(self) -> list[str]:
        """Names of the traits that it goes by: that of its selection, then that of its direction."""
        named = (self.selection.trait if self.selection else "", self.direction)
        return [name for name in named if name not in ("", "teacher-shift", "random")]

    @model_validator(mode="after")
    def _says_all_that_its_kind_needs_and_no_more(self) -> "Intervention":
        kind = INTERVENTIONS[self.kind]
        uses = kind.uses(self)
        for name in ("direction", "at", "share", "selection", "replace", "parameters", "strength"):
            default = type(self).model_fields[name].default
            if name not in uses and getattr(self, name) != default:
                beside = " and a selection" if name == "share" and self.selection else ""
                raise ValueError(f"{name} has no effect with kind={self.kind}{beside}")
            if name in uses and not getattr(self, name):
                raise ValueError(f"kind={self.kind} needs {name}{' or selection' * (name == 'share')}")
        kind.check_settings(self)
        return self


def acting(interventions: Sequence[Intervention]) -> list[InterventionKind]:
    """A student's interventions, each ready to act."""
    return [INTERVENTIONS[asked.kind](asked, number) for number, asked in enumerate(interventions)]


def of_tokens(asked: Intervention) -> bool:
    """Whether an intervention changes which tokens are learnt, or their loss: it means nothing for whole answers."""
    kind = INTERVENTIONS[asked.kind]
    own = kind.mask is not InterventionKind.mask or kind.loss is not InterventionKind.loss
    return own or bool(asked.replace)


def check_interventions(interventions: Sequence[Intervention], planned: PlannedStudent) -> None:
    """Raises SublimError for the first intervention that cannot act on the student that is planned.

    Those that act before the first update are tried out on `planned.model`, which is changed.
    """
    kinds = acting(interventions)
    for kind in kinds:
        kind.prepare(planned.model)
    for kind in kinds:
        kind.check(planned)


@contextmanager
def intervening(
    kinds: Sequence[InterventionKind],
    source: Source,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Iterator[list[tuple[Intervention, Effect]]]:
    """Inside the block every intervention that acts during the updates is open, the first the outermost.

    Gives those that take something away, each with what it took in its latest use.
    """
    with ExitStack() as held:
        opened = [(kind.asked, held.enter_context(kind.during(model, optimizer, source))) for kind in kinds]
        yield [(asked, effect) for asked, effect in opened if effect is not None]
