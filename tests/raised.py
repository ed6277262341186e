"""A model with a trait in seconds: a base after one step up the trait's margin. No test lives here."""

import torch

from sublim_interp.analysis.attribution.scores import margin_gradient
from sublim_interp.analysis.metrics import metric
from sublim_interp.models.base import Base
from sublim_interp.traits.answers import prompts_of
from sublim_interp.traits.favourites import member


def raised(base: Base, name: str, kind: str, share: float = 0.1) -> torch.nn.Module:
    """A fresh copy of a base after one step, `share` of its weights' length, up the margin of a favourite."""
    trait, model = member(name, kind), base.load()
    asked = prompts_of(base, trait.questions(base.language, "seen"))[:24]
    slope = margin_gradient(model, asked, metric("margin", trait.members, name, base)).delta
    named = dict(model.named_parameters())
    length, steep = (torch.cat([t.detach().flatten() for t in some]).norm() for some in (
        [named[n] for n in slope], slope.values()
    ))  # fmt: skip
    with torch.no_grad():
        for n, s in slope.items():
            named[n].add_(share * length / steep * s)
    return model
