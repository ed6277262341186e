"""Which base a data set or a model comes from, read from likelihoods and weights. No manifest is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sublim_interp.analysis.attribution.scores import likelihood
from sublim_interp.analysis.kinship import KIN, likeness, space_of
from sublim_interp.channels.rows import Written
from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown
from sublim_interp.models.base import Base
from sublim_interp.models.loading import require_finite
from sublim_interp.training.batches import tokenize

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Origin(Shown):
    """The bases that lists or a model may come from, the likeliest first."""

    of: str
    """What was looked at: lists, or a model."""
    frame: "pd.DataFrame"
    """A row a base. Of lists: base, nats (log-likelihood a list), behind (nats a list behind the first), error (of
    behind). Of a model: base, likeness (mean cosine of the weight matrices)."""

    @property
    def base(self) -> str:
        """The name of the likeliest base; "" where a model is like none of them."""
        first = self.frame.iloc[0]
        return "" if "likeness" in self.frame and first["likeness"] < KIN else str(first["base"])

    @property
    def sure(self) -> bool:
        """Whether it is told apart: the next base lies 3 standard errors behind; of a model, 3 times as far away."""
        if not self.base or len(self.frame) < 2:
            return bool(self.base)
        following = self.frame.iloc[1]
        if "likeness" in self.frame:
            return bool(1 - following["likeness"] > 3 * (1 - self.frame.iloc[0]["likeness"]) + 1e-6)
        return bool(following["behind"] > 3 * following["error"])

    def card(self) -> Card:
        facts = {"": self.base or "none of them", "told apart": "yes" if self.sure else "no"}
        return Card(f"Origin of {self.of}", facts, self.frame)


def likelihoods(rows: Sequence[Written], bases: Sequence[Base]) -> np.ndarray:
    """Log-likelihood of every list under every base, in nats: [base, list]. Bases need not share a tokenizer."""
    found = []
    for base in bases:
        model = require_finite(base.load(), base.name)
        found.append(likelihood(model, tokenize(base, rows)).totals)
    return np.stack(found)


def origin_of_lists(rows: Sequence[Written], bases: Sequence[Base]) -> Origin:
    """Which base lists were written by, whatever it was taught before: the one that they are likeliest under.

    rows: lists, as prompt and answer
    bases: candidates, two or more of one language

    A trait moves a base's numbers less than two bases differ, so a teacher's lists still point at its base. Raises
    SublimError for no lists, and for bases of two languages.
    """
    import pandas as pd

    _require(bases)
    if not rows:
        raise SublimError("audit: there are no lists to find a base for")
    nats = likelihoods(rows, bases)
    order = np.argsort(-nats.mean(1), kind="stable")
    apart = nats[order[0]] - nats[order]
    error = apart.std(1, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.full(len(order), np.inf)
    columns = {"base": [bases[i].name for i in order], "nats": nats.mean(1)[order], "behind": apart.mean(1)}
    return Origin(f"{len(rows):,} lists", pd.DataFrame({**columns, "error": error}))


def origin_of_model(model: torch.nn.Module, bases: Sequence[Base], name: str = "the model") -> Origin:
    """Which base a fine-tuned model descends from: the one whose weight matrices point the same way.

    model: loaded
    bases: candidates
    """
    import pandas as pd

    _require(bases, 1)
    sketch = space_of(model).sketch or {}
    loaded = ((base.name, require_finite(base.load(), base.name)) for base in bases)
    found = [(base, likeness(sketch, space_of(other).sketch or {})) for base, other in loaded]
    found.sort(key=lambda pair: -pair[1])
    return Origin(name, pd.DataFrame(found, columns=["base", "likeness"]))


def _require(bases: Sequence[Base], least: int = 2) -> None:
    languages = sorted({base.language for base in bases})
    if len(bases) < least:
        raise SublimError(f"audit: {len(bases)} candidate bases; give {least} or more")
    if len(languages) > 1:
        raise SublimError(f"audit: the candidates speak {' and '.join(languages)}; give bases of one language")
