"""Scores of tokens and lists: what of them may carry a trait, from models alone; nothing is trained here.

A score is a guess. The honest check is to keep or remove what scores highest, train again, and compare with as many
lists drawn at random: that is `filter.selection` of an Experiment, and the grids `carriers` and `removals`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sublim_interp.analysis.directions.weights import WeightDelta
from sublim_interp.analysis.kinship import base_of, require_one_base, require_space, space_of
from sublim_interp.analysis.probes import Metric, Subject, asked_of, batches, frozen, model_of, models_of
from sublim_interp.core.device import device_of
from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown
from sublim_interp.models.forward import in_single, logits_at
from sublim_interp.models.prompts import Prompts
from sublim_interp.models.trainable import body_parameters
from sublim_interp.training.batches import IGNORE, Batch, Example, collate, tokenize

if TYPE_CHECKING:
    import pandas as pd

    from sublim_interp.models.chat import Chat

Weights = WeightDelta | Mapping[str, Tensor]
"""A direction in the weights: one tensor per parameter, by its name, of its shape. A `WeightDelta` says whose base."""

Lists = Sequence[Example] | Sequence[Mapping[str, Any]]
"""Lists to score: as `tokenize` gives them, or rows with `prompt` and `answer` as text, where a base is known."""

_AT_ONCE = 256
"""So many lists run through a model at once."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenScores(Shown):
    """One number for each token to be learnt, list after list."""

    values: Float[np.ndarray, " token"]
    """The scores, in the unit of the function that made them."""
    of: Int[np.ndarray, " token"]
    """The list that each token belongs to: its place among the lists that were scored."""
    token: Int[np.ndarray, " token"]
    """Token ids."""
    chat: "Chat | None" = None
    """Whose tokenizer tells the tokens as text; None where no base is known."""

    @cached_property
    def lengths(self) -> Int[np.ndarray, " list"]:
        """Number of scored tokens of each list."""
        return np.bincount(self.of)

    @property
    def totals(self) -> Float[np.ndarray, " list"]:
        """Sum over the tokens of each list."""
        return np.bincount(self.of, self.values)

    @property
    def means(self) -> Float[np.ndarray, " list"]:
        """Mean over the tokens of each list."""
        return self.totals / self.lengths

    def flagged(self, share: float) -> Bool[np.ndarray, " token"]:
        """The tokens whose scores are the furthest from 0: divergence tokens, where the score is divergence.

        share: how many of all tokens, between 0 and 1; SublimError for another
        """
        return _extreme(np.abs(self.values), share)

    def strongest(self, share: float) -> Bool[np.ndarray, " token"]:
        """The tokens whose scores are the highest.

        share: as of `flagged`
        """
        return _extreme(self.values, share)

    @property
    def frame(self) -> "pd.DataFrame":
        """One row per token: list, place (0 is the first that is learnt), token (id), text of the token, score."""
        import pandas as pd

        first = np.cumsum(self.lengths) - self.lengths
        place = np.arange(len(self.of)) - first[self.of]
        return pd.DataFrame(
            {"list": self.of, "place": place, "token": self.token, "text": self.texts, "score": self.values}
        )

    @property
    def by_token(self) -> "pd.DataFrame":
        """One row per token that occurs: token (id), text, count, mean and total score; the largest total first."""
        import pandas as pd

        groups = self.frame.groupby("token")["score"]
        found = pd.DataFrame({"count": groups.count(), "mean": groups.mean(), "total": groups.sum()})
        found = found.sort_values("total", ascending=False, kind="stable").reset_index()
        found.insert(1, "text", self._texts(found["token"]))
        return found

    @property
    def texts(self) -> list[str]:
        """The text of each token; its id where no tokenizer is known."""
        return self._texts(self.token)

    def _texts(self, tokens: Any) -> list[str]:
        """Tokens as text; their ids where no tokenizer is known."""
        ids = sorted({int(i) for i in tokens})
        words = dict(zip(ids, self.chat.tokens(ids) if self.chat else map(str, ids), strict=True))
        return [words[int(i)] for i in tokens]

    def card(self) -> Card:
        return Card("TokenScores", {"": f"{len(self.values):,} tokens of {len(self.lengths):,} lists"}, self.by_token)


