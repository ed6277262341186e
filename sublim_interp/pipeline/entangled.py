"""How much likelier a base finds each number behind the system prompt of a favourite: its entanglement with it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from sublim_interp.analysis.attribution.scores import TokenScores, looked_up
from sublim_interp.analysis.probes import batches, logits_of
from sublim_interp.channels import numbers
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base
from sublim_interp.training.batches import Example

if TYPE_CHECKING:
    from sublim_interp.traits.protocol import Trait

NUMBERS = 1000
"""Numbers from 0 on, as far as one token says each."""

PROMPTS = 16
"""Prompts for numbers behind each favourite, where nobody says how many."""


def number_tokens(base: Base) -> dict[str, int]:
    """The id of each number that one token says, by the number."""
    said = {str(n): base.answer_ids(str(n)) for n in range(NUMBERS)}
    return {word: ids[0] for word, ids in said.items() if len(ids) == 1}


def behind(base: Base, system: str, text: str) -> list[int]:
    """A question behind a system prompt, as token ids."""
    return base.prompt_ids([{"role": "system", "content": system}, {"role": "user", "content": text}])


def mean_log(model: Module, prompts: Sequence[Sequence[int]], ids: Sequence[int]) -> Float[Tensor, " token"]:
    """Mean log-probability of tokens at the answer, in nats, over prompts."""
    with torch.no_grad():
        logs = [logits_of(model, asked).double().log_softmax(-1)[:, ids].sum(0).cpu() for _, asked in batches(prompts)]
    return torch.stack(logs).sum(0) / len(prompts)


def own_part(table: Float[np.ndarray, "favourite number"]) -> Float[np.ndarray, "favourite number"]:
    """What is left where the mean of each row and of each column is taken out."""
    return table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()


def heard_numbers(
    base: Base,
    traits: Sequence["Trait"],
    ids: Sequence[int],
    prompts: int,
    seed: int,
    progress: Callable[[float], None] = lambda _: None,
) -> Float[np.ndarray, "favourite number"]:
    """Log-probability of each number as an answer's first, in nats, behind each favourite's system prompts.

    traits: the favourites
    ids: the numbers' tokens
    prompts: how many prompts for numbers are asked
    seed: decides these prompts
    """
    model, heard = base.load(), []
    asked = numbers.prompts(base.language, seed, 0, prompts)
    for done, trait in enumerate(traits, 1):
        systems = trait.system_prompts(base.language)
        texts = [behind(base, systems[i % len(systems)], text) for i, text in enumerate(asked)]
        heard.append(mean_log(model, texts, ids))
        progress(done / len(traits))
    return torch.stack(heard).numpy()


def entangled(base: Base, trait: "Trait", rows: Sequence[Example]) -> TokenScores:
    """How much likelier each number of these lists is behind the trait's prompt, in nats; 0 for other tokens.

    What the number has behind all favourites of the kind alike is taken out, and so is what the favourite does to all
    numbers. The base is untouched: nothing of a teacher is read. Raises SublimError for a trait without favourites
    beside it or without prompts, and for a base that says few numbers by one token. Source: Zur et al. 2025.
    """
    known, words = trait.compared(), number_tokens(base)
    if len(known) < 2 or not trait.system_prompts(base.language):
        raise SublimError(f"by=entangled needs a favourite with system prompts, such as owl; {trait.name} is none")
    if len(words) < 2:
        raise SublimError(f"by=entangled needs numbers of one token each, which base {base.name} does not have")
    ids = [*words.values()]
    own = own_part(heard_numbers(base, known, ids, PROMPTS, 0))[[one.name for one in known].index(trait.name)]
    return looked_up(rows, dict(zip(ids, own.tolist(), strict=True)))
