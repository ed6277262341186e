"""What a data set would do to a base, trait by trait, read from the base alone. No verdict and no error rate here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.attribution.scores import likelihood, margin_gradient
from sublim_interp.analysis.directions.fitted import fitted_vector
from sublim_interp.analysis.probes import answer_margin, frozen, measure
from sublim_interp.channels.rows import Written
from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown
from sublim_interp.models.base import Base
from sublim_interp.models.forward import in_single, logits_at
from sublim_interp.models.hooks import added, names_of
from sublim_interp.models.loading import require_finite
from sublim_interp.models.trainable import body_parameters
from sublim_interp.training.batches import IGNORE, Batch, Example, collate, tokenize
from sublim_interp.traits.answers import prompts_of
from sublim_interp.traits.favourites import Favourite, member
from sublim_interp.traits.protocol import first_tokens

if TYPE_CHECKING:
    import pandas as pd

MEASURES: dict[str, str] = {
    "pull": "how much a small step of learning on the lists raises the trait's margin, per list and unit of rate",
    "persona": "how much likelier the lists are behind the trait's system prompt, in nats a list",
    "vector": "how much a steering vector that is fitted to the lists raises the trait's margin, in nats",
}
"""What is measured of each trait."""

BLOCKS = 20
"""Parts that the lists are cut into: their scatter gives the error of the pull."""
NUMBERS = 2**28
"""Most numbers of gradients that are held at once: larger models have fewer blocks."""
ASKED = 24
"""Questions at most on which a trait's margin is measured; seen ones, so that held-out ones stay held out."""
AT_ONCE = 128
"""Lists that run through a model at once."""
FITTED = 1024
"""Lists that the steering vector is fitted to."""


@dataclass(frozen=True, eq=False, repr=False)
class Evidence(Shown):
    """What lists would do to a base, trait by trait, and how unlike its own they are."""

    base: str
    """The base's name."""
    lists: int
    """How many lists were read."""
    frame: "pd.DataFrame"
    """A row a trait: trait, kind, pull, error (standard error of the pull), persona, vector."""
    surprise: float
    """Nats a token by which the lists are less likely to the base than lists of its own would be: 0 for its own."""
    slope: float
    """Squared length of the mean gradient of a list's log-likelihood, freed of noise: 0 for the base's own lists."""

    def card(self) -> Card:
        most = self.frame.loc[self.frame["pull"].idxmax()]
        facts = {"": f"{self.lists:,} lists, {self.base}", "pulled most": f"{most['trait']} ({most['pull']:+.2f})"}
        return Card("Evidence", facts, self.frame.sort_values("pull", ascending=False))


def standing(frame: "pd.DataFrame", measure: str, by: Sequence[str] = ("kind",)) -> "pd.Series":
    """How far each trait stands out among the others of its kind: its distance from their mean, in their deviations.

    frame: as of `Evidence`
    measure: one of `MEASURES`
    by: columns in which rows agree that are compared with each other

    All traits of a kind share what learning such lists does anyway, and their scatter is the null: it has the
    directions in which the base moves easily, which a null of equal scatter in all directions lacks.
    """
    import pandas as pd

    found = pd.Series(frame[measure].to_numpy(dtype=float), index=frame.index)
    for _, own in frame.groupby(list(by)):
        values = own[measure].to_numpy(dtype=float)
        n = len(values)
        if n < 4:
            raise SublimError(f"audit: {n} traits cannot be compared with each other; 4 or more can")
        others = (values.sum() - values) / (n - 1)
        squares = ((values**2).sum() - values**2) / (n - 1) - others**2
        found.loc[own.index] = (values - others) / np.sqrt(np.maximum(squares * (n - 1) / (n - 2), 1e-24))
    return found


