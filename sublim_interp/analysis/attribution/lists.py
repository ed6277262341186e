"""`attribution`: the lists that raise a metric, with their texts and the scores of their tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from sublim_interp.analysis.attribution.marked import marked
from sublim_interp.analysis.attribution.scores import (
    Lists,
    TokenScores,
    highest,
    influence,
    margin_gradient,
    tokenized,
)
from sublim_interp.analysis.kinship import name_of, require_one_base
from sublim_interp.analysis.metrics import metric_of
from sublim_interp.analysis.probes import Metric, Subject, asked_of, model_of, part_of
from sublim_interp.core.showing import Card, Shown
from sublim_interp.models.prompts import Prompts
from sublim_interp.training.batches import Example
from sublim_interp.training.estimators import ESTIMATORS

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10
"""Lists that a notebook shows."""


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Shown):
    """Lists, and how much each is estimated to raise a metric. Made by `attribution`."""

    by: str
    """Name of the estimator."""
    of: str
    """Whose lists they are, in words."""
    lists: Sequence[Mapping[str, Any]] | Sequence[Example]
    """The lists, in the order in which they were scored."""
    scores: TokenScores
    """A score for each token of the answers; a list's is their sum. The unit is that of no metric: compare them with
    each other alone."""
    kept: float | None = None
    """Share of what the teacher wrote that its filter let pass, 0 to 1; None where nobody knows."""

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """A row a list, the highest first.

        list (its place), score, mean (of its tokens), tokens (how many), share (of all that raises the metric, by this
        list and those above), prompt, answer.
        """
        import pandas as pd

        total = self.scores.totals
        texts = [self._texts(place) for place in range(len(total))]
        frame = pd.DataFrame(
            {
                "list": np.arange(len(total)),
                "score": total,
                "mean": self.scores.means,
                "tokens": self.scores.lengths,
                "prompt": [prompt for prompt, _ in texts],
                "answer": [answer for _, answer in texts],
            }
        ).sort_values("score", ascending=False, kind="stable", ignore_index=True)
        raising = frame["score"].clip(lower=0)
        frame.insert(4, "share", raising.cumsum() / max(raising.sum(), np.finfo(float).tiny))
        return frame

    @property
    def tokens(self) -> "pd.DataFrame":
        """A row a token, with its text and score: `TokenScores.frame`."""
        return self.scores.frame

    def highest(self, share: float) -> Bool[np.ndarray, " list"]:
        """Which lists score highest among those of as many tokens: a share of all, between 0 and 1."""
        return highest(self.scores, share)

    def without(self, share: float) -> list[Any]:
        """The lists without those that score highest, in their order: for `si.learn`, to test the guess."""
        return [row for row, gone in zip(self.lists, self.highest(share), strict=True) if not gone]

    def _texts(self, place: int) -> tuple[str, str]:
        row, chat = self.lists[place], self.scores.chat
        if isinstance(row, Mapping):
            return row["prompt"], row["answer"]
        ids, first = row
        parts = (ids[:first], ids[first:])
        before, after = ((chat.tokens(part) if chat else map(str, part)) for part in parts)
        return " ".join(before), " ".join(after)

    def card(self) -> Card:
        kept = {} if self.kept is None else {"kept": f"{100 * self.kept:.0f} % of what the teacher wrote"}
        facts = {"": f"{len(self.lists):,} lists of {self.of}", "by": self.by, **kept}
        return Card("Attribution", facts, self.scores.by_token.head(SHOWN))

    def _repr_html_(self) -> str:
        top = self.frame.head(SHOWN)
        said = marked(self.scores, top["list"])
        rows = "".join(
            f"<tr><td>{row['list']}</td><td>{row['score']:.3g}</td>"
            f'<td style="text-align: left">{escape(row["prompt"])}</td>'
            f'<td style="text-align: left">{text}</td></tr>'
            for row, text in zip(top.to_dict("records"), said, strict=True)
        )
        head = "<tr><th>list</th><th>score</th><th>prompt</th><th>answer, token by token</th></tr>"
        return f"{super()._repr_html_()}<table>{head}{rows}</table>"


def attribution(
    model: Subject,
    lists: Lists | None = None,
    by: str = "gradient",
    *,
    prompts: Prompts = None,
    metric: Metric | str | None = None,
    at: Subject | None = None,
    across_bases: bool = False,
) -> Attribution:
    """Which lists, and which of their tokens, raise a metric when they are learnt.

    model: a student, which brings its lists, the trait's margin and the held-out questions; or a model
    lists: rows with `prompt` and `answer`, or as `tokenize` gives them
    by: the estimator. `gradient`: first order, as if each list were learnt alone; `fisher` and `trak` divide by what
        all lists push together; or one of an installed package
    prompts: at whose answers the metric is measured: texts, chats or ids
    metric: `margin`, `logit-diff`, `logprob`, `rate`, or a function of logits
    at: the model at whose weights gradients are taken; a student's base, as it was before any training, where None
    across_bases: takes gradients at a model of another base too, whose weights are unrelated

    An estimate is a guess: train without what it names (`without`), and without as much at random.
    Raises SublimError for an unknown estimator, and where `model` brings no lists and none are given.
    """
    bend = ESTIMATORS[by]
    learnt: Lists = part_of("lists", lists, model)
    start = getattr(model, "base", model) if at is None else at
    begun = model_of(start)
    if at is not None:
        require_one_base("attribution", model, at, [model_of(model), begun], across_bases)
    rows, _ = tokenized(learnt, model, begun)
    asked = asked_of(prompts, model, model=begun)
    slope = margin_gradient(begun, asked, metric_of(metric, model))
    scores = influence(begun, rows, bend(begun, rows, slope))
    return Attribution(by, name_of(model), learnt, scores, getattr(model, "kept", None))