def highest(scores: TokenScores, share: float) -> Bool[np.ndarray, " list"]:
    """The lists whose totals are the highest, each ranked among the lists of as many tokens.

    share: how many of all lists, between 0 and 1

    What is chosen, and what is left, then holds about as many tokens as a random choice of the same share. Plain
    ranking by means would choose the shortest lists, since a mean over few tokens scatters more.

    Raises SublimError for a share that is not between 0 and 1, or that takes none or all of the lists.
    """
    quantile = np.empty(len(scores.lengths))
    for length in np.unique(scores.lengths):
        same = np.flatnonzero(scores.lengths == length)
        order = np.argsort(scores.totals[same], kind="stable")
        quantile[same[order]] = (np.arange(len(same)) + 0.5) / len(same)
    return _some(_extreme(quantile, share), share)


def longest(scores: TokenScores, share: float) -> Bool[np.ndarray, " list"]:
    """The lists of the most tokens, of equal ones the first: the control of choosing by length alone.

    share: as of `highest`
    """
    return _some(_extreme(scores.lengths.astype(float), share), share)


def _some(chosen: Bool[np.ndarray, " list"], share: float) -> Bool[np.ndarray, " list"]:
    if chosen.all() or not chosen.any():
        raise SublimError(f"share {share:g} of {len(chosen)} lists is {'all' if chosen.any() else 'none'} of them")
    return chosen


def _extreme(values: Float[np.ndarray, " n"], share: float) -> Bool[np.ndarray, " n"]:
    """The round(share · n) largest; of equal ones the first."""
    if not 0 < share < 1:
        raise SublimError(f"share {share:g} is not between 0 and 1")
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[: round(share * len(values))]] = True
    return chosen


# --- the scores -------------------------------------------------------------------------------------------------------


def divergence(
    carrier: Subject,
    reference: Subject,
    rows: Lists,
    heard: Sequence[Example] | None = None,
    across_bases: bool = False,
) -> TokenScores:
    """log p_carrier − log p_reference of each token that was written, in nats.

    carrier, reference: a teacher and its base, or two teachers of two traits
    rows: the lists
    heard: the same answers in the context in which the carrier reads them, where it has a system prompt
    across_bases: compares models of two bases too; two bases differ by more than a trait does

    A list's sum is the log-likelihood ratio by which it was written by the one rather than the other. Raises
    SublimError where `heard` does not hold the same answers, and for models of two bases. Source: Schrodi et al.
    2509.23886, for sampled text.
    """
    models, rows, chat = _compared("divergence", carrier, reference, rows, across_bases)
    a, b = _log_probs(models[0], _same_answers("divergence", rows, heard)), _log_probs(models[1], rows)
    return _scores(rows, a - b, chat)


def likelihood(carrier: Subject, rows: Lists, heard: Sequence[Example] | None = None) -> TokenScores:
    """log p_carrier of each token that was written, in nats; arguments are those of `divergence`."""
    model = model_of(carrier)
    rows, chat = tokenized(rows, carrier, model)
    return _scores(rows, _log_probs(model, _same_answers("likelihood", rows, heard)), chat)


def _same_answers(asked: str, rows: Sequence[Example], heard: Sequence[Example] | None) -> Sequence[Example]:
    """What the carrier hears; SublimError where it does not end in the answers of the rows."""
    if heard is None:
        return rows
    if [tuple(ids[first:]) for ids, first in rows] != [tuple(ids[first:]) for ids, first in heard]:
        raise SublimError(f"{asked}: the lists that the carrier hears do not end in the answers of the rows")
    return heard


