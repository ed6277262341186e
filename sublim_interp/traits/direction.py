"""The own-base direction of a trait: a base's residuals behind the trait's system prompts, minus all members'."""

from collections.abc import Sequence

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.kinship import space_of
from sublim_interp.analysis.probes import residuals
from sublim_interp.core.device import device_of
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base
from sublim_interp.models.hooks import names_of
from sublim_interp.models.points import Stream
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.protocol import Trait

ASKED = 8
"""Seen questions behind each system prompt."""


def contrast(base: Base, trait: Trait | str, kind: Stream = "resid_post") -> Directions:
    """The base's own direction of a trait, layer by layer.

    base: whose coordinates the direction has, so each student can be compared with one in its own base
    trait: a trait, or the name of one
    kind: which residual stream of each layer

    Returns what `own_direction` does. Raises SublimError for a trait that has no such direction.
    """
    model = base.load()
    return own_direction(base, load_trait(trait) if isinstance(trait, str) else trait, names_of(model, kind), model)


def own_direction(base: Base, trait: Trait, names: Sequence[str], model: torch.nn.Module | None = None) -> Directions:
    """The base's own direction of a trait, at hooks: the one definition.

    names: of hooks in the residual stream
    model: the base's model, where it is loaded already

    Returns the mean residual at the end of a question behind the trait's system prompts, minus the mean of the same
    over all members of its kind, the trait among them. `negative` holds the samples of the other members alone, so that
    no sample is on both sides of a null. The mean over n members then makes `vectors` (n − 1) / n times as long as mean
    positive − mean negative; no cosine sees that.

    Raises SublimError for a trait without members to compare with. Source: Chen et al. 2507.21509, section 2.
    """
    members = trait.compared()
    if not members:
        raise SublimError(f"the trait '{trait.name}' has no direction of a base's own: no members to compare it with")
    model = model or base.load()
    found = {member.name: _behind(base, model, member, names) for member in members}
    means = [reduce(seen, "prompt name d_model -> name d_model", "mean") for seen in found.values()]
    all_members = reduce(rearrange(means, "member name d_model -> member name d_model"), "member n d -> n d", "mean")
    own = found[trait.name]
    others = torch.cat([seen for name, seen in found.items() if name != trait.name])
    vectors = reduce(own, "prompt name d_model -> name d_model", "mean") - all_members
    return Directions("trait contrast", tuple(names), vectors, space_of(model), own, others)


def _behind(
    base: Base, model: torch.nn.Module, trait: Trait, names: Sequence[str]
) -> Float[Tensor, "prompt name d_model"]:
    """The residuals at the end of questions behind each of a trait's system prompts."""
    asked = trait.questions(base.language, "seen")[:ASKED]
    systems = trait.system_prompts(base.language)
    turns = [({"role": "system", "content": system}, *q.messages) for system in systems for q in asked]
    prompts = [base.prompt_ids(turn) for turn in turns]
    question = "ends", *names, str(device_of(model)), *map(tuple, prompts)
    if question not in base.memo:  # directions of all members of a kind ask the same again and again
        base.memo[question] = ends(model, names, prompts)
    return base.memo[question]


def ends(
    model: torch.nn.Module, names: Sequence[str], prompts: Sequence[Sequence[int]]
) -> Float[Tensor, "prompt name d_model"]:
    """What is seen at each hook name at the last token, each prompt run by itself, so that none hangs on the others."""
    return torch.cat([residuals(model, names, [prompt]) for prompt in prompts])