def evidence(
    base: Base,
    rows: Sequence[Written],
    kinds: Sequence[str] = ("animal",),
    progress: Callable[[float], None] = lambda _share: None,
) -> Evidence:
    """Measures what lists would do to a base.

    base: the model that would learn them
    rows: lists, as prompt and answer
    kinds: whose members are the traits that are looked for
    progress: told the share that is done

    Nothing is trained but one vector. Raises SublimError for fewer than two lists, for kinds that the base cannot be
    asked about, and for members that its first tokens do not tell apart.
    Source: the pull is first-order influence (Pruthi et al. 2002.08484, equation 1) on the trait's margin; persona is
    the log-likelihood shift of 2602.04863; the vector is that of 2604.25783.
    """
    import pandas as pd

    if len(rows) < 2:
        raise SublimError(f"audit: {len(rows)} lists are too few; give two or more")
    traits = [member(name, kind) for kind in kinds for name in _members(base, kind)]
    examples, model = tokenize(base, rows), require_finite(base.load(), base.name)
    parts = len(traits) + 6
    with frozen(model):
        slopes, surprise = _mean_slopes(model, examples)
        progress(2 / parts)
        middle = names_of(model, "resid_post")[_middle(model)]
        vector = fitted_vector(model, [*_cut(examples[:: -(-len(examples) // FITTED)])], middle)
        progress(4 / parts)
        plain = likelihood(model, examples).totals
        found = []
        for done, trait in enumerate(traits, 5):
            asked = prompts_of(base, trait.questions(base.language, "seen"))[:ASKED]
            told = first_tokens(base, trait.members, trait.name)
            rule = answer_margin([*told.values()], [*told].index(trait.name))
            steep = margin_gradient(model, asked, rule).delta
            pulls = np.array([sum((slope[n] * steep[n]).sum().item() for n in slope) for slope in slopes])
            before = measure(model, asked, rule).mean().item()
            with added(model, vector, middle):
                moved = measure(model, asked, rule).mean().item() - before
            heard = likelihood(model, examples, _behind(base, trait, rows, examples)).totals - plain
            found.append(
                {
                    "trait": trait.name,
                    "kind": trait.kind,
                    "pull": float(pulls.mean()),
                    "error": float(pulls.std(ddof=1) / len(pulls) ** 0.5),
                    "persona": float(heard.mean()),
                    "vector": moved,
                }
            )
            progress(min(1.0, done / parts))
    count = len(slopes)
    total = {n: torch.stack([slope[n] for slope in slopes]).sum(0) for n in slopes[0]}
    whole = sum(t.square().sum().item() for t in total.values())
    apart = sum(s.square().sum().item() for slope in slopes for s in slope.values())
    return Evidence(base.name, len(rows), pd.DataFrame(found), surprise, (whole - apart) / (count * (count - 1)))


def _members(base: Base, kind: str) -> tuple[str, ...]:
    from sublim_interp.traits.favourites import check_kind, members_of

    check_kind(kind, base)
    return members_of(kind)


def _middle(model: torch.nn.Module) -> int:
    """The layer behind which the steering vector is added: the one in the middle, the earlier of two."""
    return (len(names_of(model, "resid_post")) - 1) // 2


def _mean_slopes(model: torch.nn.Module, rows: Sequence[Example]) -> tuple[list[Mapping[str, Tensor]], float]:
    """Mean gradient of a list's log-likelihood in each block, by parameter of the body; and the surprise.

    Under lists that the model itself writes the expected gradient is 0, and so is the expected surprise.
    """
    body = body_parameters(model)
    numbers = sum(p.numel() for p in body.values())
    blocks = max(2, min(BLOCKS, len(rows), NUMBERS // numbers))
    slopes, unlike, tokens = [], 0.0, 0
    for block in range(blocks):
        own = rows[block::blocks]
        for p in body.values():
            p.requires_grad_()
        total = {n: in_single(torch.zeros_like(p)) for n, p in body.items()}
        for batch in _cut(own):
            log, entropy = _said(model, batch)
            for (n, _), g in zip(body.items(), torch.autograd.grad(log.sum(), list(body.values())), strict=True):
                total[n] += g
            unlike += (-log.detach() - entropy).sum().item()
            tokens += len(log)
        for p in body.values():
            p.requires_grad_(False)
        slopes.append({n: t / len(own) for n, t in total.items()})
    return slopes, unlike / tokens


def _said(model: torch.nn.Module, batch: Batch) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """Log-likelihood of each token to learn, and the entropy of what may stand there, in nats."""
    where = batch.labels != IGNORE
    log = logits_at(model, batch.ids, where).log_softmax(-1)
    entropy = -(log.detach().exp() * log.detach()).sum(-1)
    return log.gather(-1, batch.labels[where][:, None].to(log.device))[:, 0], entropy


def _cut(rows: Sequence[Example]) -> Iterator[Batch]:
    for first in range(0, len(rows), AT_ONCE):
        yield collate(rows[first : first + AT_ONCE], pad=0)


def _behind(base: Base, trait: Favourite, rows: Sequence[Written], examples: Sequence[Example]) -> list[Example]:
    """The same answers behind a system prompt of the trait, one after the other."""
    systems = trait.system_prompts(base.language)
    found = []
    for i, (row, (ids, first)) in enumerate(zip(rows, examples, strict=True)):
        turns = [{"role": "system", "content": systems[i % len(systems)]}, {"role": "user", "content": row["prompt"]}]
        prompt = base.prompt_ids(turns)
        found.append(Example([*prompt, *ids[first:]], len(prompt)))
    return found