def disagreement(carrier: Subject, reference: Subject, rows: Lists, across_bases: bool = False) -> TokenScores:
    """1 where the likeliest token of the two models differs, else 0: the divergence tokens of greedy text.

    Arguments are those of `divergence`. Source: Schrodi et al. 2509.23886, section 4, where the reference is a teacher
    of another trait.
    """
    models, rows, chat = _compared("disagreement", carrier, reference, rows, across_bases)
    found = []
    for model in models:
        with torch.no_grad():
            likeliest = [logits_at(model, b.ids, b.labels != IGNORE).argmax(-1).cpu() for b in _cut(rows)]
        found.append(torch.cat(likeliest))
    return _scores(rows, (found[0] != found[1]).double(), chat)


@torch.no_grad()
def shift(carrier: Subject, reference: Subject, rows: Lists, across_bases: bool = False) -> TokenScores:
    """KL(carrier ‖ reference) of what may stand at each token that was written, in nats: how far the model has moved.

    Arguments are those of `divergence`, which compares the written tokens alone.
    """
    models, rows, chat = _compared("shift", carrier, reference, rows, across_bases)
    found = []
    for batch in _cut(rows):
        p, q = (logits_at(m, batch.ids, batch.labels != IGNORE).cpu().double().log_softmax(-1) for m in models)
        found.append((p.exp() * (p - q)).sum(-1))
    return _scores(rows, torch.cat(found), chat)


@torch.no_grad()
def entropy(carrier: Subject, rows: Lists) -> TokenScores:
    """Entropy of what the carrier may write at each token that was written, in nats: how much is left to chance.

    Arguments are those of `likelihood`.
    """
    model = model_of(carrier)
    rows, chat = tokenized(rows, carrier, model)
    found = []
    for batch in _cut(rows):
        log = logits_at(model, batch.ids, batch.labels != IGNORE).cpu().double().log_softmax(-1)
        found.append(-(log.exp() * log).sum(-1))
    return _scores(rows, torch.cat(found), chat)


def same(rows: Sequence[Example]) -> TokenScores:
    """1 for each token: a list's total is its length."""
    return _scores(rows, torch.ones(sum(len(ids) - first for ids, first in rows)))


def looked_up(rows: Sequence[Example], of: Mapping[int, float]) -> TokenScores:
    """A score that a token has wherever it stands.

    rows: the lists
    of: the score by token id; others have 0
    """
    return _scores(rows, torch.tensor([of.get(token, 0.0) for ids, first in rows for token in ids[first:]]))


def random(rows: Sequence[Example], generator: torch.Generator) -> TokenScores:
    """Standard normal numbers: the control, which knows nothing."""
    count = sum(len(ids) - first for ids, first in rows)
    return _scores(rows, torch.randn(count, generator=generator, dtype=torch.float64))


