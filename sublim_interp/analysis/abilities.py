"""What can be seen and changed inside a model, each answer with its reason: what `sublim doctor` tells of a base."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from sublim_interp.analysis.patching.cells import see, sites_of
from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import architecture_of, text_config
from sublim_interp.models.hooks import capture, hook_names, kind_of, lens_of, require_stream
from sublim_interp.models.points import STREAM


class Ability(NamedTuple):
    """One thing that may be asked of a model."""

    what: str
    """In the words of the command and the library."""
    text: str
    """What there is of it, or why there is nothing."""
    there: bool
    """Whether there is any."""


def abilities(model: torch.nn.Module) -> list[Ability]:
    """What a model offers to hooks, patches, recordings and the bridge; each is tried out on two short rows.

    Analysis of what is not there ends in the line that is given here, before anything runs.
    """
    ids = torch.tensor([[1, 2, 3], [3, 1, 2]]) % text_config(model).vocab_size

    def stream() -> str:
        require_stream(model)
        names = hook_names(model, STREAM)
        with torch.no_grad(), capture(model, names):
            see(model, [], ids)
        kinds = ", ".join(dict.fromkeys(map(kind_of, names)))
        return kinds if architecture_of(model) else f"{kinds}; what lies within a layer of this type is not known"

    def patterns() -> str:
        names = hook_names(model, ("pattern",))
        if not names:
            raise SublimError(f"of the type {text_config(model).model_type} none is known")
        with torch.no_grad(), capture(model, names):
            see(model, [], ids)
        return f"of {len(names)} layers"

    def heads() -> str:
        sites = [*sites_of(model, "heads")]
        found = see(model, sites, ids)
        return f"{found[sites[0]].shape[2]} in each of {len(sites)} layers"

    def lens() -> str:
        norm, _ = lens_of(model)
        return f"by {type(norm).__name__}"

    def bridge() -> str:
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

        if type(model).__name__ not in SUPPORTED_ARCHITECTURES:
            raise SublimError(f"TransformerLens does not know {type(model).__name__}")
        return "TransformerLens knows the type; bridge() compares its logits"

    asked: dict[str, Callable[[], str]] = {
        "stream: capture, edit, record, directions, grids": stream,
        "attention patterns": patterns,
        "heads": heads,
        "logit lens": lens,
        "bridge": bridge,
    }
    return [_tried(what, how) for what, how in asked.items()]


def _tried(what: str, how: Callable[[], str]) -> Ability:
    try:
        return Ability(what, how(), True)
    except SublimError as error:
        return Ability(what, str(error), False)
