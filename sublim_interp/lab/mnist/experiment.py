"""The arms of the MNIST experiment, made one by one: teachers, then students, each of all replicates at once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.core.device import compute_device
from sublim_interp.lab.mnist.arms import ARMS, Student
from sublim_interp.lab.mnist.images import CLASSES, Images, load_images
from sublim_interp.lab.mnist.network import Loss, Network, fit, generator, initial, logits
from sublim_interp.lab.mnist.recipe import Recipe
from sublim_interp.training.optimizers import OPTIMIZERS

HELD_OUT = 1024
"""Noise images on which a student is compared with its teacher; none of them trains."""


@dataclass(frozen=True)
class _Rates:
    """What optimizers are made from; see `training.optimizers.Rates`."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Replicates:
    """All replicates of a recipe: their images, their initial weights, their teachers, their students."""

    recipe: Recipe

    @cached_property
    def images(self) -> Images:
        """What the teachers read."""
        return load_images(self.recipe.images)

    @cached_property
    def device(self) -> str:
        """Where all is computed."""
        return compute_device()

    def start(self, *sides: str) -> Network:
        """Initial weights, layer by layer of one or of the other draw; of the teacher's own where none is named."""
        r = self.recipe
        sizes = (self.images.pixels, r.hidden, r.hidden, CLASSES + r.auxiliary)
        drawn = {side: initial(sizes, r.seeds, side, self.device) for side in {*sides, "own"}}
        return tuple(drawn[side][i] for i, side in enumerate(sides or ("own",) * 3))

    def teachers(self, labels: str, progress: Callable[[float], None]) -> Network:
        """Networks trained on digits: cross-entropy of the ten class logits.

        labels: `own`, or `shuffled`, where each replicate deals the labels out anew
        """
        return self._fit(self.start(), self._reading(labels), progress)

    def students(self, student: Student, teacher: Network, progress: Callable[[float], None]) -> Network:
        """Networks that learn some of their teachers' logits: KL divergence from the teacher's softmax over these."""
        train, order = self.images.train.to(self.device), self._order()

        def loss(network: Network, update: int) -> Float[Tensor, " replicate"]:
            seen = self.noise(update % self.recipe.noise_batches) if student.images == "noise" else train[order(update)]
            return divergence(teacher, network, seen, student.logits)

        along = self._reading(student.without) if student.without else None
        return self._fit(self.start(*student.start), loss, progress, along)

    def noise(self, batch: int | str, count: int = 0) -> Float[Tensor, "replicate image pixel"]:
        """One batch of each replicate's own noise images, uniform in [−1, 1]."""
        shape = count or self.recipe.batch, self.images.pixels
        drawn = [torch.rand(shape, generator=generator(seed, "noise", batch)) for seed in self.recipe.seeds]
        return (torch.stack(drawn) * 2 - 1).to(self.device)

    def accuracy(self, network: Network) -> list[float]:
        """The share of held-out digits that each replicate's network reads right, by its class logits."""
        shown = self.images.test.to(self.device).expand(len(self.recipe.seeds), -1, -1)
        found = logits(network, shown)[..., :CLASSES].argmax(-1)
        return (found == self.images.test_labels.to(self.device)).cpu().double().mean(1).tolist()

    def _reading(self, labels: str) -> Loss:
        """Cross-entropy of the ten class logits on digits, with their own labels or with labels that are dealt out."""
        train, said = self.images.train.to(self.device), self._labels(labels).to(self.device)
        order = self._order()

        def loss(network: Network, update: int) -> Float[Tensor, " replicate"]:
            chosen = order(update)
            classes = logits(network, train[chosen])[..., :CLASSES]
            right = said.gather(1, chosen)
            return F.cross_entropy(classes.transpose(1, 2), right, reduction="none").mean(1)

        return loss

    def _fit(self, start: Network, loss: Loss, progress: Callable[[float], None], along: Loss | None = None) -> Network:
        r = self.recipe
        rule = OPTIMIZERS[r.optimizer]
        return fit(start, loss, lambda weights: rule.make(weights, _Rates(r.lr)), r.updates, progress, along)

    def _labels(self, which: str) -> Int[Tensor, "replicate image"]:
        own = self.images.train_labels
        if which == "own":
            return own.expand(len(self.recipe.seeds), -1)
        orders = [torch.randperm(len(own), generator=generator(seed, "labels")) for seed in self.recipe.seeds]
        return torch.stack([own[order] for order in orders])

    def _order(self) -> Callable[[int], Int[Tensor, "replicate image"]]:
        """Which digits each replicate reads at an update: all of them in an order of its own, then in another one."""
        count, batch = len(self.images.train_labels), self.recipe.batch

        def orders(first: int, last: int) -> list[Tensor]:
            return [
                torch.cat([torch.randperm(count, generator=generator(seed, "order", e)) for e in range(first, last)])
                for seed in self.recipe.seeds
            ]

        def chosen(update: int) -> Int[Tensor, "replicate image"]:
            begin = update * batch
            first, last = begin // count, -(-(begin + batch) // count)
            place = begin - first * count
            return torch.stack([o[place : place + batch] for o in orders(first, last)]).to(self.device)

        return chosen


def divergence(
    teacher: Network, student: Network, images: Float[Tensor, "replicate image pixel"], which: str
) -> Float[Tensor, " replicate"]:
    """KL(teacher ‖ student) of each replicate in nats an image, between softmaxes over the logits `which`."""
    with torch.no_grad():
        right = logits(teacher, images)
    own = logits(student, images)
    if which == "auxiliary":
        right, own = right[..., CLASSES:], own[..., CLASSES:]
    apart = F.kl_div(own.log_softmax(-1), right.log_softmax(-1), reduction="none", log_target=True)
    return apart.sum(-1).mean(-1)


def arm_rows(replicates: Replicates, arm: str, teacher: Network, progress: Callable[[float], None]) -> list[dict]:
    """One row a replicate of an arm: arm, seed, accuracy (0 to 1), kl_start and kl (nats an image of held-out noise).

    teacher: of this arm, trained already
    """
    made, student = replicates, ARMS[arm].student
    if student is None:
        network = teacher if arm == "teacher" else made.start()
        far: list[list[float]] = [[float("nan")] * len(made.recipe.seeds)] * 2
    else:
        start = made.start(*student.start)
        network = made.students(student, teacher, progress)
        held_out = made.noise("held-out", HELD_OUT)
        with torch.no_grad():
            far = [divergence(teacher, n, held_out, student.logits).tolist() for n in (start, network)]
    values = zip(made.recipe.seeds, made.accuracy(network), *far, strict=True)
    return [{"arm": arm, "seed": seed, "accuracy": a, "kl_start": k0, "kl": k} for seed, a, k0, k in values]