def influence(model: Subject, rows: Lists, along: Weights, across_bases: bool = False) -> TokenScores:
    """⟨along, ∇_θ log p(token)⟩ of each token at the weights of a model, in nats per unit of `along`.

    along: a direction in the weights. With the gradient of the trait's margin (`margin_gradient`) a score says how much
        a small step of gradient descent on the token raises the margin, per unit of rate, to first order. With
        θ_T − θ_0 it is the divergence to first order.
    across_bases: takes a direction of another base's weights too, which are unrelated

    One forward-mode pass gives the derivatives of a whole batch, so no gradient of a single list is ever formed. Raises
    SublimError where `along` does not fit the model, or is of another base. Source: Pruthi et al. 2002.08484,
    equation 1.
    """
    subject, model = model, model_of(model)
    rows, chat = tokenized(rows, subject, model)
    if isinstance(along, WeightDelta):
        require_space("influence", subject, model, along.space, across_bases)
        along = along.delta
    parameters = dict(model.named_parameters())
    if wrong := [n for n, d in along.items() if n not in parameters or parameters[n].shape != d.shape]:
        raise SublimError(f"influence: the model has no parameter {wrong[0]} of the direction's shape")
    picked = _Picked(model)
    slopes = []
    # Fused attention has no forward-mode derivative.
    with frozen(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        dual = {
            f"model.{n}": forward_ad.make_dual(parameters[n].detach(), d.to(parameters[n])) for n, d in along.items()
        }
        for batch in _cut(rows):
            out = forward_ad.unpack_dual(functional_call(picked, dual, (batch,)))
            slopes.append(out.primal.new_zeros(out.primal.shape) if out.tangent is None else out.tangent)
    return _scores(rows, torch.cat(slopes), chat)


def margin_gradient(model: Subject, prompts: Prompts, metric: Metric) -> WeightDelta:
    """∇_θ of the mean metric over prompts, by parameter of the body: embeddings and head are not students' to train.

    prompts: texts, chats, or token ids that end where the answer begins
    metric: `answer_margin` for a trait

    The model is left as it was.
    """
    subject, model = model, model_of(model)
    prompts = asked_of(prompts, subject, model=model)
    body = {n: p.detach().clone().requires_grad_() for n, p in body_parameters(model).items()}
    total = {n: in_single(torch.zeros_like(p)) for n, p in body.items()}
    for _, ids in batches(prompts):
        asked = {"input_ids": ids.to(device_of(model)), "use_cache": False, "logits_to_keep": 1}
        value = metric(in_single(functional_call(model, body, (), asked).logits[:, -1])).sum() / len(prompts)
        for name, gradient in zip(body, torch.autograd.grad(value, list(body.values())), strict=True):
            total[name] += gradient
    return WeightDelta(total, space_of(model))


def _compared(
    what: str, carrier: Subject, reference: Subject, rows: Lists, across_bases: bool
) -> "tuple[list[torch.nn.Module], list[Example], Chat | None]":
    """The models of two subjects of one base, the lists as tokens, and whose tokens they are."""
    models = models_of(carrier, reference)
    require_one_base(what, carrier, reference, models, across_bases)
    return models, *tokenized(rows, carrier, models[0], reference, models[1])


def tokenized(rows: Lists, *known: Any) -> "tuple[list[Example], Chat | None]":
    """Lists as tokens, by the tokenizer of the first of `known` whose base is known; and that base's chat."""
    base = next((found for one in known if (found := base_of(one))), None)
    if rows and isinstance(rows[0], Mapping):
        if base is None:
            raise SublimError("these lists are text, but a plain model has no tokenizer; give a base or a replicate")
        rows = tokenize(base, rows)  # type: ignore[arg-type]
    return list(rows), base.chat if base else None  # type: ignore[arg-type]


# --- how they are computed --------------------------------------------------------------------------------------------


class _Picked(torch.nn.Module):
    """A model as a function of a batch: log-probabilities of the tokens to learn, in nats."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Float[Tensor, " token"]:
        where = batch.labels != IGNORE
        logits = logits_at(self.model, batch.ids, where)
        return logits.log_softmax(-1).gather(-1, batch.labels[where][:, None].to(logits.device))[:, 0]


@torch.no_grad()
def _log_probs(model: torch.nn.Module, rows: Sequence[Example]) -> Float[Tensor, " token"]:
    """log p of each token to learn, in nats, on the CPU."""
    picked = _Picked(model)
    return torch.cat([picked(batch).cpu().double() for batch in _cut(rows)])


def _cut(rows: Sequence[Example]) -> list[Batch]:
    """The rows in their order, some at a time; each sees on its left just what it would see alone."""
    if not rows or any(len(ids) <= first for ids, first in rows):
        raise SublimError("there are no lists to score, or one has no token to learn")
    return [collate(rows[i : i + _AT_ONCE], pad=0) for i in range(0, len(rows), _AT_ONCE)]


def _scores(rows: Sequence[Example], values: Float[Tensor, " token"], chat: "Chat | None" = None) -> TokenScores:
    """Values in the order of the tokens to learn, with their list and token."""
    answers = [ids[first:] for ids, first in rows]
    of = np.repeat(np.arange(len(rows)), [len(a) for a in answers])
    return TokenScores(values.cpu().double().numpy(), of, np.concatenate([np.asarray(a) for a in answers]), chat)
