"""Metrics by name: what is measured at the answer. One of one's own is any function of logits, [row, vocabulary]."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.probes import (
    Among,
    Ids,
    Metric,
    Subject,
    batches,
    logits_of,
    margin_among,
    members_of,
    part_of,
    rate_among,
)
from sublim_interp.core.registry import Registry
from sublim_interp.models.forward import in_single

Build = Callable[[list[int], int], Metric]
"""Makes a metric of the members' tokens and the place of the one asked for."""


def _logit_diff(ids: list[int], place: int) -> Metric:
    others = [i for i, token in enumerate(ids) if token != ids[place]]
    return Among(tuple(ids), lambda logits: logits[:, place] - logits[:, others].mean(-1))


def _logprob(ids: list[int], place: int) -> Metric:
    return lambda logits: logits.log_softmax(-1)[:, ids[place]]


METRICS: Registry[Build] = Registry(
    "metric",
    "sublim_interp.metrics",
    {
        "margin": margin_among,  # log P(member) − log mean P(other members), in nats
        "logit-diff": _logit_diff,  # the member's logit minus the mean of the other members'
        "logprob": _logprob,  # log P(member), in nats
        "rate": rate_among,  # P(member), 0 to 1
    },
)
"""Metrics of one answer among several, by name; `kl` needs the model that is compared with, so `patch` makes it."""

KL = "kl"
"""The name of the divergence from the model that patches come from."""


def metric_of(given: str | Metric | None, *subjects: Subject) -> Metric:
    """A metric by its name, about the answers of the first subject that has some; one's own as it is.

    given: `margin`, `logit-diff`, `logprob` or `rate`, a function of logits, or None for the subjects' own

    Raises SublimError for an unknown name, and for a name where no subject says which answer is asked for.
    """
    if not isinstance(given, str):
        return part_of("metric", given, *subjects)
    build = METRICS[given]  # an unknown name is told before it is asked whose answers are meant
    return build(*part_of("answer_tokens", None, *subjects, instead=f"si.metric({given!r}, members, which)"))


def metric(name: str, members: Sequence[int | str], which: int | str, base: Any = None) -> Metric:
    """A metric by its name, for models that say nothing of their answers.

    name: `margin`, `logit-diff`, `logprob` or `rate`
    members: the answers, as words or token ids; those of several tokens are taken by their first
    which: the member asked for, or its place
    base: whose tokens words are; ids need none
    """
    return METRICS[name](*members_of(members, which, base))


@dataclass(frozen=True, eq=False)
class Divergence:
    """KL(P ‖ Q) at the answer of each prompt, in nats: P another model's, Q the one that is measured.

    It knows which prompt a row belongs to: `at` gives the metric of some of them.
    """

    log: Float[Tensor, "prompt vocabulary"]
    """log P."""

    def at(self, places: Sequence[int]) -> Metric:
        """The metric of rows that are these prompts, again and again."""
        log = self.log[list(places)]

        def of(logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, " row"]:
            theirs = repeat(log.to(logits), "prompt token -> (copy prompt) token", copy=len(logits) // len(log))
            return (theirs.exp() * (theirs - logits.log_softmax(-1))).sum(-1)

        return of

    def __call__(self, logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, " row"]:
        return self.at(range(len(self.log)))(logits)


@torch.no_grad()
def divergence_from(model: torch.nn.Module, prompts: Ids) -> Divergence:
    """The divergence from what a model answers to these prompts."""
    found: dict[int, Tensor] = {}
    for places, ids in batches(prompts):
        found.update(zip(places, in_single(logits_of(model, ids)).log_softmax(-1).cpu(), strict=True))
    return Divergence(rearrange([found[place] for place in range(len(found))], "prompt token -> prompt token"))
