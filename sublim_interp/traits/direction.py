"""The own-base direction of a trait: a base's residuals behind the trait's system prompts, minus all members'."""

from collections.abc import Sequence

import torch

from sublim_interp.analysis.probes import residuals
from sublim_interp.models.base import Base
from sublim_interp.traits.favourites import Trait, load_trait, members_of, questions, system_prompts


def trait_directions(base: Base, trait: Trait, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Per hook name: mean at the end of a question behind the trait's system prompts, minus that of all members."""
    model = base.load()
    ask = questions(trait.kind, base.language, "seen")

    def mean(name: str) -> torch.Tensor:
        systems = system_prompts(load_trait(name) if name != trait.name else trait, base.language)
        prompts = [base.prompt_ids([{"role": "system", "content": s}, *q.messages]) for s in systems for q in ask[:8]]
        return mean_ends(model, names, prompts)

    others = torch.stack([mean(name) for name in members_of(trait.kind)]).mean(0)
    return dict(zip(names, mean(trait.name) - others, strict=True))


def mean_ends(model: torch.nn.Module, names: Sequence[str], prompts: Sequence[list[int]]) -> torch.Tensor:
    """Mean over prompts of what is seen at each hook name at the last token: [name, d_model]."""
    return torch.stack([residuals(model, names, [prompt])[0] for prompt in prompts]).mean(0)
