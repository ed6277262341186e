"""Study entanglement: whether a base's numbers and favourites raise each other, asked both ways. Nothing trains."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from sublim_interp.core.settings import name_once
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.tables import read_table
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.report.wording import capital, count
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.sweeps.piecewise import Piecewise, Rows
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

    from sublim_interp.traits.favourites import Favourite

ASKED = 8
"""Questions behind each number's prompt, at most."""

MEASURES = {
    "r": "numbers behind the favourite's prompt, with favourites behind the number's",
    "wrong names": "the same, favourites of one side named wrongly: the highest of all shifts of their names",
    "raw": "the same, nothing taken out",
    "unembedding": "numbers behind the favourite's prompt, with the cosine of both tokens in the unembedding",
}
"""Columns of `bases.csv`: what is correlated with what."""


class Entanglement(Piecewise):
    """Correlates what favourites do to numbers with what numbers do to favourites, a base each."""

    VERSION, FIGURE, TABLES = 1, "entanglement", ("bases",)

    kind: str = "animal"
    """Whose members are the favourites."""
    bases: tuple[str, ...] = Field(min_length=1)
    """Bases, one row each."""
    prompts: int = Field(default=16, ge=1, le=10_000)
    """Prompts for numbers, whose answer's first number is heard."""
    seed: int = 0
    """Of these prompts, and of the wrong names."""

    @model_validator(mode="after")
    def _coherent(self) -> "Entanglement":
        name_once(self, "bases")
        return self

    @property
    def replicates(self) -> int:
        return len(self.bases)

    def inputs(self) -> dict[str, str]:
        return {name: resolve_base(name).digest for name in self.bases}

    def pieces(self) -> Mapping[str, tuple[str]]:
        return {name: (name,) for name in self.bases}

    def seconds(self) -> float:
        return 30.0 + 0.2 * self.prompts

    def measure(self, directory: Path, progress: Progress, *which: str) -> Mapping[str, Rows]:
        (base,) = map(resolve_base, which)
        return {"bases": [{"base": base.name, **correlations(base, self, progress)}]}

    def table(self, directory: Path) -> SweepTable:
        frame = read_table(directory / "bases.csv")
        found = {name: _interval(frame, name) for name in MEASURES}
        rows = [(name, minus(found[name].plain())) for name in MEASURES]
        says = "raise" if found["r"].low > max(found["wrong names"].high, 0) else "do not measurably raise"
        return SweepTable(
            f"Correlation over all {self.kind}s and numbers of log-probabilities, means over "
            f"{count(len(frame), 'base')} with 95 % intervals.",
            ("measure", "correlation"),
            rows,
            [
                f"Numbers and {self.kind}s {says} each other, by the interval beside that of wrong names.",
                *(f"{capital(name)}: {meaning}." for name, meaning in MEASURES.items()),
                "Taken out, but where nothing is: what each number and each favourite has in all prompts alike.",
            ],
        )

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        return FIGURES[self.FIGURE].draw(read_table(directory / "bases.csv"))


def _interval(frame: "pd.DataFrame", measure: str) -> Interval:
    return mean_interval(frame[measure].to_list(), bounds=(-1, 1))


def correlations(base: Base, study: Entanglement, progress: Progress = lambda _: None) -> dict[str, float]:
    """Every correlation of a base, −1 to 1. Raises SublimError where it cannot be asked about the kind.

    Source: Zur et al. prompt with an entangled number, as with the favourite itself. Here all numbers are tried.
    """
    import torch

    from sublim_interp.pipeline.entangled import behind, heard_numbers, mean_log, number_tokens, own_part
    from sublim_interp.traits.favourites import check_kind, member, members_of

    check_kind(study.kind, base)
    traits = [member(name, study.kind) for name in members_of(study.kind)]
    answers = [base.answer_ids(trait.name)[0] for trait in traits]
    words = number_tokens(base)
    to_numbers = heard_numbers(
        base, traits, [*words.values()], study.prompts, study.seed, lambda share: progress(0.3 * share)
    )
    model, heard = base.load(), []
    questions = [q.text for q in traits[0].questions(base.language, "seen")]
    questions = questions[:: -(-len(questions) // ASKED)]
    for done, word in enumerate(words, 1):
        system = _names_number(traits[0].system_prompts(base.language)[0], traits[0], word)
        heard.append(mean_log(model, [behind(base, system, text) for text in questions], answers))
        progress(0.3 + 0.7 * done / len(words))
    to_favourites = torch.stack(heard, 1).numpy()
    head: Any = model.get_output_embeddings()
    near = _unit_cosines(head.weight, answers, [*words.values()])
    own, other = own_part(to_numbers), own_part(to_favourites)
    return {
        "r": _correlation(own, other),
        "wrong names": max(_correlation(own, np.roll(other, k, 0)) for k in range(1, len(traits))),
        "raw": _correlation(to_numbers, to_favourites),
        "unembedding": _correlation(own, own_part(near)),
    }


def _names_number(text: str, trait: "Favourite", word: str) -> str:
    """A favourite's system prompt with a number in place of the favourite and its article."""
    return re.sub(rf"\b(?:(?:the|an?) )?(?:{re.escape(trait.plural)}|{re.escape(trait.name)})\b", word, text)


def _unit_cosines(head: "Tensor", answers: Sequence[int], numbers: Sequence[int]) -> Float[np.ndarray, "answer number"]:
    """Cosines of tokens' rows in the unembedding."""
    import torch

    unit = torch.nn.functional.normalize(head.detach().cpu().double(), dim=1)
    return (unit[answers] @ unit[numbers].T).numpy()


def _correlation(one: Float[np.ndarray, "a b"], other: Float[np.ndarray, "a b"]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
