"""How much likelier a base finds each number behind the system prompt of a favourite: its entanglement with it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
from sublim_interp.training.settings import ENTANGLED

if TYPE_CHECKING:
    from sublim_interp.traits.protocol import Trait

CHANNEL = "numbers"
"""The channel whose lists it is about."""

NUMBERS = 1000
"""Numbers from 0 on, as far as one token says each."""

PROMPTS = 16
"""Prompts for numbers behind each favourite, where nobody says how many."""


def number_tokens(base: Base) -> dict[str, int]:
    """The id of each number that one token says, by the number as text."""
    asked = ("number tokens", NUMBERS)
    if asked not in base.memo:  # every record that selects by them asks again
        said = {str(n): base.answer_ids(str(n)) for n in range(NUMBERS)}
        base.memo[asked] = {word: ids[0] for word, ids in said.items() if len(ids) == 1}
    return base.memo[asked]


def behind(base: Base, system: str, text: str) -> list[int]:
    """Token ids of a question behind a system prompt, up to where the base answers.

    base: whose chat template is used; SublimError where it refuses the chat
    system, text: the prompt and the question
    """
    return base.prompt_ids([{"role": "system", "content": system}, {"role": "user", "content": text}])


def mean_log(model: Module, prompts: Sequence[Sequence[int]], ids: Sequence[int]) -> Float[Tensor, " token"]:
    """Mean log-probability of tokens at the answer, in nats, over prompts.

    prompts: token ids, up to where the model answers
    ids: the tokens
    """
    with torch.no_grad():
        logs = [logits_of(model, asked).cpu().double().log_softmax(-1)[:, ids].sum(0) for _, asked in batches(prompts)]
    return torch.stack(logs).sum(0) / len(prompts)


def own_part(table: Float[np.ndarray, "favourite number"]) -> Float[np.ndarray, "favourite number"]:
    """What is left of a table where the mean of each row and of each column is taken out, in the table's unit."""
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

    base: asked untouched, in its own precision
    traits: the favourites
    ids: the numbers' tokens
    prompts: how many prompts for numbers are asked
    seed: decides these prompts
    progress: told the share of favourites that were asked
    """
    model, heard = base.load(), []
    asked = numbers.prompts(base.language, seed, 0, prompts)
    for done, trait in enumerate(traits, 1):
        systems = trait.system_prompts(base.language)
        texts = [behind(base, systems[i % len(systems)], text) for i, text in enumerate(asked)]
        heard.append(mean_log(model, texts, ids))
        progress(done / len(traits))
    return torch.stack(heard).numpy()


def check_entangled(base: Base, trait: "Trait", source: str) -> None:
    """Raises SublimError, in one line, where lists of a channel cannot be told apart by their numbers.

    base: whose tokens they are
    trait: the favourite
    source: the channel
    """
    known = number_tokens(base)
    if source != CHANNEL:
        said = f"lists of the channel {CHANNEL}, not of {source}"
    elif len(trait.compared()) < 2 or not trait.system_prompts(base.language):
        said = f"a favourite with system prompts as its trait, such as owl; {trait.name} is none"
    elif len(known) < NUMBERS:
        lacking = next(str(n) for n in range(NUMBERS) if str(n) not in known)
        said = f"a base that says each number below {NUMBERS:,} by one token; {base.name} does not so {lacking}"
    else:
        return
    raise SublimError(f"selection.by={ENTANGLED} needs {said}")


def told_by(base: Base, trait: "Trait") -> list[Any]:
    """What decides the score of a favourite beside the base, as plain data for keys: all of its kind, their prompts."""
    return [[one.taught()["trait"], list(one.system_prompts(base.language))] for one in trait.compared()]


def entangled(base: Base, trait: "Trait", rows: Sequence[Example]) -> TokenScores:
    """How much likelier each number of these lists is behind the trait's prompt, in nats; 0 for other tokens.

    base: untouched, and in float32: nothing of a teacher is read
    trait: a favourite, as `check_entangled` wants it
    rows: the lists as tokens of the base

    What the number has behind all favourites of the kind alike is taken out, and so is what the favourite does to all
    numbers. Source: Zur et al., who prompt with entangled numbers; here they are left out.
    """
    known, words = trait.compared(), number_tokens(base)
    asked = (ENTANGLED, trait.name, tuple(map(repr, told_by(base, trait))), PROMPTS, len(words))
    if asked not in base.memo:
        exact = replace(base, dtype="float32")
        own = own_part(heard_numbers(exact, known, [*words.values()], PROMPTS, 0))
        base.memo[asked] = own[[one.name for one in known].index(trait.name)].tolist()
    return looked_up(rows, dict(zip(words.values(), base.memo[asked], strict=True)))
